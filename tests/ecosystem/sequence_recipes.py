"""What the program that splits sequences and its tests must agree on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainingArguments

from reformer_hf import ReformerPreTrainedModel
from tests.models.builders import HEAD_OF, Batch, Head

ROWS, LENGTH = 2, 77  # neither 2 nor 4 divides the length
MIX = ["local", "lsh", "full", "hybrid"]
_PLAIN_MIX = ["local", "lsh", "full"]  # other families of hashes have no hybrid layers
_ATTENTION_DROPOUT = {
    f"{kind}_attention_probs_dropout_prob": 0.2 for kind in ("lsh", "local", "hybrid")
}


@dataclass(frozen=True)
class Case:
    """A model and a batch.

    Attributes:
        head: name of the head.
        options: of the configuration.
        padding: `none`, `right`, `left`, `broken`: in the middle too, or `unsaid`: on the right,
            told by the labels alone.
        split_target: the target of an encoder-decoder is split as well.
        checkpointing: gradient checkpointing is on.
    """

    head: str
    options: dict[str, Any] = field(default_factory=dict)
    padding: str = "none"
    split_target: bool = False
    checkpointing: bool = False


CASES: dict[str, Case] = {
    "causal_lm": Case("causal_lm"),
    "causal_lm-plain": Case("causal_lm", {"reversible": False}),
    "causal_lm-checkpointing": Case("causal_lm", {"reversible": False}, checkpointing=True),
    "causal_lm-4-rounds": Case("causal_lm", {"num_hashes": 4}, "right"),
    "causal_lm-left": Case("causal_lm", {"num_hashes": 2}, "left"),
    "causal_lm-unsaid": Case("causal_lm", {}, "unsaid"),
    "causal_lm-chunked": Case(
        "causal_lm", {"chunk_size_lm_head": 8, "chunk_size_feed_forward": 16}, "right"
    ),
    "causal_lm-dropout": Case("causal_lm", {**_ATTENTION_DROPOUT, "hash_seed": None}),
    "causal_lm-dropout-plain": Case("causal_lm", {**_ATTENTION_DROPOUT, "reversible": False}),
    "causal_lm-random": Case(
        "causal_lm", {"hash_family": "random", "num_hashes": 2, "attn_layers": _PLAIN_MIX}, "left"
    ),
    "causal_lm-euclidean": Case(
        "causal_lm", {"hash_family": "euclidean", "attn_layers": _PLAIN_MIX}
    ),
    "causal_lm-average": Case(
        "causal_lm",
        {"head_merge": "average", "stream_merge": "concat", "tie_word_embeddings": False},
    ),
    "causal_lm-broken": Case("causal_lm", {}, "broken"),
    "causal_lm-far": Case("causal_lm", {"local_attn_chunk_length": 32}, "right"),
    "masked_lm": Case("masked_lm", {"num_hashes": 2}, "right"),
    "masked_lm-two-sides": Case("masked_lm", {"attn_layers": ["local", "local"]}, "left"),
    "masked_lm-plain": Case("masked_lm", {"reversible": False}),
    "sequence_classification": Case("sequence_classification", {}, "left"),
    "sequence_classification-first": Case(
        "sequence_classification", {"classifier_pooling": "first"}, "left"
    ),
    "sequence_classification-4-rounds": Case("sequence_classification", {"num_hashes": 4}, "right"),
    "token_classification": Case("token_classification", {}, "unsaid"),
    "question_answering": Case("question_answering", {}, "right"),
    "seq2seq_lm": Case("seq2seq_lm", {}, "right"),
    "seq2seq_lm-plain": Case("seq2seq_lm", {"reversible": False, "num_hashes": 4}, "left"),
    "seq2seq_lm-split": Case("seq2seq_lm", {}, "right", split_target=True),
    "seq2seq_lm-split-plain": Case("seq2seq_lm", {"reversible": False}, split_target=True),
}
# With dropout of hidden states ranks draw numbers of their own for tokens of their own, and the
# same ones for tokens that all of them have.
_HIDDEN_DROPOUT = {"hidden_dropout_prob": 0.2, "hash_seed": None}
DROPPED: dict[str, Case] = {
    "causal_lm": Case("causal_lm", _HIDDEN_DROPOUT),
    "seq2seq_lm": Case("seq2seq_lm", _HIDDEN_DROPOUT),
    "seq2seq_lm-split": Case("seq2seq_lm", _HIDDEN_DROPOUT, split_target=True),
}
# With data parallelism on the other dimension of the mesh, and with every weight in parts.
TOGETHER = ("causal_lm", "causal_lm-4-rounds", "sequence_classification", "seq2seq_lm")
# Words of the refusal on every rank, and of the error on a rank that waited for another.
REFUSED: dict[str, str] = {
    "other rows": "must have the same rows of a batch",
    "other parts": "cut a batch with `split_batch`",
    "other rounds": "must have the same hash rounds",
    "other batches": "`batch` must be the same on all ranks",
    "a short batch": "`input_ids` must have at least as many tokens as ranks share them",
    "cache": "must not be given while sequences are split",
    "weights": "needs whole sequences",
    "generate": "`generate` must not be called while sequences are split",
    "one bad token": "`input_ids` must be in [0, vocab_size=61)",
    "one bad label": "`labels` must be -100 or in",
}
TRAINED, TRAINED_STEPS = "causal_lm-4-rounds", 3


def build(case: Case) -> tuple[Head, ReformerPreTrainedModel]:
    """A small model of four heads, with one layer of every kind."""
    head = HEAD_OF[case.head]
    options = {
        "hidden_dropout_prob": 0.0,
        "hash_seed": 3,
        "pad_token_id": 0,
        "attn_layers": MIX,
        "num_attention_heads": 4,
        "attention_head_size": 8,
        "decoder_start_token_id": 1,
        **case.options,
    }
    if not head.seq2seq:
        del options["decoder_start_token_id"]
    model = head.build(**options)
    if case.checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
    return head, model


def batch_of(case: Case, rows: int = ROWS) -> Batch:
    """A batch whose last row is shorter than the others, if it is padded."""
    head = HEAD_OF[case.head]
    batch = head.batch(rows, LENGTH)
    if case.padding == "none":
        return batch
    real = torch.ones_like(batch["input_ids"])
    if case.padding == "left":
        real[-1, :45] = 0
    else:
        real[-1, 30:] = 0
    if case.padding == "broken":
        real[:, 5:9] = 0
    batch["input_ids"] = batch["input_ids"] * real
    if case.padding != "unsaid":
        batch["attention_mask"] = real
    if head.task in ("next_token", "token", "token_class"):
        batch["labels"] = batch["labels"].masked_fill(real == 0, -100)
    return batch


def training_data() -> Dataset:
    """Texts for a `Trainer`, of different lengths."""
    texts = []
    for row in range(4 * TRAINED_STEPS):
        batch = HEAD_OF["causal_lm"].batch(1, LENGTH - 5 * row, seed=row)
        texts.append({name: values[0].tolist() for name, values in batch.items()})
    return Dataset.from_list(texts)


def collate(rows: list[dict[str, list[int]]]) -> Batch:
    """A batch padded on the right, with its mask."""
    longest = max(len(row["input_ids"]) for row in rows)
    filling = {"input_ids": 0, "labels": -100}
    batch = {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in filling.items()
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {**batch, "attention_mask": (torch.arange(longest) < lengths.unsqueeze(1)).long()}


def training_arguments(folder: Path, accumulated: int) -> TrainingArguments:
    """Some steps of plain SGD, so that weights depend on the size of every gradient."""
    return TrainingArguments(
        str(folder),
        max_steps=TRAINED_STEPS,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=accumulated,
        optim="sgd",
        learning_rate=0.1,
        logging_steps=1,
        prediction_loss_only=True,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
