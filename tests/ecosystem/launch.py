"""Starting programs in processes of their own, alone or several of them side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent / "programs"


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, one thread per process, the checkout importable."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}


def run(command: list[str], timeout: float = 240, **options: Any) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=options.pop("env", None) or environment(),
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def launch_two(program: str, *arguments: str | Path) -> str:
    """Run a program by `accelerate launch` in two processes.

    `--cpu` would start a single one (it leaves several to MPI); the programs choose the CPU.
    """
    return run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            str(PROGRAMS / program),
            *map(str, arguments),
        ]
    )


def launch_sharing(
    program: str | Path, processes: int, *arguments: str | Path, timeout: float = 400
) -> str:
    """Run a program by `torchrun` in some processes on a CPU."""
    return run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(processes), str(PROGRAMS / program)),
            *map(str, arguments),
        ],
        timeout=timeout,
    )
