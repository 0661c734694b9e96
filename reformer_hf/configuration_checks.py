"""Validation of the configurations: every error names the field, what is expected and what came."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers.activations import ACT2FN

from reformer_hf.choices import (
    ATTENTION_BACKENDS,
    ATTENTION_KINDS,
    ATTENTION_PATTERNS,
    CLASSIFIER_POOLINGS,
    HASH_FAMILIES,
    HEAD_MERGES,
    PROBLEM_TYPES,
    STREAM_MERGES,
)

# A name this similar to that of a field (by Ratcliff and Obershelp; 1: equal) is meant to be it.
# Fields that transformers, hubs and adapters add to any configuration are less similar.
_MISSPELT_FROM = 0.85

# The coarsest grid that residuals may be rounded to. Measured in new language models of 4 and 6
# layers, 64 and 256 wide, against the gradient without rounding: the gradient is off by 3 to 4% at
# 2**-10, 6 to 8% at 2**-8, 25 to 40% at 2**-5, and has nothing in common with it from 2**-3 on,
# where most of what layers add is rounded to zero. The range that 2**-8 leaves is 6 million.
COARSEST_GRID, FINEST_GRID = 2.0**-8, 2.0**-24

# ---- one field ----


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def integer(config: Any, name: str, least: int, optional: bool = False) -> None:
    """An integer of at least ``least`` (or ``None``, if that is allowed)."""
    value = getattr(config, name)
    if optional and value is None:
        return
    if not _is_integer(value) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")


def number(config: Any, name: str) -> float:
    """A finite number."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}")
    return float(value)


def probability(config: Any, name: str, optional: bool = False) -> None:
    """A number in ``[0, 1)`` (or ``None``, if that is allowed)."""
    if optional and getattr(config, name) is None:
        return
    if not 0.0 <= number(config, name) < 1.0:
        raise ValueError(f"`{name}` must be in [0, 1), got {getattr(config, name)!r}")


def boolean(config: Any, name: str, optional: bool = False) -> None:
    """True or false (or ``None``, if that is allowed)."""
    if optional and getattr(config, name) is None:
        return
    if not isinstance(getattr(config, name), bool):
        raise ValueError(f"`{name}` must be True or False, got {getattr(config, name)!r}")


def choice(config: Any, name: str, choices: Sequence[str], optional: bool = False) -> None:
    """One of the choices (or ``None``, if that is allowed)."""
    value = getattr(config, name)
    if optional and value is None:
        return
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}")


def integers(config: Any, name: str, least: int) -> list[int]:
    """A list of integers of at least ``least``."""
    value = getattr(config, name)
    if not isinstance(value, list | tuple) or not value or not all(map(_is_integer, value)):
        raise ValueError(f"`{name}` must be a list of integers, got {value!r}")
    if min(value) < least:
        raise ValueError(f"`{name}` must hold integers of at least {least}, got {value!r}")
    return list(value)


def token_id(config: Any, name: str, several: bool = False) -> None:
    """``None``, a token of the vocabulary, or, if that is allowed, a list of them."""
    value = getattr(config, name)
    if value is None:
        return
    tokens = value if several and isinstance(value, list | tuple) and value else [value]
    if not all(_is_integer(token) and 0 <= token < config.vocab_size for token in tokens):
        raise ValueError(
            f"`{name}` must be None or in [0, vocab_size={config.vocab_size}), got {value!r}"
        )


def number_of_labels(value: Any) -> None:
    """What may be given as ``num_labels``."""
    if not _is_integer(value) or value < 1:
        raise ValueError(f"`num_labels` must be an integer of at least 1, got {value!r}")


def misspelt(name: str, known: Collection[str], kind: str = "field of the configuration") -> None:
    """A name that is none of the known ones, but so close to one that it must have been meant.

    Others are let through: transformers, hubs and adapters add fields and arguments of their own.
    """
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELT_FROM)
    if close:
        raise ValueError(f"`{name}` is no {kind}, did you mean `{close[0]}`?")


def shape(config: Any, name: str, maximum: str) -> None:
    """Axes of a position table that reach ``maximum`` positions, or ``None``."""
    if getattr(config, name) is None:
        return
    shape, least = integers(config, name, 1), getattr(config, maximum)
    if math.prod(shape) < least:
        raise ValueError(
            f"`{name}` must have a product of at least {maximum}={least}, got {shape} with product "
            f"{math.prod(shape)}"
        )


# ---- all fields ----


def check_sizes(config: Any) -> None:
    """Fields that are sizes and counts."""
    for name in (
        "vocab_size",
        "hidden_size",
        "num_attention_heads",
        "attention_head_size",
        "feed_forward_size",
        "max_position_embeddings",
        "num_hashes",
        "lsh_attn_chunk_length",
        "local_attn_chunk_length",
    ):
        integer(config, name, 1)
    # A window that reaches nothing back would leave a causal token alone with itself.
    least = 1 if config.attention_pattern == "window" else 0
    for name in ("lsh_num_chunks_before", "local_num_chunks_before"):
        integer(config, name, least)
    for name in ("chunk_size_feed_forward", "chunk_size_lm_head", "sink_tokens"):
        integer(config, name, 0)
    for name in ("lsh_num_chunks_after", "local_num_chunks_after", "hash_seed"):
        integer(config, name, 0, optional=True)


