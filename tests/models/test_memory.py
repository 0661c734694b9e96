"""Memory of training: flat in depth, linear in length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.builders import HEAD_OF, Head
from tests.models.memory_meter import MemoryMeter

MIXED = ["local", "lsh", "full"]
# From so many layers on a stack fills the room of eight streams that it may keep at any depth.
SHALLOW = 3


def training_peak(head: Head, length: int, **options: Any) -> int:
    """Bytes alive at the worst moment of a forward and backward pass, beyond the parameters.

    Gradients of parameters are handed on as soon as they are there, as an optimizer fused with the
    backward pass does: they are as many as the parameters, whatever the path.
    """
    model = (
        head.build(feed_forward_size=64, max_target_positions=4096, **options)
        if (head.seq2seq)
        else head.build(feed_forward_size=64, **options)
    )
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    batch = head.batch(1, length)
    with MemoryMeter() as meter:
        head.objective(model(**batch)).backward()
    return meter.peak


def test_the_meter_counts_what_is_alive_at_once() -> None:
    with MemoryMeter() as meter:
        a = torch.ones(1000)
        b = a + 1
        b.add_(1)
        c = b.view(10, 100)
        assert meter.current == meter.peak == 8000
        del a
        assert meter.current == 4000
        del b
        assert meter.current == 4000
        del c
        assert meter.current == 0
    assert meter.peak == 8000


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm"])
def test_peak_memory_is_flat_in_depth(name: str) -> None:
    head = HEAD_OF[name]
    shallow, deep = (training_peak(head, 1024, attn_layers=MIXED * depth) for depth in (SHALLOW, 8))
    assert deep <= 1.02 * shallow


def test_peak_memory_is_flat_in_the_depth_of_the_encoder_and_of_the_decoder() -> None:
    head = HEAD_OF["seq2seq_lm"]
    layers = [{"attn_layers": MIXED * SHALLOW}, {"attn_layers": MIXED * 8}]
    shallow, deep = (
        training_peak(head, 1024, decoder_attn_layers=MIXED * SHALLOW, **layer) for layer in layers
    )
    assert deep <= 1.02 * shallow
    # Every decoder layer projects the source, and none of it is kept.
    deep = training_peak(head, 1024, decoder_attn_layers=MIXED * 8, **layers[0])
    assert deep <= 1.02 * shallow


def test_the_plain_path_is_what_grows_with_depth() -> None:
    head = HEAD_OF["causal_lm"]
    options = {"attn_layers": MIXED * 2}
    reversible = training_peak(head, 1024, **options)
    plain = training_peak(head, 1024, reversible=False, **options)
    assert plain > 2 * reversible


@pytest.mark.parametrize("mix", ["lsh", "local", "full", "hybrid"])
def test_peak_memory_is_linear_in_length(mix: str) -> None:
    head = HEAD_OF["causal_lm"]
    # Long enough that buffers of a fixed size do not matter.
    short, long = (
        training_peak(head, n, attn_layers=[mix, mix], chunk_size_lm_head=64) for n in (1024, 4096)
    )
    assert long <= 4.1 * short


def test_chunked_logits_and_feed_forward_take_less() -> None:
    head = HEAD_OF["masked_lm"]
    options = {"vocab_size": 2000, "attn_layers": ["local"]}
    whole = training_peak(head, 2048, chunk_size_feed_forward=0, **options)
    chunked = training_peak(
        head, 2048, chunk_size_feed_forward=128, chunk_size_lm_head=128, **options
    )
    assert chunked < 0.25 * whole


def test_evaluation_keeps_nothing_of_earlier_layers() -> None:
    head = HEAD_OF["causal_lm"]
    peaks = []
    for depth in (1, 8):
        model = head.build(attn_layers=MIXED * depth).eval()
        with MemoryMeter() as meter, torch.no_grad():
            model(**head.inputs(1, 1024))
        peaks.append(meter.peak)
    assert peaks[1] <= 1.02 * peaks[0]
