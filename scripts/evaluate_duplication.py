"""The duplication task of the Reformer's paper: training and evaluating with different attention.

    python scripts/evaluate_duplication.py --output scripts/benchmark/results/duplication

Kitaev et al. 2020, "Reformer", section 5 and Table 2 (arXiv:2001.04451): a sequence is ``0 w 0 w``,
where ``w`` is a random word of symbols from 1 to 127, and the model is to say the second ``w``. One
layer, queries and keys shared. Every model is trained with one kind of attention, full or LSH with
some number of hash rounds, and evaluated with each. The paper's words have 511 symbols and its
models train for 150,000 steps; here they are shorter, and training ends when nearly all is right.
OUTPUT.json and OUTPUT.md are written after every model.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reformer_hf import ReformerConfig, ReformerForCausalLM
from training.arguments import exit_code
from training.device import default_device
from training.synthetic import IGNORED, Lesson, fit, right, surroundings, write_table

_SYMBOLS = 127
# What is trained with and, with more rounds, evaluated with; 0 rounds: full attention.
TRAINED, EVALUATED = (0, 4, 2, 1), (0, 8, 4, 2, 1)


def draw(rows: int, word: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``[rows, 2 word + 2]`` int64, their positions, and as labels the second word."""
    words = torch.randint(1, _SYMBOLS + 1, (rows, word), generator=generator)
    once = torch.nn.functional.pad(words, (1, 0))
    tokens = torch.cat([once, once], dim=1)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, word + 1 : -1] = words
    return tokens, torch.arange(tokens.shape[1]).expand_as(tokens), labels


def build(word: int, rounds: int, seed: int) -> Any:
    """A new model of one layer with LSH attention, or with what it becomes where all is seen."""
    torch.manual_seed(seed)
    length = 2 * word + 2
    # Windows as long as the sequence and one bucket hide nothing.
    window = length if rounds == 0 else max(8, length // 8)
    config = ReformerConfig(
        vocab_size=_SYMBOLS + 1,
        hidden_size=256,
        num_attention_heads=4,
        attention_head_size=64,
        feed_forward_size=256,
        attn_layers=["lsh"],
        num_hashes=max(1, rounds),
        num_buckets=1 if rounds == 0 else None,
        lsh_attn_chunk_length=window,
        max_position_embeddings=length,
        axial_pos_embds=False,
        hidden_dropout_prob=0.0,
        pad_token_id=None,
    )
    return ReformerForCausalLM(config).to(default_device())


@torch.no_grad()
def accuracy(model: Any, rounds: int, word: int, arguments: argparse.Namespace) -> float:
    """Share of the symbols of second words that the model says, with other attention."""
    other = build(word, rounds, arguments.seed).eval()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    sequences = draw(arguments.tests, word, generator)
    tokens, positions, labels = (x.to(model.device) for x in sequences)
    return right(other(tokens, position_ids=positions).logits, labels)


def _name(rounds: int) -> str:
    return f"LSH-{rounds}" if rounds else "full"


def evaluate(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Do what the command line asks for; a row for every trained model.

    Raises:
        ValueError: a word without symbols.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--word", type=int, default=63, help="symbols of a word")
    add("--steps", type=int, default=4000, help="of training, at most")
    add("--enough", type=float, default=0.999, help="share of right answers at which it ends")
    add("--rows", type=int, default=32, help="sequences of a training step")
    add("--learning-rate", type=float, default=1e-3, help="highest")
    add("--tests", type=int, default=256, help="sequences to evaluate on")
    add("--seed", type=int, default=0, help="of weights and sequences")
    add("--output", type=Path, required=True, help="where results go, without an ending")
    arguments = parser.parse_args(argv)
    if arguments.word < 1:
        raise ValueError(f"word: expected at least 1 symbol, got {arguments.word}")
    rows: list[dict[str, Any]] = []
    document = {
        "task": f"0 w 0 w, {arguments.word} of {_SYMBOLS} symbols in w (the paper: 511)",
        "model": "one layer, width 256, 4 heads of 64, feed-forward 256, queries and keys shared;"
        f" in LSH attention {max(8, (2 * arguments.word + 2) // 8)} keys of a bucket in a chunk",
        "training": f"at most {arguments.steps} steps of {arguments.rows} sequences, AdamW,"
        f" learning rate {arguments.learning_rate:g}; ended at {arguments.enough:.1%} right",
        "tests": f"{arguments.tests} sequences",
        **surroundings(),
        "rows": rows,
    }
    lesson = Lesson(
        f"words of {arguments.word}", functools.partial(draw, arguments.rows, arguments.word)
    )
    for trained in TRAINED:
        print(_name(trained), flush=True)
        model = build(arguments.word, trained, arguments.seed)
        started = time.perf_counter()
        steps, share = fit(
            *(model, [lesson]),
            steps=arguments.steps,
            enough=arguments.enough,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
        )
        seconds = time.perf_counter() - started
        found = {_name(n): accuracy(model, n, arguments.word, arguments) for n in EVALUATED}
        print("  " + ", ".join(f"{name} {value:.1%}" for name, value in found.items()), flush=True)
        row = {"trained": _name(trained), "steps": steps, "share": share, "right": found}
        rows.append(row | {"seconds": seconds})
        head = ["trained with", "steps", *(f"evaluated with {_name(n)}" for n in EVALUATED)]
        cells = [
            [x["trained"], f"{x['steps']:,}", *(f"{v:.1%}" for v in x["right"].values())]
            for x in rows
        ]
        title = "Duplication: share of right symbols"
        write_table(arguments.output, title, document, head, cells)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run `evaluate`; the exit code."""
    return exit_code(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
