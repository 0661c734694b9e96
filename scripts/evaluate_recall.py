"""Associative recall at a distance: what kinds of attention find, in new models of the family.

    python scripts/evaluate_recall.py --output scripts/benchmark/results/recall

Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927, section 4): pairs
of a value and a key stand among noise, and later each key comes again; the model is to say its
value. In the paper the key stands first. Here the value does, so that a key that comes again looks
for its like, not for what follows its like; initial weights are larger than the default, and
queries and keys are shared in full and local attention too, but in contenders that are said to have
keys of their own. Without these three changes no contender got beyond guessing among the values of
a sequence within 3,700 steps; which of them it takes was not tried one by one.

Every contender is a small causal model of two layers, the first of which sees a token and the one
before it: trained on sequences of 512 tokens, tested on longer ones, where keys come again far
behind. Training begins with 32 tokens and a sixteenth of the pairs and doubles both each time that
most answers are right. Positions begin at a random number in training, so that later ones are not
new. OUTPUT.json, OUTPUT.md and OUTPUT.png are written after every contender.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from reformer_hf import ReformerConfig, ReformerForCausalLM
from training.arguments import exit_code
from training.device import default_device
from training.synthetic import IGNORED, Lesson, fit, surroundings, write_table

matplotlib.use("Agg")
from matplotlib import pyplot

# Tokens of the first sequences of training.
_FIRST_LENGTH = 32
# Tokens that the second layer sees of a bucket, and behind it where it is local.
_WINDOW = 64
# Standard deviation of the initial weights.
_INITIAL = 0.1
# All tokens share it, so that its last keys are the last tokens, as many as the window holds.
_ONE_BUCKET = {"attn_layers": ["local", "lsh"], "num_hashes": 1, "num_buckets": 1}
# By the name of the contender. Queries and keys are shared but where it has keys of its own.
CONTENDERS: dict[str, dict[str, Any]] = {
    "full": _ONE_BUCKET,
    "local": _ONE_BUCKET,
    **{f"lsh {n}": {"attn_layers": ["local", "lsh"], "num_hashes": n} for n in (1, 2, 4, 8)},
    "lsh 4, chunk pattern": {
        "attn_layers": ["local", "lsh"],
        "num_hashes": 4,
        "attention_pattern": "chunk",
    },
    "hybrid 4, own keys": {"attn_layers": ["local", "hybrid"], "num_hashes": 4},
    "full, own keys": {"attn_layers": ["local", "full"]},
}


@dataclass(frozen=True)
class RecallTask:
    """Sequences in which keys come again.

    Attributes:
        keys: that exist; as many values do, and as many words of noise.
        pairs: of a value and its key in a sequence.
        times: that every key of a sequence comes again.
    """

    keys: int = 64
    pairs: int = 32
    times: int = 4

    @property
    def vocab_size(self) -> int:
        """Padding, keys, values and noise."""
        return 1 + 3 * self.keys

    def draw(self, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels ``[rows, length]`` int64.

        Pairs stand at random even places of the first half, and keys come again at random places
        of the second. The label of a key that comes again is its value; others have none.
        """

        def some(limit: int, count: int = self.pairs) -> Tensor:
            return torch.rand((rows, limit), generator=generator).argsort(dim=1)[:, :count]

        noise = (rows, length)
        tokens = torch.randint(0, self.keys, noise, generator=generator) + 1 + 2 * self.keys
        labels = torch.full_like(tokens, IGNORED)
        keys = some(self.keys) + 1
        values = torch.randint(0, self.keys, keys.shape, generator=generator) + 1 + self.keys
        places = 2 * some(length // 4)
        tokens.scatter_(1, places, values)
        tokens.scatter_(1, places + 1, keys)
        again = length // 2 + some(length - length // 2, self.pairs * self.times)
        tokens.scatter_(1, again, keys.repeat(1, self.times))
        labels.scatter_(1, again, values.repeat(1, self.times))
        return tokens, labels


def build(task: RecallTask, contender: str, length: int, longest: int, seed: int) -> Any:
    """A new model of two layers, for sequences of up to ``length`` tokens.

    Its table of positions is for twice ``longest`` tokens, whatever ``length`` is.
    """
    torch.manual_seed(seed)
    config = ReformerConfig(
        vocab_size=task.vocab_size,
        hidden_size=128,
        num_attention_heads=2,
        attention_head_size=64,
        feed_forward_size=256,
        max_position_embeddings=2 * longest,
        hidden_dropout_prob=0.0,
        initializer_range=_INITIAL,
        # Kinds of attention are compared by what they find by content: a far layer that also
        # knew distances would have another task at 65,536 tokens than at 512.
        rope_theta=None,
        local_attn_chunk_length=1,
        lsh_attn_chunk_length=length if contender == "full" else _WINDOW,
        pad_token_id=0,
        **CONTENDERS[contender],
    )
    return ReformerForCausalLM(config).to(default_device())


def lessons(task: RecallTask, arguments: argparse.Namespace, room: int) -> list[Lesson]:
    """From short sequences with few pairs to the task itself.

    Each has twice the pairs and tokens of the one before, and half the rows. Positions begin at a
    random number below ``room``, less the length.
    """

    def lesson(halvings: int) -> Lesson:
        own = replace(task, pairs=task.pairs >> halvings)
        rows, length = arguments.rows << halvings, arguments.length >> halvings

        def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            tokens, labels = own.draw(rows, length, generator)
            start = int(torch.randint(0, room - length, (), generator=generator))
            return tokens, torch.arange(start, start + length).expand_as(tokens), labels

        return Lesson(f"{length} tokens", draw)

    most = min(math.log2(arguments.length / _FIRST_LENGTH), math.log2(task.pairs))
    return [lesson(n) for n in reversed(range(max(0, int(most)) + 1))]


@torch.no_grad()
def accuracy(
    trained: Any, contender: str, task: RecallTask, length: int, arguments: argparse.Namespace
) -> float:
    """Share of right answers in sequences of this length, whose keys come again as far behind."""
    model = build(task, contender, length, max(arguments.lengths), arguments.seed).eval()
    model.load_state_dict(trained.state_dict())
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    right: list[Tensor] = []
    for _ in range(arguments.tests):
        tokens, labels = (x.to(model.device) for x in task.draw(1, length, generator))
        places = (labels[0] != IGNORED).nonzero().flatten()
        logits = model(tokens, logits_to_keep=places, use_cache=False).logits[0]
        right.append(logits.argmax(-1) == labels[0, places])
    return float(torch.cat(right).double().mean())


def write(stem: Path, document: dict[str, Any], lengths: Sequence[int]) -> None:
    """Numbers, a table and a figure."""
    head = ["contender", "steps", "right in training", *(f"{n:,} tokens" for n in lengths)]
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    cells = []
    for row in document["rows"]:
        found = [row["right"].get(str(n)) for n in lengths]
        shown = ["" if x is None else f"{x:.0%}" for x in found]
        cells.append([row["contender"], f"{row['steps']:,}", f"{row['trained']:.0%}", *shown])
        axes.plot(lengths, [float("nan") if x is None else x for x in found], "o-")
    axes.set(xscale="log", xlabel="tokens", ylabel="share of right values", ylim=(0, 1.02))
    axes.legend([row["contender"] for row in document["rows"]], fontsize=8)
    title = "Multi-query associative recall: share of right values"
    write_table(stem, title, document, head, cells)
    figure.tight_layout()
    figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=110)
    pyplot.close(figure)


