"""Small new models on drawn sequences: training by lessons, and the table of what they find."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from training.device import describe_device

IGNORED = -100
# Share of right answers that ends a lesson, unless it is the last.
_MOST = 0.9


@dataclass(frozen=True)
class Lesson:
    """Sequences to learn from.

    Attributes:
        name: said with the progress.
        draw: tokens, positions and labels ``[rows, length]`` int64; a label is what the model is
            to say at that very place, and ``IGNORED`` where it is asked nothing.
    """

    name: str
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]]


def fit(
    model: Any,
    lessons: Sequence[Lesson],
    *,
    steps: int,
    enough: float,
    learning_rate: float,
    seed: int,
) -> tuple[int, float]:
    """Train, one lesson after the other, until nearly all answers to the last one are right.

    AdamW with a linear warm-up over a twentieth of the steps and a linear decay.

    Returns:
        Steps taken, and the recent share of right answers to the last lesson: 0 if it was not
        reached.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    warmup = max(1, steps // 20)
    ahead, recent = list(lessons), 0.0
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min((step + 1) / warmup, (steps - step) / steps)
        tokens, positions, labels = (x.to(model.device) for x in ahead[0].draw(generator))
        output = model(tokens, position_ids=positions, shift_labels=labels)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = 0.95 * recent + 0.05 * right(output.logits, labels)
        if step % 100 == 99:
            loss = float(output.loss.detach())
            print(f"  step {step + 1}: {ahead[0].name}, loss {loss:.3f}, right {recent:.1%}")
            sys.stdout.flush()
        if len(ahead) > 1 and recent > _MOST:
            ahead.pop(0)
            recent = 0.0
        elif len(ahead) == 1 and recent > enough:
            return step + 1, recent
    return steps, recent if len(ahead) == 1 else 0.0


def right(logits: Tensor, labels: Tensor) -> float:
    """Share of the answers that are right."""
    asked = labels != IGNORED
    return float((logits.argmax(-1) == labels)[asked].double().mean())


def surroundings() -> dict[str, str]:
    """Versions and machine, for the facts of a table."""
    return {
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "machine": describe_device(),
    }


def write_table(
    stem: Path, title: str, document: dict[str, Any], head: Sequence[str], rows: Sequence[Any]
) -> None:
    """``document`` as STEM.json; its facts and a table of the cells ``rows`` as STEM.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1)
    stem.with_name(f"{stem.name}.json").write_text(text + "\n", encoding="utf-8")
    facts = [f"- {name}: {value}" for name, value in document.items() if name != "rows"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    report = "\n".join([f"# {title}", "", *facts, "", *lines, ""])
    stem.with_name(f"{stem.name}.md").write_text(report, encoding="utf-8")
