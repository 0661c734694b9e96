"""The modules of a sub-layer as the forward pass found them, for the recomputation of the step.

Between a forward and its backward pass weights may be substituted (``torch.func.functional_call``),
adapters switched, modules put into another mode or exchanged. Plain autograd does not notice, since
it calls no module again; a recomputation has to find what the forward pass found.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# What every module has, and what of it decides how it computes in the forward pass. The rest, such
# as hooks of gradients and of saving, may come and go.
_DECISIVE = {"training", "_parameters", "_buffers", "_modules"}
_DECISIVE |= {name for name in vars(nn.Module()) if name.startswith("_forward")}
_INTERNALS = frozenset(vars(nn.Module())) - _DECISIVE
_CONTAINERS = (dict, OrderedDict, list, set)


class ModuleState:
    """What decides how modules compute: weights, buffers, parts, mode and configuration.

    Args:
        root: the module that is called.
        weights: false where somebody else (FSDP2) brings the weights in and takes them out again.

    Raises:
        RuntimeError: in :meth:`reinstated`, if a weight was changed in place.
    """

    def __init__(self, root: nn.Module, weights: bool = True) -> None:
        self._root, parts = root, list(root.modules())
        left_out = _INTERNALS if weights else _INTERNALS | {"_parameters"}
        objects: list[object] = [*parts, *filter(None, [getattr(root, "config", None)])]
        self._contents = [_Contents(vars(one), left_out) for one in objects]
        own = [p for part in parts for p in part._parameters.values() if p is not None]
        self._parameters = tuple({id(p): p for p in own}.values())
        self._marks = [_mark(p) for p in self._parameters] if weights else []
        # Buffers that a call changes (running statistics, power iterations) change in place.
        buffers = [b for part in parts for b in part._buffers.values() if b is not None]
        self._buffers = [(b, b._version, b.detach().clone()) for b in buffers if root.training]

    @contextlib.contextmanager
    def reinstated(self) -> Iterator[None]:
        """The modules as they were; what they are now comes back after."""
        for parameter, mark in zip(self._parameters, self._marks, strict=False):
            if _mark(parameter) != mark:
                self._refuse(parameter)
        with contextlib.ExitStack() as back:
            for contents in self._contents:
                if contents.changed():
                    back.callback(contents.exchange, contents.exchange(contents.then))
            for buffer, version, then in self._buffers:
                if buffer._version != version:
                    back.callback(_write, buffer, buffer.detach().clone())
                    _write(buffer, then)
            yield

    def _refuse(self, parameter: Tensor) -> None:
        names = (name for name, p in self._root.named_parameters() if p is parameter)
        raise RuntimeError(
            f"the weight `{next(names, list(parameter.shape))}` of a {type(self._root).__name__} "
            "was changed in place between the forward and the backward pass, which must compute "
            "what the forward pass computed: change weights after `backward()`, or set "
            "`config.reversible=False`"
        )


class _Contents:
    """The attributes of an object, then and now.

    Attributes:
        then: by name.
    """

    def __init__(self, live: dict[str, Any], left_out: frozenset[str]) -> None:
        self._live = live
        self.then = {name: value for name, value in live.items() if name not in left_out}
        # Containers of their own, so that a change in place shows.
        self._copies = [
            (name, value, value.copy())
            for name, value in self.then.items()
            if type(value) in _CONTAINERS
        ]
        self._left_out = left_out

    def changed(self) -> bool:
        """Whether an attribute, or an element of one that is a container, was exchanged."""
        live = self._live
        if any(name not in live or live[name] is not value for name, value in self.then.items()):
            return True
        return any(not _same_elements(value, copy) for _, value, copy in self._copies)

    def exchange(self, new: dict[str, Any]) -> dict[str, Any]:
        """Put other attributes in the place of the present ones, which are returned."""
        live = self._live
        present = {name: value for name, value in live.items() if name not in self._left_out}
        for name in present.keys() - new.keys():
            del live[name]
        live.update(new)
        if new is self.then:
            live.update((name, copy.copy()) for name, _, copy in self._copies)
        return present


def _same_elements(a: Any, b: Any) -> bool:
    if len(a) != len(b) or isinstance(a, set):
        return bool(a == b)
    if isinstance(a, dict):
        return all(name in a and a[name] is value for name, value in b.items())
    return all(x is y for x, y in zip(a, b, strict=True))


def _mark(parameter: Tensor) -> tuple[int, int]:
    """What changes when numbers are written into a weight, or others put in their place."""
    plain = type(parameter) in (Tensor, nn.Parameter)
    version = 0 if parameter.is_inference() else parameter._version
    return version, parameter.data_ptr() if plain else 0


@torch.no_grad()
def _write(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
