"""transformers' own Reformer (``model_type`` ``"reformer"``) opened as one of ours.

Three tables say it all: how the fields of its ``config.json`` become ours (:func:`convert_config`),
which weight is which (``WEIGHT_NAMES``), and which of its saved buffers mean nothing to us.

**How loading hooks in.** ``ReformerConfig`` asks ``CONFIG_READERS`` for a reader when it meets
another model type, and :func:`original_names_known` gives transformers the table of names for our
model type while weights are loaded. So its stock ``from_pretrained`` reads an old directory, whole
or in shards, as it reads one of ours:
``ReformerForCausalLM.from_pretrained("google/reformer-enwik8")``. Saving writes our names, whatever
was read.

**What the weights mean.** They were trained in the ``chunk`` pattern, the default here: hidden
states, logits, loss and gradients are those of transformers at equal rotations, including what is
wrong with them (tokens see a little of the future, and padding on the left changes the result).
``attention_pattern="window"`` runs the same weights in our pattern, which is strictly causal. One
thing differs on purpose: the bias of the language-model head is added, as it was when these models
were trained; transformers 5 stores that bias but leaves it out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from reformer_hf.configuration_reformer import CONFIG_READERS, ReformerConfig

ORIGINAL_MODEL_TYPE = "reformer"

# Fields that a `config.json` may leave out, where the original's default is not ours.
_DEFAULTS: dict[str, Any] = {
    "axial_norm_std": 1.0,
    "axial_pos_embds_dim": [64, 192],
    "axial_pos_shape": [64, 64],
    "chunk_size_feed_forward": 0,
    "eos_token_id": 2,
    "feed_forward_size": 512,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-12,
    "local_attention_probs_dropout_prob": 0.05,
    "local_num_chunks_after": 0,
    "lsh_num_chunks_after": 0,
    "max_position_embeddings": 4096,
    "num_attention_heads": 12,
    "num_hashes": 1,
}

# What the original does without a field for it.
_FIXED: dict[str, Any] = {
    "attention_pattern": "chunk",
    "classifier_pooling": "first",
    "count_duplicates": True,
    "exact_reversible": False,
    "hash_family": "angular",
    "head_merge": "concat",
    "rope_theta": None,
    "stream_merge": "concat",
    "tie_word_embeddings": False,
}

# Fields of the base class that belong to the directory or the session, not to the model.
_NOT_CARRIED = {"architectures", "transformers_version", "use_cache"}

# Its names -> ours, as regular expressions; each is applied to the result of those before it. None
# matches a name of ours.
WEIGHT_NAMES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.word_embeddings\.", "word_embeddings."),
    (r"position_embeddings\.embedding\.", "position_embeddings."),
    (r"encoder\.layers\.", "stack.layers."),
    (r"encoder\.layer_norm\.", "stack.norm."),
    (r"attention\.layer_norm\.", "attention.norm."),
    (r"attention\.self_attention\.", "attention."),
    (r"feed_forward\.layer_norm\.", "feed_forward.norm."),
    (r"feed_forward\.dense\.dense\.", "feed_forward.inner."),
    (r"feed_forward\.output\.dense\.", "feed_forward.outer."),
    (r"lm_head\.decoder\.", "lm_head."),
)

# Position vectors of one axis, which the original stores as [1, .., size, .., 1, dim].
_AXIAL_NAME = (r"position_embeddings\.weights\.(\d+)", r"position_embeddings.axis_\1")

# Constants that old versions saved with the weights.
IGNORED_BUFFERS: tuple[str, ...] = (r"attention\.(self_)?mask_value_float(16|32)$",)


def _without_singleton_axes(weight: Tensor) -> Tensor:
    return weight.reshape(-1, weight.shape[-1])


# ---- configuration ----


def _effective_positions(fields: Mapping[str, Any]) -> int:
    """The longest sequence that the original runs: two of its fields limit it."""
    longest = int(fields["max_position_embeddings"])
    if not fields.get("axial_pos_embds", True):
        return longest
    return min(longest, math.prod(fields["axial_pos_shape"]))


def convert_config(fields: Mapping[str, Any], attention_pattern: str = "chunk") -> dict[str, Any]:
    """The fields of our configuration for those of transformers' Reformer.

    Args:
        fields: what its ``config.json`` holds; what is missing has the original's default.
        attention_pattern: ``"chunk"``: the original's function. ``"window"``: the same weights in
            our pattern, with exactly reversible layers. Then the number of buckets follows the
            length of the input, since a window only looks into a token's own bucket, and encoders
            look as far ahead as back.

    Returns:
        Arguments of :class:`ReformerConfig`.

    Example:
        >>> converted = convert_config({"num_buckets": 512, "attn_layers": ["local", "lsh"]})
        >>> converted["attention_pattern"], converted["num_buckets"], converted["hidden_act"]
        ('chunk', [512], 'relu')
    """
    given = {**_DEFAULTS, **fields}
    # What both sides know under the same name. "torch_dtype" and "num_labels" are not fields, but
    # the base class reads them.
    known = {field.name for field in dataclasses.fields(ReformerConfig)} - _NOT_CARRIED
    ours = {k: v for k, v in given.items() if k in known or k in ("torch_dtype", "num_labels")}
    ours.update(_FIXED)

    ours["max_position_embeddings"] = _effective_positions(given)
    if not given.get("axial_pos_embds", True):
        ours["axial_pos_shape"] = ours["axial_pos_embds_dim"] = None
    if isinstance(given.get("num_buckets"), int):
        # As a list it is hashed in one piece, which the original does with every integer.
        ours["num_buckets"] = [given["num_buckets"]]
    if ours.get("lsh_attention_probs_dropout_prob", 0.0) is None:
        ours["lsh_attention_probs_dropout_prob"] = 0.0
    for name in ("lsh_attn_chunk_length", "lsh_num_chunks_before", "lsh_num_chunks_after"):
        # None is allowed there in models without LSH layers.
        if ours.get(name, 0) is None:
            del ours[name]

    if attention_pattern == "window":
        ours.update(attention_pattern="window", exact_reversible=True, num_buckets=None)
        for kind in ("lsh", "local"):
            ours[f"{kind}_num_chunks_before"] = max(1, ours.get(f"{kind}_num_chunks_before", 1))
            ours[f"{kind}_num_chunks_after"] = ours.get(f"{kind}_num_chunks_after") or None
    return ours


def _read_config(fields: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return convert_config(fields, settings.get("attention_pattern", "chunk"))


CONFIG_READERS[ORIGINAL_MODEL_TYPE] = _read_config


class OriginalReformerConfig(ReformerConfig):
    """Stands for ``model_type`` ``"reformer"`` among the Auto classes, and makes our configuration.

    See :func:`reformer_hf.register`.
    """

    model_type = ORIGINAL_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A :class:`ReformerConfig` from the fields of an old ``config.json``."""
        return ReformerConfig.from_dict(config_dict, **kwargs)


