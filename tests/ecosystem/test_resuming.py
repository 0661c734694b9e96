"""A training run that was killed and resumed is the run that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ecosystem.launch import PROGRAMS, environment, run
from tests.ecosystem.recipes import SAVED_AT, STEPS


@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_losses_and_weights_after_a_kill_are_bit_for_bit_those_without(
    name: str, tmp_path: Path
) -> None:
    program = [sys.executable, str(PROGRAMS / "interrupted_training.py"), str(tmp_path), name]
    killed = subprocess.run(
        [*program, "killed"], capture_output=True, env=environment(), timeout=240, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    saved = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert saved == [f"checkpoint-{SAVED_AT}"]
    run([*program, "whole", "resumed"])
    whole, resumed = (torch.load(tmp_path / f"{mode}.pt") for mode in ("whole", "resumed"))
    assert len(whole["losses"]) == STEPS
    assert len(set(whole["losses"])) == STEPS
    assert resumed["losses"] == whole["losses"][SAVED_AT:]
    assert resumed["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(resumed["weights"][n], w) for n, w in whole["weights"].items())
