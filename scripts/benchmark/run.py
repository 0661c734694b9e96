"""Run a suite of the benchmark: checks first, then time and memory, then tables and figures.

    python scripts/benchmark/run.py --suite model --lengths 2048 16384 \\
        --output scripts/benchmark/results/cpu-model

writes cpu-model.json, cpu-model.md and figures. README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# This checkout is measured, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.case import DTYPES, SUITES, Case
from benchmark.contenders import DEFAULT_CONTENDERS, check_name
from benchmark.coordinator import Cell, Limits, run_suite
from benchmark.environment import available_memory, describe_environment
from benchmark.plot import plot_results
from benchmark.report import render
from benchmark.results_file import SCHEMA, check_document, write_results

_DEFAULT_LENGTHS = {
    "model": [2048, 16384],
    "depth": [4096],
    "attention": [1024, 4096, 16384],
    "prefill": [1024, 16384],
    "decoding": [1024, 8192, 16384, 32768],
    "hybrid": [4096, 16384, 65536],
    "pretrained": [4096, 16384, 32768],
}
_DEFAULT_DEPTHS = {
    "model": [6],
    "depth": [2, 4, 8, 16, 24],
    "attention": [1],
    "prefill": [6],
    "decoding": [6],
    "hybrid": [1],
    "pretrained": [30],
}
_SIZES = (
    "hidden_size",
    "num_heads",
    "head_size",
    "feed_forward_size",
    "vocab_size",
    "chunk_length",
    "rounds",
    "feed_forward_slice",
)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program on values that cannot be."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=SUITES, required=True, help="what to measure")
    add("--output", type=Path, required=True, help="where results go, without an ending")
    add("--contenders", nargs="+", help="names, or module:Class (default: those of the suite)")
    add("--lengths", type=int, nargs="+", help="tokens of a sequence (default: of the suite)")
    add("--depths", type=int, nargs="+", help="layers (default: of the suite)")
    add("--batch", type=int, default=1, help="sequences")
    add("--total-tokens", type=int, help="sequences of all lengths together have so many tokens")
    add(
        "--dtype", choices=sorted(DTYPES), default="float32", help="arithmetic (autocast in models)"
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1")
    add("--threads", type=int, default=os.cpu_count(), help="threads of the CPU")
    add("--warmup", type=int, default=2, help="steps before the timed ones")
    add("--steps", type=int, default=5, help="timed steps at most; 0: memory only")
    add("--budget", type=float, default=120.0, help="seconds of timed steps for each cell")
    add("--turn", type=int, default=1, help="timed steps before the next contender's turn")
    add("--time-limit", type=float, default=1800.0, help="seconds that one step may take")
    add("--memory-limit", type=float, help="GiB that a process may take (default: 0.9 of the free)")
    add("--seed", type=int, default=0, help="seed of weights and inputs")
    for name in _SIZES:
        default = Case.__dataclass_fields__[name].default
        add(f"--{name.replace('_', '-')}", type=int, default=default, help="size of the model")
    return parser.parse_args(argv)


def make_cases(arguments: argparse.Namespace) -> list[Case]:
    """One case per length and depth, the smaller ones first.

    Raises:
        ValueError: a size that is not positive.
    """
    lengths = arguments.lengths or _DEFAULT_LENGTHS[arguments.suite]
    depths = arguments.depths or _DEFAULT_DEPTHS[arguments.suite]
    common: dict[str, Any] = {name: getattr(arguments, name) for name in _SIZES}
    for name in ("dtype", "device", "threads", "seed"):
        common[name] = getattr(arguments, name)
    total = arguments.total_tokens
    return [
        Case(
            length=length,
            depth=depth,
            batch=max(1, total // length) if total else arguments.batch,
            **common,
        )
        for length in sorted(set(lengths))
        for depth in sorted(set(depths))
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, write all files after every size, and return the document."""
    arguments = parse_arguments(argv)
    cases = make_cases(arguments)
    names = [*dict.fromkeys(arguments.contenders or DEFAULT_CONTENDERS[arguments.suite])]
    for name in names:
        check_name(arguments.suite, name)
    limits = Limits(
        warmup=arguments.warmup,
        steps=arguments.steps,
        budget=arguments.budget,
        turn=arguments.turn,
        time_limit=arguments.time_limit,
        memory_limit=_memory_limit(arguments.memory_limit),
    )
    settings = {
        "case": cases[0].settings(),
        "warmup": limits.warmup,
        "steps": limits.steps,
        "budget_s": limits.budget,
        "turn": limits.turn,
        "time_limit_s": limits.time_limit,
    }
    stem: Path = arguments.output
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "suite": arguments.suite,
        "environment": describe_environment(arguments.threads, arguments.device),
        "settings": settings,
        "labels": {},
        "checks": [],
        "cells": [],
    }

    def keep(checks: dict[str, Cell], cells: list[Cell]) -> None:
        document["labels"] = {name: cell.facts.get("label", name) for name, cell in checks.items()}
        document["checks"] = [cell.as_dict() for cell in checks.values()]
        document["cells"] = [cell.as_dict() for cell in cells]
        write_results(stem.with_name(f"{stem.name}.json"), document)

    run_suite(arguments.suite, names, cases, limits, progress=_say, on_cells=keep)
    report = render(check_document(document))
    stem.with_name(f"{stem.name}.md").write_text(report, encoding="utf-8")
    plot_results(document, stem)
    print(report)
    return document


def _memory_limit(gibibytes: float | None) -> int | None:
    if gibibytes is not None:
        return int(gibibytes * 2**30)
    free = available_memory()
    return None if free is None else int(0.9 * free)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
