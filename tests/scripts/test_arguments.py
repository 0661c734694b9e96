"""Arguments: what cannot work is refused before anything is loaded."""

import json

import pytest

from training.arguments import (
    DataTrainingArguments,
    ModelArguments,
    RunArguments,
    SummarizationArguments,
    parse_arguments,
)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SummarizationArguments(max_source_length=0), "max_source_length.*got 0"),
        (lambda: SummarizationArguments(max_target_length=-1), "max_target_length.*got -1"),
        (lambda: SummarizationArguments(num_beams=0), "num_beams.*got 0"),
        (lambda: DataTrainingArguments(max_train_samples=0), "max_train_samples.*got 0"),
        (lambda: DataTrainingArguments(dataset_name="a", train_file="b"), "dataset_name"),
        (lambda: RunArguments(early_stopping_patience=0), "early_stopping_patience"),
        (lambda: ModelArguments(model_name_or_path="a", preset="tiny"), "preset"),
        (lambda: ModelArguments(model_name_or_path="a", config_overrides="b=1"), "config_overr"),
        (lambda: ModelArguments(tokenizer_name="a", vocab_size=300), "vocab_size"),
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
