"""Padding that a batch shows is padding, though nobody gave a mask: rows are as they are alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from reformer_hf import byte_tokenizer
from tests.models.builders import HEAD_OF, IGNORED, NO_DROPOUT, Batch, pad_rows, random_ids

LENGTHS = (5, 130, 37)
# Layers in which a row's number of tokens decides over its buckets.
LSH = {"attn_layers": ["lsh", "lsh"], "decoder_attn_layers": ["lsh", "lsh"], "hash_seed": 1}


def targets(sides: str) -> tuple[Batch, list[int]]:
    """Labels, decoder inputs made of them, and the lengths of the rows."""
    labels, mask = pad_rows([random_ids(n, seed=n) for n in LENGTHS], sides)
    labels = labels.masked_fill(mask == 0, IGNORED)
    model = HEAD_OF["seq2seq_lm"].build(**LSH)
    made = model.prepare_decoder_input_ids_from_labels(labels)
    return {"labels": labels, "decoder_input_ids": made}, list(LENGTHS)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "given", [("labels",), ("labels", "decoder_input_ids"), ("decoder_input_ids",)], ids="+".join
)
@torch.no_grad()
def test_decoder_inputs_of_a_collator_give_a_row_what_it_gets_alone(
    given: tuple[str, ...], training: bool
) -> None:
    model = HEAD_OF["seq2seq_lm"].build(**LSH, **NO_DROPOUT).train(training)
    batch, lengths = targets("r")
    source = random_ids(len(lengths), 30, seed=9)
    logits = model(source, **{name: batch[name] for name in given}).logits
    for i, n in enumerate(lengths):
        own = {name: batch[name][i : i + 1, :n] for name in given}
        expected = model(source[i : i + 1], **own).logits[0]
        assert (logits[i, :n] - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_labels_tell_of_padding_on_either_side() -> None:
    model = HEAD_OF["seq2seq_lm"].build(**LSH).eval()
    batch, lengths = targets("l")
    source = random_ids(len(lengths), 30, seed=9)
    expected = model(source, labels=batch["labels"])
    assert torch.equal(model(source, **batch).logits, expected.logits)


@torch.no_grad()
def test_the_stock_collator_pads_targets_without_a_trace() -> None:
    tokenizer = byte_tokenizer()
    model = HEAD_OF["seq2seq_lm"].build(**LSH, vocab_size=len(tokenizer)).eval()
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    rows = [{**tokenizer("abc " * 9), "labels": tokenizer("z y " * n).input_ids} for n in (5, 60)]
    together, alone = collate(rows), collate(rows[:1])
    assert "decoder_input_ids" in together
    n = alone["labels"].shape[1]
    difference = model(**together).logits[0, :n] - model(**alone).logits[0]
    assert difference.abs().max() <= 1e-5


def all_real(model: torch.nn.Module, source: Tensor, **inputs: Any) -> Tensor:
    mask = torch.ones_like(inputs["decoder_input_ids"])
    logits: Tensor = model(source, decoder_attention_mask=mask, **inputs).logits
    return logits


@torch.no_grad()
def test_decoder_inputs_that_are_not_those_of_the_labels_are_all_real() -> None:
    model = HEAD_OF["seq2seq_lm"].build(**LSH).eval()
    source, (batch, _) = random_ids(3, 30, seed=9), targets("r")
    batch["decoder_input_ids"][:, 1] = 3
    assert torch.equal(model(source, **batch).logits, all_real(model, source, **batch))


@torch.no_grad()
def test_padding_tokens_that_a_model_may_have_written_are_real() -> None:
    model = HEAD_OF["seq2seq_lm"].build(**LSH).eval()
    source, ids = random_ids(2, 30, seed=9), random_ids(2, 40, seed=8)
    ids[:, -3:] = 0
    ids[0, 10] = 0
    actual = model(source, decoder_input_ids=ids).logits
    assert torch.equal(actual, all_real(model, source, decoder_input_ids=ids))


@torch.no_grad()
def test_what_is_written_is_real_with_and_without_a_cache() -> None:
    head = HEAD_OF["seq2seq_lm"]
    model = head.build(**LSH, eos_token_id=None).eval()
    source = random_ids(2, 30, seed=9)
    found = []
    for use_cache in (True, False):
        # Every other token of the first row is the padding token.
        start = random_ids(2, 20, seed=8)
        start[0, ::2] = start[0, -3:] = 0
        output = model.generate(
            source,
            decoder_input_ids=start,
            use_cache=use_cache,
            max_new_tokens=5,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append(torch.stack(output.logits))
    assert torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("sides", ["r", "l", "rl"])
@pytest.mark.parametrize("name", ["causal_lm", "masked_lm", "token_classification"])
@torch.no_grad()
def test_unlabelled_padding_tokens_at_the_ends_are_padding(name: str, sides: str) -> None:
    head = HEAD_OF[name]
    model = head.build(**LSH).eval()
    ids, mask = pad_rows([random_ids(n, seed=n) for n in LENGTHS], sides)
    labels = (ids % 3).masked_fill(mask == 0, IGNORED)
    expected = model(ids, attention_mask=mask, labels=labels)
    actual = model(ids, labels=labels)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.loss, expected.loss)


@torch.no_grad()
def test_labelled_padding_tokens_and_unlabelled_other_tokens_are_real() -> None:
    model = HEAD_OF["causal_lm"].build(**LSH).eval()
    ids = random_ids(2, 60, seed=1)
    labels = ids.clone()
    labels[:, :20] = labels[1, -5:] = IGNORED  # a prompt, and an end that is not to be learned
    ids[0, -5:] = labels[0, -5:] = 0  # a padding token that is to be predicted
    expected = model(ids, attention_mask=torch.ones_like(ids), labels=labels)
    assert torch.equal(model(ids, labels=labels).logits, expected.logits)


def test_a_given_mask_is_what_counts() -> None:
    model = HEAD_OF["causal_lm"].build(**LSH).eval()
    ids, mask = pad_rows([random_ids(n, seed=n) for n in LENGTHS], "r")
    labels = ids.masked_fill(mask == 0, IGNORED)
    whole = model(ids, attention_mask=torch.ones_like(ids), labels=labels).logits
    assert not torch.allclose(whole, model(ids, labels=labels).logits, atol=1e-3)