def check_choices(config: Any) -> None:
    """Fields that are one of several words, or true or false."""
    choice(config, "hash_family", HASH_FAMILIES)
    choice(config, "attention_pattern", ATTENTION_PATTERNS)
    choice(config, "attention_backend", ATTENTION_BACKENDS)
    choice(config, "head_merge", HEAD_MERGES)
    choice(config, "stream_merge", STREAM_MERGES)
    choice(config, "classifier_pooling", CLASSIFIER_POOLINGS)
    choice(config, "problem_type", PROBLEM_TYPES, optional=True)
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACT2FN:
        raise ValueError(f"`hidden_act` must be one of {sorted(ACT2FN)}, got {config.hidden_act!r}")
    for name in (
        "axial_pos_embds",
        "count_duplicates",
        "reversible",
        "exact_reversible",
        "is_decoder",
        "tie_word_embeddings",
        "use_cache",
    ):
        boolean(config, name)
    for name in ("return_dict", "output_hidden_states", "output_attentions"):
        boolean(config, name, optional=True)


def check_attention(config: Any, name: str) -> None:
    """The kinds of attention of a stack."""
    kinds = getattr(config, name)
    if not isinstance(kinds, list | tuple) or not kinds:
        raise ValueError(f"`{name}` must be a list with at least one layer, got {kinds!r}")
    unknown = [kind for kind in kinds if kind not in ATTENTION_KINDS]
    if unknown:
        raise ValueError(f"`{name}` must hold only {list(ATTENTION_KINDS)}, got {unknown[0]!r}")
    if "hybrid" in kinds:
        _check_hybrid(config)


def _check_hybrid(config: Any) -> None:
    """What hybrid layers need of fields that other kinds share."""
    for name, needed in (("attention_pattern", "window"), ("hash_family", "angular")):
        if getattr(config, name) != needed:
            raise ValueError(
                f"`{name}` must be {needed!r} with 'hybrid' layers, got {getattr(config, name)!r}"
            )
    for kind in ("lsh", "local"):
        before, after = (getattr(config, f"{kind}_num_chunks_{x}") for x in ("before", "after"))
        if after not in (None, before):
            raise ValueError(
                f"`{kind}_num_chunks_after` must be None or {before}, as before, with 'hybrid' "
                f"layers, got {after!r}"
            )


def check_positions(config: Any) -> None:
    """Rotary positions and the position table."""
    if config.rope_theta is not None:
        if number(config, "rope_theta") < 1.0:
            raise ValueError(f"`rope_theta` must be None or at least 1, got {config.rope_theta!r}")
        kinds = {*config.attn_layers, *getattr(config, "decoder_attn_layers", ())}
        if config.attention_head_size % 2 and kinds != {"lsh"}:
            raise ValueError(
                "`attention_head_size` must be even with rotary positions (`rope_theta=None`: "
                f"without), got {config.attention_head_size}"
            )
    if not config.axial_pos_embds:
        return
    shape(config, "axial_pos_shape", "max_position_embeddings")
    axes = len(config.position_shape())
    if config.axial_pos_embds_dim is not None:
        dims = integers(config, "axial_pos_embds_dim", 1)
        if len(dims) != axes or sum(dims) != config.hidden_size:
            raise ValueError(
                f"`axial_pos_embds_dim` must hold {axes} numbers with sum hidden_size="
                f"{config.hidden_size}, got {dims} with sum {sum(dims)}"
            )
    elif config.hidden_size < axes:
        raise ValueError(
            f"`hidden_size` must be at least the number of position axes, {axes}, "
            f"got {config.hidden_size}"
        )


def check_rest(config: Any) -> None:
    """Probabilities, numbers and token ids, and what fields must be together."""
    if config.num_buckets is not None:
        single = _is_integer(config.num_buckets)
        factors = [config.num_buckets] if single else integers(config, "num_buckets", 1)
        if any(b < 1 or (b > 1 and b % 2) for b in factors):  # type: ignore[operator]
            raise ValueError(
                "`num_buckets` must be 1 or even, as must each of its factors, "
                f"got {config.num_buckets!r}"
            )
    for name in (
        "hidden_dropout_prob",
        *(f"{k}_attention_probs_dropout_prob" for k in ATTENTION_KINDS),
    ):
        probability(config, name)
    probability(config, "classifier_dropout", optional=True)
    for name in ("hash_bucket_width", "layer_norm_eps"):
        if number(config, name) <= 0.0:
            raise ValueError(f"`{name}` must be positive, got {getattr(config, name)!r}")
    for name in ("initializer_range", "axial_norm_std"):
        if number(config, name) < 0.0:
            raise ValueError(f"`{name}` must not be negative, got {getattr(config, name)!r}")
    grid = number(config, "residual_grid")
    if not FINEST_GRID <= grid <= COARSEST_GRID or math.frexp(grid)[0] != 0.5:
        raise ValueError(
            "`residual_grid` must be a power of two in [2**-24, 2**-8] (coarser ones round away "
            f"what layers add), got {grid!r}"
        )
    if config.stream_merge == "concat" and config.tie_word_embeddings:
        raise ValueError(
            "`tie_word_embeddings` must be False with stream_merge='concat' (the head then reads "
            "twice as many features as an embedding has), got True"
        )
    for name in ("pad_token_id", "bos_token_id"):
        token_id(config, name)
    token_id(config, "eos_token_id", several=True)
    number_of_labels(config.num_labels)
    if config.problem_type == "single_label_classification" and config.num_labels == 1:
        raise ValueError(
            "`problem_type` must be 'regression' with num_labels=1, got "
            f"{config.problem_type!r}: one class is no choice"
        )
    if isinstance(config.dtype, torch.dtype) and not config.dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a floating-point dtype, got {config.dtype}")
