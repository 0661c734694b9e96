"""The reversible path computes what plain autograd computes: outputs, losses and all gradients."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerPreTrainedModel
from reformer_hf.layers import stack
from reformer_hf.ops.reversible import Keep
from tests.models.builders import (
    ALL_DROPOUTS,
    HEAD_OF,
    LAYER_MIXES,
    Head,
    assert_close_gradients,
    assert_equal_gradients,
    gradients,
    random_ids,
    train_step,
)

DEPTH = 24
MIXED = ["local", "lsh", "full"]


@pytest.fixture(autouse=True, params=["keeping what fits", "keeping nothing"])
def _kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models could keep everything: let them compute all of it twice, too."""
    if request.param == "keeping nothing":
        monkeypatch.setattr(stack, "choose_kept", lambda steps, *_: [Keep()] * len(steps))


def both(head: Head, **options: Any) -> tuple[ReformerPreTrainedModel, ReformerPreTrainedModel]:
    """The same model with and without the reversible path."""
    return head.build(reversible=True, **options), head.build(reversible=False, **options)


def deep(head: Head, depth: int = DEPTH) -> dict[str, Any]:
    """Options of a deep model of mixed layers with every kind of dropout."""
    layers = (MIXED * depth)[:depth]
    options: dict[str, Any] = {"attn_layers": layers, **ALL_DROPOUTS}
    if head.seq2seq:
        options |= {"decoder_attn_layers": layers, "cross_attention_probs_dropout_prob": 0.1}
    return options


