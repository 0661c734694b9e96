"""Get a pretrained language model used to sparse attention before it is fine-tuned.

    python scripts/align_attention.py --model test_models/smollm2 --train_file novels.txt.gz \\
        --validation_file more.txt.gz --length 4096 --attention_settings num_hashes=8 \\
        --match_steps 10 --max_steps 60 --bf16 --output_dir aligned

First the output of every attention layer is drawn to that of the original in full attention, then
the model is trained on as a language model, all weights, at a low rate. Printed is the loss of held
out text before and after, next to full attention's. The result is the ordinary checkpoint of its
model, with its settings in `config.json`. All arguments of transformers' Trainer are taken;
`--help` lists them.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import reformer_hf
from training.alignment import AligningTrainer, held_out_loss, token_blocks
from training.arguments import exit_code, option, parse_arguments, require_positive
from training.data_files import check_readable
from training.models import parse_overrides
from training.training_arguments import ScriptTrainingArguments

# The highest rate that did no harm to a model that knows something already.
_LEARNING_RATE = 2e-5


@dataclass
class AlignmentArguments:
    """What is aligned, on what, to what."""

    model: str | None = option("Checkpoint directory or Hub id of a causal language model.")
    train_file: str | None = option("Text file to train on (txt, also gzipped).")
    validation_file: str | None = option("Text file to measure the loss on.")
    length: int = option("Tokens of a block.", 4096)
    match_steps: int = option("Steps of the first stage, out of --max_steps.", 10)
    validation_blocks: int = option("Blocks of held-out text.", 4)
    attention_settings: str | None = option(
        "Changes to `reformer_attention`, as a JSON object or as key=value,key=value."
    )

    def __post_init__(self) -> None:
        for name in ("model", "train_file", "validation_file"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a value, got none")
        for name in ("length", "validation_blocks"):
            require_positive(name, getattr(self, name))
        if self.match_steps < 0:
            raise ValueError(f"match_steps: expected 0 or more, got {self.match_steps}")


class _Progress(TrainerCallback):
    """The stage, when it changes."""

    def __init__(self, match_steps: int) -> None:
        self.match_steps = match_steps

    def on_step_begin(self, args, state, control, **_) -> None:  # type: ignore[no-untyped-def]
        """Say which stage begins."""
        if state.global_step == 0 and self.match_steps:
            print(f"Matching attention outputs for {self.match_steps} steps", flush=True)
        elif state.global_step == self.match_steps:
            print("Training as a language model", flush=True)


def align(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the losses of held-out text.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    arguments, training = parse_arguments((AlignmentArguments, ScriptTrainingArguments), argv)
    if training.max_steps < 1:
        raise ValueError(f"max_steps: expected the steps of both stages, got {training.max_steps}")
    for path in (arguments.train_file, arguments.validation_file):
        check_readable(path)
    training.learning_rate = training.learning_rate or _LEARNING_RATE
    training.remove_unused_columns = False
    training.prediction_loss_only = True

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, attn_implementation="reformer")
    changes = parse_overrides(arguments.attention_settings, "attention_settings")
    settings = reformer_hf.configure_attention(model, **changes)
    if arguments.length <= settings.longest_dense:
        raise ValueError(
            f"length: expected more than {settings.longest_dense} tokens, up to which attention is "
            f"full, got {arguments.length}"
        )
    rows = training.max_steps * training.per_device_train_batch_size
    rows *= training.gradient_accumulation_steps
    data = token_blocks(arguments.train_file, tokenizer, arguments.length, rows, training.seed)
    held_out = token_blocks(
        arguments.validation_file, tokenizer, arguments.length, arguments.validation_blocks, 0
    )["input_ids"]
    count = sum(p.numel() for p in model.parameters())
    print(
        f"{count / 1e6:.0f} million parameters, {len(data)} blocks of {arguments.length:,} tokens, "
        f"{training.max_steps} steps, the first {arguments.match_steps} matching",
        flush=True,
    )

    trainer = AligningTrainer(
        model=model,
        args=training,
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=lambda blocks: {"input_ids": torch.tensor([b["input_ids"] for b in blocks])},
        callbacks=[_Progress(arguments.match_steps)],
        match_steps=arguments.match_steps,
    )
    found = {}
    with trainer.accelerator.autocast():
        found["full_attention"] = held_out_loss(model, held_out, "sdpa")
        found["start"] = held_out_loss(model, held_out, "reformer")
    print(f"Held out: full {found['full_attention']:.3f}, now {found['start']:.3f}", flush=True)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    with trainer.accelerator.autocast():
        found["aligned"] = held_out_loss(model, held_out, "reformer")
        found["aligned_full_attention"] = held_out_loss(model, held_out, "sdpa")
    trainer.save_model()
    trainer.save_metrics("align", found)
    print(
        f"Held-out loss in nats a token: full attention of the original "
        f"{found['full_attention']:.3f}; sparse attention {found['start']:.3f} before, "
        f"{found['aligned']:.3f} after (in full attention then "
        f"{found['aligned_full_attention']:.3f})\nSaved to {Path(training.output_dir)}"
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run `align`; the exit code."""
    return exit_code(align, argv)


if __name__ == "__main__":
    sys.exit(main())
