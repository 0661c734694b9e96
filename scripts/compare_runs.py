"""Finished runs of the training scripts side by side: scores, baselines, time and loss.

    python scripts/compare_runs.py --output scripts/benchmark/results/qmsum --x minutes \\
        "sparse, 8,192 tokens=outputs/sparse" "full, cut to 2,048 tokens=outputs/cut"

A run is a name and its output directory, or several directories where training and prediction were
calls of their own: "NAME=TRAINED,PREDICTED". OUTPUT.md and OUTPUT.json hold the metrics, OUTPUT.png
the training losses, where there was training. Runs are compared on the same examples only: what
costs nothing (the lead of the document, say) must have scored the same in all of them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from training.arguments import exit_code
from training.synthetic import write_table

matplotlib.use("Agg")
from matplotlib import pyplot

_DEFAULT_METRICS = ("rouge1", "rouge2", "rougeL")
_DEFAULT_BASELINES = ("lead", "constant")
# Losses of single batches say little: so many logged ones are averaged, at most.
_AVERAGED = 5


def read_run(description: str) -> dict[str, Any]:
    """Name, metrics and training losses of a run.

    Args:
        description: "NAME=DIRECTORY[,DIRECTORY...]".

    Raises:
        ValueError: no such description, or a directory without metrics.
    """
    name, _, directories = description.rpartition("=")
    if not name or not directories:
        raise ValueError(f"runs: expected NAME=DIRECTORY, got {description!r}")
    metrics: dict[str, float] = {}
    losses: list[tuple[int, float]] = []
    for directory in directories.split(","):
        results, state = (Path(directory, f) for f in ("all_results.json", "trainer_state.json"))
        try:
            metrics |= json.loads(results.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"runs: expected results in {results}, got {error}") from error
        if state.exists():
            history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
            losses += [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    return {"name": name, "metrics": metrics, "losses": losses}


def _scores(run: Mapping[str, Any], prefix: str, metrics: Sequence[str]) -> list[float]:
    """The metrics of a run whose names begin with `prefix`.

    Raises:
        ValueError: a metric that the run has not.
    """
    try:
        return [run["metrics"][prefix + metric] for metric in metrics]
    except KeyError as error:
        known = sorted(run["metrics"])
        raise ValueError(f"metrics: expected one of {known}, got {error}") from None


def _training(run: Mapping[str, Any]) -> list[str]:
    """Steps and minutes of a run, where it was trained."""
    found = run["metrics"]
    if "train_runtime" not in found:
        return ["", ""]
    steps = found.get("train_steps", run["losses"][-1][0] if run["losses"] else 0)
    return [f"{steps:,}", f"{found['train_runtime'] / 60:.0f}"]


def _draw(runs: Sequence[Mapping[str, Any]], x: str, path: Path) -> None:
    """Moving averages of the training losses."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for run in runs:
        if not run["losses"]:
            continue
        steps, losses = zip(*run["losses"], strict=True)
        unit = run["metrics"]["train_runtime"] / 60 / steps[-1] if x == "minutes" else 1.0
        spans = [losses[max(0, n - _AVERAGED + 1) : n + 1] for n in range(len(losses))]
        axes.plot([s * unit for s in steps], [sum(s) / len(s) for s in spans], label=run["name"])
    axes.set_xlabel({"minutes": "minutes of training", "steps": "optimizer step"}[x])
    axes.set_ylabel(f"cross-entropy (nats), mean of the last {_AVERAGED} logged")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def compare(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Do what the command line asks for; the rows of the table.

    Raises:
        ValueError: runs without these metrics, or tested on different examples.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="NAME=DIRECTORY", help="in the order of the table")
    add("--split", default="predict", help="predict (the test split) or eval (validation)")
    add("--metrics", nargs="+", default=_DEFAULT_METRICS, help="without the split's prefix")
    add("--baselines", nargs="*", default=_DEFAULT_BASELINES, help="as the metrics name them")
    add("--x", choices=("steps", "minutes"), default="steps", help="what losses are drawn against")
    add("--title", default="Runs side by side", help="of the table")
    add("--fact", action="append", default=[], help="NAME: what else a reader has to know")
    add("--output", type=Path, required=True, help="where results go, without an ending")
    arguments = parser.parse_args(argv)
    runs = [read_run(description) for description in arguments.runs]
    prefix = f"{arguments.split}_"
    rows = []
    for run in runs:
        scores = _scores(run, prefix, arguments.metrics)
        rows.append([run["name"], *(f"{score:.1f}" for score in scores), *_training(run)])
    for baseline in arguments.baselines:
        found = {
            tuple(_scores(run, f"{prefix}{baseline}_", arguments.metrics)): run["name"]
            for run in runs
        }
        if len(found) > 1:
            raise ValueError(
                f"runs: expected tests on the same examples, got different scores of the {baseline}"
                f" baseline: {found}"
            )
        (same,) = found
        rows.append([baseline, *(f"{score:.1f}" for score in same), "", ""])
    facts = dict(re.split(r":\s*", fact, maxsplit=1) for fact in arguments.fact)
    head = [
        "",
        *(metric.replace("rouge", "ROUGE-") for metric in arguments.metrics),
        *("steps of training", "minutes of training"),
    ]
    write_table(arguments.output, arguments.title, {**facts, "rows": runs}, head, rows)
    if any(run["losses"] for run in runs):
        _draw(runs, arguments.x, arguments.output.with_name(f"{arguments.output.name}.png"))
    for row in [head, *rows]:
        print("  ".join(f"{cell:>{34 if n == 0 else 10}}" for n, cell in enumerate(row)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run `compare`; the exit code."""
    return exit_code(compare, argv)


if __name__ == "__main__":
    sys.exit(main())
