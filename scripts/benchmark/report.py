"""Tables in Markdown from a results file.

    python scripts/benchmark/report.py scripts/benchmark/results/NAME.json

prints them; `--write` puts them into NAME.md next to the file instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.contenders import OURS
from benchmark.results_file import contenders_of, extra_peak, read_results, sizes_of

_Value = Callable[[dict[str, Any]], float | None]


def render(document: dict[str, Any]) -> str:
    """The report on one run."""
    parts = [_heading(document)]
    if any(cell["seconds"] for cell in document["cells"]):
        parts += [
            _table(document, "Time of a step, seconds (median)", lambda c: c["median_s"], _seconds),
            _ratios(document, "Time, reformer_hf / other", lambda c: c["median_s"]),
            _spread(document),
        ]
    parts += [
        _table(document, "Memory in use above the built model, peak, MiB", extra_peak, _mebibytes),
        _ratios(document, "Memory, reformer_hf / other", extra_peak),
        _table(
            document,
            "Resident in later steps, with what malloc keeps, peak, MiB",
            lambda cell: cell["resident_extra_peak_bytes"],
            _mebibytes,
        ),
        _table(document, "Memory, estimated / measured", _estimated, lambda x: f"{x:.2f}"),
        _checks(document),
        _missing(document),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(document: dict[str, Any]) -> str:
    environment, settings = document["environment"], document["settings"]
    machine = environment["machine"]
    gpu = machine["gpu"]
    hardware = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    if machine["memory_bytes"]:
        hardware += f", {machine['memory_bytes'] / 2**30:.0f} GiB"
    if gpu:
        hardware += f"; {gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB"
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    commit = (environment["commit"] or "unknown")[:12]
    if environment["uncommitted_changes"]:
        commit += " with uncommitted changes"
    sizes = ", ".join(f"{name} {value}" for name, value in settings["case"].items())
    return "\n".join(
        [
            f"# Suite `{document['suite']}`",
            "",
            f"- machine: {hardware}; load average at the start {machine['load_average_at_start']}",
            f"- versions: {versions}; commit {commit}",
            f"- date: {environment['date']}",
            f"- sizes: {sizes}",
            f"- at most {settings['steps']} timed steps after {settings['warmup']} to warm up, "
            f"{settings['turn']} in a contender's turn",
        ]
    )


def _size_label(document: dict[str, Any]) -> Callable[[tuple[int, int]], str]:
    by_depth = document["suite"] == "depth"
    return lambda size: f"{size[1]} layers" if by_depth else f"{size[0]:,}"


def _size_head(document: dict[str, Any]) -> str:
    sizes = sizes_of(document)
    return f"{sizes[0][0]:,} tokens" if document["suite"] == "depth" else "tokens"


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f}"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_size(document: dict[str, Any], value: _Value) -> dict[tuple[int, int], dict[str, float]]:
    """Size -> contender -> value, of the cells that were measured."""
    found: dict[tuple[int, int], dict[str, float]] = {size: {} for size in sizes_of(document)}
    for cell in document["cells"]:
        number = value(cell) if cell["status"] == "ok" else None
        if number is not None:
            found[cell["length"], cell["depth"]][cell["contender"]] = number
    return found


def _estimated(cell: dict[str, Any]) -> float | None:
    estimate, measured = cell["estimated_bytes"], extra_peak(cell)
    return estimate / measured if estimate and measured else None


def _table(
    document: dict[str, Any], title: str, value: _Value, text: Callable[[float], str]
) -> str:
    """Sizes down, contenders that have the value across; empty if none has."""
    label, values = _size_label(document), _by_size(document, value)
    names = [
        name
        for name in contenders_of(document["cells"])
        if any(name in row for row in values.values())
    ]
    if not names:
        return ""
    rows = [
        [label(size), *(text(row[name]) if name in row else "–" for name in names)]
        for size, row in values.items()
    ]
    return f"## {title}\n\n" + _rows([_size_head(document), *names], rows)


def _ratios(document: dict[str, Any], title: str, value: _Value) -> str:
    label, values = _size_label(document), _by_size(document, value)
    names = [name for name in contenders_of(document["cells"]) if name != OURS]
    rows = []
    for size, row in values.items():
        ours = row.get(OURS)
        ratios = (
            f"{ours / row[name]:.2f}" if ours is not None and row.get(name) else "–"
            for name in names
        )
        rows.append([label(size), *ratios])
    if not names or all(cell == "–" for row in rows for cell in row[1:]):
        return ""
    return f"## {title}\n\n" + _rows([_size_head(document), *names], rows)


def _spread(document: dict[str, Any]) -> str:
    label = _size_label(document)
    rows = []
    for cell in document["cells"]:
        if cell["status"] != "ok" or not cell["seconds"]:
            continue
        size = label((cell["length"], cell["depth"]))
        steps = str(len(cell["seconds"])) + ("" if cell["warm"] else " (cold)")
        times = [_seconds(cell[name]) for name in ("fastest_s", "median_s", "slowest_s")]
        cpu = _seconds(sum(cell["cpu_seconds"]) / len(cell["cpu_seconds"]))
        rows.append([size, cell["contender"], steps, *times, cpu, f"{cell['tokens_per_s']:,.0f}"])
    head = ["contender", "steps", "fastest s", "median s", "slowest s", "mean CPU s", "tokens/s"]
    return "## Spread\n\n" + _rows([_size_head(document), *head], rows)


def _checks(document: dict[str, Any]) -> str:
    rows = []
    for cell in document["checks"]:
        for finding in cell["findings"]:
            verdict = "yes" if finding["passed"] else "no"
            if not finding["passed"] and finding["required"]:
                verdict = "**no: not timed**"
            rows.append([cell["contender"], finding["name"], verdict, finding["detail"]])
    if not rows:
        return ""
    return "## Checked before timing\n\n" + _rows(["contender", "check", "holds", "seen"], rows)


def _missing(document: dict[str, Any]) -> str:
    label = _size_label(document)
    lines = [
        f"- {cell['contender']}, {_size_head(document)} {label((cell['length'], cell['depth']))}: "
        f"{cell['status'].replace('_', ' ')}: {cell['reason']}"
        for cell in document["cells"]
        if cell["status"] != "ok"
    ]
    return "## Not measured\n\n" + "\n".join(lines) if lines else ""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="results files")
    parser.add_argument("--write", action="store_true", help="into NAME.md next to each file")
    arguments = parser.parse_args(argv)
    for path in arguments.results:
        text = render(read_results(path))
        if arguments.write:
            path.with_suffix(".md").write_text(text, encoding="utf-8")
        else:
            print(text)


if __name__ == "__main__":
    main()
