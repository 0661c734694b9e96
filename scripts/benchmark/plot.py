"""Figures from results files: time and memory against length, memory against depth.

    python scripts/benchmark/plot.py scripts/benchmark/results/NAME.json

writes NAME-time.png and NAME-memory.png next to the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.results_file import contenders_of, extra_peak, read_results, sizes_of

# Colours that differ in brightness too, and markers, so that a print in grey can be read.
_STYLES = (
    ("#0b3d91", "o"),
    ("#e07a00", "s"),
    ("#2a9d3a", "^"),
    ("#c1121f", "D"),
    ("#7a3fa0", "v"),
    ("#555555", "x"),
    ("#009999", "P"),
    ("#b58900", "*"),
)


def plot_results(document: dict[str, Any], stem: Path) -> list[Path]:
    """Draw the figures of one run; the files written, ``STEM-time.png`` and ``STEM-memory.png``."""
    above = "memory in use above the built model, peak, MiB"
    if document["suite"] == "depth":
        path = stem.with_name(f"{stem.name}-memory.png")
        _draw(document, path, "layers", f"{above},\nwithout the gradients", _activations)
        return [path]
    what = {"prefill": "to read the context", "decoding": "a token"}
    step = what.get(document["suite"], "of a step (forward and backward)")
    figures = [
        ("time", f"seconds {step}", lambda cell: cell["median_s"]),
        ("memory", above, lambda cell: _mebibytes(extra_peak(cell))),
    ]
    paths = []
    for kind, label, value in figures:
        paths.append(stem.with_name(f"{stem.name}-{kind}.png"))
        _draw(document, paths[-1], "tokens", label, value)
    return paths


def _mebibytes(value: int | None) -> float | None:
    return None if value is None else value / 2**20


def _activations(cell: dict[str, Any]) -> float | None:
    """Gradients grow with depth whatever a model does; what is left are its activations."""
    peak = extra_peak(cell)
    return None if peak is None else _mebibytes(peak - (cell["gradient_bytes"] or 0))


def _draw(
    document: dict[str, Any],
    path: Path,
    x_label: str,
    y_label: str,
    value: Callable[[dict[str, Any]], float | None],
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    size_name = "depth" if x_label == "layers" else "length"
    figure, axes = pyplot.subplots(figsize=(7.0, 4.6), layout="constrained")
    names = contenders_of(document["cells"])
    for index, name in enumerate(names):
        points = []
        for cell in document["cells"]:
            number = value(cell) if cell["status"] == "ok" else None
            if cell["contender"] == name and number is not None and number > 0:
                points.append((cell[size_name], number))
        if points:
            color, marker = _STYLES[index % len(_STYLES)]
            label = document["labels"].get(name, name)
            axes.plot(*zip(*sorted(points), strict=True), color=color, marker=marker, label=label)
    sizes = sorted({size[1 if size_name == "depth" else 0] for size in sizes_of(document)})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(_title(document), fontsize=9)
    axes.grid(True, which="major", alpha=0.35)
    if axes.lines:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _title(document: dict[str, Any]) -> str:
    case, machine = document["settings"]["case"], document["environment"]["machine"]
    place = machine["gpu"]["name"] if machine["gpu"] else machine["cpu"]
    threads = "" if machine["gpu"] else f", {machine['threads']} threads"
    heads = f"{case['num_heads']} heads × {case['head_size']}"
    hashing = f"chunk {case['chunk_length']}, {case['rounds']} hash rounds"
    if document["suite"] == "attention":
        model = heads
    else:
        model = f"d={case['hidden_size']}, {heads}"
        if document["suite"] == "model":
            model = f"{sizes_of(document)[0][1]} layers, {model}"
        else:
            model = f"{sizes_of(document)[0][0]:,} tokens, {model}"
    return f"{model}, {hashing}, {case['dtype']}\n{place}{threads}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="results files")
    for path in parser.parse_args(argv).results:
        for figure in plot_results(read_results(path), path.with_suffix("")):
            print(figure)


if __name__ == "__main__":
    main()
