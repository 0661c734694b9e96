"""What LSH attention would find in a pretrained model, before training it.

``python -m reformer_hf.diagnose --model DIR --file TEXT --length 4096``: for each layer, the share
of full attention's mass on sinks and local window, and with the keys that the rounds find; the loss
of a language model next to full attention's; and which layers need no rounds. With ``--by_loss``
the layers of a causal language model are chosen by what its loss says of them, which takes a
forward pass for each: the mass that a layer spreads over distant keys may be of no use to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import reformer_hf
from reformer_hf.configuration_attention import ReformerAttentionSettings
from reformer_hf.pretrained.diagnosis import (
    check_share,
    describe,
    diagnose,
    propose_local_layers,
    propose_local_layers_by_value,
    value_of_distance,
)
from reformer_hf.pretrained.language_model_loss import token_losses

_NUMBERS = ("local_window", "sink_tokens", "num_hashes", "bucket_window", "num_buckets")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reformer_hf.diagnose", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--model", required=True, help="directory or Hub id")
    add("--file", required=True, type=Path, help="a text of the kind that the model will read")
    add("--length", type=int, default=4096, help="tokens of it to read (default 4096)")
    add("--samples", type=int, default=1, help="stretches of that length, all over the file (1)")
    add("--threshold", type=float, default=0.02, help="share of a head's mass worth a round (0.02)")
    add("--by_loss", action="store_true", help="choose layers by the loss without distant keys")
    add("--share", type=float, default=0.9, help="of the layers' worth to keep by loss (0.9)")
    for name in _NUMBERS:
        add(f"--{name}", type=int, help="as in `reformer_attention`")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        report = _report(arguments)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(report + "\n")


def _report(arguments: argparse.Namespace) -> str:
    check_share(arguments.share)
    given = {name: getattr(arguments, name) for name in _NUMBERS}
    changes = {name: value for name, value in given.items() if value is not None}
    config = AutoConfig.from_pretrained(arguments.model)
    settings = ReformerAttentionSettings.of(config).changed(**changes)
    causal = any("CausalLM" in x or "LMHead" in x for x in config.architectures or ())
    model = (AutoModelForCausalLM if causal else AutoModel).from_pretrained(arguments.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    text = arguments.file.read_text(encoding="utf-8")
    if arguments.samples < 1:
        raise ValueError(f"--samples: expected a positive number, got {arguments.samples}")
    tokens = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    if len(tokens) < arguments.length * arguments.samples:
        raise ValueError(
            f"--file: expected at least {arguments.length * arguments.samples} tokens, got"
            f" {len(tokens)}"
        )
    step = len(tokens) // arguments.samples
    starts = range(0, step * arguments.samples, step)
    ids = torch.stack([tokens[start : start + arguments.length] for start in starts])
    if arguments.by_loss and not causal:
        raise ValueError(f"--by_loss: expected a causal language model, got {config.architectures}")
    found = diagnose(model, ids, **changes)
    values = value_of_distance(model, ids, **changes) if arguments.by_loss else None
    parts = [describe(found, values)]
    if causal:
        losses = []
        reformer_hf.configure_attention(model, **changes)
        for implementation in ("sdpa", "reformer"):
            model.set_attn_implementation(implementation)
            losses.append(float(token_losses(model, ids).mean()))
        parts.append(
            f"loss: full attention {losses[0]:.3f}, reformer {losses[1]:.3f} "
            f"({losses[1] - losses[0]:+.3f} nats a token)"
        )
    if values is None:
        local = propose_local_layers(found, arguments.threshold)
        reason = f"Layers in which no head finds {arguments.threshold:.0%} of its mass by rounds"
    else:
        local = propose_local_layers_by_value(values, arguments.share)
        reason = f"Layers beside those that have {arguments.share:.0%} of the worth of distance"
    given = {n: v for n, v in settings.to_dict().items() if n in changes}
    call = ", ".join(f"{n}={v}" for n, v in {**given, "local_layers": local}.items())
    parts.append(f"{reason} need none:\nreformer_hf.configure_attention(model, {call})")
    return "\n\n".join(parts)


if __name__ == "__main__":
    with torch.no_grad():
        main()
