"""Runs that are refused, killed, out of disk space or not alone lose nothing that was saved."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import run_clm
from training.checkpoints import flaw_of_checkpoint, newest_complete

TEXT = "".join(f"Line {number} of a text about buckets.\n" for number in range(60))
SCRIPTS = Path(run_clm.__file__).resolve().parent


@pytest.fixture
def arguments(tmp_path, small_run):
    """A run of two steps that saves after each."""
    for name in ("train", "validation"):
        (tmp_path / f"{name}.txt").write_text(TEXT)
    return [
        *("--train_file", str(tmp_path / "train.txt")),
        *("--validation_file", str(tmp_path / "validation.txt")),
        *("--block_size", "64", "--sample_length", "0"),
        *small_run,
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the first test that needs a finished run puts it, for all to copy."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(arguments, trained, tmp_path):
    """The output directory of that run, finished."""
    if not trained.exists():
        run_clm.model_language([*arguments, "--output_dir", str(trained)])
    return Path(shutil.copytree(trained, tmp_path / "run"))


def without(arguments: list[str], *names: str) -> list[str]:
    """`arguments` without the named ones and their values."""
    kept = []
    for argument in arguments:
        if argument.startswith("--"):
            is_dropped = argument in names
        if not is_dropped:
            kept.append(argument)
    return kept


def refusal(arguments: list[str], capsys) -> str:
    assert run_clm.main(arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*checkpoint-*"))


def losses(directory: Path) -> list[tuple[int, float]]:
    history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    "mistake",
    [
        ["--tokenizer_name", "/no/such/tokenizer"],
        ["--block_size", "99999"],
        ["--preset", "huge"],
        ["--config_overrides", "hiden_size=64"],
        ["--num_train_epochs", "-1"],
        ["--eval_strategy", "setps"],
        ["--no_such_argument", "1"],
        ["--train_file", "none.txt"],
    ],
    ids=lambda mistake: mistake[0].strip("-"),
)
def test_a_mistake_in_another_argument_deletes_nothing(run, arguments, mistake, capsys):
    before = content(run)
    message = refusal([*arguments, "--overwrite_output_dir", *mistake], capsys)
    assert mistake[0].strip("-").split("_")[0] in message
    assert content(run) == before


def test_starting_anew_does_not_delete_what_it_starts_from(run, arguments, capsys):
    source = ["--model_name_or_path", str(run / "checkpoint-1"), "--overwrite_output_dir"]
    message = refusal([*without(arguments, "--preset"), *source], capsys)
    assert "model_name_or_path: expected a path outside of the checkpoints" in message
    resumed = ["--resume_from_checkpoint", str(run / "checkpoint-1"), "--overwrite_output_dir"]
    message = refusal([*arguments, *resumed], capsys)
    assert "resume_from_checkpoint: expected no --overwrite_output_dir" in message
    assert checkpoints(run) == ["checkpoint-1", "checkpoint-2"]


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_every_file_of_a_checkpoint_that_is_missing_or_cut_short_shows(run):
    checkpoint = run / "checkpoint-2"
    assert flaw_of_checkpoint(checkpoint) is None
    state = {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    needed = state | {"model.safetensors", "config.json"}
    damaged = checkpoint.with_name("damaged")
    for path in checkpoint.iterdir():
        for damage in (cut, Path.unlink):
            shutil.copytree(checkpoint, damaged)
            damage(damaged / path.name)
            found = flaw_of_checkpoint(damaged) or ""
            if path.name in needed or (damage is cut and path.suffix in (".json", ".bin")):
                assert path.name in found or "no weights" in found
            shutil.rmtree(damaged)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, arguments, caplog):
    whole = losses(run)
    cut(run / "checkpoint-2" / "model.safetensors")
    run_clm.model_language([*arguments, "--save_total_limit", "1"])
    assert losses(run) == whole
    assert checkpoints(run) == ["_broken-checkpoint-2", "checkpoint-2"]
    assert flaw_of_checkpoint(run / "checkpoint-2") is None
    damage = "checkpoint-2: model.safetensors is cut short or damaged; using checkpoint-1 instead"
    assert damage in caplog.text


def test_a_damaged_checkpoint_is_not_resumed_from_by_name(run, arguments, capsys):
    cut(run / "checkpoint-2" / "optimizer.pt")
    message = refusal([*arguments, "--resume_from_checkpoint", str(run / "checkpoint-2")], capsys)
    assert "resume_from_checkpoint: expected a complete checkpoint" in message
    assert "optimizer.pt" in message


def test_a_run_whose_first_save_was_cut_short_starts_from_the_beginning(run, arguments):
    whole = losses(run)
    for path in run.iterdir():
        if path.is_file():
            path.unlink()
    shutil.rmtree(run / "checkpoint-1")
    cut(run / "checkpoint-2" / "optimizer.pt")
    (run / "_unfinished").mkdir()
    run_clm.model_language(arguments)
    assert losses(run) == whole


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["weights", "optimizer"])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(run, arguments, share, capsys):
    resource = pytest.importorskip("resource")
    longer = [*arguments, "--max_steps", "3"]
    saved = content(run / "checkpoint-2")
    model = (run / "model.safetensors").read_bytes()
    size = len(model)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), before[1]))
    try:
        message = refusal(longer, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "output_dir: cannot save checkpoint-3" in message
    assert "File too large" in message or "(is the disk full?)" in message
    assert "checkpoint-2 is complete, and the same command resumes there" in message
    assert checkpoints(run) == ["checkpoint-1", "checkpoint-2"]
    assert content(run / "checkpoint-2") == saved
    assert (run / "model.safetensors").read_bytes() == model
    assert not (run / "_unfinished").exists()
    run_clm.model_language(longer)
    assert [step for step, _ in losses(run)] == [1, 2, 3]


KILLED = """
import os, signal, sys
import run_clm
import transformers.trainer as trainer