# ---- weights ----


def convert_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' Reformer, bare or with any head, under our names and shapes.

    ``from_pretrained`` does this by itself; here it is for weights at hand. Two names of the same
    bias become one, and the constants of old versions are dropped.

    Args:
        weights: its ``state_dict()``, or anything else by parameter name, such as gradients.

    Returns:
        The same tensors by the names of our model with the same head.
    """
    converted: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for theirs, ours in WEIGHT_NAMES:
            name = re.sub(theirs, ours, name, count=1)
        if re.search(_AXIAL_NAME[0], name):
            name = re.sub(*_AXIAL_NAME, name)
            weight = _without_singleton_axes(weight)
        if not any(re.search(pattern, name) for pattern in IGNORED_BUFFERS):
            converted.setdefault(name, weight)
    return converted


class _DropSingletonAxes(ConversionOps):
    """The shape of our position vectors."""

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        [tensors] = input_dict.values()
        weight = tensors[0] if isinstance(tensors, list) else tensors
        return {kwargs["full_layer_name"]: _without_singleton_axes(weight)}


def _no_renaming() -> WeightRenaming:
    return WeightRenaming(r"(?!)", "")


class _Renaming(WeightRenaming):
    """A renaming that is not undone when the model is saved: our checkpoints have our names."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        return _no_renaming()


class _Converter(WeightConverter):
    """A conversion that is not undone when the model is saved."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        return _no_renaming()


_registering = threading.Lock()
_loading = 0


@contextlib.contextmanager
def original_names_known() -> Iterator[None]:
    """Let ``from_pretrained`` of our models read the original's weights.

    Only for as long as weights are loaded, in any thread: whoever asks transformers afterwards how
    our checkpoints differ from our models is told that they do not.
    """
    _count_loading(+1)
    try:
        yield
    finally:
        _count_loading(-1)


def _count_loading(change: int) -> None:
    global _loading
    with _registering:
        _loading += change
        transforms: list[Any] = [_Renaming(theirs, ours) for theirs, ours in WEIGHT_NAMES]
        transforms.append(_Converter(*_AXIAL_NAME, operations=[_DropSingletonAxes()]))
        register_checkpoint_conversion_mapping(
            ReformerConfig.model_type, transforms if _loading else [], overwrite=True
        )
