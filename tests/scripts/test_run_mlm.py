"""Masked language modelling: what is hidden, baselines, and small runs end to end."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM

import run_mlm
from reformer_hf import ReformerForMaskedLM
from reformer_hf.tokenization import byte_tokenizer
from training.masked_language_modeling import Masking, UnigramBaseline

TEXT = "".join(f"Line {number} of a text about buckets.\n" for number in range(60))
IGNORED = -100


@pytest.fixture
def text_files(tmp_path):
    """Two text files, and short blocks."""
    (tmp_path / "train.txt").write_text(TEXT * 3)
    (tmp_path / "validation.txt").write_text(TEXT)
    return [
        *("--train_file", str(tmp_path / "train.txt")),
        *("--validation_file", str(tmp_path / "validation.txt")),
        *("--block_size", "64", "--sample_length", "40"),
    ]


def test_hidden_tokens_are_labelled_and_no_others():
    tokenizer = byte_tokenizer()
    masking = Masking(tokenizer, 0.4)
    ids = list(range(10, 210))
    batch = masking([{"input_ids": ids}, {"input_ids": ids}])
    labelled = batch["labels"] != IGNORED
    assert 0.25 < labelled.float().mean() < 0.55
    original = torch.tensor([ids, ids])
    assert torch.equal(batch["labels"][labelled], original[labelled])
    assert torch.equal(batch["input_ids"][~labelled], original[~labelled])
    hidden = batch["input_ids"][labelled] == tokenizer.mask_token_id
    assert 0.6 < hidden.float().mean() < 0.95
    again = masking([{"input_ids": ids}, {"input_ids": ids}])
    assert not torch.equal(again["labels"], batch["labels"])


def test_masks_of_evaluation_are_always_the_same_and_leave_the_generator_alone():
    masking = Masking(byte_tokenizer(), 0.3)
    blocks = Dataset.from_dict({"input_ids": [list(range(10, 110))] * 2})
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = masking.fixed(blocks, seed=1)
    assert torch.rand(1) == expected
    assert first.to_dict() == masking.fixed(blocks, seed=1).to_dict()
    assert first[0]["labels"] != first[1]["labels"]
    batch = masking([first[0], first[1]])
    assert batch["labels"].tolist() == [first[0]["labels"], first[1]["labels"]]


def test_the_baseline_is_the_loss_of_frequencies():
    blocks = Dataset.from_dict({"input_ids": [[1, 1, 1, 2]]})
    baseline = UnigramBaseline.of(blocks, vocab_size=4)
    # Every token counts once more: 1, 4, 2 and 1 of 8.
    assert np.exp(-baseline.losses).tolist() == pytest.approx([0.125, 0.5, 0.25, 0.125])
    masked = Dataset.from_dict({"labels": [[IGNORED, 1, 2, IGNORED]]})
    assert baseline.loss(masked) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_run_leaves_a_complete_model_directory(text_files, small_run, tmp_path, capsys):
    assert run_mlm.main([*text_files, *small_run, "--mlm_probability", "0.3"]) == 0
    run = tmp_path / "run"
    assert isinstance(AutoModelForMaskedLM.from_pretrained(run), ReformerForMaskedLM)
    metrics = json.loads((run / "all_results.json").read_text())
    assert 0 < metrics["eval_unigram_loss"] < metrics["eval_loss"] < 10
    card = (run / "README.md").read_text()
    assert "AutoModelForMaskedLM.from_pretrained" in card
    assert "30% of the tokens are hidden" in card
    shown = capsys.readouterr().out
    assert "frequencies" in shown
    assert "<mask>" in shown


@pytest.mark.parametrize("share", ["0", "1", "1.5"])
def test_shares_that_hide_nothing_or_everything_are_refused(text_files, small_run, share, capsys):
    assert run_mlm.main([*text_files, *small_run, "--mlm_probability", share]) == 2
    assert "mlm_probability: expected a number between 0 and 1" in capsys.readouterr().err


def test_tokenizers_without_a_mask_are_refused(text_files, small_run, tmp_path, capsys):
    tokenizer = byte_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    named = ["--tokenizer_name", str(tmp_path / "tokenizer")]
    assert run_mlm.main([*text_files, *small_run, *named]) == 2
    assert "expected a tokenizer with a mask_token" in capsys.readouterr().err
