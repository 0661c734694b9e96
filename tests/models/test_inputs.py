"""Equivalent ways to say the same input give the same output, and every way is found by name."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers.utils.generic import find_labels

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


@pytest.mark.parametrize(
    "dtype",
    [torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32],
    ids=str,
)
def test_ids_and_labels_of_every_integer_type_are_the_same(head: Head, dtype: torch.dtype) -> None:
    model = head.build().eval()
    batch = {**head.batch(2, 30), "position_ids": torch.arange(30).unsqueeze(0)}
    # Types without a sign cannot say that there is no label.
    batch = {name: value.abs() % 3 if name == "labels" else value for name, value in batch.items()}
    with torch.no_grad():
        expected = model(**batch)
        actual = model(**{name: value.to(dtype) for name, value in batch.items()})
    assert torch.equal(head.scores(actual), head.scores(expected))
    assert torch.equal(head.objective(actual), head.objective(expected))


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


# ---- what transformers reads of a signature ----

INPUTS = ["input_ids", "attention_mask", "position_ids", "inputs_embeds"]
SEQ2SEQ_INPUTS = [
    "input_ids",
    "attention_mask",
    "decoder_input_ids",
    "decoder_attention_mask",
    "encoder_outputs",
    "position_ids",
    "decoder_position_ids",
    "inputs_embeds",
    "decoder_inputs_embeds",
]
LABELS = {None: [], "span": ["start_positions", "end_positions"]}
FOR_GENERATE = {"num_hashes", "past_key_values", "use_cache", "planned_lengths"}


def test_trainer_finds_every_column_in_the_signature(head: Head) -> None:
    """In the order in which they can be given without a name; and it may pass on what it counts."""
    parameters = inspect.signature(head.model_class.forward).parameters
    columns = (SEQ2SEQ_INPUTS if head.seq2seq else INPUTS) + LABELS.get(head.task, ["labels"])
    assert list(parameters)[1 : 1 + len(columns)] == columns
    assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


def test_trainer_takes_no_column_for_labels_that_is_none(head: Head) -> None:
    assert find_labels(head.model_class) == LABELS.get(head.task, ["labels"])


def test_generate_finds_what_it_passes_on(generating_head: Head) -> None:
    names = set(inspect.signature(generating_head.model_class.forward).parameters)
    assert names >= FOR_GENERATE
    if not generating_head.seq2seq:
        assert "logits_to_keep" in names


@torch.no_grad()
def test_generate_refuses_a_name_that_nobody_knows(generating_head: Head) -> None:
    model = generating_head.build().eval()
    with pytest.raises(ValueError, match=r"not used by the model: \['num_hash'\]"):
        model.generate(random_ids(1, 9, seed=1), max_new_tokens=1, num_hash=2)


@torch.no_grad()
def test_inputs_and_labels_need_no_names(head: Head) -> None:
    model = head.build().eval()
    batch = head.batch(2, 30)
    names = list(inspect.signature(head.model_class.forward).parameters)[1:]
    last = max(names.index(name) for name in batch)
    given = model(*[batch.get(name) for name in names[: last + 1]])
    assert torch.equal(head.scores(given), head.scores(model(**batch)))
    assert torch.equal(head.objective(given), head.objective(model(**batch)))


@torch.no_grad()
def test_options_reach_the_model_under_a_head(head: Head) -> None:
    model, inputs = head.build().eval(), head.inputs(2, 90)
    plain = model(**inputs)
    more = model(**inputs, num_hashes=4, output_hidden_states=True, output_attentions=True)
    assert not torch.equal(head.scores(more), head.scores(plain))
    side = "encoder_" if head.seq2seq else ""
    for name in (f"{side}hidden_states", f"{side}attentions"):
        assert name not in plain
        assert len(more[name]) >= len(model.config.attn_layers)


@torch.no_grad()
def test_names_that_a_model_does_not_know_have_no_effect(head: Head) -> None:
    model, inputs = head.build().eval(), head.inputs(2, 30)
    expected = head.scores(model(**inputs))
    assert torch.equal(head.scores(model(**inputs, token_type_ids=None, anything=3)), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["masked_lm", "token_classification", "sequence_classification"])
def test_what_is_for_generation_ends_at_a_head_that_reads_both_sides(name: str) -> None:
    head = HEAD_OF[name]
    model, inputs = head.build().eval(), head.inputs(2, 90)
    expected = head.scores(model(**inputs))
    given = {"use_cache": True, "past_key_values": object(), "planned_lengths": 50_000}
    assert torch.equal(head.scores(model(**inputs, **given)), expected)


def test_what_comes_behind_labels_has_to_be_named(generating_head: Head) -> None:
    names = list(inspect.signature(generating_head.model_class.forward).parameters)[1:]
    with pytest.raises(TypeError, match="positional arguments"):
        generating_head.build()(*[None] * (names.index("num_hashes") + 2))