count, save = 0, trainer.torch.save

def save_or_die(content, path, *args, **kwargs):
    global count
    save(content, path, *args, **kwargs)
    if os.path.basename(path) == sys.argv[1]:
        count += 1
    if count == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

trainer.torch.save = save_or_die
run_clm.main(sys.argv[2:])
"""


def environment() -> dict[str, str]:
    paths = [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_a_run_killed_while_it_saves_goes_on_as_if_it_had_not_been(arguments, tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "optimizer.pt", *arguments, "--max_steps", "3"],
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    run = tmp_path / "run"
    assert checkpoints(run) == ["checkpoint-1"]
    run_clm.model_language([*arguments, "--max_steps", "3"])
    whole = [*arguments, "--max_steps", "3", "--output_dir", str(tmp_path / "whole")]
    run_clm.model_language(whole)
    assert losses(run) == losses(tmp_path / "whole")
    left = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in run.iterdir()} == left


@pytest.mark.parametrize("patience", [[], ["--early_stopping_patience", "9"]])
def test_a_run_that_reached_its_last_step_is_not_trained_further(run, arguments, patience):
    trained, report = (content(run)[name] for name in ("model.safetensors", "train_results.json"))
    metrics = run_clm.model_language([*arguments, *patience])
    assert [step for step, _ in losses(run)] == [1, 2]
    assert content(run)["model.safetensors"] == trained
    assert content(run)["train_results.json"] == report
    assert metrics["eval_loss"] > 0


@pytest.mark.slow
def test_runs_killed_at_random_moments_come_to_the_same_end(arguments, tmp_path):
    arguments = [*arguments, "--max_steps", "40", "--save_total_limit", "2", "--eval_steps", "40"]
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPTS / "run_clm.py"), *arguments]
    wait = random.Random(0)
    lock = run / "_lock"
    for _ in range(6):
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started = time.monotonic()
        while time.monotonic() < started + 120 and not (
            lock.exists() and f"process {process.pid} " in lock.read_text()
        ):
            time.sleep(0.05)
        time.sleep(wait.uniform(0.0, 4.0))
        process.kill()
        process.wait()
        for checkpoint in run.glob("checkpoint-*"):
            assert flaw_of_checkpoint(checkpoint) is None
    run_clm.model_language(arguments)
    run_clm.model_language([*arguments, "--output_dir", str(tmp_path / "whole")])
    assert losses(run) == losses(tmp_path / "whole")


def test_results_that_were_cut_short_are_written_anew(run, arguments):
    cut(run / "all_results.json")
    run_clm.model_language([*arguments, "--max_steps", "3"])
    assert json.loads((run / "all_results.json").read_text())["train_steps"] == 3


def test_a_second_process_is_kept_out_until_the_first_is_gone(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    program = (
        "import sys, time; from pathlib import Path;"
        "from training.output_lock import OutputLock;"
        "lock = OutputLock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(run)], env=environment(), stdout=subprocess.PIPE
    )
    try:
        assert first.stdout.readline() == b"locked\n"
        message = refusal(arguments, capsys)
        assert "output_dir: expected a directory that no other run writes to" in message
        assert f"in use by process {first.pid} on" in message
        assert [path.name for path in run.iterdir()] == ["_lock"]
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    run_clm.model_language(arguments)  # the file that was left behind locks nothing
    assert not (run / "_lock").exists()


def test_a_refused_run_leaves_no_directory(arguments, tmp_path, capsys):
    refusal([*arguments, "--model_name_or_path", "a", "--config_name", "b"], capsys)
    refusal([*arguments, "--block_size", "99999"], capsys)
    assert not (tmp_path / "run").exists()


def test_evaluation_alone_is_of_the_model_that_lies_there(run, arguments, tmp_path):
    trained = json.loads((run / "eval_results.json").read_text())["eval_loss"]
    alone = without(arguments, "--do_train", "--eval_strategy", "--eval_steps")
    assert run_clm.model_language(alone)["eval_loss"] == pytest.approx(trained, rel=1e-5)
    cut(run / "model.safetensors")
    again = run_clm.model_language(without(alone, "--preset"))
    assert again["eval_loss"] == pytest.approx(trained, rel=1e-5)  # that of checkpoint-2


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--preset", "demo"], "preset: expected 'tiny'"),
        (["--resume_from_checkpoint", "x"], "resume_from_checkpoint: expected --do_train"),
        (["--output_dir", "elsewhere"], "model_name_or_path: expected a model to evaluate"),
    ],
)
def test_evaluation_alone_of_something_else_is_refused(
    run, arguments, extra, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    alone = without(arguments, "--do_train", "--eval_strategy", "--eval_steps", "--preset")
    assert expected in refusal([*alone, *extra], capsys)


def test_what_a_resumed_run_began_with_stays_in_its_card(run, arguments, tmp_path):
    second = [*without(arguments, "--preset"), "--output_dir", str(tmp_path / "second")]
    run_clm.model_language([*second, "--model_name_or_path", str(run)])
    run_clm.model_language([*second, "--max_steps", "3"])
    assert "fine-tuned from `run`" in (tmp_path / "second" / "README.md").read_text()


@pytest.mark.parametrize("use_cache", [True, False])
def test_saved_models_generate_with_a_cache_if_the_configuration_says_so(
    arguments, tmp_path, use_cache
):
    arguments += ["--config_overrides", f"use_cache={use_cache}"]
    run_clm.model_language(arguments)
    run_clm.model_language([*arguments, "--max_steps", "3"])
    for directory in (tmp_path / "run", tmp_path / "run" / "checkpoint-3"):
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert model.config.use_cache is use_cache
        assert model.generation_config.use_cache is use_cache


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (["--learning_rate", "0.5"], "learning_rate: expected 0.001, with which the run in"),
        (["--weight_decay", "0.5"], "weight_decay: expected 0.0, with which"),
        (["--preset", "demo"], "preset: expected 'tiny', with which"),
        (["--config_overrides", "num_hashes=3"], "config_overrides: expected None, with"),
        (["--vocab_size", "300"], "vocab_size: expected None, with which"),
        (["--tokenizer_name", "byte"], "tokenizer_name: expected None, with which"),
    ],
)
def test_a_resumed_run_refuses_what_can_have_no_effect(run, arguments, other, expected, capsys):
    assert expected in refusal([*arguments, "--max_steps", "3", *other], capsys)


def test_a_resumed_run_keeps_its_own_settings_where_none_are_given(run, arguments):
    less = without(arguments, "--learning_rate", "--preset")
    run_clm.model_language([*less, "--max_steps", "3"])
    assert "| learning rate | 0.001 (linear)" in (run / "README.md").read_text()
    first, last = (
        json.loads((run / name / "_run_arguments.json").read_text())
        for name in ("checkpoint-1", "checkpoint-3")
    )
    assert first == last
    assert first["preset"] == "tiny"


def test_the_best_checkpoint_is_recorded_where_it_is_and_survives_rotation(arguments, tmp_path):
    best = ["--early_stopping_patience", "3", "--learning_rate", "0", "--save_total_limit", "2"]
    run_clm.model_language([*arguments, *best, "--max_steps", "4"])
    run = tmp_path / "run"
    assert checkpoints(run) == ["checkpoint-1", "checkpoint-4"]
    for directory in (run, run / "checkpoint-1", run / "checkpoint-4"):
        state = json.loads((directory / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(run / "checkpoint-1")
    assert newest_complete(run) == run / "checkpoint-4"
    assert math.isfinite(losses(run)[-1][1])
    assert torch.load(run / "checkpoint-4" / "optimizer.pt")["param_groups"]
