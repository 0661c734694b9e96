"""The mask of ``attn_implementation="reformer"``: where a model may be sparse, and where not.

transformers asks for a mask once per forward pass, and says what kind of mask it would be. Only
where that is plainly causal, a sliding window or everything, among more tokens than
``dense_below``, it is given a *coded* mask; otherwise the mask that ``"sdpa"`` has, which the
attention function hands on to ``"sdpa"``. So whatever is not known to be served stays exactly what
it is without this package: packed rows, image blocks, custom overlays, static caches, a decoding
step.

A coded mask is ``[B, N]`` int32, 0 where a token is padding and else the code of the kind: it
survives what models do to masks on the way (moving, slicing rows), and nothing square is formed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, masking_utils

from reformer_hf.configuration_attention import ReformerAttentionSettings

logger = logging.getLogger(__name__)

_CAUSAL, _BIDIRECTIONAL = 1, 2
# Sliding windows are coded behind these, causal ones as even and other ones as odd numbers.
_SLIDING = 16
# Models that look their attention up by name, but rework the mask on the way to it.
_OWN_MASKS = {"doge"}
_announced: set[str] = set()


@dataclass(frozen=True)
class MaskKind:
    """Who may see whom, before any sparsity.

    Attributes:
        causal: no key after the query.
        sliding_window: keys at a distance below this only; ``None``: at any distance.
    """

    causal: bool
    sliding_window: int | None = None

    @property
    def code(self) -> int:
        """A positive number that stands for the kind."""
        if self.sliding_window is None:
            return _CAUSAL if self.causal else _BIDIRECTIONAL
        return _SLIDING + 2 * self.sliding_window + (0 if self.causal else 1)

    @staticmethod
    def from_code(code: int) -> MaskKind | None:
        """The inverse of :attr:`code`; ``None`` for a number that stands for nothing."""
        if code >= _SLIDING:
            return MaskKind(code % 2 == 0, (code - _SLIDING) // 2)
        return {_CAUSAL: MaskKind(True), _BIDIRECTIONAL: MaskKind(False)}.get(code)


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    """Names and values that a function took along from where it was made."""
    cells = getattr(function, "__closure__", None) or ()
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}


def _is_made_like(function: Callable[..., Any], example: Callable[..., Any]) -> bool:
    """Whether both are the same function, over values of their own."""
    return getattr(function, "__code__", None) is example.__code__


_SLIDING_CAUSAL = masking_utils.sliding_window_overlay(1)
_SLIDING_BIDIRECTIONAL = masking_utils.sliding_window_bidirectional_overlay(1)


def kind_of(mask_function: Callable[..., Any]) -> MaskKind | None:
    """What a mask function of transformers shows, if it is one of the kinds that can be sparse."""
    if mask_function is masking_utils.causal_mask_function:
        return MaskKind(True)
    if mask_function is masking_utils.bidirectional_mask_function:
        return MaskKind(False)
    if not _is_made_like(mask_function, masking_utils.and_masks()):
        return None
    parts = _closure(mask_function).get("mask_functions", ())
    if len(parts) != 2:
        return None
    overlay, base = parts
    window = _closure(overlay).get("sliding_window")
    if not isinstance(window, int):
        return None
    if _is_made_like(overlay, _SLIDING_CAUSAL) and base is masking_utils.causal_mask_function:
        return MaskKind(True, window)
    bidirectional = base is masking_utils.bidirectional_mask_function
    if bidirectional and _is_made_like(overlay, _SLIDING_BIDIRECTIONAL):
        return MaskKind(False, window + 1)
    return None


def _real(
    attention_mask: Tensor | None, batch: int, kv_length: int, kv_offset: int, device: Any
) -> Tensor | None:
    """``[B, N]`` bool; ``None`` if the mask does not say it for every key."""
    if attention_mask is None:
        return torch.ones((batch, kv_length), dtype=torch.bool, device=device)
    if attention_mask.dim() != 2:
        return None
    real = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.bool)
    return real if tuple(real.shape) == (batch, kv_length) else None


def _has_holes(real: Tensor) -> bool:
    """Whether in some row padding stands between real tokens."""
    begins = (real[:, 1:] & ~real[:, :-1]).sum(dim=1) + real[:, 0]
    return bool((begins > 1).any())


@lru_cache(maxsize=256)
def _why_unserved(name: str, model_type: str) -> str | None:
    """Why a modeling module of transformers would misread the mask, or ``None`` if it does not."""
    module = sys.modules.get(name)
    if module is None or not name.startswith("transformers."):
        return None  # not a model of transformers: its author asked for the name
    if model_type in _OWN_MASKS:
        return "the model makes masks of its own"
    if not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        return "the model computes attention in its own way"
    supported = [
        bool(getattr(x, "_supports_sdpa", False))
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, PreTrainedModel) and x.__module__ == name
    ]
    if supported and not any(supported):
        return "transformers has nothing but eager attention for it"
    return None


def _refuse_if_unserved(config: Any) -> None:
    """Refuse a model that would misread the mask.

    Raises:
        ValueError: with model, reason and alternative.
    """
    name = type(config).__module__.replace("configuration_", "modeling_")
    reason = _why_unserved(name, config.model_type)
    if reason is not None:
        raise ValueError(
            f'`attn_implementation="reformer"` cannot serve `{config.model_type}`: {reason}; use '
            '`attn_implementation="eager"`'
        )


def reformer_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """What transformers asks for as the mask of a forward pass (``AttentionMaskInterface``).

    Returns:
        A coded mask ``[B, N]`` int32 where the pass is sparse; what ``"sdpa"`` gets otherwise.

    Raises:
        ValueError: settings of the model that are invalid, or a model that does not dispatch.
    """
    settings = ReformerAttentionSettings.of(config)
    if config is not None:
        _refuse_if_unserved(config)
    kind = kind_of(mask_function)
    aligned = not isinstance(q_offset, Tensor) and q_offset + q_length == kv_offset + kv_length
    # A single query is a decoding step.
    may_be_sparse = q_length > 1 or (settings.sparse_decoding and kind == MaskKind(True))
    may_be_sparse = may_be_sparse and kv_length > settings.longest_dense
    if may_be_sparse and not torch.compiler.is_compiling():
        device = kwargs.get("device") or (None if attention_mask is None else attention_mask.device)
        real = _real(attention_mask, batch_size, kv_length, kv_offset, device)
        # Only what a window can forget may be missing in front, and it counts slots, not tokens.
        sliding = kind is not None and kind.sliding_window is not None
        whole = kv_offset == 0 or sliding
        if kind is not None and real is not None and aligned and whole:
            served = not sliding or not _has_holes(real)
            if served:
                return real.to(torch.int32) * kind.code
        if kind is None or kind.causal or q_length == kv_length:  # else cross-attention
            announce_full(config, "asked for a mask that cannot be sparse")
    return masking_utils.sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        config=config,
        **kwargs,
    )


def announce_full(config: Any, why: str) -> None:
    """Say once for a type of model that a long call stays full attention."""
    name = getattr(config, "model_type", "the model")
    if name not in _announced:
        _announced.add(name)
        logger.warning(
            "`%s` %s (packed rows, blocks and static caches, or a position bias): such calls are "
            "full attention, with time quadratic in their length",
            name,
            why,
        )
