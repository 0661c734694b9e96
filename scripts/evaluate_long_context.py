"""What language models lose and find at a distance, pretrained ones next to full attention.

    python scripts/evaluate_long_context.py loss --model test_models/smollm2 \\
        --file test.txt.gz --lengths 2048 4096 8192 --rounds 4 8 16 --output results/loss
    python scripts/evaluate_long_context.py passkey --model test_models/smollm2 \\
        --file test.txt.gz --lengths 2000 4000 8000 --rounds 4 8 16 --output results/passkey

`loss`: mean negative log-likelihood of a token in blocks of the text, and of those that repeat a
rare word last seen more than 1,000 tokens ago, which no local window shows. `passkey`: a five-digit
number is hidden in the text and asked for at its end. Full attention stands next to LSH rounds, and
next to each of these a local window in which a query sees as many keys. New models of the family
attend as they were made to: name several of them, with one tokenizer, to compare them on the same
blocks. Both write OUTPUT.json and OUTPUT.md after every length.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import reformer_hf
from reformer_hf.pretrained.language_model_loss import token_losses
from training.alignment import token_blocks
from training.arguments import exit_code
from training.data_files import read_text
from training.device import default_device, describe_device
from training.long_context import (
    Contender,
    answer_at_once,
    answer_by_generation,
    attending,
    contenders,
    count_words,
    make_passkeys,
    rare_repeats,
)
from training.models import parse_overrides
from training.precision import SLOW_BF16, multiplies_bf16

Row = dict[str, Any]
# A word is rare below this share of the text's words, and was last seen long ago after more tokens.
_RARE, _FAR = 3e-4, 1000


def measure_loss(
    model: Any, tokenizer: Any, length: int, arguments: argparse.Namespace
) -> list[Row]:
    """A row for each contender: loss, and how much more than full attention's."""
    blocks = token_blocks(arguments.file, tokenizer, length, arguments.samples, arguments.seed)
    ids = [torch.tensor([block], device=model.device) for block in blocks["input_ids"]]
    counts = count_words(read_text(arguments.file))
    pieces = [tokenizer.batch_decode([[i] for i in block]) for block in blocks["input_ids"]]
    # No loss is that of the first token.
    rare = torch.stack(
        [rare_repeats(x, counts, distance=_FAR, rarest=_RARE)[1:] for x in pieces]
    ).unsqueeze(1)
    rows: list[Row] = []
    full: torch.Tensor | None = None  # only pretrained models can attend in both ways
    for contender in contenders(model, ids[0], arguments.rounds):
        with attending(model, contender):
            losses = torch.stack([token_losses(model, x).double().cpu() for x in ids])
        if contender.implementation is not None:
            full = losses if full is None else full
        row = _row(contender, length, len(ids)) | {"loss": float(losses.mean())}
        if full is not None:
            row["above_full"] = float((losses - full).mean())
            row["above_full_second_half"] = float((losses - full)[..., length // 2 :].mean())
        row["rare_repeats"] = int(rare.sum())
        if rare.any():
            row["loss_at_rare_repeats"] = float(losses[rare].mean())
            if full is not None:
                row["above_full_at_rare_repeats"] = float((losses - full)[rare].mean())
        rows.append(row)
        _say(row)
    return rows


def measure_passkey(
    model: Any, tokenizer: Any, length: int, arguments: argparse.Namespace
) -> list[Row]:
    """A row for each contender: share of digits and of whole keys, in one pass and generated."""
    text = read_text(arguments.file)
    keys = make_passkeys(text, tokenizer, length, arguments.samples, arguments.seed)
    rows: list[Row] = []
    for contender in contenders(model, keys[0].prompt.to(model.device), arguments.rounds):
        row = _row(contender, length, len(keys))
        with attending(model, contender):
            for name, ask in (("", answer_at_once), ("generated_", answer_by_generation)):
                right = [ask(model, key) for key in keys]
                row[f"{name}digits"] = float(torch.cat(right).double().mean())
                row[f"{name}keys"] = sum(bool(x.all()) for x in right) / len(right)
                row[f"{name}right_at"] = [
                    round(k.depth, 2) for k, x in zip(keys, right, strict=True) if x.all()
                ]
        rows.append(row)
        _say(row)
    return rows


def _row(contender: Contender, length: int, samples: int) -> Row:
    row: Row = {"length": length, "attention": contender.name}
    if contender.implementation is not None:
        row |= {"keys_per_query": contender.keys, "settings": contender.changes}
    return row | {"samples": samples}


def _say(row: Row) -> None:
    numbers = {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}
    print(f"{row['length']:>7,} {row['attention']:<16} {numbers}", flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "all"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Row]) -> str:
    named = {k: v for row in rows for k, v in row.items()}
    names = [k for k, v in named.items() if isinstance(v, (int, float, str)) or v is None]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(n, "")) for n in names) + " |")
    return "\n".join(lines)


