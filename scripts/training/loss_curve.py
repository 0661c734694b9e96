"""A picture of training and evaluation loss by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_POINTS_WITH_MARKERS = 60


def save_loss_curve(log_history: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the losses in a trainer's log history; False, and no file, if there are none."""
    drawn = False
    # A Figure of its own needs no display and leaves no global plotting state behind.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            steps, losses = zip(*points, strict=True)
            marker = "o" if len(points) <= _POINTS_WITH_MARKERS else ""
            axes.plot(steps, losses, label=label, marker=marker, markersize=3)
            drawn = True
    if not drawn:
        return False
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross-entropy (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True
