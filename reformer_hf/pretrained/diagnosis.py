"""What sparse attention would find in a pretrained model, layer by layer, before any training.

The model runs in full attention, and beside it every layer asks how much of the probability mass of
its full attention lies on keys that the settings make visible:

    ``coverage_i = sum_{j visible} softmax(S_i)_j = exp(lse_visible_i - lse_full_i)``,

with the logsumexps of the same scores over the visible keys and over all. No square tensor is
formed; the full ``lse`` is computed for a slice of the queries at a time.

Mass on distant keys need not matter: a layer may spread it over the whole text to no effect. What
it is worth to a causal language model is said by its loss when one layer at a time goes without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from reformer_hf.configuration_attention import ReformerAttentionSettings
from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention
from reformer_hf.pretrained.attention_interface import is_cross_attention, window_of_layer
from reformer_hf.pretrained.attention_mask import MaskKind
from reformer_hf.pretrained.configuring import attending
from reformer_hf.pretrained.language_model_loss import token_losses

_NAME = "reformer_diagnosis"
_BLOCK_SCORES = 1 << 24


@dataclass(frozen=True)
class LayerDiagnosis:
    """What one layer's full attention looks at; means over queries and heads.

    Attributes:
        layer: index, in the order in which the layers attend.
        local: share of the mass on sinks and local window.
        hybrid: share of the mass on these and on the keys that the rounds find.
        best_head: the head that gains most from the rounds, by how much.
        local_keys: visible keys of a query, sinks and local window.
        hybrid_keys: visible keys of a query, all of them.
    """

    layer: int
    local: float
    hybrid: float
    best_head: float
    local_keys: float
    hybrid_keys: float

    @property
    def gain(self) -> float:
        """Share of the mass that only the rounds find."""
        return self.hybrid - self.local


def _full_lse(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    """``[B, H, N]`` fp32."""
    batch, heads, length, size = query.shape
    key = key.float().repeat_interleave(heads // key.shape[1], dim=1)
    step = max(1, _BLOCK_SCORES // (batch * heads * length))
    parts = []
    for start in range(0, length, step):
        scores = query[:, :, start : start + step].float() @ key.transpose(-1, -2) * scale
        if causal:
            row = torch.arange(start, start + scores.shape[2], device=key.device).unsqueeze(-1)
            column = torch.arange(length, device=key.device)
            scores.masked_fill_(column > row, -torch.inf)
        parts.append(scores.logsumexp(dim=-1))
    return torch.cat(parts, dim=2)


def _keys(query: Tensor, key: Tensor, value: Tensor, window: HybridWindow) -> float:
    """Visible keys of a query, counted as the sum of ``exp(0)`` over them."""
    _, lse = hybrid_attention(query, key, value, window, scale=0.0)
    return float(lse.double().exp().mean())


class _Measuring:
    """An attention function that is full attention, and takes notes."""

    def __init__(self, settings: ReformerAttentionSettings) -> None:
        self.settings = settings
        self.found: list[LayerDiagnosis] = []

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        causal = kwargs.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
        cross = is_cross_attention(module, MaskKind(causal), query, key)
        if attention_mask is None and not cross:
            self._measure(module, query, key, value, kwargs.get("scaling"), causal)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    def _measure(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        causal: bool,
    ) -> None:
        layer = getattr(module, "layer_idx", None)
        hybrid = window_of_layer(self.settings, MaskKind(causal), layer)
        if hybrid is None:
            return
        local = replace(hybrid, num_hashes=0)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        full = _full_lse(query, key, scale, causal)
        shares = []
        for window in (local, hybrid):
            _, lse = hybrid_attention(query, key, value, window, scale=scale)
            # Rounding may leave a sum over fewer keys above the sum over all.
            shares.append((lse.float() - full).exp().clamp(max=1.0).mean(dim=(0, 2)))
        gain = shares[1] - shares[0]
        self.found.append(
            LayerDiagnosis(
                len(self.found) if layer is None else layer,
                float(shares[0].mean()),
                float(shares[1].mean()),
                float(gain.max()),
                _keys(query, key, value, local),
                _keys(query, key, value, hybrid),
            )
        )


@contextmanager
def _attending_by(model: PreTrainedModel, function: _Measuring) -> Iterator[None]:
    """The model with another attention function, for a while."""
    before = model.config._attn_implementation
    AttentionInterface.register(_NAME, function)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _check_length(input_ids: Tensor, settings: ReformerAttentionSettings) -> None:
    if input_ids.dim() != 2 or input_ids.shape[1] <= settings.local_window:
        raise ValueError(
            f"`input_ids` must be [batch, more than local_window={settings.local_window} tokens], "
            f"got {tuple(input_ids.shape)}"
        )


@torch.no_grad()
def diagnose(model: PreTrainedModel, input_ids: Tensor, **changes: Any) -> list[LayerDiagnosis]:
    """What the settings of a model's sparse attention would show it of a text.

    Args:
        model: any model of transformers that ``attn_implementation="reformer"`` serves.
        input_ids: ``[B, N]`` int64, without padding, longer than the local window.
        **changes: settings to try instead of those of the model, which keeps its own.

    Returns:
        One entry for each self-attention that is not full, in the order in which they attend.

    Raises:
        ValueError: settings unknown or out of range, a text that the local window holds, or no
            self-attention that could be measured.
    """
    settings = ReformerAttentionSettings.of(model.config).changed(**changes)
    _check_length(input_ids, settings)
    measuring, training = _Measuring(settings), model.training
    model.eval()
    try:
        with _attending_by(model, measuring):
            model.base_model(input_ids=input_ids)
    finally:
        model.train(training)
    if not measuring.found:
        raise ValueError(
            f"`model` ({type(model).__name__}) has no self-attention without mask to measure"
        )
    return measuring.found


@torch.no_grad()
def value_of_distance(
    model: PreTrainedModel, input_ids: Tensor, **changes: Any
) -> dict[int, float]:
    """What keys beyond the local window are worth in each layer of a causal language model.

    The value of layer ``l`` is ``L_l - L``, in nats a token: the mean negative log-likelihood when
    that layer sees sinks and local window only and every other layer all tokens before, less that
    of full attention. It takes one forward pass for each layer, and one more. Values of layers that
    can stand in for each other are below what they are worth together.

    Args:
        model: a causal language model with a linear head that ``attn_implementation="reformer"``
            serves.
        input_ids: ``[B, N]`` int64, without padding, longer than the local window.
        **changes: settings to try instead of those of the model, which keeps its own; rounds, and
            layers named in them, do not matter here.

    Returns:
        The value by layer.

    Raises:
        ValueError: settings unknown or out of range, a text that the local window holds, or
            another kind of model.
    """
    settings = ReformerAttentionSettings.of(model.config).changed(**changes)
    _check_length(input_ids, settings)
    layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise ValueError(
            f"`model` ({type(model).__name__}) must say `num_hidden_layers`, got {layers}"
        )
    changes |= {"num_hashes": 0, "local_layers": (), "dense_below": settings.local_window}
    training = model.training
    model.eval()
    losses = []
    try:
        for without in range(-1, layers):
            changes["full_layers"] = [layer for layer in range(layers) if layer != without]
            with attending(model, "reformer", **changes):
                # A text at a time: activations of one are enough to hold.
                each = [token_losses(model, text.unsqueeze(0)) for text in input_ids]
                losses.append(float(torch.cat(each).double().mean()))
    finally:
        model.train(training)
    return {layer: losses[layer + 1] - losses[0] for layer in range(layers)}


def check_share(share: float) -> None:
    """Hold the part of the layers' value that is to be kept to its range.

    Raises:
        ValueError: ``share`` is not above 0 and at most 1.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"`share` must be above 0 and at most 1, got {share}")


