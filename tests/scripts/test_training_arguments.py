"""Training arguments: what is left open is decided for these scripts, what is named is kept."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import precision, training_arguments
from training.arguments import parse_arguments
from training.precision import SLOW_BF16
from training.training_arguments import ScriptTrainingArguments, WritingTrainingArguments

CLASSES = [ScriptTrainingArguments, WritingTrainingArguments]


def parsed(training_class, *arguments):
    return parse_arguments((training_class,), ["--output_dir", "run", *arguments])[0]


@pytest.mark.parametrize("training_class", CLASSES)
def test_a_model_from_scratch_learns_faster_than_a_given_one(training_class, caplog):
    caplog.set_level(logging.INFO, logger="training")
    for from_scratch, expected in ((True, 5e-4), (False, 5e-5)):
        training = parsed(training_class, "--do_train")
        training.choose_learning_rate(from_scratch=from_scratch)
        assert training.learning_rate == expected
    scratch, given = (record.getMessage() for record in caplog.records)
    assert "0.0005: the default for a model from scratch" in scratch
    assert "5e-05: the default for a model with given weights" in given


def test_a_learning_rate_that_is_named_is_kept_even_where_it_is_a_default(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="training")
    (tmp_path / "run.json").write_text(json.dumps({"output_dir": "run", "learning_rate": 5e-5}))
    (from_json,) = parse_arguments((ScriptTrainingArguments,), [str(tmp_path / "run.json")])
    for training in (from_json, parsed(ScriptTrainingArguments, "--learning_rate", "5e-5")):
        training.choose_learning_rate(from_scratch=True)
        assert training.learning_rate == 5e-5
    assert not caplog.records


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine with a CPU alone")
@pytest.mark.parametrize("argument", ["--bf16", "--bf16_full_eval"])
def test_bf16_needs_no_further_argument_where_there_is_a_cpu_alone(argument):
    assert parsed(ScriptTrainingArguments, argument).device.type == "cpu"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine with a CPU alone")
@pytest.mark.parametrize("argument", ["--bf16", "--bf16_full_eval"])
@pytest.mark.parametrize("fast", [False, True])
def test_who_asks_a_cpu_for_bf16_that_it_does_not_have_is_told(argument, fast, monkeypatch, caplog):
    monkeypatch.setattr(training_arguments, "multiplies_bf16", lambda: fast)
    parsed(ScriptTrainingArguments, argument)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ([] if fast else [SLOW_BF16])


def test_the_setting_that_the_demo_asks_for_is_the_faster_one():
    script = Path(precision.__file__)
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["bf16" if precision.multiplies_bf16() else "fp32"]


def test_a_summarizer_generates_unless_told_otherwise():
    assert parsed(WritingTrainingArguments).predict_with_generate
    assert not parsed(
        WritingTrainingArguments, "--predict_with_generate", "false"
    ).predict_with_generate
