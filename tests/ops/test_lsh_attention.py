from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reformer_hf.choices import HASH_FAMILIES
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.lsh_attention import hash_tokens, lsh_attention, lsh_attention_weights
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.row_hashing import buckets_for_length
from reformer_hf.ops.sorting import padding_order

operation = sys.modules[lsh_attention.__module__]
HEADS, SIZE = 2, 8
CAUSAL = AttentionWindow("window", 6, 0, 4, causal=True, exclude_self=True)
BOTH = AttentionWindow("window", 6, 6, 4, causal=False, exclude_self=True)
UNION = AttentionWindow("window", 6, 0, 4, True, True, count_duplicates=False)
CHUNKS = AttentionWindow("chunk", 1, 0, 4, causal=True, exclude_self=True)


def inputs(
    length: int, batch: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    query_key, value = torch.randn(2, batch, HEADS, length, SIZE, dtype=dtype)
    return query_key, value


def arguments(window: AttentionWindow = CAUSAL, **options: Any) -> dict[str, Any]:
    own = {field.name for field in fields(HashSettings)} & options.keys()
    hashing = {"num_hashes": 3, "seed": 7, **{name: options.pop(name) for name in own}}
    return {"settings": HashSettings(**hashing), "window": window, **options}


def attend(query_key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    return lsh_attention(query_key, value, **arguments(*args, **options))[0]


# ---- causality ----


@pytest.mark.parametrize("num_buckets", [None, 4, [2, 4]], ids=str)
@pytest.mark.parametrize("count_duplicates", [True, False], ids=["multiset", "union"])
@pytest.mark.parametrize("length", [2, 33, 64, 101])
def test_editing_later_tokens_leaves_earlier_outputs(length, count_duplicates, num_buckets):
    window = CAUSAL if count_duplicates else UNION
    query_key, value = inputs(length)
    before = attend(query_key, value, window, num_buckets=num_buckets)
    for i in {0, length // 3, length - 2}:
        edited = [x.clone() for x in (query_key, value)]
        for x in edited:
            x[:, :, i + 1 :] = torch.randn_like(x[:, :, i + 1 :])
        after = attend(*edited, window, num_buckets=num_buckets)
        torch.testing.assert_close(after[:, :, : i + 1], before[:, :, : i + 1], rtol=0, atol=1e-6)
        # The second of two tokens sees the first alone, so its own change does not show either.
        assert length == 2 or not torch.equal(after[:, :, -1], before[:, :, -1])


def test_later_tokens_do_not_exist_for_earlier_ones():
    query_key, value = inputs(80)
    whole = attend(query_key, value, num_buckets=8)
    for stop in (1, 30, 77):
        part = attend(query_key[:, :, :stop], value[:, :, :stop], num_buckets=8)
        torch.testing.assert_close(part, whole[:, :, :stop], rtol=0, atol=1e-6)


def test_no_gradient_flows_to_later_tokens():
    query_key, value = (x.requires_grad_() for x in inputs(60))
    out = attend(query_key, value, num_buckets=4)
    for gradient in torch.autograd.grad(out[:, :, 20].sum(), (query_key, value)):
        assert torch.equal(gradient[:, :, 21:], torch.zeros_like(gradient[:, :, 21:]))
        assert gradient[:, :, :20].abs().max() > 0.0


def test_the_chunk_pattern_is_not_strictly_causal():
    # Later tokens move the borders of its chunks: the reason for the `window` pattern.
    query_key, value = inputs(64)
    before = attend(query_key, value, CHUNKS, num_buckets=4)
    query_key = query_key.clone()
    query_key[:, :, 40:] = torch.randn_like(query_key[:, :, 40:])
    after = attend(query_key, value, CHUNKS, num_buckets=4)
    assert (after - before)[:, :, :40].abs().max() > 1e-3


# ---- padding and batches ----

SLOTS = {
    "left": lambda n: torch.arange(n) + 9,
    "right": lambda n: torch.arange(n),
    "middle": lambda n: torch.arange(n) + 9 * (torch.arange(n) >= n // 2),
    "scattered": lambda n: torch.randperm(n + 9)[:n].sort().values,
}


def pad(x: Tensor, slots: Tensor, length: int) -> Tensor:
    """``[1, H, n, D]`` at the named slots of ``length``, with noise around."""
    padded = torch.randn(*x.shape[:2], length, x.shape[-1], dtype=x.dtype)
    padded[:, :, slots] = x
    return padded


@pytest.mark.parametrize("family", HASH_FAMILIES)
@pytest.mark.parametrize("num_buckets", [None, 4], ids=str)
@pytest.mark.parametrize("window", [CAUSAL, BOTH, UNION], ids=["causal", "both", "union"])
@pytest.mark.parametrize("side", SLOTS)
def test_padding_leaves_real_tokens_unchanged(side, window, num_buckets, family):
    length = 41
    query_key, value = inputs(length)
    options = {"num_buckets": num_buckets, "family": family}
    plain = attend(query_key, value, window, **options)
    slots = SLOTS[side](length)
    mask = torch.zeros(1, length + 9)
    mask[0, slots] = 1.0
    padded = attend(
        pad(query_key, slots, length + 9),
        pad(value, slots, length + 9),
        window,
        padding=Padding.from_attention_mask(mask),
        **options,
    )
    torch.testing.assert_close(padded[:, :, slots], plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", HASH_FAMILIES)
def test_rows_of_a_batch_do_not_know_of_one_another(family):
    lengths = [70, 3, 25, 0, 50]  # 8, 1, 4, 1 and 8 buckets
    rows = [inputs(n) for n in lengths]
    longest = max(lengths)
    mask = torch.stack([torch.arange(longest) < n for n in lengths])
    query_key, value = (
        torch.cat(
            [pad(row[k], torch.arange(n), longest) for row, n in zip(rows, lengths, strict=True)]
        )
        for k in (0, 1)
    )
    padding = Padding.from_attention_mask(mask)
    together = attend(query_key, value, padding=padding, family=family)
    assert torch.isfinite(together).all()
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        if n > 0:
            alone = attend(*row, family=family)
            torch.testing.assert_close(together[i : i + 1, :, :n], alone, rtol=0, atol=1e-6)


def test_no_gradient_flows_between_padding_and_real_tokens():
    mask = torch.arange(30)[None] % 5 > 0
    padding = Padding.from_attention_mask(mask)
    query_key, value = (x.requires_grad_() for x in inputs(30))
    out = attend(query_key, value, num_buckets=2, padding=padding)
    for gradient in torch.autograd.grad(out[:, :, mask[0]].sum(), (query_key, value)):
        assert gradient[:, :, ~mask[0]].abs().max() == 0.0


def test_a_row_of_padding_only_is_finite():
    padding = Padding.from_attention_mask(torch.tensor([[0] * 20, [1] * 20]))
    query_key, value = (x.requires_grad_() for x in inputs(20, batch=2))
    for window in (CAUSAL, BOTH, CHUNKS):
        out = attend(query_key, value, window, padding=padding)
        assert torch.isfinite(out).all()
        gradients = torch.autograd.grad(out.square().sum(), (query_key, value))
        assert all(torch.isfinite(g).all() for g in gradients)


def test_padding_order_moves_padding_behind():
    assert padding_order(None) is None
    padding = Padding.from_attention_mask(torch.tensor([[0, 1, 0, 1]]))
    order = padding_order(padding)
    assert order is not None
    assert order.order.tolist() == [[[[1, 3, 0, 2]]]]


# ---- buckets ----


def test_one_bucket_is_attention_to_the_last_tokens():
    length, reach = 23, CAUSAL.before
    query_key, value = inputs(length, dtype=torch.float64)
    i = torch.arange(length)
    visible = (i[:, None] - i <= reach) & (i < i[:, None])
    visible[0, 0] = True
    scores = query_key @ normalize(query_key, dim=-1).transpose(-1, -2)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    out = attend(query_key, value, num_buckets=1)
    # Keys have length 1 up to the 1e-6 in their norm.
    torch.testing.assert_close(out, weights @ value, rtol=0, atol=1e-4)
    for family in HASH_FAMILIES:
        assert torch.equal(attend(query_key, value, num_buckets=1, family=family), out)


def test_sequences_shorter_than_two_windows_get_one_bucket():
    for length in (1, 6, 11):
        query_key, value = inputs(length)
        assert hash_tokens(query_key, **arguments(num_buckets=None)) is None
        chosen, one = attend(query_key, value), attend(query_key, value, num_buckets=1)
        assert torch.equal(chosen, one)
    assert hash_tokens(inputs(12)[0], **arguments(num_buckets=None)) is not None


@pytest.mark.parametrize("length", [12, 50, 300])
def test_an_unset_number_of_buckets_is_chosen_from_the_length(length):
    query_key, value = inputs(length)
    chosen = buckets_for_length(length, CAUSAL)
    assert chosen * CAUSAL.before <= length < 2 * chosen * CAUSAL.before
    explicit = attend(query_key, value, num_buckets=chosen)
    assert torch.equal(attend(query_key, value), explicit)


def test_padding_gets_a_bucket_above_all_others():
    mask = torch.tensor([[1] * 10 + [0] * 40, [1] * 50])
    hashed = hash_tokens(
        inputs(50, batch=2)[0],
        **arguments(num_buckets=None, padding=Padding.from_attention_mask(mask)),
    )
    assert hashed is not None
    chosen = buckets_for_length(50, CAUSAL)
    buckets, above_all = hashed
    assert above_all == chosen + 1
    assert torch.equal(buckets[0, :, :, :10], torch.zeros_like(buckets[0, :, :, :10]))
    assert torch.equal(buckets[0, :, :, 10:], torch.full_like(buckets[0, :, :, 10:], chosen))
    assert buckets[1].max() < chosen


def test_equal_seeds_hash_alike_and_others_do_not(untouched_random_state):
    query_key, value = inputs(60)
    with untouched_random_state:
        first = attend(query_key, value)
        assert torch.equal(first, attend(query_key, value))
        assert not torch.equal(first, attend(query_key, value, seed=8))


def test_a_number_of_buckets_beyond_the_tags_of_the_backends_is_refused():
    query_key, value = inputs(20)
    with pytest.raises(ValueError, match=r"num_buckets.*134217728.*67108864 buckets.*6 tokens"):
        attend(query_key, value, num_buckets=[8192, 8192])


@pytest.mark.parametrize("num_buckets", [3, 0, [2, 3]], ids=str)
def test_a_number_of_buckets_that_cannot_be_hashed_is_refused(num_buckets):
    with pytest.raises(ValueError, match="num_buckets"):
        attend(*inputs(20), num_buckets=num_buckets)


# ---- what it computes ----


def full_attention_without_self(query_key: Tensor, value: Tensor) -> Tensor:
    scores = query_key @ normalize(query_key, dim=-1).transpose(-1, -2)
    i = torch.arange(query_key.shape[2])
    weights = scores.masked_fill(i[:, None] == i, -torch.inf).softmax(dim=-1)
    return weights @ value


def test_counted_once_many_rounds_converge_to_full_attention():
    query_key, value = inputs(48, dtype=torch.float64)
    expected = full_attention_without_self(query_key, value)

    def error(rounds: int, count_duplicates: bool) -> float:
        window = AttentionWindow("window", 48, 48, 48, False, True, count_duplicates)
        out = attend(query_key, value, window, num_buckets=2, num_hashes=rounds)
        return (out - expected).abs().max().item()

    errors = [error(rounds, count_duplicates=False) for rounds in (1, 4, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-3
    # As a multiset, near pairs keep counting more often than far ones.
    assert error(32, count_duplicates=True) > 1e-2


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize(
    "window", [CAUSAL, BOTH, UNION, CHUNKS], ids=["causal", "both", "union", "chunks"]
)
def test_weights_times_values_are_the_output(window, padded):
    query_key, value = inputs(30, batch=2, dtype=torch.float64)
    mask = torch.arange(30) < torch.tensor([[30], [17]])
    options = {"num_buckets": 4, "padding": Padding.from_attention_mask(mask) if padded else None}
    weights = lsh_attention_weights(query_key, value, **arguments(window, **options))
    out = attend(query_key, value, window, **options)
    assert weights.shape == (2, HEADS, 30, 30)
    torch.testing.assert_close(weights @ value, out, rtol=1e-9, atol=1e-9)


def test_tokens_attend_within_their_buckets_only():
    query_key, value = inputs(40)
    hashed = hash_tokens(query_key, **arguments(num_buckets=4, num_hashes=1))
    assert hashed is not None
    buckets, above_all = hashed
    assert above_all == 4
    weights = lsh_attention_weights(
        query_key, value, **arguments(num_buckets=4, num_hashes=1, padding=None)
    )
    same = buckets[:, :, 0, :, None] == buckets[:, :, 0, None, :]
    assert weights[~same].abs().max() == 0.0
    assert weights[same].max() > 0.0


def test_the_named_backend_serves():
    query_key, value = inputs(40, dtype=torch.float64)
    expected = attend(query_key, value, backend="reference")
    torch.testing.assert_close(
        attend(query_key, value, backend="torch"), expected, rtol=1e-9, atol=1e-9
    )
    with pytest.raises(ValueError, match="'abacus'"):
        attend(query_key, value, backend="abacus")


# ---- long chunks ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("reach", [(0, 0), (1, 0), (1, 1), (2, 1), (0, 2)], ids=str)
@pytest.mark.parametrize("length", [25, 49, 60, 80])
def test_chunks_without_room_for_padding_show_the_same_tokens(
    length, reach, causal, dtype, monkeypatch
):
    window = AttentionWindow("chunk", *reach, 24, causal=causal, exclude_self=True)
    real = torch.zeros(3, length, dtype=torch.bool)
    for row, count in enumerate((11, 1, 7)):
        real[row, torch.randperm(length)[:count]] = True
    padding = Padding.from_attention_mask(real)
    query_key, value = inputs(length, batch=3, dtype=dtype)
    call = arguments(window, num_buckets=4, padding=padding)
    monkeypatch.setattr(operation, "_SHORT_CHUNK", 1)
    found = lsh_attention(query_key, value, **call)
    monkeypatch.setattr(operation, "_without_room", lambda window, *_: window)
    expected = lsh_attention(query_key, value, **call)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_a_long_chunk_of_padding_is_worked_on_in_short_ones(monkeypatch):
    window = AttentionWindow("chunk", 1, 0, 4096, causal=True, exclude_self=True)
    chunk_lengths = []

    def note(query: Tensor, *_: Any, window: AttentionWindow, **__: Any) -> tuple[Tensor, Tensor]:
        chunk_lengths.append(window.chunk_length)
        return query, torch.zeros(query.shape[:3])

    monkeypatch.setattr(operation, "windowed_attention", note)
    for most in (100, 4096, 4097):
        padding = Padding.from_attention_mask(torch.arange(4100) < torch.tensor([[most], [70]]))
        attend(*inputs(4100, batch=2), window, num_buckets=4, padding=padding)
    assert chunk_lengths == [100, 4096, 4096]
