"""The command that a model card shows."""

import shlex
import sys

import pytest

from training.command import shown_command


def words(shown):
    return shlex.split(shown.replace(" \\\n", " "))


@pytest.fixture
def called(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["/home/me/clone/scripts/run_ner.py", *arguments])
        return shown_command(None)

    return call


def test_a_command_shows_no_secret_and_no_folder_of_the_machine(called, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    shown = called(
        *("--token", "hf_secret", "--hub-token=hf_secret", "--hub_tok", "hf_secret", "--do_train"),
        *("--model_name_or_path", "someone/model", f"--output_dir={tmp_path}/private/run"),
        *("--train_file", "data/train.jsonl", "--test_file", "../private/test.jsonl"),
        *("--config_overrides", '{"a": [1]}', "--learning_rate", "1e-3"),
    )
    assert "secret" not in shown
    assert "private" not in shown
    assert words(shown) == [
        *("python", "scripts/run_ner.py", "--do_train", "--model_name_or_path", "someone/model"),
        *("--output_dir=run", "--train_file", "train.jsonl", "--test_file", "test.jsonl"),
        *("--config_overrides", '{"a": [1]}', "--learning_rate", "1e-3"),
    ]
    assert max(map(len, shown.splitlines())) <= 100


def test_values_that_are_several_or_look_like_options_stay_with_theirs(called):
    shown = called("--text_columns", "title", "text", "--prompt_template", "{document}\n\nSum:\n")
    assert words(shown)[2:] == [
        *("--text_columns", "title", "text", "--prompt_template", "{document}\n\nSum:\n"),
    ]


def test_arguments_of_another_program_are_no_command():
    assert shown_command(["--do_train"]) == ""
