"""Summarization: columns and pairs, and the main job end to end, at a size of seconds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, CLIPTextConfig, GenerationConfig

import run_summarization
from reformer_hf import ReformerForConditionalGeneration
from training.arguments import SummarizationArguments
from training.data import select_pairs, summarization_columns

SCRIPT = Path(run_summarization.__file__).resolve()
LENGTHS = ["--max_source_length", "48", "--max_target_length", "8", "--vocab_size", "300"]


def history(run: Path) -> list[dict]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


def refusal(arguments: list[str], capsys) -> str:
    """The message of a run that must refuse, which is one line."""
    assert run_summarization.main(arguments) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(message) == 1
    return message[0]


def test_columns_with_telling_names_are_found():
    table = Dataset.from_list([{"id": 1, "article": "a", "abstract": "b"}])
    assert summarization_columns(SummarizationArguments(), table) == ("article", "abstract")


def test_columns_of_well_known_data_sets_are_known():
    data = SummarizationArguments(dataset_name="big_patent")
    table = Dataset.from_list([{"description": "a", "abstract": "b", "text": "c"}])
    assert summarization_columns(data, table) == ("description", "abstract")


def test_missing_columns_are_refused_with_the_columns_there_are():
    table = Dataset.from_list([{"id": 1, "body": "a", "gist": "b"}])
    data = SummarizationArguments(text_column="boddy", summary_column="gist")
    with pytest.raises(ValueError, match=r"text_column: .*'id', 'body', 'gist'.*'boddy'"):
        summarization_columns(data, table)
    with pytest.raises(ValueError, match=r"summary_column: .*'id', 'body', 'gist'"):
        summarization_columns(SummarizationArguments(text_column="body"), table)


def test_rows_without_text_are_left_out_and_the_rest_is_limited():
    table = Dataset.from_dict(
        {"body": ["a", None, "b", "", "c"], "gist": ["x", "y", "", "z", "w"], "other": [1] * 5}
    )
    pairs = select_pairs(table, ("body", "gist"), limit=None)
    assert pairs.to_dict() == {"document": ["a", "c"], "summary": ["x", "w"]}
    assert len(select_pairs(table, ("body", "gist"), limit=1)) == 1


def test_columns_that_hold_no_text_are_refused():
    numbers = Dataset.from_dict({"body": [1, 2], "gist": ["x", "y"]})
    with pytest.raises(ValueError, match="expected text in column 'body', got int64"):
        select_pairs(numbers, ("body", "gist"), None)
    empty = Dataset.from_dict({"body": ["", "b"], "gist": ["x", ""]})
    with pytest.raises(ValueError, match="got none of 2"):
        select_pairs(empty, ("body", "gist"), None)


def test_run_leaves_a_complete_model_directory(data_files, small_run, tmp_path, capsys):
    code = run_summarization.main([*data_files, *small_run, *LENGTHS, "--do_predict"])
    assert code == 0
    run = tmp_path / "run"

    model = AutoModelForSeq2SeqLM.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert isinstance(model, ReformerForConditionalGeneration)
    assert (run / "model.safetensors").is_file()
    assert len(tokenizer) == model.config.vocab_size == 300
    generation = GenerationConfig.from_pretrained(run)
    assert generation.max_length == 9
    assert generation.decoder_start_token_id == tokenizer.pad_token_id
    inputs = tokenizer("bucket bucket hash", return_tensors="pt")
    assert model.generate(**inputs).shape[1] <= 9

    metrics = json.loads((run / "all_results.json").read_text())
    for prefix in ("eval", "predict"):
        for name in ("loss", "rouge1", "rouge2", "rougeL", "lead_rouge1", "lead_rougeL"):
            assert f"{prefix}_{name}" in metrics
    assert metrics["peak_rss_mib"] > 0
    assert metrics["train_step_seconds_median"] > 0
    assert metrics["train_steps"] == 2
    assert (run / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len((run / "predict_generated.jsonl").read_text().splitlines()) == 4

    shown = capsys.readouterr().out
    assert shown.count("reference:") == 3
    assert "lead baseline" in shown
    assert "Evaluation loss:" in shown


def test_card_reports_data_metrics_baseline_and_how_to_load(data_files, small_run, tmp_path):
    run_summarization.summarize([*data_files, *small_run, *LENGTHS])
    card = ModelCard.load(tmp_path / "run" / "README.md")
    metrics = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["rouge1"] == pytest.approx(metrics["eval_rouge1"], abs=1e-3)
    assert card.data.pipeline_tag == "summarization"
    for part in (
        "local files train.jsonl",
        "train 12, validation 4",
        "| optimizer steps | 2 |",
        "the first 2 words of the document",
        "Best constant output: one text for every document",
        " of 4",
        "Trained from scratch on 12 examples",
        "import reformer_hf",
        "AutoModelForSeq2SeqLM.from_pretrained",
        "loss_curve.png",
    ):
        assert part in card.text
    assert str(tmp_path) not in card.content


def test_a_model_that_ignores_the_document_is_shown_as_such(
    data_files, small_run, tmp_path, capsys
):
    # One token of output, from weights that have learned nothing: the same for every document.
    few = ["--max_source_length", "48", "--max_target_length", "1", "--vocab_size", "300"]
    frozen = ["--learning_rate", "0", "--do_predict"]
    metrics = run_summarization.summarize([*data_files, *small_run, *few, *frozen])
    assert metrics["predict_distinct_outputs"] == 1
    sentence = "1 distinct output of 4: the model ignores the document"
    card = (tmp_path / "run" / "README.md").read_text()
    for text in (capsys.readouterr().out, card):
        assert sentence in text
        assert "The model beats" not in text
    assert "| best constant output |" in card


def test_a_run_without_a_learning_rate_says_which_it_takes(data_files, small_run, tmp_path, caplog):
    unnamed = [text for text in small_run if text not in ("--learning_rate", "1e-3")]
    run_summarization.summarize([*data_files, *unnamed, *LENGTHS])
    assert history(tmp_path / "run")[0]["learning_rate"] == 5e-4
    assert "the default for a model from scratch" in caplog.text
    assert "| learning rate | 0.0005 (linear)" in (tmp_path / "run" / "README.md").read_text()


def test_evaluation_before_training_is_reported(data_files, small_run, tmp_path):
    metrics = run_summarization.summarize([*data_files, *small_run, *LENGTHS, "--eval_on_start"])
    losses = [entry["eval_loss"] for entry in history(tmp_path / "run") if "eval_loss" in entry]
    assert len(losses) == 3  # before, after step 1, after step 2: the last one serves as the result
    assert metrics["eval_loss_at_start"] == pytest.approx(losses[0])
    assert metrics["eval_loss"] == pytest.approx(losses[-1])


def test_interrupted_run_resumes_by_itself_at_the_next_step(data_files, small_run, tmp_path):
    arguments = [*data_files, *small_run, *LENGTHS, "--lr_scheduler_type", "constant"]
    run_summarization.summarize(arguments)
    run = tmp_path / "run"
    tokenizer_before = (run / "tokenizer.json").read_text()
    seen = [entry["step"] for entry in history(run) if "loss" in entry]
    assert seen == [1, 2]
    run_summarization.summarize([*arguments, "--max_steps", "4"])
    assert [entry["step"] for entry in history(run) if "loss" in entry] == [1, 2, 3, 4]
    assert (run / "tokenizer.json").read_text() == tokenizer_before
    assert json.loads((run / "train_results.json").read_text())["train_steps"] == 4


def test_named_checkpoint_wins_over_the_last_one(data_files, small_run, tmp_path):
    arguments = [*data_files, *small_run, *LENGTHS]
    run_summarization.summarize(arguments)
    run = tmp_path / "run"
    named = ["--resume_from_checkpoint", str(run / "checkpoint-1")]
    run_summarization.summarize([*arguments, *named, "--max_steps", "3"])
    assert [entry["step"] for entry in history(run) if "loss" in entry] == [1, 2, 3]


def test_overwriting_starts_anew_and_drops_old_checkpoints(data_files, small_run, tmp_path):
    arguments = [*data_files, *small_run, *LENGTHS]
    run_summarization.summarize(arguments)
    run_summarization.summarize([*arguments, "--overwrite_output_dir", "--max_steps", "1"])
    run = tmp_path / "run"
    assert [entry["step"] for entry in history(run) if "loss" in entry] == [1]
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]


def test_same_seed_gives_the_same_losses(data_files, small_run, tmp_path):
    arguments = [*data_files, *small_run, *LENGTHS, "--seed", "3"]
    losses = []
    for name in ("a", "b"):
        out = tmp_path / name
        run_summarization.summarize([*arguments, "--output_dir", str(out)])
        losses.append([entry["loss"] for entry in history(out) if "loss" in entry])
    assert losses[0] == losses[1]


def test_early_stopping_stops_and_keeps_the_best_model(data_files, small_run, tmp_path):
    stopping = ["--early_stopping_patience", "1", "--max_steps", "9", "--learning_rate", "0"]
    run_summarization.summarize([*data_files, *small_run, *LENGTHS, *stopping])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 2  # step 1 sets the mark, step 2 does not beat it
    assert state["best_model_checkpoint"].endswith("checkpoint-1")


def test_trained_model_can_be_evaluated_alone(data_files, small_run, tmp_path):
    trained = run_summarization.summarize([*data_files, *small_run, *LENGTHS])
    metrics = run_summarization.summarize(
        [
            *data_files,
            *("--model_name_or_path", str(tmp_path / "run"), "--do_eval", "--use_cpu", "true"),
            *("--max_source_length", "48", "--max_target_length", "8"),
            *("--output_dir", str(tmp_path / "evaluation")),
        ]
    )
    assert metrics["eval_loss"] == pytest.approx(trained["eval_loss"], rel=1e-4)
    assert metrics["eval_rouge1"] == pytest.approx(trained["eval_rouge1"])


def test_chinese_summaries_are_scored_by_character(small_run, tmp_path, capsys):
    rows = [{"document": "会议讨论了模型的训练。" * 9, "summary": "讨论模型训练"}] * 4
    path = tmp_path / "zh.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    files = ["--train_file", str(path), "--validation_file", str(path)]
    run_summarization.summarize([*files, *small_run, *LENGTHS, "--cache_dir", str(tmp_path / "c")])
    assert "lead: 6 characters" in capsys.readouterr().out
    assert ModelCard.load(tmp_path / "run" / "README.md").data.language == "zh"


def test_without_data_the_standard_library_is_summarized(small_run, tmp_path):
    few = ["--max_train_samples", "8", "--max_eval_samples", "3"]
    run_summarization.summarize([*small_run, *LENGTHS, *few, "--max_steps", "1"])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "standard library: source code of modules and classes" in card


def test_grouping_by_length_changes_no_score(data_files, small_run, tmp_path):
    frozen = ["--learning_rate", "0", "--per_device_eval_batch_size", "1"]
    arguments = [*data_files, *small_run, *LENGTHS, *frozen]
    plain = run_summarization.summarize(arguments)
    grouped = run_summarization.summarize(
        [
            *arguments,
            *("--train_sampling_strategy", "group_by_length"),
            *("--output_dir", str(tmp_path / "grouped")),
        ]
    )
    for name in ("eval_rouge1", "eval_rougeL", "eval_lead_rouge1"):
        assert grouped[name] == plain[name]


def test_pushing_keeps_the_card_of_the_run(data_files, small_run, tmp_path, monkeypatch):
    pushed = {}

    class Repository:
        repo_id = "someone/summarizer"

    def create(*_, **__):
        return Repository()

    def upload(*_, repo_id, folder_path, **__):
        card = Path(folder_path) / "README.md"
        pushed[repo_id] = card.read_text() if card.exists() else ""

    # transformers calls the hub through an HfApi, or, in older releases, through functions.
    for name, replacement in (("create_repo", create), ("upload_folder", upload)):
        monkeypatch.setattr(HfApi, name, replacement)
        monkeypatch.setattr(f"transformers.trainer.{name}", replacement, raising=False)
    hub = ["--push_to_hub", "true", "--hub_model_id", "someone/summarizer"]
    run_summarization.summarize([*data_files, *small_run, *LENGTHS, *hub, "--save_strategy", "no"])
    assert 'from_pretrained("someone/summarizer")' in pushed["someone/summarizer"]
    assert "## Limits" in pushed["someone/summarizer"]


def test_model_of_another_type_is_refused(data_files, small_run, tmp_path, capsys):
    arguments = [argument for argument in small_run if argument not in ("--preset", "tiny")]
    config = CLIPTextConfig(vocab_size=300, hidden_size=8, num_attention_heads=1)
    config.save_pretrained(tmp_path / "clip")
    named = ["--model_name_or_path", str(tmp_path / "clip")]
    message = refusal([*data_files, *arguments, *named], capsys)
    assert "model_name_or_path: expected a model for summarization" in message
    assert "'clip_text_model'" in message


def test_directory_without_a_model_is_refused(data_files, small_run, tmp_path, capsys):
    arguments = [argument for argument in small_run if argument not in ("--preset", "tiny")]
    (tmp_path / "nothing").mkdir()
    named = ["--model_name_or_path", str(tmp_path / "nothing")]
    assert "expected a config.json" in refusal([*data_files, *arguments, *named], capsys)


def test_missing_column_is_refused_with_the_columns_there_are(data_files, small_run, capsys):
    message = refusal([*data_files, *small_run, *LENGTHS, "--text_column", "body"], capsys)
    assert "text_column: expected one of ['document', 'summary', 'label'], got 'body'" in message


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (["--max_source_length", "5000"], "max_source_length: expected at most 256"),
        (["--max_target_length", "5000"], "max_target_length: expected at most 256"),
    ],
)
def test_lengths_beyond_the_model_are_refused(
    data_files, small_run, tmp_path, capsys, lengths, expected
):
    run_summarization.summarize([*data_files, *small_run, *LENGTHS])
    evaluation = [
        *("--model_name_or_path", str(tmp_path / "run"), "--do_eval"),
        *("--output_dir", str(tmp_path / "evaluation"), "--max_source_length", "48", *lengths),
    ]
    assert expected in refusal([*data_files, *evaluation], capsys)


def test_resized_positions_take_longer_documents(data_files, small_run, tmp_path):
    run_summarization.summarize([*data_files, *small_run, *LENGTHS])
    metrics = run_summarization.summarize(
        [
            *data_files,
            *("--model_name_or_path", str(tmp_path / "run"), "--do_eval", "--use_cpu", "true"),
            *("--max_source_length", "600", "--max_target_length", "8"),
            *("--resize_position_embeddings", "true"),
            *("--output_dir", str(tmp_path / "evaluation")),
        ]
    )
    assert metrics["eval_loss"] > 0


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([], "do_train, do_eval, do_predict: expected at least one"),
        (["--do_train", "--early_stopping_patience", "2"], "--eval_strategy"),
        (["--do_predict", "--train_file", "x.jsonl"], "test_file: expected a file"),
        (["--do_train", "--resume_from_checkpoint", "nowhere"], "resume_from_checkpoint"),
        (["--do_train", "--preset", "huge", "--train_file", "none.jsonl"], "none.jsonl"),
        (["--no_such_argument", "1"], "no_such_argument"),
    ],
)
def test_runs_that_cannot_work_are_refused(tmp_path, capsys, extra, expected):
    assert expected in refusal(["--output_dir", str(tmp_path / "run"), *extra], capsys)


def test_foreign_output_directory_is_not_touched(data_files, small_run, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("mine")
    message = refusal([*data_files, *small_run, *LENGTHS], capsys)
    assert "output_dir: expected an empty directory" in message
    assert [path.name for path in run.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_script_runs_from_anywhere(tmp_path):
    root = SCRIPT.parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--output_dir", str(tmp_path / "run")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "error: do_train" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_training_on_the_standard_library_lowers_the_loss(tmp_path):
    metrics = run_summarization.summarize(
        [
            *("--output_dir", str(tmp_path / "run"), "--preset", "tiny", "--vocab_size", "1000"),
            *("--max_source_length", "512", "--max_target_length", "32", "--max_steps", "60"),
            *("--do_train", "--do_eval", "--eval_on_start", "--eval_strategy", "steps"),
            *("--eval_steps", "60", "--learning_rate", "3e-3", "--use_cpu", "true"),
            *("--max_eval_samples", "16", "--save_strategy", "no", "--disable_tqdm", "true"),
        ]
    )
    assert metrics["eval_loss"] < metrics["eval_loss_at_start"] - 0.5
    shutil.rmtree(tmp_path / "run")
