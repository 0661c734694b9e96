"""Sequence classification: labels, and small runs end to end."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    TrainingArguments,
)

import run_classification
from reformer_hf import ReformerForSequenceClassification, byte_tokenizer
from training.arguments import ClassificationArguments
from training.classification import _texts_and_labels, class_names, encode_examples

COLUMNS = ["--text_column_names", "document", "--max_seq_length", "48", "--vocab_size", "300"]


def test_class_names_are_in_natural_order():
    assert class_names(Dataset.from_dict({"label": ["10", "9", "-1"]})) == ["-1", "9", "10"]
    assert class_names(Dataset.from_dict({"label": ["b", "a", "b"]})) == ["a", "b"]
    with pytest.raises(ValueError, match=r"at least two classes, got \['a'\]"):
        class_names(Dataset.from_dict({"label": ["a", "a"]}))


def test_run_leaves_a_complete_model_directory(data_files, small_run, tmp_path, capsys):
    assert run_classification.main([*data_files, *small_run, *COLUMNS, "--do_predict"]) == 0
    run = tmp_path / "run"
    model = AutoModelForSequenceClassification.from_pretrained(run)
    assert isinstance(model, ReformerForSequenceClassification)
    assert model.config.label2id == {"attention": 0, "bucket": 1, "chunk": 2}
    metrics = json.loads((run / "all_results.json").read_text())
    for prefix in ("eval", "predict"):
        for name in ("accuracy", "macro_f1", "majority_accuracy", "majority_macro_f1"):
            assert 0 <= metrics[f"{prefix}_{name}"] <= 1
    card = (run / "README.md").read_text()
    assert "always the class that is most frequent" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert (run / "loss_curve.png").is_file()
    shown = capsys.readouterr().out
    assert "majority class" in shown
    assert shown.count("(probability") == 3


def test_several_text_columns_are_joined(data_files, small_run, tmp_path):
    columns = ["--text_column_names", "summary,document", "--text_column_delimiter", " | "]
    lengths = ["--max_seq_length", "48", "--vocab_size", "300"]
    metrics = run_classification.classify([*data_files, *small_run, *columns, *lengths])
    assert "eval_accuracy" in metrics


def test_trained_classifier_is_evaluated_with_its_own_classes(data_files, small_run, tmp_path):
    trained = run_classification.classify([*data_files, *small_run, *COLUMNS])
    metrics = run_classification.classify(
        [
            *data_files,
            *("--model_name_or_path", str(tmp_path / "run"), "--do_eval", "--use_cpu", "true"),
            *("--text_column_names", "document", "--max_seq_length", "48"),
            *("--output_dir", str(tmp_path / "evaluation")),
        ]
    )
    assert metrics["eval_loss"] == pytest.approx(trained["eval_loss"], rel=1e-4)


def test_interrupted_run_resumes_at_the_next_step(data_files, small_run, tmp_path):
    run_classification.classify([*data_files, *small_run, *COLUMNS])
    run_classification.classify([*data_files, *small_run, *COLUMNS, "--max_steps", "3"])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3]


def test_hub_class_labels_become_names():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    table = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    assert list(_texts_and_labels(table, ClassificationArguments())["label"]) == ["yes", "no"]


def test_long_training_texts_become_pieces_that_lose_nothing():
    tokenizer = byte_tokenizer()
    texts = {"text": ["a" * 40 + "b" * 25, "short"], "label": ["x", "y"]}
    examples = {split: Dataset.from_dict(texts) for split in ("train", "test")}
    data = ClassificationArguments(max_seq_length=32, val_max_seq_length=64, split_train_texts=True)
    training = TrainingArguments(use_cpu=True)
    encoded = encode_examples(examples, tokenizer, {"x": 0, "y": 1}, data, training)
    pieces = encoded["train"]
    assert list(pieces["labels"]) == [0, 0, 0, 1]
    assert all(len(ids) <= 32 for ids in pieces["input_ids"])
    read = tokenizer.batch_decode(list(pieces["input_ids"]), skip_special_tokens=True)
    assert ["".join(read[:3]), read[3]] == texts["text"]
    assert [len(ids) for ids in encoded["test"]["input_ids"]] == [64, 6]
    assert list(encoded["test"]["labels"]) == [0, 1]


def test_a_classifier_reads_longer_texts_than_it_was_trained_on(data_files, small_run, tmp_path):
    longer = ["--val_max_seq_length", "96", "--split_train_texts"]
    run_classification.classify([*data_files, *small_run, *COLUMNS, *longer])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "reads up to 96 tokens" in card
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.max_position_embeddings >= 96


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--label_column_name", "class"], "label_column_name: expected one of ['document'"),
        (["--text_column_names", "body"], "text_column_names: expected one of ['document'"),
        (["--max_seq_length", "0"], "max_seq_length: expected a positive integer"),
        (["--val_max_seq_length", "0"], "val_max_seq_length: expected a positive integer"),
    ],
)
def test_runs_that_cannot_work_are_refused(data_files, small_run, capsys, arguments, expected):
    assert run_classification.main([*data_files, *small_run, *COLUMNS, *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_missing_data_unknown_classes_and_numbers_are_refused(
    data_files, small_run, tmp_path, capsys
):
    assert run_classification.main(small_run) == 2
    assert "expected data to classify" in capsys.readouterr().err
    for label, expected in (("round", "got ['round']"), (0.5, "got float64")):
        path = tmp_path / f"{label}.jsonl"
        path.write_text(json.dumps({"document": "x", "label": label}))
        other = [*data_files, "--validation_file", str(path)]
        assert run_classification.main([*other, *small_run, *COLUMNS]) == 2
        assert expected in capsys.readouterr().err


def test_a_pretrained_encoder_reads_longer_documents_in_sparse_attention(
    data_files, tmp_path, capsys
):
    tokenizer = byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(tmp_path / "pretrained")
    tokenizer.save_pretrained(tmp_path / "pretrained")
    asked = [
        *data_files,
        *("--model_name_or_path", str(tmp_path / "pretrained"), "--do_train", "--do_eval"),
        *("--attn_implementation", "reformer", "--resize_position_embeddings", "true"),
        *("--text_column_names", "document", "--max_seq_length", "200", "--max_steps", "2"),
        *("--per_device_train_batch_size", "2", "--use_cpu", "true", "--report_to", "none"),
        *("--output_dir", str(tmp_path / "run")),
    ]
    settings = ["--attention_settings", "local_window=32,num_hashes=2"]
    assert run_classification.main([*asked, *settings]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.max_position_embeddings == 200
    assert model.config.reformer_attention["local_window"] == 32
    capsys.readouterr()
    assert run_classification.main([*asked, "--attention_settings", "rounds=2"]) == 2
    assert "`reformer_attention` knows the fields" in capsys.readouterr().err
