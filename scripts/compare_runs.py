"""Finished runs of the training scripts side by side: scores, baselines, time and loss.

    python scripts/compare_runs.py --output scripts/benchmark/results/qmsum --x minutes \\
        "sparse, 8,192 tokens=outputs/sparse" "full, cut to 2,048 tokens=outputs/cut"

A run is a name and its output directory, or several directories where training and prediction were
calls of their own: "NAME=TRAINED,PREDICTED". OUTPUT.md and OUTPUT.json hold the metrics, OUTPUT.png
the training losses, where there was training. Runs are compared on the same examples only: what
costs nothing (the lead of the document, say) must have scored the same in all of them.

`--against NAME` adds how far ROUGE of every other run is from that run's, with an interval that
holds 95% of the differences when documents are drawn again (paired bootstrap; Koehn, "Statistical
Significance Tests for Machine Translation Evaluation", 2004). It needs the generated texts.
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
import numpy as np

from training.arguments import exit_code
from training.rouge import resolve_language, rouge_of_each
from training.synthetic import write_table

matplotlib.use("Agg")
from matplotlib import pyplot

_DEFAULT_METRICS = ("rouge1", "rouge2", "rougeL")
_DEFAULT_BASELINES = ("lead", "constant")
# Losses of single batches say little: so many logged ones are averaged, at most.
_AVERAGED = 5
_DRAWS = 10_000
# Metrics are stored with four decimals.
_ROUNDING = 1e-3


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
    generated: dict[str, list[dict[str, str]]] = {}
    for directory in directories.split(","):
        results, state = (Path(directory, f) for f in ("all_results.json", "trainer_state.json"))
        try:
            metrics |= json.loads(results.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"runs: expected results in {results}, got {error}") from error
        if state.exists():
            history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
            losses += [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        for path in Path(directory).glob("*_generated.jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines()
            generated[path.stem.removesuffix("_generated")] = [json.loads(x) for x in lines]
    return {"name": name, "metrics": metrics, "losses": losses, "generated": generated}


def _rouge_of_each(
    run: Mapping[str, Any], split: str, metrics: Sequence[str]
) -> tuple[list[str], Any]:
    """The references of a run, and ROUGE of every text that it generated, ``[texts, metrics]``.

    Raises:
        ValueError: a run without generated texts, or whose ROUGE was counted in another way.
    """
    records = run["generated"].get(split)
    if not records:
        raise ValueError(
            f"against: expected a file {split}_generated.jsonl in {run['name']!r}, got none"
        )
    references = [record["reference"] for record in records]
    lang = resolve_language(None, references)
    each = rouge_of_each([record["generated"] for record in records], references, lang=lang)
    unknown = sorted(set(metrics) - set(each))
    if unknown:
        raise ValueError(f"against: expected metrics among {sorted(each)}, got {unknown}")
    for metric, score in zip(metrics, _scores(run, f"{split}_", metrics), strict=True):
        if abs(np.mean(each[metric]) - score) > _ROUNDING:
            raise ValueError(
                f"against: expected the {metric} of {run['name']!r}, {score}, from its generated"
                f" texts, got {np.mean(each[metric]):.4f} (in words or characters, unstemmed)"
            )
    return references, np.array([each[metric] for metric in metrics]).T


def _differences(
    runs: Sequence[Mapping[str, Any]], against: str, split: str, metrics: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """By run and metric: mean difference from a run, and where 95% of the drawn means lie.

    Raises:
        ValueError: no run of that name, or texts that were not generated for the same examples.
    """
    named = {run["name"]: _rouge_of_each(run, split, metrics) for run in runs}
    if against not in named:
        raise ValueError(f"against: expected one of {list(named)}, got {against!r}")
    examples, base = named.pop(against)
    found = {}
    for name, (references, scores) in named.items():
        if references != examples:
            raise ValueError(
                f"against: expected the {len(base)} references of {against!r} in {name!r} too, in"
                f" the same order, got {len(scores)} that differ from them"
            )
        difference = scores - base
        drawn = np.random.default_rng(0).integers(len(base), size=(_DRAWS, len(base)))
        edges = np.percentile(difference[drawn].mean(axis=1), (2.5, 97.5), axis=0)
        columns = np.stack((difference.mean(axis=0), *edges)).T.round(4).tolist()
        found[name] = dict(zip(metrics, columns, strict=True))
    return found


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


def _shown(metric: str, score: float) -> str:
    """Losses, which differ little, in thousandths; other scores are in percent."""
    return f"{score:.3f}" if metric.endswith("loss") else f"{score:.1f}"


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
    add("--against", metavar="NAME", help="the run from which differences in ROUGE are taken")
    add("--x", choices=("steps", "minutes"), default="steps", help="what losses are drawn against")
    add("--title", default="Runs side by side", help="of the table")
    add("--fact", action="append", default=[], help="NAME: what else a reader has to know")
    add("--output", type=Path, required=True, help="where results go, without an ending")
    arguments = parser.parse_args(argv)
    runs = [read_run(description) for description in arguments.runs]
    prefix = f"{arguments.split}_"
    facts = dict(re.split(r":\s*", fact, maxsplit=1) for fact in arguments.fact)
    far: dict[str, dict[str, list[float]]] = {}
    if arguments.against is not None:
        far = _differences(runs, arguments.against, arguments.split, arguments.metrics)
        facts["in brackets"] = (
            f"difference from {arguments.against!r}, and what 95% of the differences lie between"
            f" when documents are drawn again {_DRAWS:,} times"
        )
    rows = []
    for run in runs:
        run["difference"] = far.get(run["name"])
        cells = []
        for metric, score in zip(
            arguments.metrics, _scores(run, prefix, arguments.metrics), strict=True
        ):
            beside = ""
            if run["difference"] is not None:
                mean, low, high = run["difference"][metric]
                beside = f" ({mean:+.1f}; {low:+.1f} to {high:+.1f})"
            cells.append(_shown(metric, score) + beside)
        rows.append([run["name"], *cells, *_training(run)])
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
        rows.append([baseline, *map(_shown, arguments.metrics, same), "", ""])
    head = [
        "",
        *(metric.replace("rouge", "ROUGE-") for metric in arguments.metrics),
        *("steps of training", "minutes of training"),
    ]
    results = [{k: v for k, v in run.items() if k != "generated" and v is not None} for run in runs]
    write_table(arguments.output, arguments.title, {**facts, "rows": results}, head, rows)
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
