"""Equivalent ways to say the same input give the same output."""

from __future__ import annotations

import pytest
import torch

from tests.models.builders import HEAD_OF, Batch, Head, pad_rows, random_ids


def as_vectors(head: Head, model: torch.nn.Module, inputs: Batch) -> Batch:
    """Ids replaced by their embeddings."""
    embedding = model.get_input_embeddings()
    names = {"input_ids": "inputs_embeds", "decoder_input_ids": "decoder_inputs_embeds"}
    return {names.get(k, k): embedding(v) if k in names else v for k, v in inputs.items()}


@pytest.mark.parametrize("length", [1, 7, 64, 150])
def test_vectors_give_what_their_ids_give(head: Head, length: int) -> None:
    model = head.build().eval()
    batch = head.batch(2, length)
    with torch.no_grad():
        expected = model(**batch)
        actual = model(**as_vectors(head, model, batch))
    assert torch.equal(head.scores(actual), head.scores(expected))
    assert torch.equal(head.objective(actual), head.objective(expected))


def test_vectors_give_what_their_ids_give_under_padding() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build().eval()
    ids, mask = pad_rows([random_ids(90, seed=1), random_ids(31, seed=2)], "l")
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        vectors = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=vectors, attention_mask=mask).logits, expected)


@pytest.mark.parametrize("rows", [1, 2], ids=["one-row", "all-rows"])
def test_default_positions_can_be_given(head: Head, rows: int) -> None:
    model = head.build().eval()
    batch = head.inputs(2, 90)
    given = {"position_ids": torch.arange(90).expand(rows, -1)}
    if head.seq2seq:
        given["decoder_position_ids"] = torch.arange(40).expand(rows, -1)
    with torch.no_grad():
        expected = head.scores(model(**batch))
        assert torch.equal(head.scores(model(**batch, **given)), expected)


def test_positions_count_real_tokens_by_default() -> None:
    head = HEAD_OF["masked_lm"]
    model = head.build().eval()
    ids, mask = pad_rows([random_ids(90, seed=1), random_ids(31, seed=2)], "l")
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        actual = model(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(actual, expected)


def test_positions_matter(head: Head) -> None:
    model = head.build().eval()
    batch = head.batch(2, 90)
    with torch.no_grad():
        first = head.scores(model(**batch))
        second = head.scores(model(**batch, position_ids=torch.arange(90).flip(0).unsqueeze(0)))
    assert not torch.allclose(first, second, atol=1e-3)


def test_decoder_inputs_made_from_labels_are_the_labels_moved_to_the_right() -> None:
    head = HEAD_OF["seq2seq_lm"]
    model = head.build(decoder_start_token_id=5).eval()
    source, labels = random_ids(2, 30, seed=1), random_ids(2, 9, seed=2)
    made = model.prepare_decoder_input_ids_from_labels(labels)
    assert made[:, 0].tolist() == [5, 5]
    assert torch.equal(made[:, 1:], labels[:, :-1])
    with torch.no_grad():
        from_labels = model(source, labels=labels)
        from_inputs = model(source, decoder_input_ids=made, labels=labels)
    assert torch.equal(from_labels.logits, from_inputs.logits)
    assert torch.equal(from_labels.loss, from_inputs.loss)


def test_unlabelled_positions_become_padding_in_decoder_inputs() -> None:
    model = HEAD_OF["seq2seq_lm"].build(pad_token_id=3)
    labels = torch.tensor([[7, 8, -100, -100]])
    made = model.prepare_decoder_input_ids_from_labels(labels)
    assert made.tolist() == [[0, 7, 8, 3]]


@pytest.mark.parametrize("as_tuple", [True, False], ids=["tuple", "output"])
def test_an_encoder_output_can_be_computed_beforehand(as_tuple: bool) -> None:
    head = HEAD_OF["seq2seq_lm"]
    model = head.build().eval()
    ids, mask = pad_rows([random_ids(90, seed=1), random_ids(31, seed=2)], "r")
    labels = random_ids(2, 9, seed=3)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, labels=labels)
        encoded = model.get_encoder()(ids, attention_mask=mask, return_dict=not as_tuple)
        actual = model(encoder_outputs=encoded, attention_mask=mask, labels=labels)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.encoder_last_hidden_state, expected.encoder_last_hidden_state)
