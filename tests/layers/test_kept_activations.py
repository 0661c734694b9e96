"""Streams and activations stay where the gradients will need the memory later, and a few more."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reformer_hf import ReformerConfig, ReformerForCausalLM, ReformerSeq2SeqConfig
from reformer_hf.layers import kept_activations, stack
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.feed_forward import FeedForward
from reformer_hf.layers.footprint import Footprint, PassShape
from reformer_hf.layers.kept_activations import choose_kept, room_to_keep, size_of_kept
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.layers.stack import ReformerLayer, ReformerStack
from reformer_hf.ops.kept_results import KeptResults
from reformer_hf.ops.reversible import Keep
from reformer_hf.ops.windowed_attention import operators
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall
from tests.layers.note_calls import note_calls

LAYERS = ["lsh", "local", "full"]


@pytest.fixture
def model() -> ReformerForCausalLM:
    """Wide enough that the gradients of a layer take as much as some dozens of its tokens."""
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=30,
        hidden_size=64,
        num_attention_heads=2,
        attention_head_size=32,
        feed_forward_size=256,
        attn_layers=LAYERS,
        lsh_attn_chunk_length=8,
        hidden_dropout_prob=0.1,
        max_position_embeddings=4096,
    )
    return ReformerForCausalLM(config)


@pytest.fixture
def no_more_than_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept for which there will be no gradients."""
    monkeypatch.setattr(kept_activations, "_STREAMS", 0)


