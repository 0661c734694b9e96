"""``past_key_values`` and ``use_cache`` of a call, and the inputs that go with a memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from reformer_hf.cache import ReformerCache, ReformerEncoderDecoderCache
from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.ops.padding import Padding


def find_cache(
    past_key_values: Cache | None,
    use_cache: bool | None,
    config: ReformerConfig,
    planned_lengths: int | Sequence[int] | None,
) -> ReformerCache | None:
    """The memory of a call of a causal model: the one given, a new one, or none.

    A new one is made only if ``use_cache`` is true: training and evaluation have no use for it.

    Raises:
        ValueError: a memory of another kind or of another model.
    """
    if past_key_values is None:
        return ReformerCache(config, planned_lengths) if use_cache else None
    if not isinstance(past_key_values, ReformerCache):
        raise ValueError(
            f"`past_key_values` must be a ReformerCache, got a {type(past_key_values).__name__}"
        )
    past_key_values.check_model(config)
    return past_key_values


def find_encoder_decoder_cache(
    past_key_values: Cache | None,
    use_cache: bool | None,
    config: ReformerSeq2SeqConfig,
    planned_lengths: int | Sequence[int] | None,
) -> EncoderDecoderCache | None:
    """The same for a sequence-to-sequence model.

    Raises:
        ValueError: a memory of another kind or of another model.
    """
    if past_key_values is None:
        return ReformerEncoderDecoderCache(config, planned_lengths) if use_cache else None
    if not isinstance(past_key_values, EncoderDecoderCache):
        raise ValueError(
            "`past_key_values` must be a ReformerEncoderDecoderCache, got a "
            f"{type(past_key_values).__name__}"
        )
    find_cache(past_key_values.self_attention_cache, True, config, None)
    return past_key_values


def mask_of_new_tokens(
    attention_mask: Tensor | None, cache: ReformerCache | None, vectors: Tensor, name: str
) -> Tensor | None:
    """The mask ``[B, N]`` of the new tokens, from one that may cover those in memory too.

    Raises:
        ValueError: a mask of another shape.
    """
    if attention_mask is None or cache is None:
        return attention_mask
    past, (batch, length) = cache.get_seq_length(), vectors.shape[:2]
    if tuple(attention_mask.shape) == (batch, past + length):
        return attention_mask[:, past:]
    if tuple(attention_mask.shape) == (batch, length):
        return attention_mask
    raise ValueError(
        f"`{name}` must be [batch, length] = {[batch, past + length]} with the tokens in memory, "
        f"or {[batch, length]} without, got {list(attention_mask.shape)}"
    )


def open_cache(
    cache: ReformerCache,
    vectors: Tensor,
    padding: Padding | None,
    hash_seed: int,
    num_hashes: int | None,
) -> int:
    """Begin a call that uses a memory.

    Returns:
        The hash seed of the memory.

    Raises:
        ValueError: see :meth:`ReformerCache.open`.
    """
    batch, length, _ = vectors.shape
    cache.open(batch, length, padding, vectors.device, hash_seed, num_hashes)
    return hash_seed if cache.hash_seed is None else cache.hash_seed


def next_positions(cache: ReformerCache, num_positions: int, limit_name: str) -> Tensor:
    """Positions ``[B, N]`` of new tokens: the number of real tokens before each.

    Raises:
        ValueError: more tokens than the model has positions for.
    """
    longest = max(cache.timeline.coming_ends)
    if longest > num_positions:
        raise ValueError(
            f"the sequence must have at most {limit_name}={num_positions} tokens, got {longest} "
            f"with {cache.get_seq_length()} in `past_key_values`; see `resize_position_embeddings`"
        )
    return cache.timeline.coming_positions()
