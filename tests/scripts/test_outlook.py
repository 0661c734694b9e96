"""What a run says before it starts, and documents as people have them."""

import logging
import sys

import pytest
from datasets import Dataset
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from training.documents import read_document
from training.outlook import TimeLeft, documents_in_words, show_outlook

IGNORED = -100


def test_of_cut_documents_the_share_that_is_read_is_estimated():
    # Four characters a token; one document of 400 characters of which 50 tokens are read.
    pairs = Dataset.from_dict({"document": ["abcd" * 10, "abcd" * 20, "abcd" * 100]})
    encoded = Dataset.from_dict(
        {"input_ids": [[1] * 10, [1] * 20, [1] * 50], "labels": [[5], [5], [5]]}
    )
    sentence = documents_in_words("train", pairs, encoded, 50)
    assert sentence.startswith("3 documents in train, of 27 tokens on average")
    assert sentence.endswith("33% are cut to 50, of which about 50% is read")
    assert documents_in_words("test", pairs, encoded, 60).endswith("0% are cut to 60")


def test_prompts_are_counted_without_the_summaries_behind_them():
    pairs = Dataset.from_dict({"document": ["abcd"]})
    encoded = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]], "labels": [[IGNORED] * 3 + [4]]})
    assert "of 3 tokens on average" in documents_in_words("train", pairs, encoded, 10)


def test_parameters_and_memory_are_told(caplog, tmp_path):
    model = nn.Linear(1024, 1024, bias=False)
    pairs = {"train": Dataset.from_dict({"document": ["abcd"]})}
    encoded = {"train": Dataset.from_dict({"input_ids": [[1]], "labels": [[2]]})}
    training = TrainingArguments(str(tmp_path), do_train=True, use_cpu=True)
    with caplog.at_level(logging.INFO):
        show_outlook(model, training, pairs, encoded, 10)
    assert "Linear with 1.0 million parameters, all of them trained" in caplog.text
    assert "weights 0.0 GiB, gradients 0.0 GiB, optimizer 0.0 GiB" in caplog.text


def test_the_time_left_is_told_once(caplog, tmp_path):
    left, state = TimeLeft(), TrainerState(max_steps=9, is_world_process_zero=True)
    arguments, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()
    with caplog.at_level(logging.INFO):
        for step in range(9):
            left.on_step_begin(arguments, state, control)
            state.global_step = step + 1
            left.on_step_end(arguments, state, control)
    assert caplog.text.count("a step: about 0 seconds for the other 7 steps") == 1


def test_a_page_is_what_it_shows(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<html><head><title>no</title><style>p{}</style></head><body><h1>Caf&eacute;</h1>"
        "<p>One <i>two</i>\n three.</p><script>no()</script><pre>x\ny</pre><ul><li>a<li>b</ul>"
        "</body></html>",
        encoding="utf-8",
    )
    assert read_document(str(page)) == "Caf\u00e9\nOne two three.\nx\ny\na\nb"


def test_a_broken_pdf_is_refused(tmp_path):
    file = tmp_path / "a.pdf"
    file.write_bytes(b"%PDF-1.4")
    with pytest.raises(ValueError, match="as pdf"):
        read_document(str(file))


def test_a_pdf_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    file = tmp_path / "a.pdf"
    file.write_bytes(b"%PDF-1.4")
    with pytest.raises(ValueError, match=r"expected the package pypdf .*pip install pypdf"):
        read_document(str(file))
