"""Arguments: what cannot work is refused before anything is loaded."""

import json

import pytest
from transformers import Seq2SeqTrainingArguments

from training.arguments import (
    ClassificationArguments,
    DataTrainingArguments,
    LanguageModelingArguments,
    ModelArguments,
    RunArguments,
    SummarizationArguments,
    parse_arguments,
    require_sound_training,
)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SummarizationArguments(max_source_length=0), "max_source_length.*got 0"),
        (lambda: SummarizationArguments(max_target_length=-1), "max_target_length.*got -1"),
        (lambda: SummarizationArguments(val_max_source_length=0), "val_max_source_length.*got 0"),
        (lambda: SummarizationArguments(num_beams=0), "num_beams.*got 0"),
        (lambda: DataTrainingArguments(max_train_samples=0), "max_train_samples.*got 0"),
        (lambda: DataTrainingArguments(dataset_name="a", train_file="b"), "dataset_name"),
        (lambda: RunArguments(early_stopping_patience=0), "early_stopping_patience"),
        (lambda: ModelArguments(model_name_or_path="a", preset="tiny"), "preset"),
        (lambda: ModelArguments(model_name_or_path="a", config_overrides="b=1"), "config_overr"),
        (
            lambda: ModelArguments(config_name="a", config_overrides="b=1"),
            "config_overr.*new model",
        ),
        (lambda: ModelArguments(tokenizer_name="a", vocab_size=300), "vocab_size"),
        (lambda: ModelArguments(model_name_or_path="a", vocab_size=300), "vocab_size.*model_name"),
        (lambda: ModelArguments(attn_implementation="reformer"), "attn_impl.*model_name_or_path"),
        (
            lambda: ModelArguments(model_name_or_path="a", attention_settings="num_hashes=2"),
            "attention_settings: expected attn_implementation='reformer'",
        ),
        (lambda: ModelArguments(preset=""), "preset: expected text, got ''"),
        (lambda: DataTrainingArguments(train_file=" "), "train_file: expected text, got ' '"),
        (lambda: SummarizationArguments(text_column=""), "text_column: expected text"),
        (lambda: ClassificationArguments(label_column_name=""), "label_column_name: expected text"),
        (lambda: DataTrainingArguments(dataset_config_name="a"), "dataset_config_name.*'a' alone"),
        (lambda: ClassificationArguments(shuffle_seed=-1), "shuffle_seed.*got -1"),
        (lambda: LanguageModelingArguments(block_size=1), "block_size.*got 1"),
        (lambda: LanguageModelingArguments(validation_split_percentage=100), "validation_split"),
    ],
)
def test_impossible_arguments_are_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


def test_arguments_can_come_from_a_json_file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"max_source_length": 99, "preset": "demo"}))
    model, data = parse_arguments((ModelArguments, SummarizationArguments), [str(path)])
    assert (model.preset, data.max_source_length) == ("demo", 99)
    with pytest.raises(ValueError, match="expected a JSON file"):
        parse_arguments((ModelArguments,), [str(tmp_path / "none.json")])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_epochs", -1.0),
        ("num_train_epochs", 0.0),
        ("num_train_epochs", float("nan")),
        ("max_steps", 0),
        ("max_steps", -2),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", -8),
        ("gradient_accumulation_steps", 0),
        ("eval_accumulation_steps", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("weight_decay", -0.1),
        ("adam_beta2", 1.0),
        ("adam_epsilon", 0.0),
        ("max_grad_norm", -1.0),
        ("label_smoothing_factor", 1.0),
        ("eval_steps", -1),
        ("save_steps", 0),
        ("logging_steps", -5),
        ("save_total_limit", 0),
        ("generation_max_length", 0),
        ("generation_num_beams", 0),
        ("dataloader_num_workers", -1),
        ("seed", -1),
        ("data_seed", 2**32),
    ],
)
def test_training_arguments_out_of_range_are_refused_by_name(name, value, tmp_path):
    training = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    require_sound_training(training)
    setattr(training, name, value)
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {value}$"):
        require_sound_training(training)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["--max_source_length", "long"],
            "argument --max_source_length.*invalid int value: 'long'",
        ),
        (["--ignore_pad_token_for_loss", "maybe"], "--ignore_pad_token_for_loss.*got maybe"),
        (["--preset"], "argument --preset: expected one argument"),
    ],
)
def test_values_of_another_type_are_refused_in_one_line(given, expected):
    with pytest.raises(ValueError, match=expected):
        parse_arguments((ModelArguments, SummarizationArguments), given)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"max_source_length": "long"}, "argument --max_source_length.*'long'"),
        ({"max_source_length": 1.5}, "argument --max_source_length.*'1.5'"),
        ({"max_source": 9}, r"expected names of arguments.*\['max_source'\]"),
        (["--max_source_length", "9"], "expected an object.*got list"),
    ],
)
def test_a_json_file_is_checked_like_a_command_line(tmp_path, content, expected):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=expected):
        parse_arguments((ModelArguments, SummarizationArguments), [str(path)])


def test_every_kind_of_value_can_stand_in_a_json_file(tmp_path):
    path = tmp_path / "run.json"
    values = {"rouge_stemmer": True, "lang": None, "num_beams": 4, "source_prefix": "-- a b"}
    path.write_text(json.dumps(values))
    (data,) = parse_arguments((SummarizationArguments,), [str(path)])
    assert {name: getattr(data, name) for name in values} == values
    path.write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*run\.json' as JSON"):
        parse_arguments((SummarizationArguments,), [str(path)])
