"""transformers' training arguments, where their defaults do not hold for these scripts."""

import logging
from dataclasses import dataclass

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from training.arguments import option
from training.precision import SLOW_BF16, has_accelerator, multiplies_bf16

logger = logging.getLogger(__name__)

# transformers' default, for weights that know something already.
PRETRAINED_LEARNING_RATE = 5e-5
# A new model that learns to copy two names out of 150 words (900 steps, AdamW) ends at a loss of
# 0.3 with this one, of 2.1 with 5e-5 and of 1.3 with 2e-3.
SCRATCH_LEARNING_RATE = 5e-4


@dataclass
class ScriptTrainingArguments(TrainingArguments):
    """transformers' arguments, with a learning rate that fits the model unless one is named."""

    learning_rate: float | None = option(
        f"Highest learning rate. Unset: {SCRATCH_LEARNING_RATE:g} for a model from scratch,"
        f" {PRETRAINED_LEARNING_RATE:g} for a given one."
    )

    def __post_init__(self) -> None:
        # A CPU does bf16, but transformers refuses it unless it is told that the CPU is meant.
        if (self.bf16 or self.bf16_full_eval) and not has_accelerator():
            self.use_cpu = True
            if not multiplies_bf16():
                logger.warning(SLOW_BF16)
        super().__post_init__()

    def choose_learning_rate(self, *, from_scratch: bool) -> None:
        """Set the learning rate, if none was named, and say which and why."""
        if self.learning_rate is not None:
            return
        self.learning_rate = SCRATCH_LEARNING_RATE if from_scratch else PRETRAINED_LEARNING_RATE
        if self.do_train:
            origin = "from scratch" if from_scratch else "with given weights"
            logger.info(
                "Learning rate %g: the default for a model %s (--learning_rate sets another)",
                *(self.learning_rate, origin),
            )


@dataclass
class SharedDocumentArguments(ScriptTrainingArguments):
    """The same where processes can share a document."""

    sequence_parallel_size: int = option(
        "Processes that share every text, each with a part of it: a text can be that many times as"
        " long. It must divide the number of processes and of attention heads.",
        1,
    )


@dataclass
class WritingTrainingArguments(ScriptTrainingArguments, Seq2SeqTrainingArguments):
    """The same for a model that writes, which is judged by what it generates, so it generates."""

    predict_with_generate: bool = option("Generate texts in evaluation and score them.", True)
