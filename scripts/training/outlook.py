"""What a run is about to do, said before it starts and after its first steps."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from training.models import count_in_words
from training.scoring import IGNORED_LABEL

logger = logging.getLogger(__name__)

_GIB = 1 << 30
# What AdamW keeps of a weight: two moments, in the precision of the weight.
_OPTIMIZER_COPIES = 2
# Steps after which the time of the rest is told: the first one is slower.
_MEASURED_AFTER = 2


def show_outlook(
    model: nn.Module,
    training: TrainingArguments,
    pairs: Mapping[str, Dataset],
    encoded: Mapping[str, Dataset],
    length: int,
) -> None:
    """Log parameters, what is read of the documents, and memory before activations.

    Args:
        model: that is trained or evaluated.
        training: batch size and number of steps.
        pairs: splits with a column "document".
        encoded: the same rows with their "input_ids", and "labels" where they stand behind.
        length: tokens that are read of a document at most, with everything around it.
    """
    weights = list(model.parameters())
    trained = [w for w in weights if w.requires_grad]
    count = sum(w.numel() for w in weights)
    logger.info(
        "%s with %s parameters, %s of them trained",
        *(type(model).__name__, count_in_words(count)),
        "all" if len(trained) == len(weights) else count_in_words(sum(w.numel() for w in trained)),
    )
    split = "train" if "train" in pairs else next(iter(pairs))
    logger.info("%s", documents_in_words(split, pairs[split], encoded[split], length))
    held = sum(w.numel() * w.element_size() for w in weights)
    if not training.do_train:
        logger.info("Memory: weights %.1f GiB, and activations", held / _GIB)
        return
    updated = sum(w.numel() * w.element_size() for w in trained)
    logger.info(
        "Memory: weights %.1f GiB, gradients %.1f GiB, optimizer %.1f GiB, and activations",
        *(held / _GIB, updated / _GIB, _OPTIMIZER_COPIES * updated / _GIB),
    )


def documents_in_words(split: str, pairs: Dataset, encoded: Dataset, length: int) -> str:
    """How many documents there are, how many of them are cut, and how much of their text is read.

    Tokens that are not read are not counted but estimated, from the characters of a token in the
    documents that are read whole.
    """
    read = [
        sum(token == IGNORED_LABEL for token in row["labels"]) or len(row["input_ids"])
        for row in encoded
    ]
    characters = [len(text) for text in pairs["document"]]
    cut = [n >= length for n in read]
    share = sum(cut) / len(cut)
    sentence = (
        f"{len(read):,} documents in {split}, of {sum(read) / len(read):,.0f} tokens on average as"
        f" they are read; {share:.0%} are cut to {length:,}"
    )
    whole = [(n, c) for n, c, x in zip(read, characters, cut, strict=True) if not x]
    if not any(cut) or not whole:
        return sentence
    per_token = sum(c for _, c in whole) / sum(n for n, _ in whole)
    lost = sum(c for c, x in zip(characters, cut, strict=True) if x) / per_token
    kept = sum(n for n, x in zip(read, cut, strict=True) if x)
    return f"{sentence}, of which about {min(1.0, kept / max(lost, 1)):.0%} is read"


class TimeLeft(TrainerCallback):
    """Says after the first steps how long training will take."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._from = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._started is None:
            self._started, self._from = time.perf_counter(), state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        done = state.global_step - self._from
        if self._started is None or done != _MEASURED_AFTER or not state.is_world_process_zero:
            return
        seconds = (time.perf_counter() - self._started) / done
        left = state.max_steps - state.global_step
        if left > 0:
            logger.info(
                "%.2f s a step: about %s for the other %s steps, without evaluation",
                *(seconds, _duration(seconds * left), f"{left:,}"),
            )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def time_attention(trainer: Trainer, examples: Dataset, repeats: int = 2) -> dict[str, str]:
    """Seconds of a forward and backward pass of the longest example, in sparse and full attention.

    Args:
        trainer: holds the model, in the attention that it was trained in.
        examples: the training split, encoded.
        repeats: passes of each; the fastest counts.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    own = model.config._attn_implementation
    row = max(examples, key=lambda example: len(example["input_ids"]))
    batch = trainer._prepare_inputs(trainer.data_collator([row]))
    seconds: dict[str, list[float]] = {own: [], "sdpa": []}
    model.train()
    try:
        for _ in range(repeats):
            for name in seconds:
                model.set_attn_implementation(name)
                start = time.perf_counter()
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(trainer.model_wrapped, dict(batch))
                loss.backward()
                seconds[name].append(time.perf_counter() - start)
    finally:
        model.set_attn_implementation(own)
        model.zero_grad(set_to_none=True)
    best = {name: min(found) for name, found in seconds.items()}
    length = len(row["input_ids"])
    return {
        f"Forward and backward pass of {length:,} tokens": f"{best[own]:.2f} s",
        "The same in full attention": f"{best['sdpa']:.2f} s",
    }
