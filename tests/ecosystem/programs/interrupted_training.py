"""A training run that may be killed in the middle, and what resumes it.

Usage: interrupted_training.py FOLDER HEAD MODE..., each mode one of whole, killed and resumed
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from tests.ecosystem.recipes import KILLED_AT, SAVED_AT, STEPS
from tests.models.builders import ALL_DROPOUTS, HEAD_OF


def train(folder: Path, name: str, mode: str) -> None:
    head = HEAD_OF[name]
    model = head.build(**ALL_DROPOUTS)
    batch = head.batch(13, 40)
    rows = [{key: value[row] for key, value in batch.items()} for row in range(13)]
    trainer_class, arguments_class = (
        (Seq2SeqTrainer, Seq2SeqTrainingArguments) if head.seq2seq else (Trainer, TrainingArguments)
    )
    losses: list[float] = []

    def note_loss(_: nn.Module, __: Any, output: Any) -> None:
        losses.append(output.loss.item())
        if mode == "killed" and len(losses) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_hook(note_loss)
    trainer = trainer_class(
        model=model,
        args=arguments_class(
            output_dir=str(folder / ("whole" if mode == "whole" else "killed")),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            save_steps=SAVED_AT,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows,
    )
    trainer.train(resume_from_checkpoint=mode == "resumed")
    torch.save({"losses": losses, "weights": model.state_dict()}, folder / f"{mode}.pt")


if __name__ == "__main__":
    for chosen in sys.argv[3:]:
        train(Path(sys.argv[1]), sys.argv[2], chosen)
