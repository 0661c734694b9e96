"""Bad input is refused: a ValueError with the argument, what is expected and what was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

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


def test_labels_that_are_not_integers() -> None:
    for name in ("causal_lm", "masked_lm", "token_classification"):
        ids = random_ids(2, 9, seed=1)
        message = "`labels` must hold integers, got dtype torch.float32"
        refused(HEAD_OF[name], message, input_ids=ids, labels=ids % 3 + 0.5)


def test_sequences_that_are_too_long(head: Head) -> None:
    message = "at most max_position_embeddings=20 tokens, got 21"
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
    message = "at most max_target_positions=20 tokens, got 21"
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
    message = "`input_ids` must hold at least one row and one token, got shape"
    refused(head, message, **inputs)
    inputs = {**head.inputs(2, 9), "inputs_embeds": torch.zeros(*shape, 32)}
    del inputs["input_ids"]
    refused(head, "must hold at least one row and one token, got shape", **inputs)


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
        (3, torch.zeros(2, 2), r"\[batch, num_labels\] = \[2, 3\] .*, got \[2, 2\]"),
        (1, torch.zeros(3), r"\[batch, num_labels\] = \[2, 1\] .*, got \[3\]"),
    ],
    ids=["rows", "columns", "multi-label", "regression"],
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


def test_one_row_is_not_spread_over_several_positions() -> None:
    positions = torch.zeros(3, 9, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"`position_ids` must be \[1 or 1, 9\], got \[3, 9\]"):
        HEAD_OF["masked_lm"].build()(random_ids(1, 9, seed=1), position_ids=positions)


@pytest.mark.parametrize("value", [0, -1])
def test_too_few_hash_rounds(head: Head, value: int) -> None:
    message = f"`num_hashes` must be at least 1, got {value}"
    refused(head, message, **head.inputs(2, 9), num_hashes=value)


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
