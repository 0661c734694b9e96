"""The trainers of the scripts: transformers' own, but that a push keeps the run's model card."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import Seq2SeqTrainer, Trainer


class _OwnCard:
    """A trainer that keeps the run's own model card when it pushes to the Hub.

    The stock trainer would overwrite README.md with a card that knows no data and no baseline.
    """

    card: ModelCard | None = None

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.card is not None and self.is_world_process_zero():
            self.card.save(Path(str(self.args.output_dir)) / "README.md")


class CardTrainer(_OwnCard, Trainer):
    """`Trainer` with the run's own model card."""


class CardSeq2SeqTrainer(_OwnCard, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with the run's own model card."""
