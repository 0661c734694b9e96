"""What the tests of the operations share."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan(request: pytest.FixtureRequest) -> Iterator[None]:
    """What an operation forgets to write shows up in its result."""
    if request.node.get_closest_marker("gpu"):  # the switch forbids matrix products on CUDA
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def triton_device() -> str:
    """Where the triton backend can be tested: a CUDA device, or the CPU by interpretation."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class UntouchedRandomState:
    """Context manager: the global random state afterwards is the one before."""

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert torch.equal(torch.get_rng_state(), self._state)


@pytest.fixture
def untouched_random_state() -> UntouchedRandomState:
    return UntouchedRandomState()


class LiveMemory(TorchDispatchMode):
    """Follows the storages that operations allocate while it is active: exact and repeatable.

    Attributes:
        peak: most bytes that were alive at once, after any operation.
        largest: bytes of the largest storage.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.largest = 0

    def _note(self, x: Any, own: bool) -> None:
        if isinstance(x, Tensor):
            storage = x.untyped_storage()
            size = storage.nbytes() if own else 0
            # A weak reference keeps the address from being given to another storage.
            if self._known.setdefault(storage._cdata, (StorageWeakRef(storage), size))[1]:
                self.largest = max(self.largest, size)

    @property
    def live(self) -> int:
        """Bytes of the storages that are alive now."""
        self._known = {k: x for k, x in self._known.items() if not x[0].expired()}
        return sum(size for _, size in self._known.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for x in tree_leaves((args, kwargs)):
            self._note(x, own=False)
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            self._note(x, own=True)
        self.peak = max(self.peak, self.live)
        return result


@pytest.fixture
def live_memory() -> type[LiveMemory]:
    return LiveMemory
