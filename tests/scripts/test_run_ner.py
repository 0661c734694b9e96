"""Token classification: tags of words, scores, and small runs end to end."""

import json
import random

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from transformers import AutoModelForTokenClassification

import run_ner
from reformer_hf import ReformerForTokenClassification, byte_tokenizer
from training.arguments import TokenClassificationArguments
from training.contracts import contract, contract_splits
from training.token_classification import (
    _labels,
    _select,
    encode_tagged,
    entity_scores,
    lookup_baseline,
)

SMALL = ["--max_seq_length", "64", "--vocab_size", "300"]
FEW = ["--max_train_samples", "8", "--max_eval_samples", "4", "--max_predict_samples", "4"]
WORDS, TAGS = ["Alder", "Ltd", "pays", "Birch"], ["B-A", "I-A", "O", "B-B"]


def test_tags_of_contracts_follow_from_the_sentence_and_not_from_the_words():
    splits = contract_splits()
    found = lookup_baseline(splits_as_words(splits["train"]), splits_as_words(splits["test"]))
    assert 0.2 < found["f1"] < 0.8
    tagged = contract(random.Random(1))
    kinds = {tag[2:] for _, tag in tagged if tag != "O"}
    assert kinds == {"SUPPLIER", "CUSTOMER", "DATE", "AMOUNT", "PLACE"}


def splits_as_words(table):
    return table.rename_columns({"tokens": "words", "ner_tags": "tags"})


def test_scores_are_of_whole_entities():
    scores = entity_scores([["B-A", "O", "O", "B-B"]], [TAGS])
    assert scores["precision"] == scores["recall"] == scores["f1"] == 0.5
    assert scores["accuracy"] == 0.75


def test_a_word_has_its_tag_at_its_first_token():
    # "Alder Ltd pays": two tokens of "Alder", " Ltd" with its blank, "pays" without, an end.
    offsets = [(0, 2), (2, 5), (5, 9), (9, 10), (10, 14), (0, 0)]
    assert _labels(offsets, ["Alder", "Ltd", "pays"], [1, 2, 0]) == [1, -100, 2, -100, 0, -100]


def test_long_texts_are_read_in_pieces_with_every_word_tagged_once():
    tokenizer = byte_tokenizer()
    words = [f"word{i}" for i in range(40)]
    rows = {"test": Dataset.from_dict({"words": [words], "tags": [["O"] * 39 + ["B-A"]]})}
    data = TokenClassificationArguments(max_seq_length=50)
    training = run_ner.ScriptTrainingArguments(use_cpu=True)
    pieces = encode_tagged(rows, tokenizer, {"O": 0, "B-A": 1}, data, training)["test"]
    assert len(pieces) > 4
    assert max(len(row["input_ids"]) for row in pieces) <= 50
    labels = [label for row in pieces for label in row["labels"] if label != -100]
    assert labels == [0] * 39 + [1]


def test_tags_may_be_numbers_with_names():
    features = Features(
        {"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-A"]))}
    )
    table = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, features=features)
    assert _select(table, TokenClassificationArguments())["tags"] == [["O", "B-A"]]


def test_rows_with_other_numbers_of_tags_are_refused():
    table = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [["O"]]})
    with pytest.raises(ValueError, match="expected a tag for every word of a list in row 1"):
        _select(table, TokenClassificationArguments())
    with pytest.raises(ValueError, match=r"text_column_name: expected one of .* got 'words'"):
        _select(table, TokenClassificationArguments(text_column_name="words"))


def test_run_leaves_a_complete_model_directory(small_run, tmp_path, capsys):
    assert run_ner.main([*small_run, *SMALL, *FEW, "--do_predict"]) == 0
    run = tmp_path / "run"
    model = AutoModelForTokenClassification.from_pretrained(run)
    assert isinstance(model, ReformerForTokenClassification)
    assert model.config.id2label[0] == "O"
    metrics = json.loads((run / "all_results.json").read_text())
    for prefix in ("eval", "predict"):
        for name in ("f1", "precision", "recall", "accuracy", "lookup_f1"):
            assert 0 <= metrics[f"{prefix}_{name}"] <= 1
    card = (run / "README.md").read_text()
    assert "AutoModelForTokenClassification.from_pretrained" in card
    assert "AMOUNT, CUSTOMER, DATE, PLACE, SUPPLIER" in card
    shown = capsys.readouterr().out
    assert "words looked up" in shown
    assert "SUPPLIER: " in shown


def test_tags_that_the_model_does_not_know_are_refused(small_run, tmp_path, capsys):
    run_ner.tag_words([*small_run, *SMALL, *FEW])
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"tokens": WORDS, "ner_tags": TAGS}))
    arguments = ["--model_name_or_path", str(tmp_path / "run"), "--do_eval", *SMALL[:2]]
    arguments += ["--validation_file", str(path), "--output_dir", str(tmp_path / "evaluation")]
    assert run_ner.main([*arguments, "--cache_dir", str(tmp_path / "cache")]) == 2
    assert "expected one of the model's tags" in capsys.readouterr().err
