"""The two configurations of the family."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from reformer_hf.configuration_checks import (
    check_attention,
    check_choices,
    check_positions,
    check_rest,
    check_sizes,
    integer,
    misspelt,
    number_of_labels,
    probability,
    shape,
    token_id,
)

# Seed of the hash rotations in evaluation and generation where `hash_seed` is unset.
DEFAULT_HASH_SEED = 1

# Other model types whose configuration can become a `ReformerConfig`: model type -> function of the
# fields of a `config.json`, and of the settings asked for with it, that returns our fields. See
# `checkpoint_conversion`, which fills it.
CONFIG_READERS: dict[str, Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]]] = {}


def derive_axial_shape(max_positions: int) -> tuple[int, int]:
    """The axial shape of a table for ``max_positions`` positions: nearly square.

    The last axis is the smallest power of two whose square is not below ``max_positions``; the
    first is as long as it has to be. 65,536 positions give ``(256, 256)``.
    """
    last = 1 << math.ceil(math.log2(max_positions) / 2) if max_positions > 1 else 1
    return -(-max_positions // last), last


class _NotGiven(float):
    """The default of a field, which can be told from the same value if somebody gives it."""


_NOT_GIVEN = _NotGiven(10000.0)


class ReformerConfig(PreTrainedConfig):
    r"""
    Configuration of the Reformer models with one stack (everything but sequence-to-sequence).

    Fields that transformers' `ReformerConfig` has too keep their name and meaning. The defaults
    train on sequences of any length up to `max_position_embeddings`.

    Args:
        vocab_size (`int`, defaults to 320): tokens of the vocabulary.
        hidden_size (`int`, defaults to 256): width of the residual streams.
        attn_layers (`list[str]`, defaults to three times `["local", "lsh"]`): the kind of attention
            of every layer, freely mixed: `"lsh"`, `"local"`, `"full"`, or `"hybrid"`, which sees
            the first tokens, the local window and the LSH windows of all rounds in one softmax,
            with keys of its own.
        num_attention_heads (`int`, defaults to 4): heads.
        attention_head_size (`int`, defaults to 64): size of one head; heads times size need not be
            `hidden_size`.
        feed_forward_size (`int`, defaults to 1024): inner width of the feed-forward layers.
        hidden_act (`str`, defaults to `"gelu"`): activation of the feed-forward layers.
        hidden_dropout_prob (`float`, defaults to 0.05): dropout of embeddings and sub-layers.
        lsh_attention_probs_dropout_prob, local_attention_probs_dropout_prob,
            full_attention_probs_dropout_prob, hybrid_attention_probs_dropout_prob (`float`, default
            to 0.0): dropout of the attention weights of each kind.
        max_position_embeddings (`int`, defaults to 65536): longest sequence, in tokens.
        axial_pos_embds (`bool`, defaults to `True`): factorised position embeddings; `False`: one
            vector per position.
        axial_pos_shape (`list[int]`, *optional*): axes of the table; their product must reach
            `max_position_embeddings`. Unset: derived from it.
        axial_pos_embds_dim (`list[int]`, *optional*): features of each axis, with sum
            `hidden_size`. Unset: a quarter for the first axis, the rest shared by the others.
        axial_norm_std (`float`, defaults to 0.02): standard deviation of the initial positions.
        rope_theta (`float`, *optional*, defaults to 10000.0): base of the rotary positions by which
            local, full and hybrid layers turn their queries and keys, so that they tell distances
            from the first step (LSH layers, which must find a token wherever it stands, do not);
            `None`: no layer does. Checkpoints whose `config.json` does not say were made without.
        num_hashes (`int`, defaults to 2): hash rounds of LSH attention.
        num_buckets (`int` or `list[int]`, *optional*): buckets of a round, or their factors. Unset:
            chosen from the number of real tokens of each sequence.
        hash_family (`str`, defaults to `"angular"`): `"angular"`, `"euclidean"` or `"random"`.
        hash_bucket_width (`float`, defaults to 1.0): bucket width of the Euclidean family.
        hash_seed (`int`, *optional*): fixes the rotations in training too. Unset: fresh rotations
            in every training step, a fixed default seed in evaluation and generation.
        attention_pattern (`str`, defaults to `"window"`): `"window"`: a token sees the last tokens
            of its own bucket (strictly causal, independent of padding); `"chunk"`: the original
            pattern, chunks of sorted tokens, for checkpoints that were trained with it.
        lsh_attn_chunk_length, local_attn_chunk_length (`int`, default to 64): chunk length.
        lsh_num_chunks_before, local_num_chunks_before (`int`, default to 1): how many chunk lengths
            back a token sees.
        lsh_num_chunks_after, local_num_chunks_after (`int`, *optional*): how many chunk lengths
            ahead. Unset: 0 in causal models, else the same as before.
        sink_tokens (`int`, defaults to 4): first tokens that every token sees in `"hybrid"` layers.
        count_duplicates (`bool`, defaults to `True`): a pair that several rounds find counts once
            for each; `False`: once (the paper's equation, which converges to full attention).
        attention_backend (`str`, defaults to `"auto"`): implementation of LSH and local attention.
        head_merge (`str`, defaults to `"concat"`): `"concat"` or `"average"` of the heads' outputs.
        reversible (`bool`, defaults to `True`): recompute activations instead of storing them.
        exact_reversible (`bool`, defaults to `True`): recompute them bit for bit.
        residual_grid (`float`, defaults to 2**-20): what residuals are rounded to for that, a power
            of two in `[2**-24, 2**-8]`.
        stream_merge (`str`, defaults to `"mean"`): how the two residual streams end: `"mean"`
            (`hidden_size` features) or `"concat"` (twice as many, as in transformers' Reformer).
        chunk_size_feed_forward (`int`, defaults to 4096): positions of one feed-forward slice;
            0: all at once.
        chunk_size_lm_head (`int`, defaults to 0): if positive, training computes logits and loss in
            slices of that many labelled positions and returns no logits.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02): standard deviation of initial weights.
        classifier_dropout (`float`, *optional*): dropout of classification heads. Unset:
            `hidden_dropout_prob`.
        classifier_pooling (`str`, defaults to `"mean"`): what a sequence classifier reads: the
            `"mean"` of all real tokens, or the `"first"` real token.
        is_decoder (`bool`, defaults to `False`): makes a bare `ReformerModel` causal. A model with
            a head sets it to what the head needs.
        tie_word_embeddings (`bool`, defaults to `True`): the language-model head shares the
            embedding matrix (needs `stream_merge="mean"`).
        use_cache (`bool`, defaults to `True`): `generate` keeps a cache of earlier tokens. A plain
            call returns one only if it is asked to.
        pad_token_id, bos_token_id, eos_token_id (`int`, *optional*): special tokens, default 0,
            `None` and 1.

    Raises:
        ValueError: an impossible value, naming the field, what is expected and what was given; or
            a name that is no field, but close to one. Other names are kept as they are.

    Example:
        >>> from reformer_hf import ReformerConfig
        >>> config = ReformerConfig(attn_layers=["local", "lsh"], max_position_embeddings=1_000_000)
        >>> config.num_hidden_layers, config.position_shape()
        (2, (977, 1024))
    """

    model_type = "reformer_hf"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 320
    hidden_size: int = 256
    attn_layers: list[str] | tuple[str, ...] = ("local", "lsh", "local", "lsh", "local", "lsh")
    num_attention_heads: int = 4
    attention_head_size: int = 64
    feed_forward_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.05
    lsh_attention_probs_dropout_prob: float = 0.0
    local_attention_probs_dropout_prob: float = 0.0
    full_attention_probs_dropout_prob: float = 0.0
    hybrid_attention_probs_dropout_prob: float = 0.0
    max_position_embeddings: int = 65536
    axial_pos_embds: bool = True
    axial_pos_shape: list[int] | tuple[int, ...] | None = None
    axial_pos_embds_dim: list[int] | tuple[int, ...] | None = None
    axial_norm_std: float = 0.02
    rope_theta: float | None = _NOT_GIVEN
    num_hashes: int = 2
    num_buckets: int | list[int] | None = None
    hash_family: str = "angular"
    hash_bucket_width: float = 1.0
    hash_seed: int | None = None
    attention_pattern: str = "window"
    lsh_attn_chunk_length: int = 64
    lsh_num_chunks_before: int = 1
    lsh_num_chunks_after: int | None = None
    local_attn_chunk_length: int = 64
    local_num_chunks_before: int = 1
    local_num_chunks_after: int | None = None
    sink_tokens: int = 4
    count_duplicates: bool = True
    attention_backend: str = "auto"
    head_merge: str = "concat"
    reversible: bool = True
    exact_reversible: bool = True
    residual_grid: float = 2.0**-20
    stream_merge: str = "mean"
    chunk_size_feed_forward: int = 4096
    chunk_size_lm_head: int = 0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    classifier_dropout: float | None = None
    classifier_pooling: str = "mean"
    is_decoder: bool = False
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    def __setattr__(self, name: str, value: Any) -> None:
        # Also the way in which transformers keeps what was given and is no field.
        if name == "num_labels":
            number_of_labels(value)
        elif not (name.startswith("_") or hasattr(type(self), name)):
            misspelt(name, self._field_names())
        try:
            super().__setattr__(name, value)
        except StrictDataclassError as error:
            raise ValueError(f"`{name}` cannot be {value!r}: {error}") from error

    def __post_init__(self, **kwargs: Any) -> None:
        layers = kwargs.pop("num_hidden_layers", None)
        if isinstance(self.rope_theta, _NotGiven):
            # What a `config.json` holds, and does not say it: older than rotary positions.
            stored = "model_type" in kwargs or "transformers_version" in kwargs
            self.rope_theta = None if stored else float(self.rope_theta)
        for name in self._sequence_fields():
            value = getattr(self, name)
            if isinstance(value, tuple):
                setattr(self, name, list(value))
        labels, names = kwargs.get("num_labels"), self.id2label
        if names is not None and not isinstance(names, Mapping):
            raise ValueError(f"`id2label` must be a dict from class to name, got {names!r}")
        if names is not None and labels is not None and labels != len(names):
            raise ValueError(f"`num_labels` must be {len(names)}, as in `id2label`, got {labels!r}")
        try:
            super().__post_init__(**kwargs)
        except AttributeError as error:
            if not isinstance(self.dtype, str):
                raise
            raise ValueError(f"`dtype` must name a dtype of torch, got {self.dtype!r}") from error
        self.check()
        if layers is not None and layers != self.num_hidden_layers:
            raise ValueError(
                f"`num_hidden_layers` is the length of `attn_layers`, {self.num_hidden_layers}, "
                f"got {layers}"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickled before there were rotary positions: without.
        self.__dict__.update({"rope_theta": None, **state})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields that a checkpoint's `config.json` gives, read as ours if need be.

        Raises:
            ValueError: the file is missing, does not hold the fields of a model, or those of
                another model.
        """
        complaint = (
            f"`config.json` of {pretrained_model_name_or_path} must be there and hold a JSON "
            "object with a `model_type`"
        )
        try:
            fields, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{complaint}: {error}") from error
        if "model_type" not in fields:
            raise ValueError(f"{complaint}, got {'other fields' if fields else 'no fields'}")
        return cls._read(fields, kwargs), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration from the fields of a `config.json`, read as ours if need be."""
        for name in kwargs:
            misspelt(name, cls._field_names())
        fields = cls._read(config_dict, kwargs)
        if "num_labels" in kwargs and kwargs["num_labels"] != len(fields.get("id2label") or ()):
            # Another number is asked for than the file has names of.
            names = ("id2label", "label2id")
            fields = {name: value for name, value in fields.items() if name not in names}
        return super().from_dict(fields, **kwargs)

    @classmethod
    def _read(cls, fields: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        actual = fields.get("model_type", cls.model_type)
        if actual == cls.model_type:
            return fields
        readers = CONFIG_READERS if cls.model_type == ReformerConfig.model_type else {}
        if actual not in readers:
            raise ValueError(
                f"`model_type` must be {' or '.join(map(repr, (cls.model_type, *readers)))} to be "
                f"opened as a {cls.__name__}, got {actual!r}"
            )
        return readers[actual](fields, settings)

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that a `config.json` holds: those that differ from their defaults, and
        `rope_theta`, without which a checkpoint has no rotary positions."""
        return super().to_diff_dict() | {"rope_theta": self.rope_theta}

    @classmethod
    def _sequence_fields(cls) -> tuple[str, ...]:
        return ("attn_layers", "axial_pos_shape", "axial_pos_embds_dim", "num_buckets")

    @classmethod
    def _field_names(cls) -> list[str]:
        return [
            *(field.name for field in dataclasses.fields(cls)),
            "num_labels",
            "num_hidden_layers",
        ]

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the stack (of the encoder in a sequence-to-sequence model)."""
        return len(self.attn_layers)

    def position_shape(self) -> tuple[int, ...]:
        """Axes of the position table: `axial_pos_shape`, or derived from the maximum length."""
        if self.axial_pos_shape is not None:
            return tuple(self.axial_pos_shape)
        return derive_axial_shape(self.max_position_embeddings)

    def position_dims(self, axes: int) -> tuple[int, ...]:
        """Features of each axis of a position table with that many axes."""
        if self.axial_pos_embds_dim is not None and len(self.axial_pos_embds_dim) == axes:
            return tuple(self.axial_pos_embds_dim)
        return split_features(self.hidden_size, axes)

    def merged_size(self) -> int:
        """Features of `last_hidden_state`."""
        return self.hidden_size * (2 if self.stream_merge == "concat" else 1)

    def check(self) -> None:
        """Validate all fields; models call it again, for configurations changed in between.

        Raises:
            ValueError: naming the field, what is expected and what was given.
        """
        check_sizes(self)
        check_choices(self)
        check_attention(self, "attn_layers")
        check_positions(self)
        check_rest(self)


class ReformerSeq2SeqConfig(ReformerConfig):
    r"""
    Configuration of the encoder-decoder Reformer.

    The fields of [`ReformerConfig`] describe the encoder, and whatever the decoder does not have a
    field of its own for.

    Args:
        decoder_attn_layers (`list[str]`, defaults to three times `"full"`): the kind of causal
            self-attention of every decoder layer. Targets are short, so full attention is the
            default; `"lsh"` and `"local"` are there for long ones.
        max_target_positions (`int`, defaults to 1024): longest target, in tokens. Independent of
            `max_position_embeddings`, which limits the source.
        decoder_axial_pos_shape (`list[int]`, *optional*): axes of the decoder's position table.
            Unset: derived from `max_target_positions`.
        decoder_feed_forward_size (`int`, *optional*): unset: `feed_forward_size`.
        cross_attention_probs_dropout_prob (`float`, defaults to 0.0): dropout of the attention of
            target to source.
        decoder_start_token_id (`int`, defaults to 0): first token of every decoder input.

    Example:
        >>> from reformer_hf import ReformerSeq2SeqConfig
        >>> config = ReformerSeq2SeqConfig(max_position_embeddings=16384, max_target_positions=256)
        >>> config.is_encoder_decoder, config.max_position_embeddings, config.max_target_positions
        (True, 16384, 256)
    """

    model_type = "reformer_hf_seq2seq"
    # `Trainer` would keep the encoder's output of the whole evaluation set.
    keys_to_ignore_at_inference = ["past_key_values", "encoder_last_hidden_state"]

    decoder_attn_layers: list[str] | tuple[str, ...] = ("full", "full", "full")
    max_target_positions: int = 1024
    decoder_axial_pos_shape: list[int] | tuple[int, ...] | None = None
    decoder_feed_forward_size: int | None = None
    cross_attention_probs_dropout_prob: float = 0.0
    decoder_start_token_id: int = 0
    is_encoder_decoder: bool = True

    @classmethod
    def _sequence_fields(cls) -> tuple[str, ...]:
        return (*super()._sequence_fields(), "decoder_attn_layers", "decoder_axial_pos_shape")

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return len(self.decoder_attn_layers)

    def target_position_shape(self) -> tuple[int, ...]:
        """Axes of the decoder's position table."""
        if self.decoder_axial_pos_shape is not None:
            return tuple(self.decoder_axial_pos_shape)
        return derive_axial_shape(self.max_target_positions)

    def check(self) -> None:
        """Validate all fields, as in [`ReformerConfig`], and those of the decoder."""
        super().check()
        check_attention(self, "decoder_attn_layers")
        integer(self, "max_target_positions", 1)
        shape(self, "decoder_axial_pos_shape", "max_target_positions")
        integer(self, "decoder_feed_forward_size", 1, optional=True)
        probability(self, "cross_attention_probs_dropout_prob")
        token_id(self, "decoder_start_token_id")
        if self.decoder_start_token_id is None:
            raise ValueError("`decoder_start_token_id` must be a token id, got None")
        if self.is_encoder_decoder is not True:
            raise ValueError(f"`is_encoder_decoder` must be True, got {self.is_encoder_decoder!r}")


def split_features(hidden_size: int, axes: int) -> tuple[int, ...]:
    """Features of each position axis: a quarter for the first, the rest shared by the others."""
    if axes == 1:
        return (hidden_size,)
    first = max(1, hidden_size // 4)
    share, extra = divmod(hidden_size - first, axes - 1)
    return (first, *(share + (i < extra) for i in range(axes - 1)))
