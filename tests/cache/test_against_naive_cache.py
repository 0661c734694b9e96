"""Random sequences of calls, rollbacks, reorderings and evictions, against a list of tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_hf import ReformerCache, ReformerConfig
from reformer_hf.cache import lsh_layer
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.stack import ReformerLayer
from reformer_hf.ops.padding import Padding
from tests.cache.naive_cache import NaiveCache, make_tokens

HEADS, SIZE, WINDOW = 2, 4, 3


class Pair:
    """One layer's cache and the naive one, which are told the same."""

    def __init__(self, kind: str, seed: int, batch: int, options: dict[str, Any]) -> None:
        max_tokens = options.pop("max_tokens")
        config = ReformerConfig(
            hidden_size=8,
            attn_layers=[kind],
            num_attention_heads=HEADS,
            attention_head_size=SIZE,
            lsh_attn_chunk_length=WINDOW,
            local_attn_chunk_length=WINDOW,
            **options,
        )
        self.kind, self.batch = kind, batch
        self.generator = torch.Generator().manual_seed(seed)
        self.layer = ReformerLayer(config, kind, 0, causal=True, decoder=False).eval().attention
        self.cache = ReformerCache(config, planned_lengths=40, max_tokens=max_tokens)
        self.naive = NaiveCache(kind, WINDOW, config.count_duplicates, max_tokens)
        self.context = ForwardContext(None, hash_seed=5, dropout_seed=0, cache=self.cache)

    def _draw(self, length: int) -> Tensor:
        shape = (self.batch, HEADS, length, SIZE)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def append(self, length: int, padded: bool) -> None:
        heads = [self._draw(length) for _ in range(2 if self.kind == "lsh" else 3)]
        real = torch.ones(self.batch, length, dtype=torch.bool)
        if padded:
            real = torch.rand(self.batch, length, generator=self.generator) < 0.7
        padding = Padding.from_attention_mask(real)
        context = replace(self.context, padding=padding, planned_lengths=(40,) * self.batch)
        self.cache.open(self.batch, length, padding, real.device, 5, None)
        out = self.layer.attend_with_cache(self.cache, context, *heads)
        self.cache.close()
        key, value = (heads[0], heads[1]) if self.kind == "lsh" else heads[1:]
        buckets = None
        if self.kind == "lsh":
            buckets = self.cache.lsh_layer(0).hasher(key)
        tokens = make_tokens(self.kind, key, value, buckets, real)
        expected = self.naive.append(heads[0], tokens)
        torch.testing.assert_close(out * real[:, None, :, None], expected, rtol=1e-9, atol=1e-9)

    def crop(self, columns: int) -> None:
        columns = min(columns, self.cache.get_seq_length())
        self.cache.crop(-columns)
        self.naive.crop(columns)

    def take_rows(self, chosen: list[int]) -> None:
        self.batch = len(chosen)
        self.cache.reorder_cache(torch.tensor(chosen))
        self.naive.take_rows(chosen)

    def evict(self, keep: int) -> None:
        self.cache.evict(keep)
        self.naive.evict(keep)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from([1, 1, 1, 2, 5, 12]), st.booleans()),
        st.tuples(st.just("crop"), st.integers(0, 9)),
        st.tuples(st.just("take_rows"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        st.tuples(st.just("evict"), st.integers(0, 10)),
        st.tuples(st.just("record")),
    ),
    max_size=14,
)


@pytest.mark.parametrize("kind", ["lsh", "local", "full"])
@given(
    actions=ACTIONS,
    seed=st.integers(0, 2**16),
    batch=st.integers(1, 2),
    rounds=st.integers(1, 3),
    count_duplicates=st.booleans(),
    num_buckets=st.sampled_from([None, 1, 2, 4]),
    recorded=st.booleans(),
    block_cost=st.sampled_from([0, 8]),
    max_tokens=st.sampled_from([None, None, 4, 11]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
@torch.no_grad()
def test_any_sequence_of_operations_is_that_of_a_list_of_tokens(
    kind: str,
    actions: list[tuple[Any, ...]],
    seed: int,
    batch: int,
    rounds: int,
    count_duplicates: bool,
    num_buckets: int | None,
    recorded: bool,
    block_cost: int,
    max_tokens: int | None,
) -> None:
    options = {
        "num_hashes": rounds,
        "count_duplicates": count_duplicates,
        "num_buckets": num_buckets,
        "max_tokens": max_tokens,
    }
    pair = Pair(kind, seed, batch, options)
    if recorded:
        pair.cache.activate_past_recording()
    # With a cost of 0 every block of new tokens reads the rings, however few tokens there are.
    with mock.patch.object(lsh_layer, "_GATHER_COST", block_cost):
        pair.append(7, padded=False)
        _act(pair, actions)
        pair.append(1, padded=False)
        pair.append(6, padded=False)
        pair.crop(4)
        pair.append(3, padded=False)


def _act(pair: Pair, actions: list[tuple[Any, ...]]) -> None:
    for name, *arguments in actions:
        if name == "record":
            pair.cache.activate_past_recording()
        elif name == "take_rows":
            pair.take_rows([i % pair.batch for i in arguments[0]])
        elif name == "crop":
            pair.crop(min(arguments[0], max(0, pair.cache.get_seq_length() - 1)))
        else:
            getattr(pair, name)(*arguments)
