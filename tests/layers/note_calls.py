"""Noting when a sub-layer computes, without a hook: what a hook watches is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reformer_hf.layers.sub_layer import SubLayer


def note_calls(part: SubLayer, note: Callable[[], object]) -> Callable[[], None]:
    """Call ``note`` whenever a sub-layer computes; what is returned ends that."""
    compute = part.hidden

    def noting(*inputs: Any, **settings: Any) -> Any:
        note()
        return compute(*inputs, **settings)

    part.hidden = noting  # type: ignore[method-assign]
    return lambda: vars(part).pop("hidden")
