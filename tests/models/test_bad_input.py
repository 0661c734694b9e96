"""Bad input is refused: a ValueError with the argument, what is expected and what was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import configure_attention, extend_positions
from tests.models.builders import HEAD_OF, VOCAB, Head, pad_rows, random_ids


def ids_with(value: int, rows: int = 2, length: int = 9) -> Tensor:
    ids = random_ids(rows, length, seed=1)
    ids[-1, 3] = value
    return ids


def refused(head: Head, message: str, **arguments: Any) -> None:
    """Refused in training and in evaluation, by a model that still works afterwards."""
    model = head.build(**arguments.pop("config", {}))
    for training in (True, False):
        with pytest.raises(ValueError, match=message):
            model.train(training)(**arguments)
    model(**head.inputs(2, 9))


@pytest.mark.parametrize("value", [-1, VOCAB, 10**9])
def test_ids_outside_the_vocabulary(head: Head, value: int) -> None:
    inputs = head.inputs(2, 9)
    inputs["input_ids"] = ids_with(value)
    refused(head, rf"`input_ids` must be in \[0, vocab_size={VOCAB}\), got {value}", **inputs)


@pytest.mark.parametrize("value", [-1, VOCAB, 10**9])
@pytest.mark.parametrize("name", ["seq2seq_model", "seq2seq_lm"])
def test_decoder_ids_outside_the_vocabulary(name: str, value: int) -> None:
    inputs = {"input_ids": random_ids(2, 9, seed=1), "decoder_input_ids": ids_with(value)}
    message = rf"`decoder_input_ids` must be in \[0, vocab_size={VOCAB}\), got {value}"
    refused(HEAD_OF[name], message, **inputs)


@pytest.mark.parametrize("value", [-1, -101, VOCAB])
@pytest.mark.parametrize("chunk_size", [0, 4], ids=["whole-logits", "chunked-logits"])
def test_token_labels_outside_the_vocabulary(
    language_head: Head, value: int, chunk_size: int
) -> None:
    refused(
        language_head,
        rf"`labels` must be -100 or in \[0, {VOCAB}\), got {value}",
        config={"chunk_size_lm_head": chunk_size},
        input_ids=random_ids(2, 9, seed=1),
        labels=ids_with(value),
    )


@pytest.mark.parametrize("value", [-1, 3])
def test_classes_that_do_not_exist(value: int) -> None:
    message = rf"`labels` must be -100 or in \[0, 3\), got {value}"
    ids = random_ids(2, 9, seed=1)
    classes = torch.zeros(2, 9, dtype=torch.int64)
    classes[1, 4] = value
    refused(HEAD_OF["token_classification"], message, input_ids=ids, labels=classes)
    labels = torch.tensor([0, value])
    refused(HEAD_OF["sequence_classification"], message, input_ids=ids, labels=labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
def test_ids_that_are_not_integers(head: Head, dtype: torch.dtype) -> None:
    inputs = head.inputs(2, 9)
    inputs["input_ids"] = inputs["input_ids"].to(dtype)
    refused(head, f"`input_ids` must hold integers, got dtype {dtype}", **inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
def test_labels_that_are_not_integers(dtype: torch.dtype) -> None:
    ids = random_ids(2, 9, seed=1)
    message = f"must hold integers, got dtype {dtype}"
    for name in ("causal_lm", "masked_lm", "token_classification", "seq2seq_lm"):
        refused(HEAD_OF[name], f"`labels` {message}", input_ids=ids, labels=(ids % 3).to(dtype))
    spans = {f"{end}_positions": torch.ones(2, dtype=dtype) for end in ("start", "end")}
    refused(HEAD_OF["question_answering"], f"`start_positions` {message}", input_ids=ids, **spans)
    if dtype == torch.bool:
        head = HEAD_OF["sequence_classification"]
        refused(head, f"`labels` {message}", input_ids=ids, labels=torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_vectors_that_are_not_floating_point_numbers(head: Head, dtype: torch.dtype) -> None:
    inputs = {**head.inputs(2, 9), "inputs_embeds": torch.ones(2, 9, 32, dtype=dtype)}
    del inputs["input_ids"]
    message = f"`inputs_embeds` must hold floating-point numbers, got dtype {dtype}"
    refused(head, message, **inputs)


@pytest.mark.parametrize(
    "name", ["input_ids", "attention_mask", "position_ids", "decoder_input_ids", "labels"]
)
def test_lists_and_tensors_elsewhere_are_refused_by_name(name: str) -> None:
    head = HEAD_OF["seq2seq_lm"]
    ids = torch.arange(18).view(2, 9) % 9
    inputs = {**head.inputs(2, 9), "attention_mask": torch.ones_like(ids), "position_ids": ids}
    inputs["labels"] = inputs["decoder_input_ids"]
    refused(head, f"`{name}` must be a tensor, got a list", **{**inputs, name: [[1] * 9] * 2})
    elsewhere = {**inputs, name: inputs[name].to("meta")}
    refused(head, f"`{name}` must be on cpu like the model's tensors, got meta", **elsewhere)


def test_sequences_that_are_too_long(head: Head) -> None:
    message = "at most max_position_embeddings=20 tokens, got 21; see `resize_position_embeddings`"
    inputs = head.inputs(2, 9)
    inputs["input_ids"] = random_ids(2, 21, seed=1)
    refused(head, message, config={"max_position_embeddings": 20}, **inputs)


def test_spare_positions_of_the_table_are_not_positions_of_the_model() -> None:
    # A derived axial table has 5 x 4 places here, but the configuration says 17.
    model = HEAD_OF["causal_lm"].build(max_position_embeddings=17)
    assert model.get_position_embeddings().num_positions > 17
    with pytest.raises(ValueError, match="max_position_embeddings=17 tokens, got 18"):
        model(random_ids(1, 18, seed=1))


def test_targets_that_are_too_long() -> None:
    source, target = random_ids(2, 40, seed=1), random_ids(2, 21, seed=2)
    message = (
        "at most max_target_positions=20 tokens, got 21; see `resize_target_position_embeddings`"
    )
    config = {"max_target_positions": 20}
    head = HEAD_OF["seq2seq_lm"]
    refused(head, message, config=config, input_ids=source, decoder_input_ids=target)
    refused(head, message, config=config, input_ids=source, labels=target)


@pytest.mark.parametrize("sides", ["l", "r", "lr"])
def test_padding_does_not_count_as_length(head: Head, sides: str) -> None:
    model = head.build(max_position_embeddings=20).eval()
    ids, mask = pad_rows([random_ids(20, seed=1), random_ids(7, seed=2)], sides, extra=15)
    inputs = {**head.inputs(2, 9), "input_ids": ids}
    assert torch.isfinite(head.scores(model(**inputs, attention_mask=mask))).all()
    mask[0] = 1
    with pytest.raises(ValueError, match="max_position_embeddings=20 tokens, got 35"):
        model(**inputs, attention_mask=mask)


@pytest.mark.parametrize("shape", [(9,), (2, 8), (3, 9), (2, 1, 1, 9), (1, 9)], ids=str)
def test_masks_of_another_shape(head: Head, shape: tuple[int, ...]) -> None:
    message = rf"`attention_mask` must be \[batch, length\] = \[2, 9\], got \[{shape[0]}"
    refused(head, message, **head.inputs(2, 9), attention_mask=torch.ones(shape))


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.zeros(2, 9), "zeros of a floating-point type alone"),
        (torch.tensor([[0.0] * 5 + [-torch.inf] * 4] * 2), "-inf"),
        (torch.tensor([[0.0] * 5 + [torch.finfo(torch.float32).min] * 4] * 2), r"-3\.4"),
        (torch.tensor([[1] * 5 + [2] * 4] * 2), "2"),
        (torch.tensor([[1.0] * 5 + [0.5] * 4] * 2), r"0\.5"),
        (torch.full((2, 9), torch.nan), "nan"),
    ],
    ids=["added-to-scores", "infinite", "lowest", "texts-of-a-row", "share", "nan"],
)
def test_masks_that_mean_something_else(head: Head, mask: Tensor, got: str) -> None:
    message = f"`{{}}` must hold 1 for real tokens and 0 for padding, got {got}"
    refused(head, message.format("attention_mask"), **head.inputs(2, 9), attention_mask=mask)
    if head.seq2seq:
        inputs = {"decoder_attention_mask": mask[:, -5:], **head.inputs(2, 9)}
        refused(head, message.format("decoder_attention_mask"), **inputs)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (1, 5)], ids=str)
def test_decoder_masks_of_another_shape(shape: tuple[int, ...]) -> None:
    head = HEAD_OF["seq2seq_lm"]
    message = r"`decoder_attention_mask` must be \[batch, length\] = \[2, 5\], got "
    refused(head, message, **head.inputs(2, 9), decoder_attention_mask=torch.ones(shape))


def test_a_source_mask_that_does_not_fit_the_given_encoder_output() -> None:
    message = r"`attention_mask` must be \[batch, length\] = \[2, 9\], got \[2, 8\]"
    refused(
        HEAD_OF["seq2seq_lm"],
        message,
        encoder_outputs=(torch.randn(2, 9, 32),),
        attention_mask=torch.ones(2, 8),
        labels=random_ids(2, 5, seed=1),
    )


@pytest.mark.parametrize("shape", [(9,), (2, 9, 1), ()], ids=str)
def test_ids_of_another_shape(head: Head, shape: tuple[int, ...]) -> None:
    inputs = {**head.inputs(2, 9), "input_ids": torch.full(shape, 5)}
    refused(head, r"`input_ids` must be \[batch, length\], got \[", **inputs)


@pytest.mark.parametrize("shape", [(9, 32), (2, 9, 31), (2, 9)], ids=str)
def test_vectors_of_another_shape(head: Head, shape: tuple[int, ...]) -> None:
    inputs = {**head.inputs(2, 9), "inputs_embeds": torch.randn(shape)}
    del inputs["input_ids"]
    refused(head, r"`inputs_embeds` must be \[batch, length, 32\], got \[", **inputs)


def test_ids_and_vectors_at_once_or_neither(head: Head) -> None:
    inputs = {**head.inputs(2, 9), "inputs_embeds": torch.randn(2, 9, 32)}
    message = "exactly one of `input_ids` and `inputs_embeds` must be given, got"
    refused(head, f"{message} both", **inputs)
    del inputs["input_ids"], inputs["inputs_embeds"]
    refused(head, f"{message} neither", **inputs)


def test_decoder_ids_and_vectors_at_once() -> None:
    head = HEAD_OF["seq2seq_model"]
    message = "one of `decoder_input_ids` and `decoder_inputs_embeds` must be given, got both"
    refused(head, message, **head.inputs(2, 9), decoder_inputs_embeds=torch.randn(2, 5, 32))


@pytest.mark.parametrize("shape", [(0, 9), (2, 0), (0, 0)], ids=str)
def test_empty_batches(head: Head, shape: tuple[int, int]) -> None:
    inputs = {**head.inputs(2, 9), "input_ids": torch.zeros(shape, dtype=torch.int64)}
    message = "must hold at least one row and one token, got shape"
    refused(head, f"`input_ids` {message}", **inputs)
    inputs = {**head.inputs(2, 9), "inputs_embeds": torch.zeros(*shape, 32)}
    del inputs["input_ids"]
    refused(head, f"`inputs_embeds` {message}", **inputs)


def test_empty_targets() -> None:
    head = HEAD_OF["seq2seq_lm"]
    ids = random_ids(2, 9, seed=1)
    empty = torch.zeros(2, 0, dtype=torch.int64)
    refused(head, r"`labels` must .* at least one token, got \[2, 0\]", input_ids=ids, labels=empty)
    message = r"`decoder_input_ids` must hold at least one row and one token, got shape \[2, 0\]"
    refused(head, message, input_ids=ids, decoder_input_ids=empty)


@pytest.mark.parametrize("name", ["seq2seq_model", "seq2seq_lm"])
def test_neither_labels_nor_decoder_inputs(name: str) -> None:
    message = "`decoder_input_ids`, `decoder_inputs_embeds` .*`labels` must be given, got none"
    refused(HEAD_OF[name], message, input_ids=random_ids(2, 9, seed=1))


def test_source_and_target_of_other_batch_sizes() -> None:
    refused(
        HEAD_OF["seq2seq_lm"],
        "same batch size, got 2 and 3",
        input_ids=random_ids(2, 9, seed=1),
        labels=random_ids(3, 9, seed=1),
    )


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm", "token_classification"])
@pytest.mark.parametrize("shape", [(2, 8), (1, 9), (18,), (2, 9, 1)], ids=str)
def test_token_labels_of_another_shape(name: str, shape: tuple[int, ...]) -> None:
    message = r"`labels` must be \[batch, length\] = \[2, 9\], got \["
    labels = torch.zeros(shape, dtype=torch.int64)
    refused(HEAD_OF[name], message, input_ids=random_ids(2, 9, seed=1), labels=labels)


@pytest.mark.parametrize("shape", [(10,), (2, 5, 1)], ids=str)
def test_target_labels_of_another_shape(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(shape, dtype=torch.int64)
    ids = random_ids(2, 9, seed=1)
    message = r"`labels` must be \[batch, length\] with at least one token, got \["
    refused(HEAD_OF["seq2seq_lm"], message, input_ids=ids, labels=labels)


def test_target_labels_that_do_not_fit_the_decoder_inputs() -> None:
    head = HEAD_OF["seq2seq_lm"]
    message = r"`labels` must be \[batch, length\] = \[2, 5\], got \[2, 4\]"
    refused(head, message, **head.inputs(2, 9), labels=random_ids(2, 4, seed=1))


@pytest.mark.parametrize(
    ("num_labels", "labels", "message"),
    [
        (3, torch.zeros(3, dtype=torch.int64), r"\[batch\] = \[2\], got \[3\]"),
        (3, torch.zeros(2, 3, dtype=torch.int64), r"\[batch\] = \[2\], got \[2, 3\]"),
        (3, torch.zeros(1, 2, dtype=torch.int64), r"\[batch\] = \[2\], got \[1, 2\]"),
        (3, torch.zeros(2, 2), r"\[batch, num_labels\] = \[2, 3\] .*, got \[2, 2\]"),
        (3, torch.zeros(3, 2), r"\[batch, num_labels\] = \[2, 3\] .*, got \[3, 2\]"),
        (3, torch.full((2, 3), 5.0), r"in \[0, 1\] for multi_label_classification, got 5"),
        (1, torch.zeros(3), r"\[batch, num_labels\] = \[2, 1\] .*, got \[3\]"),
    ],
    ids=["rows", "columns", "row", "multi-label", "turned", "amount", "regression"],
)
def test_sequence_labels_of_another_shape(num_labels: int, labels: Tensor, message: str) -> None:
    refused(
        HEAD_OF["sequence_classification"],
        f"`labels` must be {message}",
        config={"num_labels": num_labels},
        input_ids=random_ids(2, 9, seed=1),
        labels=labels,
    )


@pytest.mark.parametrize("given", ["start_positions", "end_positions"])
def test_only_one_end_of_a_span(given: str) -> None:
    refused(
        HEAD_OF["question_answering"],
        f"must be given together, got only `{given}`",
        input_ids=random_ids(2, 9, seed=1),
        **{given: torch.zeros(2, dtype=torch.int64)},
    )


def test_spans_of_another_batch_size() -> None:
    refused(
        HEAD_OF["question_answering"],
        r"`start_positions` and `end_positions` must be \[2\], got \[3\]",
        input_ids=random_ids(2, 9, seed=1),
        start_positions=torch.zeros(3, dtype=torch.int64),
        end_positions=torch.zeros(3, dtype=torch.int64),
    )


def test_positions_that_do_not_fit(head: Head) -> None:
    inputs = head.inputs(2, 9)
    for shape in ((9,), (2, 8), (3, 9)):
        positions = torch.zeros(shape, dtype=torch.int64)
        message = r"`position_ids` must be \[2 or 1, 9\], got \["
        refused(head, message, **inputs, position_ids=positions)
    for value in (-1, 4096):
        positions = torch.full((2, 9), value)
        message = rf"`position_ids` must be in \[0, max_position_embeddings=4096\), got {value}"
        refused(head, message, **inputs, position_ids=positions)


PACKED = {
    "two": [0, 1, 2, 3, 0, 1, 2, 3, 4],
    "from-the-middle": [7, 8, 9, 0, 1, 2, 3, 4, 5],
    "single-tokens": [0] * 9,
    "one-at-the-end": [0, 1, 2, 3, 4, 5, 6, 7, 0],
}


@pytest.mark.parametrize("positions", PACKED.values(), ids=PACKED)
def test_texts_packed_into_a_row(head: Head, positions: list[int]) -> None:
    given = torch.tensor([list(range(9)), positions])
    message = r"`position_ids` must number the tokens of one text .* in row 1"
    refused(head, message, **head.inputs(2, 9), position_ids=given)
    message = r"`cu_seq_lens_q` must not be given: texts packed into a row"
    refused(head, message, **head.inputs(2, 9), cu_seq_lens_q=torch.tensor([0, 4, 18]))


def test_texts_packed_into_a_row_beside_padding_or_after_a_cache() -> None:
    model = HEAD_OF["causal_lm"].build().eval()
    ids, mask = random_ids(1, 9, seed=1), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    model(ids, attention_mask=mask, position_ids=torch.tensor([[1, 1, 0, 1, 2, 3, 4, 5, 6]]))
    with pytest.raises(ValueError, match="`position_ids` must number the tokens of one text"):
        model(ids, attention_mask=mask, position_ids=torch.tensor([[1, 1, 0, 1, 2, 3, 0, 1, 2]]))
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="`position_ids` must number the tokens of one text"):
        model(ids, past_key_values=cache, position_ids=torch.arange(9).unsqueeze(0))


def test_one_row_is_not_spread_over_several_positions() -> None:
    positions = torch.zeros(3, 9, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"`position_ids` must be \[1 or 1, 9\], got \[3, 9\]"):
        HEAD_OF["masked_lm"].build()(random_ids(1, 9, seed=1), position_ids=positions)


@pytest.mark.parametrize("value", [0, -1])
def test_too_few_hash_rounds(head: Head, value: int) -> None:
    message = f"`num_hashes` must be at least 1, got {value}"
    refused(head, message, **head.inputs(2, 9), num_hashes=value)


@pytest.mark.parametrize("value", [2.5, True, "2"])
def test_hash_rounds_that_are_no_number(head: Head, value: Any) -> None:
    message = f"`num_hashes` must be an integer, got {value!r}"
    refused(head, message, **head.inputs(2, 9), num_hashes=value)


@pytest.mark.parametrize("value", [0, -3, 9.5, "99", [], [9], [9, 0], [9, 9.5], [9, 9, 9]], ids=str)
def test_plans_that_do_not_fit(value: Any) -> None:
    message = "`planned_lengths` must be a positive integer or hold one for each of 2 rows"
    head = HEAD_OF["causal_lm"]
    refused(head, message, **head.inputs(2, 9), planned_lengths=value)


@pytest.mark.parametrize(
    "name", ["use_cache", "output_hidden_states", "output_attentions"], ids=str
)
def test_flags_that_are_neither_true_nor_false(name: str) -> None:
    for head in (HEAD_OF["causal_lm"], HEAD_OF["seq2seq_lm"]):
        message = f"`{name}` must be True or False, got 'no'"
        refused(head, message, **head.inputs(2, 9), **{name: "no"})


@pytest.mark.parametrize("value", [-3, "2"])
def test_numbers_of_items_that_are_none(value: Any) -> None:
    for name in ("causal_lm", "sequence_classification"):
        head = HEAD_OF[name]
        message = f"`num_items_in_batch` must be a number of at least 0, got {value!r}"
        refused(head, message, **head.batch(2, 9), num_items_in_batch=value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "an integer of at least 0, got -1"),
        (1.5, r"an integer of at least 0, got 1\.5"),
        (True, "an integer of at least 0, got True"),
        (torch.tensor([9]), r"in \[0, length=9\), got 9"),
        (torch.tensor([[1]]), r"a number or 1-D, got shape \[1, 1\]"),
    ],
    ids=str,
)
def test_logits_of_positions_that_do_not_exist(value: Any, message: str) -> None:
    head = HEAD_OF["causal_lm"]
    message = f"`logits_to_keep` must be {message}"
    refused(head, message, **head.inputs(2, 9), logits_to_keep=value)


@pytest.mark.parametrize("shape", [(2, 8), (9,)], ids=str)
def test_shifted_labels_of_another_shape(shape: tuple[int, ...]) -> None:
    head = HEAD_OF["causal_lm"]
    labels = torch.zeros(shape, dtype=torch.int64)
    message = r"`shift_labels` must be \[batch, length\] = \[2, 9\]"
    refused(head, message, **head.inputs(2, 9), shift_labels=labels)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("attention_maks", "attention_mask"), ("label", "labels"), ("num_hash", "num_hashes")],
)
def test_misspelt_arguments(head: Head, name: str, meant: str) -> None:
    message = f"`{name}` is no argument of the model, did you mean `{meant}`"
    refused(head, message, **head.inputs(2, 9), **{name: None})


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((), r"` must be the output of an encoder"),
        ((None,), r"` must be the output of an encoder"),
        (torch.zeros(2, 9, 32), r"` must be the output of an encoder, .* got Tensor"),
        ((torch.zeros(2, 9, 31),), r"\.last_hidden_state` must be \[batch, length, 32\]"),
        ((torch.zeros(9, 32),), r"\.last_hidden_state` must be \[batch, length, 32\]"),
        ((torch.zeros(2, 0, 32),), r"\.last_hidden_state` must be .* at least one token"),
        ((torch.ones(2, 9, 32).long(),), r"\.last_hidden_state` must hold floating-point"),
        ((torch.zeros(2, 9, 32, device="meta"),), r"\.last_hidden_state` must be on cpu"),
    ],
    ids=["empty", "none", "tensor", "width", "rank", "no-tokens", "integers", "elsewhere"],
)
def test_encoder_outputs_that_are_none(outputs: Any, message: str) -> None:
    labels = random_ids(2, 5, seed=1)
    message = f"`encoder_outputs{message}"
    refused(HEAD_OF["seq2seq_lm"], message, encoder_outputs=outputs, labels=labels)


def test_a_number_of_labels_that_is_not_the_heads() -> None:
    model = HEAD_OF["sequence_classification"].build()
    for number in (1, 5):
        model.config.num_labels = number
        with pytest.raises(ValueError, match=f"`num_labels` must be 3, .* got {number}"):
            model(random_ids(2, 9, seed=1), labels=torch.zeros(2, dtype=torch.int64))


def test_a_problem_type_misspelt_later() -> None:
    model = HEAD_OF["sequence_classification"].build()
    model.config.problem_type = "classification"
    with pytest.raises(ValueError, match=r"`problem_type` must be one of .* got 'classification'"):
        model(random_ids(2, 9, seed=1), labels=torch.zeros(2, dtype=torch.int64))


def test_too_few_hash_rounds_with_a_given_encoder_output() -> None:
    head = HEAD_OF["seq2seq_model"]
    inputs = {
        "encoder_outputs": (torch.randn(2, 9, 32),),
        "decoder_input_ids": random_ids(2, 5, seed=1),
    }
    refused(head, "`num_hashes` must be at least 1, got 0", **inputs, num_hashes=0)


def test_an_attention_backend_that_does_not_exist(head: Head) -> None:
    with pytest.raises(ValueError, match=r"must be one of \['auto'.*'torch'.*\], got 'cuda9'"):
        head.build(attention_backend="cuda9")


def test_an_attention_backend_that_cannot_serve_the_length_names_those_that_can() -> None:
    model = HEAD_OF["causal_lm"].build(attention_backend="reference", max_position_embeddings=8192)
    message = r"'reference' cannot .* at most 4096 tokens, got 5000.*'torch'"
    with pytest.raises(ValueError, match=message):
        model(random_ids(1, 5000, seed=1))


def test_attention_of_pretrained_models_is_refused_by_a_reformer(head: Head) -> None:
    message = "is for pretrained transformers; a .* attends as `attn_layers`"
    with pytest.raises(ValueError, match=message):
        head.model_class._from_config(head.config(), attn_implementation="reformer")
    model = head.build()
    with pytest.raises(ValueError, match=message):
        model.set_attn_implementation("reformer")
    with pytest.raises(ValueError, match="must be a pretrained transformer"):
        configure_attention(model, num_hashes=2)
    length = model.config.max_position_embeddings
    with pytest.raises(ValueError, match=r"`resize_position_embeddings\(\d+\)`"):
        extend_positions(model, 2 * length)
    assert model.config.max_position_embeddings == length
    model(**head.inputs(2, 9))


def test_models_refuse_configurations_of_other_models(head: Head) -> None:
    from transformers import GPT2Config

    with pytest.raises(ValueError, match=f"must be a {head.config_class.__name__} .*GPT2Config"):
        head.model_class(GPT2Config())


def test_encoder_decoder_refuses_a_configuration_without_a_decoder() -> None:
    single = HEAD_OF["model"].config()
    with pytest.raises(ValueError, match=r"must be a ReformerSeq2SeqConfig .* got a Ref"):
        HEAD_OF["seq2seq_lm"].model_class(single)


def test_models_refuse_configurations_made_impossible_after_they_were_made(head: Head) -> None:
    config = head.config()
    config.num_hashes = 0
    with pytest.raises(ValueError, match="`num_hashes` must be an integer of at least 1, got 0"):
        head.model_class(config)
