"""What a forward pass returns: states, attention weights, tuples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf.layers.self_attention import MAX_LENGTH_WITH_ATTENTIONS
from tests.models.builders import (
    ALL_DROPOUTS,
    HEAD_OF,
    LAYER_MIXES,
    NO_DROPOUT,
    Head,
    pad_rows,
    random_ids,
    target_length,
    train_step,
)

MIXES = pytest.mark.parametrize("mix", LAYER_MIXES, ids=["+".join(m) for m in LAYER_MIXES])


@pytest.mark.parametrize("stream_merge", ["mean", "concat"])
def test_hidden_states_are_those_before_between_and_after_layers(
    head: Head, stream_merge: str
) -> None:
    model = head.build(
        attn_layers=["local", "lsh", "full"],
        stream_merge=stream_merge,
        tie_word_embeddings=stream_merge == "mean",
    ).eval()
    width = 32 if stream_merge == "mean" else 64
    assert model.config.merged_size() == width
    batch = head.batch(2, 50)
    output = model(**batch, output_hidden_states=True)
    if head.seq2seq:
        assert len(output.encoder_hidden_states) == 4
        assert len(output.decoder_hidden_states) == 3
        assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
        if head.task is None:
            assert torch.equal(output.decoder_hidden_states[-1], output.last_hidden_state)
        sources, targets = output.encoder_hidden_states, output.decoder_hidden_states
        assert {s.shape for s in sources} == {(2, 50, width)}
        assert {s.shape for s in targets} == {(2, target_length(50), width)}
    else:
        assert len(output.hidden_states) == 4
        assert {s.shape for s in output.hidden_states} == {(2, 50, width)}
        if head.task is None:
            assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    plain = model(**batch)
    assert torch.equal(head.scores(plain), head.scores(output))
    assert getattr(plain, "hidden_states", None) is None
    assert getattr(plain, "encoder_hidden_states", None) is None


def test_first_hidden_state_is_the_embedding() -> None:
    model = HEAD_OF["model"].build(exact_reversible=False).eval()
    ids = random_ids(2, 50, seed=1)
    states = model(ids, output_hidden_states=True).hidden_states
    expected = model.embeddings(model.word_embeddings(ids), torch.arange(50).unsqueeze(0))
    assert torch.allclose(states[0], expected, atol=1e-6)


def test_configuration_can_ask_for_states_and_attentions() -> None:
    model = HEAD_OF["model"].build(output_hidden_states=True, output_attentions=True).eval()
    output = model(random_ids(2, 20, seed=1))
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2
    output = model(random_ids(2, 20, seed=1), output_hidden_states=False, output_attentions=False)
    assert output.hidden_states is None
    assert output.attentions is None


def attentions_of(head: Head, output: Any) -> tuple[Tensor, ...]:
    if head.seq2seq:
        return (*output.encoder_attentions, *output.decoder_attentions, *output.cross_attentions)
    attentions: tuple[Tensor, ...] = output.attentions
    return attentions


def test_attention_weights_have_their_shapes_and_sum_to_one(head: Head) -> None:
    model = head.build(attn_layers=["local", "lsh", "full"], num_hashes=3).eval()
    output = model(**head.batch(2, 60), output_attentions=True)
    weights = attentions_of(head, output)
    for matrix in weights:
        assert matrix.shape[:2] == (2, 2)
        assert (matrix >= 0).all()
        assert (matrix.sum(dim=-1) - 1).abs().max() <= 1e-5
    if head.seq2seq:
        target = target_length(60)
        assert [w.shape[2:] for w in output.encoder_attentions] == [(60, 60)] * 3
        assert [w.shape[2:] for w in output.decoder_attentions] == [(target, target)] * 2
        assert [w.shape[2:] for w in output.cross_attentions] == [(target, 60)] * 2
    else:
        assert [w.shape[2:] for w in weights] == [(60, 60)] * 3


@MIXES
def test_causal_attention_weights_are_zero_above_the_diagonal(mix: tuple[str, ...]) -> None:
    model = HEAD_OF["causal_lm"].build(attn_layers=list(mix), num_hashes=3).eval()
    for matrix in model(random_ids(2, 60, seed=1), output_attentions=True).attentions:
        assert not matrix.triu(1).any()


@MIXES
def test_attention_weights_of_padding_are_zero(mix: tuple[str, ...]) -> None:
    model = HEAD_OF["masked_lm"].build(attn_layers=list(mix), num_hashes=3).eval()
    ids, mask = pad_rows([random_ids(60, seed=1), random_ids(25, seed=2)], "l")
    for matrix in model(ids, attention_mask=mask, output_attentions=True).attentions:
        assert not matrix[1, :, 35:, :35].any()
        assert (matrix[1, :, 35:].sum(-1) - 1).abs().max() <= 1e-5


@MIXES
@pytest.mark.parametrize("name", ["causal_lm", "masked_lm", "seq2seq_lm"])
@pytest.mark.parametrize("count_duplicates", [True, False], ids=["multiset", "union"])
def test_asking_for_attention_weights_changes_no_scores(
    name: str, mix: tuple[str, ...], count_duplicates: bool
) -> None:
    head = HEAD_OF[name]
    model = head.build(
        attn_layers=list(mix), num_hashes=3, count_duplicates=count_duplicates
    ).eval()
    # In fp64: weights are formed by other operations, and in fp32 their rounding may decide into
    # which bucket a later layer hashes a token.
    model = model.double()
    batch = head.inputs(2, 100)
    batch["attention_mask"] = torch.ones(2, 100)
    batch["attention_mask"][1, :37] = 0
    with torch.no_grad():
        expected = head.scores(model(**batch))
        actual = head.scores(model(**batch, output_attentions=True))
    if not head.seq2seq:
        real = batch["attention_mask"] == 1
        expected, actual = expected[real], actual[real]
    assert (actual - expected).abs().max() <= 1e-9


def test_asking_for_attention_weights_changes_no_gradients() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(hash_seed=1, attn_layers=["local", "lsh", "full"], **NO_DROPOUT)
    batch = head.batch(2, 60)
    _, expected = train_step(head, model, batch)
    _, found = train_step(head, model, batch, output_attentions=True)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_gradients_flow_through_attention_weights() -> None:
    model = HEAD_OF["model"].build(attn_layers=["local", "lsh", "full"], **ALL_DROPOUTS)
    attentions = model(random_ids(1, 30, seed=1), output_attentions=True).attentions
    sum(w.square().sum() for w in attentions).backward()
    for layer, name in zip(model.stack.layers, ("query", "query_key", "query"), strict=True):
        assert getattr(layer.attention, name).weight.grad.any()


def test_attention_weights_are_refused_above_the_stated_length() -> None:
    model = HEAD_OF["model"].build(max_position_embeddings=8192).eval()
    ids = random_ids(1, MAX_LENGTH_WITH_ATTENTIONS + 1, seed=1)
    message = f"at most {MAX_LENGTH_WITH_ATTENTIONS} tokens, got {MAX_LENGTH_WITH_ATTENTIONS + 1}"
    with pytest.raises(ValueError, match=message):
        model(ids, output_attentions=True)


@pytest.mark.parametrize("by_configuration", [True, False], ids=["config", "argument"])
def test_tuples_hold_the_fields_that_are_set_in_order(head: Head, by_configuration: bool) -> None:
    batch = head.batch(2, 40)
    expected = head.build().eval()(**batch, output_hidden_states=True)
    if by_configuration:
        found = head.build(return_dict=False).eval()(**batch, output_hidden_states=True)
    else:
        found = head.build().eval()(**batch, output_hidden_states=True, return_dict=False)
    assert type(found) is tuple
    for actual, wanted in zip(found, expected.to_tuple(), strict=True):
        if isinstance(wanted, tuple):
            assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))
        else:
            assert torch.equal(actual, wanted)


def test_shapes_of_all_scores(head: Head) -> None:
    output = head.build().eval()(**head.batch(2, 40))
    columns = {None: 32, "next_token": 61, "token": 61, "class": 3, "token_class": 3, "span": 2}
    length = target_length(40) if head.seq2seq else 40
    last = columns.get(head.task, 61)
    expected = (2, last) if head.task == "class" else (2, length, last)
    assert head.scores(output).shape == expected


def test_only_the_last_logits_can_be_asked_for() -> None:
    model = HEAD_OF["causal_lm"].build().eval()
    ids = random_ids(2, 40, seed=1)
    with torch.no_grad():
        everything = model(ids).logits
        last = model(ids, logits_to_keep=1).logits
        some = model(ids, logits_to_keep=torch.tensor([3, 17])).logits
    assert torch.allclose(last, everything[:, -1:], atol=1e-6)
    assert torch.allclose(some, everything[:, [3, 17]], atol=1e-6)
