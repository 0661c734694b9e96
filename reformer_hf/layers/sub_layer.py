"""A residual sub-layer: a module, and the step of the reversible engine that calls it."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from reformer_hf.ops.reversible import ReversibleStep, Take


class SubLayer(nn.Module):
    """Base of the sub-layers: subclasses compute ``residual(x, ...)``.

    Calling the module computes the residual. Under FSDP2 (``fully_shard``) the weights are whole
    only while the module is called, so there the engine's step is taken within such a call.
    """

    def residual(self, x: Tensor, *inputs: Any, **settings: Any) -> Tensor:
        """What the sub-layer adds ``[B, N, d]`` to one stream, from the other ``[B, N, d]``.

        One of the settings is ``values``; where it is false, only the gradients of the result
        matter, not its values (see :func:`~reformer_hf.layers.projection.project`).
        """
        raise NotImplementedError

    def forward(self, x: Tensor, *inputs: Any, take: Take | None = None, **settings: Any) -> Tensor:
        """The residual; with ``take`` (see there), ``x`` is a token and the step is taken now."""
        if take is not None:
            return take(x, partial(self.residual, **settings), tuple(self.parameters()))
        return self.residual(x, *inputs, **settings)

    def step(
        self, *, inputs: tuple[Tensor, ...] = (), chunk_size: int = 0, **settings: Any
    ) -> ReversibleStep:
        """The sub-layer as a step of the engine.

        Args:
            inputs: tensors that the residual takes besides ``x`` and that may need gradients.
            chunk_size: if positive, call it on slices of that many positions.
            **settings: what else the residual takes.

        """
        function = partial(self, **settings)
        parameters = tuple(self.parameters())
        sharded = any(isinstance(part, FSDPModule) for part in self.modules())
        if not sharded and not any(map(_is_zero3, parameters)):
            # Whoever looks at what modules return shall see values.
            watched = any(m._forward_hooks or m._forward_pre_hooks for m in self.modules())
            for_gradients = None if watched else partial(self, **settings, values=False)
            return ReversibleStep(
                function, parameters, inputs, chunk_size, for_gradients=for_gradients
            )

        def host(token: Tensor, take: Take) -> None:
            self._check_sharding()
            function(token, take=take)

        return ReversibleStep(function, (), inputs, chunk_size, host)

    def _check_sharding(self) -> None:
        """Make sure that the weights will be there in the backward pass of a reversible step.

        Raises:
            ValueError: modules inside the sub-layer are sharded for themselves, or by ZeRO-3.
        """
        if any(map(_is_zero3, self.parameters())):
            raise ValueError(
                "reversible layers need their weights in the backward pass, where DeepSpeed ZeRO-3 "
                "has removed them: use ZeRO-2, FSDP2 or `config.reversible=False`, got ZeRO-3"
            )
        if any(isinstance(part, FSDPModule) for part in self.modules() if part is not self):
            raise_wrong_sharding(type(self).__name__, "so are modules inside it")


def _is_zero3(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id")


def raise_wrong_sharding(name: str, reason: str) -> NoReturn:
    """Refuse a model whose weights would not be there when they are needed.

    Raises:
        ValueError: always, with what to do instead.
    """
    raise ValueError(
        "`fully_shard` must be applied to the sub-layers (the classes in "
        f"`model._no_split_modules`) and the model, got {name}: {reason}"
    )
