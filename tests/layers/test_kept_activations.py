"""Streams and activations stay where the gradients will need the memory later, and a few more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reformer_hf import ReformerConfig, ReformerForCausalLM
from reformer_hf.layers import stack as stack_module
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.feed_forward import FeedForward
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.layers.stack import ReformerStack
from reformer_hf.ops.recall import Recall
from reformer_hf.ops.reversible import Keep, ReversibleStep
from reformer_hf.ops.windowed_attention import operators
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall

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
    monkeypatch.setattr(stack_module, "_KEPT_STREAMS", 0)


def count_calls(model: ReformerForCausalLM) -> list[str]:
    """The names of sub-layers, added to as they are called."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, FeedForward | SelfAttention):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
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
    monkeypatch.setattr(
        ReformerStack, "_choose_kept", lambda self, steps, x: (len(steps), [Keep()] * len(steps))
    )
    recomputed = train(model, length)
    assert kept.keys() == recomputed.keys()
    for name, grad in kept.items():
        torch.testing.assert_close(grad, recomputed[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[Keep]]]:
    """What stacks choose to keep, added to as they do."""
    made: list[tuple[int, list[Keep]]] = []
    choose = ReformerStack._choose_kept

    def noting(
        self: ReformerStack, steps: list[ReversibleStep], x: Tensor
    ) -> tuple[int, list[Keep]]:
        made.append(choose(self, steps, x))
        return made[-1]

    monkeypatch.setattr(ReformerStack, "_choose_kept", noting)
    return made


@pytest.mark.usefixtures("no_more_than_gradients")
def test_results_go_first_and_streams_of_the_costliest_products_before_others(
    model: ReformerForCausalLM, choices: list[tuple[int, list[Keep]]]
) -> None:
    for length in (100, 300, 500, 1200, 4000):
        model(torch.zeros(1, length, dtype=torch.int64))
    assert [recomputed for recomputed, _ in choices] == [6] * 5
    # The feed-forward layers are the odd ones; full attention (4) remembers nothing.
    assert [[k for k, keep in enumerate(kept) if keep.results] for _, kept in choices] == [
        [0, 2],
        [0, 2],
        [0, 2],
        [2],
        [],
    ]
    assert [[k for k, keep in enumerate(kept) if keep.stream] for _, kept in choices] == [
        [0, 1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5],
        [3, 5],
        [],
        [],
    ]


@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=12
    ),
    length=st.one_of(st.integers(1, 300), st.sampled_from([3 << 20, 4 << 20, 5 << 20])),
)
def test_no_more_is_kept_than_the_gradients_will_take_or_a_few_streams(
    sizes: list[tuple[int, int, int]], length: int
) -> None:
    config = ReformerConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=2, attention_head_size=8,
        feed_forward_size=16, attn_layers=["local"],
    )  # fmt: skip
    stack = ReformerStack(config, ["local"], causal=True)
    gradients = sum(4 * p.numel() for p in stack.parameters())
    room = max(gradients, min(8 * 64 * length, 256 << 20))
    steps = [
        # All that autograd keeps includes the results and the stream.
        ReversibleStep(
            *(torch.tanh, ()),
            for_gradients=torch.tanh,
            spared=a,
            results=64 * b,
            saved=64 * (b + c + 1),
        )
        for a, b, c in sizes
    ]
    recomputed, kept = stack._choose_kept(steps, torch.empty(1, length, 16, device="meta"))
    assert len(kept) == recomputed
    taken = sum(step.saved for step in steps[recomputed:])
    for step, keep in zip(steps, kept, strict=False):
        assert step.spared or not keep.stream
        assert step.results or not keep.results
        taken += 64 * keep.stream + step.results * keep.results
    assert taken * length <= room
    # What is left over is less than another step would take.
    left = room - taken * length
    for step, keep in zip(steps, kept, strict=False):
        assert keep.results or not 0 < step.results * length <= left
        assert keep.stream or not step.spared or 64 * length > left


@pytest.mark.parametrize("kind", ["lsh", "local", "full"])
def test_steps_know_the_size_of_what_they_remember(kind: str, model: ReformerForCausalLM) -> None:
    layer = model.reformer.stack.layers[LAYERS.index(kind)]
    (attention, _) = layer.steps(ForwardContext(None, 0, 0), None, 0)
    recall = Recall()
    with torch.no_grad(), recall.record() as noted:
        attention.function(torch.randn(2, 300, 64))
    size = sum(x.nbytes for x in noted)
    # Where no token meets itself twice there is one sum less.
    assert 0.95 * attention.results * 2 * 300 <= size <= attention.results * 2 * 300


def test_long_inputs_keep_as_much_in_deep_stacks_as_in_shallow_ones() -> None:
    kept = []
    for depth in (8, 12, 24):
        config = ReformerConfig(
            vocab_size=30, hidden_size=16, num_attention_heads=2, attention_head_size=8,
            feed_forward_size=16, attn_layers=["local"] * depth,
        )  # fmt: skip
        stack = ReformerStack(config, config.attn_layers, causal=True)
        steps = [
            s for layer in stack.layers for s in layer.steps(ForwardContext(None, 0, 0), None, 0)
        ]
        recomputed, keeps = stack._choose_kept(steps, torch.empty(1, 1 << 16, 16, device="meta"))
        assert recomputed == len(steps) == 2 * depth
        results = sum(s.results for s, k in zip(steps, keeps, strict=True) if k.results)
        kept.append((results, sum(k.stream for k in keeps)))
    assert kept[0] == kept[1] == kept[2] > (0, 0)


@pytest.mark.parametrize("pattern", ["window", "chunk"])
@pytest.mark.parametrize("keep", [Keep(results=True), Keep(stream=True), Keep(True, True)])
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

        def choose(
            self: ReformerStack, steps: list[ReversibleStep], x: Tensor, kept: Keep = kept
        ) -> tuple[int, list[Keep]]:
            return len(steps), [kept] * len(steps)

        monkeypatch.setattr(ReformerStack, "_choose_kept", choose)
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
def test_what_is_remembered_is_not_computed_again(
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