def propose_local_layers_by_value(values: Mapping[int, float], share: float) -> list[int]:
    """Layers that can do without rounds: the others have ``share`` of the layers' summed value.

    Layers of the highest value keep their rounds; those that gain nothing count as nothing.

    Raises:
        ValueError: ``share`` is not above 0 and at most 1.
    """
    check_share(share)
    missing = share * sum(max(value, 0.0) for value in values.values())
    local = []
    for layer in sorted(values, key=lambda layer: -values[layer]):
        if missing <= 0.0 or values[layer] <= 0.0:
            local.append(layer)
        missing -= max(values[layer], 0.0)
    return sorted(local)


def propose_local_layers(found: Sequence[LayerDiagnosis], threshold: float) -> list[int]:
    """Layers that can do without rounds: no head of theirs gains ``threshold`` of its mass."""
    return [x.layer for x in found if x.best_head < threshold]


def describe(found: Sequence[LayerDiagnosis], values: Mapping[int, float] | None = None) -> str:
    """The diagnosis as a table, with the value of distance in each layer if it is given."""
    head = "layer  sinks+local  with rounds  best head gains  keys local  keys all"
    lines = [head if values is None else f"{head}  distance worth"]
    for x in found:
        worth = "" if values is None else f"  {values[x.layer]:>9.4f} nats"
        lines.append(
            f"{x.layer:>5}  {x.local:>11.1%}  {x.hybrid:>11.1%}  {x.best_head:>15.1%}  "
            f"{x.local_keys:>10.0f}  {x.hybrid_keys:>8.0f}{worth}"
        )
    return "\n".join(lines)
