"""What is particular to masked language modelling: which tokens are hidden, and from whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.arguments import MaskedLanguageModelingArguments, ModelArguments
from training.data import first_rows
from training.models import Task, load_tokenizer, new_config
from training.reporting import Sample
from training.scoring import IGNORED_LABEL

MASKED_LANGUAGE_MODELING = Task(
    "masked language modelling",
    AutoModelForMaskedLM,
    MODEL_FOR_MASKED_LM_MAPPING,
    "block_size",
    "FEATURE_EXTRACTION",
)


def build_masked_language_model(
    arguments: ModelArguments,
    checkpoint: str | None,
    config: PretrainedConfig | None,
    data: MaskedLanguageModelingArguments,
    documents: dict[str, list[str]],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and masked language model: the given ones, or new ones (the tokenizer of bytes).

    Raises:
        ValueError: they cannot be loaded, the tokenizer has no token that hides others, or the
            model takes no blocks so long.
    """
    texts = documents.get("train")
    tokenizer = load_tokenizer(
        arguments, checkpoint, texts, train_by_default=False, append_eos=False
    )
    if tokenizer.mask_token_id is None:
        raise ValueError(
            "tokenizer_name: expected a tokenizer with a mask_token, got one without (the built-in"
            " ones have it)"
        )
    config = config or new_config(arguments, tokenizer, data.block_size)
    model = MASKED_LANGUAGE_MODELING.load_model(arguments, config, tokenizer, data.block_size)
    return tokenizer, model


class Masking:
    """Hides tokens of blocks: fresh ones in every training batch, fixed ones in evaluation.

    Of the chosen tokens 80% become the mask, 10% another token, 10% stay (Devlin et al. 2018,
    section 3.1); the others have no label.

    Args:
        tokenizer: with a mask token.
        probability: with which a token is chosen.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float) -> None:
        self._collate = DataCollatorForLanguageModeling(
            tokenizer, mlm=True, mlm_probability=probability
        )

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch of rows, which are masked unless they have labels."""
        if all("labels" in row for row in rows):
            names = ("input_ids", "labels")
            return {name: torch.tensor([row[name] for row in rows]) for name in names}
        return dict(self._collate([{"input_ids": row["input_ids"]} for row in rows]))

    def fixed(self, blocks: Dataset, seed: int) -> Dataset:
        """The blocks with masks that are the same in every evaluation, and their labels."""

        def hide(row: dict[str, Any], number: int) -> dict[str, Any]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + number)
                batch = self([row])
            return {name: x[0].tolist() for name, x in batch.items() if name != "attention_mask"}

        return blocks.map(hide, with_indices=True, desc="Hiding tokens")


@dataclass(frozen=True)
class UnigramBaseline:
    """Predicting every hidden token from how frequent tokens are.

    Attributes:
        losses: negative log-probability of every token, in nats.
    """

    losses: np.ndarray

    @classmethod
    def of(cls, blocks: Dataset, vocab_size: int) -> "UnigramBaseline":
        """Frequencies of the tokens of blocks, each counted once more."""
        counts = np.ones(vocab_size)
        for row in blocks:
            counts += np.bincount(row["input_ids"], minlength=vocab_size)
        return cls(np.log(counts.sum()) - np.log(counts))

    def loss(self, masked: Dataset) -> float:
        """The mean over the labelled tokens, in nats."""
        labels = np.concatenate([np.asarray(row["labels"]) for row in masked])
        return float(self.losses[labels[labels != IGNORED_LABEL]].mean())


@torch.no_grad()
def filled_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, masked: Dataset, length: int
) -> list[Sample]:
    """Beginnings of the first blocks: as they are, with tokens hidden, and as the model fills them.

    Args:
        model: the trained one.
        tokenizer: its tokenizer.
        masked: blocks with labels.
        length: tokens of each that are shown.
    """
    model.eval()
    found = []
    for number, row in enumerate(first_rows(masked, 3)):
        inputs = torch.tensor([row["input_ids"]], device=model.device)
        labels = torch.tensor(row["labels"])
        best = model(input_ids=inputs).logits[0].argmax(-1).cpu()
        hidden = labels != IGNORED_LABEL
        text = torch.where(hidden, labels, inputs[0].cpu())
        filled = torch.where(hidden, best, text)
        parts = [
            ("text", tokenizer.decode(text[:length])),
            ("what the model reads", tokenizer.decode(inputs[0, :length])),
            ("output", tokenizer.decode(filled[:length])),
        ]
        found.append(Sample(title=f"block {number}", parts=parts))
    return found
