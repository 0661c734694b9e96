"""The attention function of ``attn_implementation="reformer"``, and its registration.

What a call is follows from its mask (see :mod:`reformer_hf.pretrained.attention_mask`): a coded
mask asks for hybrid attention over all keys so far; any other, or none, is handed to transformers'
``"sdpa"`` as it came. Decoding steps are of the second sort, unless ``sparse_decoding`` is set: one
query sees the whole cache, as the pretrained model knows it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from reformer_hf.configuration_attention import CONFIG_FIELD, ReformerAttentionSettings
from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention
from reformer_hf.ops.seeds import fold_seed, fresh_seed
from reformer_hf.pretrained.attention_mask import MaskKind, announce_full, reformer_mask

NAME = "reformer"
# Arguments of attention functions that change scores, and what has them.
_UNSERVED = {
    "softcap": "soft-capped scores",
    "position_bias": "a position bias added to the scores",
    "s_aux": "learned attention sinks",
    "sinks": "learned attention sinks",
    "head_mask": "a mask of heads",
    "block_indices": "key blocks that the model chooses",
    "indices": "keys that the model chooses",
}


def _refuse(module: nn.Module, what: str, alternative: str) -> ValueError:
    config = getattr(module, "config", None)
    model = getattr(config, "model_type", None) or type(module).__name__
    return ValueError(
        f'`attn_implementation="{NAME}"` cannot serve `{model}` ({type(module).__name__}): {what}; '
        f"use {alternative}"
    )


def is_cross_attention(module: nn.Module, kind: MaskKind, query: Tensor, key: Tensor) -> bool:
    """Whether a bidirectional mask is that of a decoder over its source."""
    if kind.causal:
        return False
    if getattr(module, "is_cross_attention", False) or query.shape[2] != key.shape[2]:
        return True
    decodes = getattr(module, "is_decoder", False) or "cross" in type(module).__name__.lower()
    return bool(decodes)


@lru_cache(maxsize=256)
def window_of_layer(
    settings: ReformerAttentionSettings, kind: MaskKind, layer: int | None
) -> HybridWindow | None:
    """Who sees whom in a layer; ``None``: full attention."""
    if kind.sliding_window is not None:
        return HybridWindow(kind.sliding_window, sink_tokens=0, num_hashes=0, causal=kind.causal)
    if layer in settings.full_layers:
        return None
    return HybridWindow(
        local_window=settings.local_window,
        sink_tokens=settings.sink_tokens,
        num_hashes=0 if layer in settings.local_layers else settings.num_hashes,
        bucket_window=settings.bucket_window,
        num_buckets=settings.num_buckets,
        hash_seed=fold_seed(settings.hash_seed, 0 if layer is None else layer + 1),
        causal=kind.causal,
    )


def _full_mask(code: Tensor, kind: MaskKind, queries: int) -> Tensor | None:
    """``[B, 1, M, N]`` bool for ``"sdpa"``, or ``None`` where its ``is_causal`` says it all."""
    real, length = code != 0, code.shape[1]
    if bool(real.all()) and (not kind.causal or queries == length):
        return None
    mask = real[:, None, None, :].expand(-1, 1, queries, -1)
    if kind.causal:
        key = torch.arange(length, device=code.device)
        mask = mask & (key[length - queries :, None] >= key)
    return mask


def _kind(module: nn.Module, mask: Tensor, key: Tensor) -> MaskKind:
    """The kind of a coded mask.

    Raises:
        ValueError: a two-dimensional mask that is not coded, or coded for other keys.
    """
    if mask.dtype == torch.int32 and tuple(mask.shape) == (key.shape[0], key.shape[2]):
        code = int(mask.max())
        kind = MaskKind.from_code(code) if code else MaskKind(True)  # padding only
        if kind is not None and bool(((mask == code) | (mask == 0)).all()):
            return kind
    raise _refuse(
        module,
        f"its attention got a mask {tuple(mask.shape)} in {mask.dtype} for {key.shape[2]} keys, "
        "which the model made itself or changed on the way",
        '`attn_implementation="sdpa"`',
    )


def reformer_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a transformers model (``AttentionInterface``).

    Args:
        module: the attention module; its ``config`` holds the settings.
        query: ``[B, H, M, D]``.
        key: ``[B, Hkv, N, D]``.
        value: ``[B, Hkv, N, Dv]``.
        attention_mask: from :func:`~reformer_hf.pretrained.attention_mask.reformer_mask`, or one
            that ``"sdpa"`` takes.
        dropout: probability with which an attention weight is dropped.
        scaling: factor on the scores; ``None``: ``1 / sqrt(D)``.
        is_causal: as ``"sdpa"`` has it; a coded mask says it itself.
        **kwargs: what else the model passes.

    Returns:
        Output ``[B, M, H, Dv]``, and ``None`` for the weights, which are not formed.

    Raises:
        ValueError: something that cannot be served, with model, reason and alternative.
    """
    eager = '`attn_implementation="eager"`'
    if kwargs.get("softcap") is not None:
        raise _refuse(module, _UNSERVED["softcap"], eager)
    for name in ("s_aux", "sinks", "head_mask"):
        if kwargs.get(name) is not None:
            raise _refuse(module, f"{_UNSERVED[name]} (`{name}`)", eager)
    if kwargs.get("output_attentions"):
        raise _refuse(module, "attention weights are not formed (`output_attentions=True`)", eager)
    config = getattr(module, "config", None)
    if attention_mask is None or attention_mask.dim() != 2:
        settings = ReformerAttentionSettings.of(config)
        if settings.longest_dense < query.shape[2] == key.shape[2]:
            announce_full(config, "gave its attention no mask that says what may be sparse")
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    for name in ("position_bias", "block_indices", "indices"):
        if kwargs.get(name) is not None:
            what = f"{_UNSERVED[name]} (`{name}`), beyond `{CONFIG_FIELD}.dense_below` tokens"
            raise _refuse(module, what, '`attn_implementation="sdpa"`')

    kind = _kind(module, attention_mask, key)
    settings = ReformerAttentionSettings.of(config)
    layer = getattr(module, "layer_idx", None)
    if layer is None and (settings.full_layers or settings.local_layers):
        what = f"its layers have no index, so `{CONFIG_FIELD}` cannot name them"
        raise _refuse(module, what, "neither `full_layers` nor `local_layers`")
    cross = is_cross_attention(module, kind, query, key)
    window = None if cross else window_of_layer(settings, kind, layer)
    if window is None:
        mask = _full_mask(attention_mask, kind, query.shape[2])
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=kind.causal,
            **kwargs,
        )
    query, key, value = _in_one_dtype(query, key, value)
    real = attention_mask != 0
    if dropout > 0.0:
        window = _with_dropout(window, dropout)
    out, _ = hybrid_attention(
        query,
        key,
        value,
        window,
        real=None if bool(real.all()) else real,
        scale=scaling,
        backend=settings.backend,
    )
    return out.transpose(1, 2), None


def _in_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As autocast passes them to ``"sdpa"``; rotary positions leave queries and keys in fp32."""
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        return query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key.to(query.dtype), value.to(query.dtype)


def _with_dropout(window: HybridWindow, dropout: float) -> HybridWindow:
    """The window with fresh drop decisions, which gradient checkpointing draws alike again."""
    return replace(window, dropout=dropout, dropout_seed=fresh_seed())


def register_attention() -> None:
    """Make transformers know ``attn_implementation="reformer"``; may be called again."""
    AttentionInterface.register(NAME, reformer_attention)
    AttentionMaskInterface.register(NAME, reformer_mask)
