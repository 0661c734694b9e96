"""Which cache a call works with, by its ``past_key_values`` and ``use_cache``."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.cache_utils import Cache, EncoderDecoderCache

from reformer_hf.cache import ReformerCache, ReformerEncoderDecoderCache
from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.models.checks import check_flag


def find_cache(
    past_key_values: Cache | None,
    use_cache: bool | None,
    config: ReformerConfig,
    planned_lengths: int | Sequence[int] | None,
) -> ReformerCache | None:
    """The cache of a model with one stack: the one given, a new one, or none.

    A new one is made only if ``use_cache`` is true, as training and evaluation have no use for it,
    and only in a causal model.

    Raises:
        ValueError: a cache of another kind or of another model, or in a model that is not causal.
    """
    check_flag(use_cache, "use_cache")
    if past_key_values is None:
        return ReformerCache(config, planned_lengths) if use_cache and config.is_decoder else None
    if not config.is_decoder:
        raise ValueError("`past_key_values` needs a causal model, got is_decoder=False")
    return _checked(past_key_values, config)


def find_encoder_decoder_cache(
    past_key_values: Cache | None,
    use_cache: bool | None,
    config: ReformerSeq2SeqConfig,
    planned_lengths: int | Sequence[int] | None,
) -> EncoderDecoderCache | None:
    """The cache of a sequence-to-sequence model: the one given, a new one if asked for, or none.

    Raises:
        ValueError: a cache of another kind or of another model.
    """
    check_flag(use_cache, "use_cache")
    if past_key_values is None:
        return ReformerEncoderDecoderCache(config, planned_lengths) if use_cache else None
    if not isinstance(past_key_values, EncoderDecoderCache):
        raise ValueError(
            "`past_key_values` must be a ReformerEncoderDecoderCache, got a "
            f"{type(past_key_values).__name__}"
        )
    _checked(past_key_values.self_attention_cache, config)
    return past_key_values


def _checked(cache: Cache, config: ReformerConfig) -> ReformerCache:
    if not isinstance(cache, ReformerCache):
        raise ValueError(
            f"`past_key_values` must be a ReformerCache, got a {type(cache).__name__}; keys and "
            "values from elsewhere (prefix tuning) have no place in a cache of hashed tokens, "
            "vectors before the tokens (prompt tuning) have"
        )
    cache.check_model(config)
    return cache
