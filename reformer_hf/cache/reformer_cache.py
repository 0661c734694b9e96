"""The cache that ``generate()`` and ``past_key_values`` work with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from reformer_hf.cache.chunk_layers import ChunkLocalCacheLayer, ChunkLSHCacheLayer
from reformer_hf.cache.full_layer import FullCacheLayer
from reformer_hf.cache.local_layer import LocalCacheLayer
from reformer_hf.cache.lsh_layer import LSHCacheLayer
from reformer_hf.cache.timeline import Timeline
from reformer_hf.cache.token_layer import TokenCacheLayer
from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.ops.padding import Padding

# Fields that decide what is stored and where.
_FIELDS = (
    "num_attention_heads",
    "attention_head_size",
    "num_hashes",
    "num_buckets",
    "hash_family",
    "hash_bucket_width",
    "hash_seed",
    "attention_pattern",
    "lsh_attn_chunk_length",
    "lsh_num_chunks_before",
    "local_attn_chunk_length",
    "local_num_chunks_before",
    "sink_tokens",
    "rope_theta",
)

Layer = TypeVar("Layer", bound=TokenCacheLayer)


def _kinds(config: ReformerConfig) -> list[str]:
    if isinstance(config, ReformerSeq2SeqConfig):
        return list(config.decoder_attn_layers)
    return list(config.attn_layers)


def _signature(config: ReformerConfig) -> dict[str, Any]:
    fields = {name: getattr(config, name) for name in _FIELDS}
    return {"layers": _kinds(config), **fields}


def _check_forgetting(config: ReformerConfig, name: str, value: int) -> None:
    """Hybrid layers see the first tokens, and hash by them, for as long as there are later ones."""
    if "hybrid" in _kinds(config):
        raise ValueError(
            f"`{name}` must not be used with 'hybrid' layers, whose first tokens are needed "
            f"forever, got {value}"
        )


def _expect(kinds: tuple[type[Layer], ...], layer: TokenCacheLayer, index: int) -> Layer:
    if not isinstance(layer, kinds):
        raise ValueError(
            f"layer {index} of `past_key_values` must be a {kinds[0].__name__}, "
            f"got a {type(layer).__name__}"
        )
    return layer


class ReformerCache(Cache):
    """What a causal Reformer keeps between calls: one step costs the same at any length.

    In the ``window`` pattern a token sees the last ``W`` tokens of its own buckets and nothing
    else, so an LSH layer keeps, besides keys and values, a ring of the last ``W`` positions of
    every bucket. What is computed with the cache is what one pass over all tokens computes.

    Hash functions and the number of buckets are fixed when the first tokens come. As that number
    depends on the length of a sequence, the length that is planned has to be known then:
    ``generate`` plans prompt and new tokens.

    Args:
        config: of the model; the decoder's layers in a sequence-to-sequence model.
        planned_lengths: tokens that each row, or all rows alike, will have in the end. ``None``:
            the number of buckets suits the first input, and more tokens share these buckets.
        max_tokens: how many tokens of a row stay between calls; the oldest leave first, and no
            later token sees them. ``None``: all stay.
        approximate: for a model in the ``chunk`` pattern, where a later token changes what earlier
            ones see: keep what a token was when it came, as transformers' own Reformer does. Steps
            are close to what a pass over the whole sequence computes, and not equal to it.

    Raises:
        ValueError: a number that is not positive, a pattern that no cache can serve exactly, or
            ``max_tokens`` with hybrid layers, which need the first tokens.

    Example:
        >>> import torch
        >>> from reformer_hf import ReformerCache, ReformerConfig, ReformerForCausalLM
        >>> config = ReformerConfig(hidden_size=32, num_attention_heads=2, attention_head_size=16)
        >>> model = ReformerForCausalLM(config).eval()
        >>> cache = ReformerCache(config, planned_lengths=1000)
        >>> with torch.no_grad():
        ...     _ = model(torch.tensor([[5, 6, 7]]), past_key_values=cache)
        ...     out = model(torch.tensor([[8, 9]]), past_key_values=cache)
        >>> out.logits.shape, cache.get_seq_length()
        (torch.Size([1, 2, 320]), 5)
    """

    layers: list[TokenCacheLayer]

    def __init__(
        self,
        config: ReformerConfig,
        planned_lengths: int | Sequence[int] | None = None,
        max_tokens: int | None = None,
        approximate: bool = False,
    ) -> None:
        if not isinstance(config, ReformerConfig):
            raise ValueError(f"`config` must be a ReformerConfig, got a {type(config).__name__}")
        if not approximate and config.attention_pattern != "window":
            raise ValueError(
                "`attention_pattern` must be 'window' for an exact cache: in the 'chunk' pattern "
                f"later tokens change what earlier ones see, got {config.attention_pattern!r}; "
                "approximate=True decodes as transformers' Reformer does"
            )
        if approximate and config.attention_pattern != "chunk":
            raise ValueError(
                "`approximate` must be False in the 'window' pattern, whose cache is exact, "
                f"got {approximate}"
            )
        if approximate and max_tokens is not None:
            raise ValueError(
                f"`max_tokens` must be None for an approximate cache, got {max_tokens}"
            )
        planned = [planned_lengths] if isinstance(planned_lengths, int) else planned_lengths
        if planned is not None and (not planned or min(planned) < 1):
            raise ValueError(f"`planned_lengths` must be positive, got {planned_lengths}")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"`max_tokens` must be positive, got {max_tokens}")
        if max_tokens is not None:
            _check_forgetting(config, "max_tokens", max_tokens)
        self.config = config
        self.timeline = Timeline(max_tokens)
        self._given_plan = planned_lengths
        self.planned_lengths: tuple[int, ...] | None = None
        self.num_hashes: int | None = None
        self.hash_seed: int | None = None
        super().__init__(layers=[self._layer(kind) for kind in _kinds(config)])

    def _layer(self, kind: str) -> TokenCacheLayer:
        config, chunked = self.config, self.config.attention_pattern == "chunk"
        if kind == "lsh":
            return ChunkLSHCacheLayer(self.timeline) if chunked else LSHCacheLayer(self.timeline)
        if kind in ("full", "hybrid"):
            return FullCacheLayer(self.timeline)
        if chunked:
            return ChunkLocalCacheLayer(self.timeline)
        return LocalCacheLayer(
            self.timeline, config.local_attn_chunk_length * config.local_num_chunks_before
        )

    def lsh_layer(self, index: int) -> LSHCacheLayer | ChunkLSHCacheLayer:
        """What an LSH layer keeps."""
        return _expect((LSHCacheLayer, ChunkLSHCacheLayer), self.layers[index], index)

    def local_layer(self, index: int) -> LocalCacheLayer | ChunkLocalCacheLayer:
        """What a local layer keeps."""
        return _expect((LocalCacheLayer, ChunkLocalCacheLayer), self.layers[index], index)

    def full_layer(self, index: int) -> FullCacheLayer:
        """What a layer keeps that reads all tokens: with full or hybrid attention."""
        return _expect((FullCacheLayer,), self.layers[index], index)

    # ---- calls ----

    def check_model(self, config: ReformerConfig) -> None:
        """Make sure that the cache is of a model like this.

        Raises:
            ValueError: naming the field that differs.
        """
        if config is self.config:
            return
        own, other = _signature(self.config), _signature(config)
        for name, value in own.items():
            if other[name] != value:
                raise ValueError(
                    f"`past_key_values` belongs to a model with {name}={value!r}, "
                    f"got one with {other[name]!r}"
                )

    def open(
        self,
        batch: int,
        columns: int,
        padding: Padding | None,
        device: torch.device,
        hash_seed: int,
        num_hashes: int | None,
    ) -> None:
        """A call of the model begins.

        Args:
            batch: ``B``.
            columns: new tokens and padding of a row.
            padding: which of these are real.
            device: where the model's inputs are.
            hash_seed: of the call; that of the first one stays.
            num_hashes: hash rounds asked for in the call.

        Raises:
            ValueError: another batch size, device or number of rounds than before.
        """
        first = not self.timeline.columns
        if first:
            # Also after a call that failed half-way.
            self.reset()
        self.timeline.open(batch, columns, padding, device)
        if first:
            self.num_hashes, self.hash_seed = num_hashes, hash_seed
            self.planned_lengths = self._plan(batch)
            for layer in self.layers:
                layer.planned_capacity = max(self.planned_lengths)
        elif num_hashes is not None and num_hashes != (self.num_hashes or self.config.num_hashes):
            raise ValueError(
                f"`num_hashes` must stay {self.num_hashes or self.config.num_hashes} for as long "
                f"as `past_key_values` is used, got {num_hashes}"
            )
        for layer in self.layers:
            layer.prefetch()

    def _plan(self, batch: int) -> tuple[int, ...]:
        plan = self._given_plan
        if plan is None:
            return tuple(max(1, n) for n in self.timeline.coming_lengths)
        if isinstance(plan, int):
            return (plan,) * batch
        if len(plan) != batch:
            raise ValueError(
                f"`planned_lengths` must hold a number for each of {batch} rows, got {len(plan)}"
            )
        return tuple(plan)

    def close(self) -> None:
        """The call is over, its tokens are stored."""
        self.timeline.close()

    # ---- transformers' interface ----

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first call."""
        return self.timeline.batch or -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far: tokens of a row and its padding."""
        return self.timeline.columns

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last columns, exactly: the cache becomes what it was before them.

        With :meth:`activate_past_recording` this costs as much as the columns, else as much as all
        stored tokens (a sort of all buckets).

        Args:
            tokens_to_remove: minus the number of columns, as in transformers.

        Raises:
            ValueError: a positive number, or more columns than there are.
        """
        count = -tokens_to_remove
        if count < 0:
            raise ValueError(f"`tokens_to_remove` must be zero or negative, got {tokens_to_remove}")
        if count > self.timeline.columns:
            raise ValueError(
                f"`crop` can remove at most the {self.timeline.columns} tokens in the cache, "
                f"got {count}"
            )
        time = self.timeline
        lost = time.tokens_in_last(count)
        ends = tuple(end - n for end, n in zip(time.ends, lost, strict=True))
        filled = [layer for layer in self.layers if layer.is_initialized]
        for layer in filled:
            layer.check_crop(ends)
        time.crop(count, lost)
        for layer in filled:
            layer.crop_tokens(lost)

    def evict(self, keep: int) -> None:
        """Forget all but the last ``keep`` tokens of every row, now.

        Raises:
            ValueError: a negative number, or a model with hybrid layers.
        """
        if keep < 0:
            raise ValueError(f"`keep` must not be negative, got {keep}")
        _check_forgetting(self.config, "keep", keep)
        self.timeline.evict(keep)

    def activate_past_recording(self) -> None:
        """From now on, make :meth:`crop` cheap, and possible for all tokens since the last one."""
        self.timeline.record()

    def reset(self) -> None:
        """Forget everything; plan and hash seed are fixed anew by the next call."""
        super().reset()
        self.timeline.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row ``i`` becomes what row ``beam_idx[i]`` was."""
        self._take_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        rows = torch.arange(self.timeline.batch, device=self.timeline.device)
        self._take_rows(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        rows = torch.arange(self.timeline.batch, device=self.timeline.device)
        self._take_rows(rows[indices.to(rows.device)])

    def _take_rows(self, rows: Tensor) -> None:
        chosen = rows.tolist()
        if not self.timeline.batch or chosen == list(range(self.timeline.batch)):
            return
        rows = rows.to(self.timeline.device)
        self.timeline.take_rows(rows)
        if self.planned_lengths is not None:
            self.planned_lengths = tuple(self.planned_lengths[i] for i in chosen)
        for layer in self.layers:
            layer.take_rows(rows)

    def nbytes(self) -> int:
        """Bytes that all layers hold."""
        return sum(layer.nbytes() for layer in self.layers)


class ReformerEncoderDecoderCache(EncoderDecoderCache):
    """The decoder's cache, and the keys and values that its layers made of the source, once.

    Args:
        config: of the model.
        planned_lengths: tokens that each row of the target will have in the end.
        max_tokens: how many tokens of a row of the target stay between calls.
        approximate: serve the ``chunk`` pattern, approximately; all three as in
            :class:`ReformerCache`.
    """

    def __init__(
        self,
        config: ReformerSeq2SeqConfig,
        planned_lengths: int | Sequence[int] | None = None,
        max_tokens: int | None = None,
        approximate: bool = False,
    ) -> None:
        decoder = ReformerCache(config, planned_lengths, max_tokens, approximate)
        super().__init__(decoder, DynamicCache())

    def check_dynamic_cache(self, method: str) -> None:
        """transformers asks this before methods that it knows of its own caches only."""
        del method

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first call."""
        return self.self_attention_cache.batch_size