def assert_same_gradients(
    head: Head, found: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Equal bit for bit, where both paths add up the same numbers in the same order.

    What several sub-layers read (the embeddings, and the encoder's output in a decoder) gets one
    gradient from each of them, and autograd adds these in another order.
    """
    shared = "encoder" if head.seq2seq else "embeddings"
    own = {n: g for n, g in expected.items() if shared not in n and "embeddings" not in n}
    assert own
    assert_equal_gradients({n: found[n] for n in own}, own)
    assert_close_gradients(found, expected)


def autocast(name: str) -> contextlib.AbstractContextManager[Any]:
    if name == "fp32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("precision", ["fp32", "bf16-autocast"])
def test_deep_models_with_dropout_have_the_same_loss_and_gradients(
    head: Head, precision: str
) -> None:
    reversible, plain = both(head, **deep(head))
    batch = head.batch(2, 50)
    batch["attention_mask"] = torch.ones(2, 50)
    batch["attention_mask"][1, 33:] = 0
    with autocast(precision):
        loss, found = train_step(head, reversible, batch)
        expected_loss, expected = train_step(head, plain, batch)
    assert torch.equal(loss, expected_loss)
    assert found.keys() == dict(reversible.named_parameters()).keys()
    assert_same_gradients(head, found, expected)


@pytest.mark.parametrize("mix", LAYER_MIXES, ids=["+".join(m) for m in LAYER_MIXES])
def test_outputs_are_the_same_in_training_and_evaluation(mix: tuple[str, ...]) -> None:
    head = HEAD_OF["causal_lm"]
    reversible, plain = both(head, attn_layers=list(mix), **ALL_DROPOUTS)
    ids = random_ids(2, 120, seed=3)
    for training in (True, False):
        outputs = []
        for model in (reversible, plain):
            torch.manual_seed(5)
            outputs.append(model.train(training)(ids).logits)
        assert torch.equal(*outputs)
    with torch.no_grad():
        assert torch.equal(reversible(ids).logits, outputs[0])


def test_gradients_in_evaluation_mode_are_the_same(head: Head) -> None:
    reversible, plain = both(head, **deep(head, depth=3))
    batch = head.batch(2, 40)
    loss, found = train_step(head, reversible.eval(), batch)
    expected_loss, expected = train_step(head, plain.eval(), batch)
    assert torch.equal(loss, expected_loss)
    assert found.keys() == dict(reversible.named_parameters()).keys()
    assert_same_gradients(head, found, expected)


@pytest.mark.parametrize("chunk_size", [1, 7, 16])
def test_chunked_feed_forward_has_the_same_gradients(chunk_size: int) -> None:
    # One weight gradient per chunk is summed here, in an order of its own.
    head = HEAD_OF["causal_lm"]
    reversible, plain = both(head, chunk_size_feed_forward=chunk_size, **ALL_DROPOUTS)
    batch = head.batch(2, 40)
    loss, found = train_step(head, reversible, batch)
    expected_loss, expected = train_step(head, plain, batch)
    assert torch.equal(loss, expected_loss)
    assert_close_gradients(found, expected)


@pytest.mark.parametrize("stream_merge", ["mean", "concat"])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
@pytest.mark.parametrize("head_merge", ["concat", "average"])
def test_other_options_have_the_same_gradients(
    stream_merge: str, pattern: str, head_merge: str
) -> None:
    head = HEAD_OF["masked_lm"]
    options = {
        "stream_merge": stream_merge,
        "tie_word_embeddings": stream_merge == "mean",
        "attention_pattern": pattern,
        "head_merge": head_merge,
        "count_duplicates": False,
    }
    reversible, plain = both(head, **options, **ALL_DROPOUTS)
    batch = head.batch(2, 50)
    loss, found = train_step(head, reversible, batch)
    expected_loss, expected = train_step(head, plain, batch)
    assert torch.equal(loss, expected_loss)
    assert_same_gradients(head, found, expected)


def test_hidden_states_in_the_loss_have_the_same_gradients() -> None:
    head = HEAD_OF["seq2seq_model"]
    reversible, plain = both(head, **deep(head, depth=3))
    found = []
    for model in (reversible, plain):
        torch.manual_seed(3)
        output = model(**head.inputs(2, 30), output_hidden_states=True)
        states = (*output.encoder_hidden_states, *output.decoder_hidden_states)
        sum((s * (i + 1)).square().mean() for i, s in enumerate(states)).backward()
        found.append(gradients(model))
    assert_close_gradients(*found)


def test_gradients_reach_vectors_given_as_inputs() -> None:
    head = HEAD_OF["seq2seq_lm"]
    reversible, plain = both(head, **deep(head, depth=3))
    found: list[tuple[Tensor, Tensor]] = []
    for model in (reversible, plain):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        source = torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(1))
        target = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(2))
        source.requires_grad_()
        target.requires_grad_()
        torch.manual_seed(3)
        output = model(
            inputs_embeds=source, decoder_inputs_embeds=target, labels=random_ids(2, 12, seed=4)
        )
        output.loss.backward()
        assert source.grad is not None
        assert target.grad is not None
        found.append((source.grad, target.grad))
    for actual, expected in zip(*found, strict=True):
        assert actual.any()
        assert (actual - expected).norm() <= 1e-6 * expected.norm()


def test_gradients_reach_a_given_encoder_output() -> None:
    head = HEAD_OF["seq2seq_lm"]
    found = []
    for model in both(head, **ALL_DROPOUTS):
        states = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(3)
        model(encoder_outputs=(states,), labels=random_ids(2, 12, seed=4)).loss.backward()
        found.append(states.grad)
    assert found[0].any()
    assert (found[0] - found[1]).norm() <= 1e-6 * found[1].norm()


def test_plain_sums_give_nearly_the_same_gradients() -> None:
    # Without the grid streams are restored only approximately, which is why it is the default.
    head = HEAD_OF["masked_lm"]
    reversible, plain = both(head, exact_reversible=False, hash_seed=3)
    batch = head.batch(2, 50)
    loss, found = train_step(head, reversible, batch)
    expected_loss, expected = train_step(head, plain, batch)
    assert torch.equal(loss, expected_loss)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_double_precision_has_the_same_gradients(head: Head) -> None:
    reversible, plain = both(head, **deep(head, depth=6))
    batch = head.batch(2, 50)
    loss, found = train_step(head, reversible.double(), batch)
    expected_loss, expected = train_step(head, plain.double(), batch)
    assert torch.equal(loss, expected_loss)
    assert_same_gradients(head, found, expected)