def count_calls(model: ReformerForCausalLM) -> list[str]:
    """The names of sub-layers, added to as they are called."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, FeedForward | SelfAttention):
            # Not by a hook: what somebody watches is computed once.
            note_calls(module, lambda name=name: calls.append(name))
    return calls


def train(model: ReformerForCausalLM, length: int) -> dict[str, Tensor]:
    """Gradients of one step."""
    torch.manual_seed(1)
    ids = torch.randint(0, 30, (1, length))
    model(ids, labels=ids).loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


@pytest.mark.parametrize(("length", "recomputed"), [(8, 0), (60, 4), (2000, 6)])
def test_short_inputs_are_computed_once_and_long_ones_twice(
    length: int, recomputed: int, model: ReformerForCausalLM
) -> None:
    calls = count_calls(model)
    train(model, length)
    assert len(calls) == 2 * len(LAYERS) + recomputed
    # Those that are computed again are the first ones, in reverse.
    assert calls[6:] == calls[:recomputed][::-1]


@pytest.mark.parametrize("length", [8, 60, 130, 400, 1000])
def test_the_gradients_are_the_same(
    length: int, model: ReformerForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train(model, length)
    monkeypatch.setattr(stack, "choose_kept", lambda steps, *_: [Keep()] * len(steps))
    recomputed = train(model, length)
    assert kept.keys() == recomputed.keys()
    for name, grad in kept.items():
        torch.testing.assert_close(grad, recomputed[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[list[Keep]]:
    """What stacks choose to keep, added to as they do."""
    made: list[list[Keep]] = []

    def noting(footprints: Sequence[Footprint | None], room: int, stream: int) -> list[Keep]:
        made.append(choose_kept(footprints, room, stream))
        return made[-1]

    monkeypatch.setattr(stack, "choose_kept", noting)
    return made


@pytest.mark.usefixtures("no_more_than_gradients")
def test_results_go_first_and_streams_of_the_costliest_products_before_others(
    model: ReformerForCausalLM, choices: list[list[Keep]]
) -> None:
    for length in (150, 300, 500, 1200, 4000):
        model(torch.zeros(1, length, dtype=torch.int64))
    assert not any(keep.activations for kept in choices for keep in kept)
    # The feed-forward layers are the odd ones; full attention (4) keeps no results.
    assert [[k for k, keep in enumerate(kept) if keep.results] for kept in choices] == [
        [0, 2],
        [0, 2],
        [0, 2],
        [2],
        [],
    ]
    assert [[k for k, keep in enumerate(kept) if keep.stream] for kept in choices] == [
        [0, 1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5],
        [3, 5],
        [],
        [],
    ]


def test_nothing_is_chosen_where_nothing_is_recomputed(
    model: ReformerForCausalLM, choices: list[list[Keep]]
) -> None:
    ids = torch.zeros(1, 8, dtype=torch.int64)
    with torch.no_grad():
        model(ids)
    model(ids, output_attentions=True)
    model.config.reversible = False
    model(ids)
    assert choices == []


FOOTPRINTS = st.builds(
    lambda product, results, other: Footprint(
        # All that autograd keeps includes the results and the stream.
        saved=64 * (results + other + 1),
        recomputed=0,
        working=0,
        last_product=product,
        results=64 * results,
    ),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 8),
)


@given(
    footprints=st.lists(st.none() | FOOTPRINTS, min_size=1, max_size=12),
    room=st.integers(0, 5000),
)
def test_no_more_is_kept_than_there_is_room_for_and_nothing_more_would_fit(
    footprints: list[Footprint | None], room: int
) -> None:
    kept = choose_kept(footprints, room, 64)
    assert len(kept) == len(footprints)
    left = room - size_of_kept(footprints, kept, 64)
    assert left >= 0
    # Activations are kept of the last steps only.
    whole = [keep.activations for keep in kept]
    assert whole == sorted(whole)
    for own, keep in zip(footprints, kept, strict=True):
        if own is None:
            assert keep == Keep()
        elif not keep.activations:
            assert keep.results or not 0 < own.results <= left
            assert keep.stream or not own.last_product or left < 64


@given(
    length=st.integers(1, 300) | st.sampled_from([1 << 17, 3 << 20, 4 << 20, 5 << 20]),
    ranks=st.integers(1, 8),
)
def test_there_is_room_for_gradients_or_a_few_streams_of_at_most_256_mib(
    length: int, ranks: int
) -> None:
    linear = torch.nn.Linear(16, 16)
    assert room_to_keep(linear.parameters(), 64 * length, ranks) == max(
        4 * (16 * 16 + 16), min(8 * 64 * length, (256 << 20) // ranks)
    )


def test_a_rank_keeps_its_part_of_what_one_process_would_keep() -> None:
    linear = torch.nn.Linear(16, 16)
    for length in (1 << 14, 1 << 20, 1 << 24):
        alone = room_to_keep(linear.parameters(), 64 * length)
        assert room_to_keep(linear.parameters(), 64 * length // 4, 4) == alone // 4


@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16-autocast"])
@pytest.mark.parametrize("kind", ["lsh", "local", "full"])
def test_footprints_have_the_size_of_the_results_that_operations_keep(
    kind: str, narrow: bool, model: ReformerForCausalLM
) -> None:
    attention = model.reformer.stack.layers[LAYERS.index(kind)].attention
    shape = PassShape(batch=2, length=300, width=2 if narrow else 4)
    results = KeptResults()
    with (
        torch.no_grad(),
        results.record() as kept,
        torch.autocast("cpu", torch.bfloat16, enabled=narrow),
    ):
        attention(torch.randn(2, 300, 64), context=ForwardContext(None, 0, 0))
    assert sum(x.nbytes for x in kept) == attention.footprint(shape).results


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16-autocast"])
@pytest.mark.parametrize("part", [*LAYERS, "cross", "feed-forward"])
def test_footprints_have_the_size_of_what_autograd_keeps(
    part: str, narrow: bool, dropout: float
) -> None:
    config = ReformerSeq2SeqConfig(
        vocab_size=30, hidden_size=64, num_attention_heads=2, attention_head_size=32,
        feed_forward_size=256, attn_layers=LAYERS, decoder_attn_layers=["full"],
        lsh_attn_chunk_length=8, hidden_dropout_prob=dropout,
    )  # fmt: skip
    layers = {kind: ReformerLayer(config, kind, 0, True, True) for kind in LAYERS}
    modules = {kind: layer.attention for kind, layer in layers.items()}
    modules |= {
        "cross": layers["full"].cross_attention,
        "feed-forward": layers["full"].feed_forward,
    }
    module = modules[part]
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    x = torch.randn(2, 500, 64, requires_grad=True)
    # Of a leaf, autocast would cache one copy for all readers.
    source = 1.0 * torch.randn(2, 300, 64, requires_grad=True)
    context = ForwardContext(None, 0, 0)
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=narrow),
    ):
        out = module(x, *[source] * (part == "cross"), context=context)
    shared = {t.untyped_storage().data_ptr() for t in (source, *weights_cast(kept, module, narrow))}
    found = sum(
        tensor.untyped_storage().nbytes()
        for pointer, tensor in kept.items()
        if pointer not in weights | shared
    )
    assert (out[0] if module.returns_weights else out).requires_grad
    shape = PassShape(2, 500, 2 if narrow else 4, source_length=300)
    assert module.footprint(shape).saved == pytest.approx(found, rel=0.03)


def weights_cast(kept: dict[int, Tensor], module: torch.nn.Module, narrow: bool) -> list[Tensor]:
    """Copies of weights that autocast made: of their shapes, and narrow."""
    shapes = {tuple(p.shape) for p in module.parameters()}
    shapes |= {tuple(p.t().shape) for p in module.parameters()}
    return [t for t in kept.values() if narrow and tuple(t.shape) in shapes and t.itemsize == 2]


def test_long_inputs_keep_as_much_in_deep_stacks_as_in_shallow_ones() -> None:
    kept = []
    for depth in (8, 12, 24):
        config = ReformerConfig(
            vocab_size=30, hidden_size=16, num_attention_heads=2, attention_head_size=8,
            feed_forward_size=16, attn_layers=["local"] * depth,
        )  # fmt: skip
        deep = ReformerStack(config, config.attn_layers, causal=True)
        shape = PassShape(1, 1 << 16)
        footprints, stream = deep.footprints(shape), 64 << 16
        keep = choose_kept(footprints, room_to_keep(deep.parameters(), stream), stream)
        assert not any(k.activations for k in keep)
        kept.append((sum(k.results for k in keep), sum(k.stream for k in keep)))
    assert kept[0] == kept[1] == kept[2] > (0, 0)


@pytest.mark.parametrize("pattern", ["window", "chunk"])
@pytest.mark.parametrize(
    "keep",
    [Keep(results=True), Keep(stream=True), Keep(True, True), Keep(activations=True)],
    ids=["results", "stream", "both", "activations"],
)
def test_what_is_kept_changes_no_gradient(
    keep: Keep, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=30, hidden_size=32, num_attention_heads=2, attention_head_size=16,
        feed_forward_size=64, attn_layers=LAYERS, lsh_attn_chunk_length=8, num_hashes=2,
        local_attn_chunk_length=8, attention_pattern=pattern, hidden_dropout_prob=0.1,
        lsh_attention_probs_dropout_prob=0.1, local_attention_probs_dropout_prob=0.1,
        num_buckets=8, hash_seed=3, max_position_embeddings=256,
    )  # fmt: skip
    model = ReformerForCausalLM(config)
    found = []
    for kept in (Keep(), keep):
        monkeypatch.setattr(stack, "choose_kept", lambda steps, *_, kept=kept: [kept] * len(steps))
        torch.manual_seed(1)
        ids = torch.randint(0, 30, (2, 64))
        mask = torch.ones_like(ids)
        mask[0, 50:] = 0
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        found.append([p.grad for p in model.parameters()])
        model.zero_grad()
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("no_more_than_gradients")
def test_kept_results_are_not_computed_again(
    model: ReformerForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, calls = operators._KERNELS["torch"], []

    def forward(call: WindowedAttentionCall) -> tuple[Tensor, Tensor, Tensor | None]:
        calls.append(call)
        return kernels.forward(call)

    counting = SimpleNamespace(forward=forward, backward=kernels.backward)
    monkeypatch.setitem(operators._KERNELS, "torch", counting)
    for length, expected in ((100, 2), (1200, 3), (4000, 4)):
        calls.clear()
        train(model, length)
        assert len(calls) == expected


@pytest.mark.usefixtures("no_more_than_gradients")
def test_nothing_is_kept_where_the_gradients_are_there_already(
    model: ReformerForCausalLM,
) -> None:
    calls = count_calls(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    train(model, 8)
    assert len(calls) == 4 * len(LAYERS)


@pytest.mark.usefixtures("no_more_than_gradients")
def test_nothing_is_kept_where_gradients_are_used_up_at_once(model: ReformerForCausalLM) -> None:
    calls = count_calls(model)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    train(model, 8)
    assert len(calls) == 4 * len(LAYERS)


@pytest.mark.usefixtures("no_more_than_gradients")
def test_frozen_weights_leave_no_room(model: ReformerForCausalLM) -> None:
    calls = count_calls(model)
    model.reformer.stack.requires_grad_(False)
    train(model, 8)
    assert len(calls) == 4 * len(LAYERS)