def _write(stem: Path, document: dict[str, Any], rows: list[Row], kind: str) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**document, "rows": rows}, indent=1)
    stem.with_name(f"{stem.name}.json").write_text(text + "\n", encoding="utf-8")
    facts = "\n".join(f"- {name}: {value}" for name, value in document.items())
    report = f"# {kind}, full attention against sparse attention\n\n{facts}\n\n{_table(rows)}\n"
    stem.with_name(f"{stem.name}.md").write_text(report, encoding="utf-8")


_MEASURES: dict[str, Callable[..., list[Row]]] = {"loss": measure_loss, "passkey": measure_passkey}


class _Parser(argparse.ArgumentParser):
    """Refuses with ValueError instead of a page of usage and an exit."""

    def error(self, message: str) -> Any:
        raise ValueError(message)


def evaluate(argv: Sequence[str] | None = None) -> list[Row]:
    """Do what the command line asks for.

    Raises:
        ValueError: arguments, text or model cannot work.
    """
    parser = _Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("kind", choices=[*_MEASURES], help="what to measure")
    add("--model", nargs="+", required=True, help="checkpoint directories or Hub ids")
    add("--file", required=True, help="text that the model has not seen (txt, also gzipped)")
    add("--lengths", type=int, nargs="+", default=[4096], help="tokens")
    add("--rounds", type=int, nargs="+", default=[4, 8, 16], help="numbers of hash rounds")
    add("--attention_settings", help="changes to `reformer_attention`, JSON or key=value,key=value")
    add("--samples", type=int, default=4, help="blocks, or hidden keys, of every length")
    add("--bf16", action="store_true", help="autocast")
    add("--note", default="", help="said in the results, such as how the model was trained")
    add("--seed", type=int, default=0, help="of what is drawn")
    add("--output", type=Path, required=True, help="where results go, without an ending")
    arguments = parser.parse_args(argv)

    models = {Path(name).name: _load(name, max(arguments.lengths)) for name in arguments.model}
    if len(models) < len(arguments.model):
        raise ValueError(f"model: expected different names, got {arguments.model}")
    changes = parse_overrides(arguments.attention_settings, "attention_settings")
    if changes:
        for model, _ in models.values():
            reformer_hf.configure_attention(model, **changes)
    document = {
        "model": ", ".join(models),
        "note": arguments.note,
        "text": Path(arguments.file).name,
        "settings": {name: _attention(model) for name, (model, _) in models.items()},
        "dtype": "bfloat16 autocast" if arguments.bf16 else "float32",
        "seed": arguments.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": describe_device(),
    }
    context: Any = contextlib.nullcontext()
    if arguments.bf16:
        if not multiplies_bf16():
            warnings.warn(SLOW_BF16, stacklevel=2)
        context = torch.autocast(default_device(), torch.bfloat16)
    rows: list[Row] = []
    with context:
        for length in arguments.lengths:
            for name, (model, tokenizer) in models.items():
                found = _MEASURES[arguments.kind](model, tokenizer, length, arguments)
                rows += [{"model": name, **row} for row in found] if len(models) > 1 else found
            _write(arguments.output, document, rows, arguments.kind.capitalize())
    return rows


def _load(name: str, length: int) -> tuple[Any, Any]:
    """A model that reads ``length`` tokens, and its tokenizer.

    Raises:
        ValueError: it has no positions for so many.
    """
    model = AutoModelForCausalLM.from_pretrained(name).eval().to(default_device())
    if length + 8 > model.config.max_position_embeddings:
        raise ValueError(
            f"lengths: expected at most the model's {model.config.max_position_embeddings} "
            f"positions, less 8, got {length}"
        )
    return model, AutoTokenizer.from_pretrained(name)


def _attention(model: Any) -> Any:
    """What decides what a token of the model sees."""
    if isinstance(model.config, reformer_hf.ReformerConfig):
        return model.config.attn_layers
    return reformer_hf.configure_attention(model).to_dict()


def main(argv: Sequence[str] | None = None) -> int:
    """Run `evaluate`; the exit code."""
    return exit_code(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
