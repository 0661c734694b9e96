"""Every text pipeline that transformers still has runs on our checkpoints and says what we say."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase, pipeline
from transformers.pipelines import SUPPORTED_TASKS

from reformer_hf import byte_tokenizer
from tests.models.builders import HEAD_OF

TEXTS = ["a short text", "and one that is quite a bit longer than the first"]
LABELS = {0: "bad", 1: "good", 2: "neither"}


@pytest.fixture
def _no_complaints(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that does not know a class only logs it."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.ERROR, logger="transformers")


def checkpoint(name: str, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny byte-level model, saved with its tokenizer."""
    tokenizer = byte_tokenizer(append_eos=name != "causal_lm")
    torch.manual_seed(0)
    model = HEAD_OF[name].build(vocab_size=len(tokenizer), id2label=LABELS).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def opened(
    task: str, folder: Path, caplog: pytest.LogCaptureFixture, **options: object
) -> Pipeline:
    """The pipeline on a saved checkpoint; it must know the class of the model."""
    made = pipeline(task, model=str(folder), device="cpu", **options)
    assert "is not supported" not in caplog.text
    return made


@pytest.mark.usefixtures("_no_complaints")
@pytest.mark.parametrize("beams", [1, 2])
def test_text_generation(beams: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = checkpoint("causal_lm", tmp_path)
    write = opened("text-generation", tmp_path, caplog)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    found = write(TEXTS, batch_size=2, return_full_text=False, **options)
    for text, [answer] in zip(TEXTS, found, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        own = model.generate(**inputs, **options)[0, inputs.input_ids.shape[1] :]
        assert answer["generated_text"] == tokenizer.decode(own, skip_special_tokens=True)


@pytest.mark.usefixtures("_no_complaints")
def test_fill_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = checkpoint("masked_lm", tmp_path)
    fill = opened("fill-mask", tmp_path, caplog, top_k=3)
    text = f"a sh{tokenizer.mask_token}rt text"
    found = fill(text)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, inputs.input_ids[0] == tokenizer.mask_token_id]
    best = logits[0].softmax(-1).topk(3)
    assert [answer["token"] for answer in found] == best.indices.tolist()
    assert [answer["score"] for answer in found] == pytest.approx(best.values.tolist(), rel=1e-4)


@pytest.mark.usefixtures("_no_complaints")
def test_text_classification(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = checkpoint("sequence_classification", tmp_path)
    classify = opened("text-classification", tmp_path, caplog)
    found = classify(TEXTS, batch_size=2)
    for text, answer in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            scores = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert answer["label"] == LABELS[int(scores.argmax())]
        assert answer["score"] == pytest.approx(float(scores.max()), rel=1e-4)


@pytest.mark.usefixtures("_no_complaints")
def test_token_classification(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = checkpoint("token_classification", tmp_path)
    tag = opened("token-classification", tmp_path, caplog, ignore_labels=[])
    found = tag(TEXTS[0])
    with torch.no_grad():
        scores = model(**tokenizer(TEXTS[0], return_tensors="pt")).logits[0].softmax(-1)
    # The end token is no part of the text.
    assert len(found) == len(TEXTS[0])
    for answer, own in zip(found, scores, strict=False):
        assert answer["entity"] == LABELS[int(own.argmax())]
        assert TEXTS[0][answer["start"] : answer["end"]] == TEXTS[0][answer["index"]]


@pytest.mark.usefixtures("_no_complaints")
def test_zero_shot_classification(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    model = HEAD_OF["sequence_classification"].build(
        vocab_size=len(tokenizer), id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    choose = opened("zero-shot-classification", tmp_path, caplog)
    found = choose(TEXTS[0], candidate_labels=["one", "two"])
    assert set(found["labels"]) == {"one", "two"}
    assert sum(found["scores"]) == pytest.approx(1.0)


@pytest.mark.usefixtures("_no_complaints")
def test_feature_extraction(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = checkpoint("model", tmp_path)
    extract = opened("feature-extraction", tmp_path, caplog)
    found = torch.tensor(extract(TEXTS[0]))[0]
    with torch.no_grad():
        own = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    assert torch.allclose(found, own, atol=1e-5)


def test_all_text_pipelines_are_tried_here() -> None:
    """A new one, or one that comes back, shows here."""
    tried = {name.removeprefix("test_").replace("_", "-") for name in globals()}
    ours = {task for task, entry in SUPPORTED_TASKS.items() if entry["type"] == "text"}
    assert ours - tried <= {"table-question-answering", "text-to-audio"}
