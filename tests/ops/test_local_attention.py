from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.local_attention import local_attention, local_attention_weights
from reformer_hf.ops.padding import Padding

HEADS, SIZE = 2, 4


def window(before: int, after: int, pattern: str = "window", causal: bool = False, tile: int = 4):
    return AttentionWindow(pattern, before, after, tile, causal, exclude_self=False)


def inputs(length: int, batch: int = 2) -> list[Tensor]:
    return list(torch.randn(3, batch, HEADS, length, SIZE, dtype=torch.float64))


def sliding_window(
    query: Tensor, key: Tensor, value: Tensor, before: int, after: int
) -> tuple[Tensor, Tensor]:
    """Softmax over the positions ``i - before .. i + after``, with its normaliser."""
    i = torch.arange(query.shape[2])
    distance = i[:, None] - i
    scores = query @ key.transpose(-1, -2) / SIZE**0.5
    scores = scores.masked_fill((distance > before) | (distance < -after), -torch.inf)
    return scores.softmax(dim=-1) @ value, scores.logsumexp(dim=-1)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (5, 2), (0, 4), (100, 100)])
@pytest.mark.parametrize("length", [1, 2, 7, 33, 64])
def test_it_is_softmax_over_a_sliding_window(length, before, after):
    tensors = [x.requires_grad_() for x in inputs(length)]
    got = local_attention(*tensors, window=window(before, after, causal=after == 0))
    expected = sliding_window(*tensors, before, after)
    for ours, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(got[0])
    gradients = (torch.autograd.grad(out, tensors, weight) for out, _ in (got, expected))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("before", "after", "causal"), [(1, 0, True), (1, 1, False)])
def test_chunks_see_their_neighbours_round_the_ring(before, after, causal):
    length, size = 20, 4
    query, key, value = inputs(length)
    chunk = torch.arange(length) // size
    step = chunk[:, None] - chunk
    seen = torch.zeros(length, length, dtype=torch.bool)
    for shift in range(-after, before + 1):
        seen |= (step - shift) % (length // size) == 0
    if causal:
        seen &= torch.ones(length, length, dtype=torch.bool).tril()
    scores = (query @ key.transpose(-1, -2) / SIZE**0.5).masked_fill(~seen, -torch.inf)
    out, _ = local_attention(
        query, key, value, window=window(before, after, "chunk", causal, tile=size)
    )
    torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize(("before", "after"), [(3, 0), (5, 2)])
def test_padding_leaves_real_tokens_unchanged(before, after, side):
    length, added = 21, 6
    rows = inputs(length, batch=1)
    plain, _ = local_attention(*rows, window=window(before, after))
    slots = torch.arange(length)
    slots = slots + {"left": added, "right": 0, "middle": added * (slots >= 10)}[side]
    mask = torch.zeros(1, length + added)
    mask[0, slots] = 1
    padded = inputs(length + added, batch=1)
    for x, row in zip(padded, rows, strict=True):
        x[:, :, slots] = row
    out, _ = local_attention(
        *padded, window=window(before, after), padding=Padding.from_attention_mask(mask)
    )
    torch.testing.assert_close(out[:, :, slots], plain, rtol=0, atol=1e-12)


def test_editing_later_tokens_leaves_earlier_outputs():
    tensors = inputs(40)
    before, _ = local_attention(*tensors, window=window(7, 0, causal=True))
    for x in tensors:
        x[:, :, 25:] = torch.randn_like(x[:, :, 25:])
    after, _ = local_attention(*tensors, window=window(7, 0, causal=True))
    torch.testing.assert_close(after[:, :, :25], before[:, :, :25], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_a_row_of_padding_only_is_finite(pattern):
    padding = Padding.from_attention_mask(torch.tensor([[0] * 9, [1] * 9]))
    tensors = [x.requires_grad_() for x in inputs(9)]
    out, _ = local_attention(*tensors, window=window(1, 0, pattern), padding=padding)
    gradients = torch.autograd.grad(out.square().sum(), tensors)
    assert all(torch.isfinite(x).all() for x in (out, *gradients))


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_weights_times_values_are_the_output(pattern, padded):
    mask = torch.arange(18) < torch.tensor([[18], [11]])
    padding = Padding.from_attention_mask(mask) if padded else None
    query, key, value = inputs(18)
    chosen = window(1, 1, pattern)
    weights = local_attention_weights(query, key, value, window=chosen, padding=padding)
    out, _ = local_attention(query, key, value, window=chosen, padding=padding)
    torch.testing.assert_close(weights @ value, out, rtol=1e-9, atol=1e-9)
