"""How much memory tensors take, exactly: counted at every operation, not read from the system."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter(TorchDispatchMode):
    """Bytes of the tensors that operations in its context made and that are still alive.

    Attributes:
        current: bytes alive now.
        peak: the most at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {self._key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            # What an operation was given and hands back (a view, in place) is not new.
            if isinstance(x, torch.Tensor) and self._key(x) not in before:
                self._add(x.untyped_storage())
        return result

    @staticmethod
    def _key(x: torch.Tensor) -> int:
        return x.untyped_storage()._cdata

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def forget(_: object) -> None:
            self.current -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, forget)
        self.current += size
        self.peak = max(self.peak, self.current)