def evaluate(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Do what the command line asks for; a row for every contender.

    Raises:
        ValueError: an unknown contender.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--contenders", nargs="+", default=[*CONTENDERS], help=f"of {[*CONTENDERS]}")
    add("--length", type=int, default=512, help="tokens of a training sequence")
    add("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768, 65536], help="tested")
    add("--steps", type=int, default=1500, help="of training, at most")
    add("--enough", type=float, default=0.99, help="share of right answers at which training ends")
    add("--rows", type=int, default=16, help="sequences of a training step")
    add("--learning-rate", type=float, default=2e-3, help="highest")
    add("--tests", type=int, default=4, help="sequences of every tested length")
    add("--seed", type=int, default=0, help="of weights and sequences")
    add("--output", type=Path, required=True, help="where results go, without an ending")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.contenders if name not in CONTENDERS]
    if unknown:
        raise ValueError(f"contenders: expected some of {[*CONTENDERS]}, got {unknown[0]!r}")
    task, longest = RecallTask(), max(arguments.lengths)
    rows: list[dict[str, Any]] = []
    document = {
        "model": "two layers (a token and the one before it, then the contender), width 128,"
        f" 2 heads of 64; windows of {_WINDOW}; initial weights {_INITIAL:g}",
        "task": f"{task.pairs} pairs of {task.keys} keys and as many values, each asked"
        f" {task.times} times",
        "training": f"{arguments.length} tokens (at first fewer), {arguments.rows} rows, at most"
        f" {arguments.steps} steps, AdamW, learning rate {arguments.learning_rate:g}; 0% right in"
        " training: the last lesson was not reached",
        "tests": f"{arguments.tests} sequences a length",
        **surroundings(),
        "rows": rows,
    }
    for name in arguments.contenders:
        print(name, flush=True)
        model = build(task, name, arguments.length, longest, arguments.seed)
        started = time.perf_counter()
        steps, trained = fit(
            *(model, lessons(task, arguments, model.config.max_position_embeddings)),
            steps=arguments.steps,
            enough=arguments.enough,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
        )
        row = {"contender": name, "steps": steps, "trained": trained, "right": {}}
        row["seconds"] = time.perf_counter() - started
        rows.append(row)
        for length in arguments.lengths:
            row["right"][str(length)] = accuracy(model, name, task, length, arguments)
            print(f"  {length:,} tokens: {row['right'][str(length)]:.1%} right", flush=True)
            write(arguments.output, document, arguments.lengths)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run `evaluate`; the exit code."""
    return exit_code(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
