"""Small models of every head, with inputs and labels: what parametrised tests are built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import reformer_hf
from reformer_hf import ReformerConfig, ReformerPreTrainedModel, ReformerSeq2SeqConfig

Batch = dict[str, Tensor]

VOCAB = 61
NUM_LABELS = 3
IGNORED = -100

# Small enough to be quick, and with windows so short that a hundred tokens fill many buckets. The
# initial weights are larger than by default, so that an error anywhere is visible in the logits.
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "attn_layers": ["local", "lsh"],
    "num_attention_heads": 2,
    "attention_head_size": 16,
    "feed_forward_size": 48,
    "max_position_embeddings": 4096,
    "lsh_attn_chunk_length": 8,
    "local_attn_chunk_length": 8,
    "initializer_range": 0.1,
    "axial_norm_std": 0.1,
    "num_labels": NUM_LABELS,
}
TINY_SEQ2SEQ: dict[str, Any] = {
    **TINY,
    "decoder_attn_layers": ["full", "lsh"],
    "max_target_positions": 512,
}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0}
ALL_DROPOUTS: dict[str, Any] = {
    "hidden_dropout_prob": 0.1,
    "lsh_attention_probs_dropout_prob": 0.1,
    "local_attention_probs_dropout_prob": 0.1,
    "full_attention_probs_dropout_prob": 0.1,
    "hybrid_attention_probs_dropout_prob": 0.1,
}
LAYER_MIXES: tuple[tuple[str, ...], ...] = (
    ("lsh", "lsh"),
    ("local", "local"),
    ("full", "full"),
    ("full", "lsh", "hybrid", "local"),
)


def random_ids(*shape: int, seed: int) -> Tensor:
    """Token ids that are neither padding (0) nor an end (1)."""
    return torch.randint(2, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Head:
    """One public model class, and how to feed it.

    Attributes:
        name: the test id.
        class_name: name of the model class in `reformer_hf`.
        auto_class: the Auto class that opens its checkpoints.
        task: what the labels are: `next_token`, `token` (of the vocabulary), `class`,
            `token_class`, `span`, `target`, or `None`.
        causal: scores of a position depend on nothing behind it.
    """

    name: str
    class_name: str
    auto_class: str
    task: str | None
    causal: bool = False

    @property
    def model_class(self) -> type[ReformerPreTrainedModel]:
        """The class itself."""
        model_class: type[ReformerPreTrainedModel] = getattr(reformer_hf, self.class_name)
        return model_class

    @property
    def seq2seq(self) -> bool:
        """It has an encoder and a decoder."""
        return self.auto_class == "AutoModelForSeq2SeqLM" or "Seq2Seq" in self.class_name

    @property
    def config_class(self) -> type[ReformerConfig]:
        """The class of its configuration."""
        return ReformerSeq2SeqConfig if self.seq2seq else ReformerConfig

    def config(self, **overrides: Any) -> ReformerConfig:
        """A tiny configuration."""
        return self.config_class(**{**(TINY_SEQ2SEQ if self.seq2seq else TINY), **overrides})

    def build(self, seed: int = 0, **overrides: Any) -> ReformerPreTrainedModel:
        """A tiny model in training mode; equal seeds give equal weights."""
        torch.manual_seed(seed)
        return self.model_class(self.config(**overrides)).train()

    def inputs(self, batch: int, length: int, seed: int = 1) -> Batch:
        """Everything that a forward pass without labels needs, without padding."""
        inputs = {"input_ids": random_ids(batch, length, seed=seed)}
        if self.seq2seq:
            inputs["decoder_input_ids"] = random_ids(batch, target_length(length), seed=seed + 1)
        return inputs

    def labels(self, batch: int, length: int, seed: int = 2) -> Batch:
        """Labels, some of them -100; empty for a bare model."""
        generator = torch.Generator().manual_seed(seed)
        if self.task is None:
            return {}
        if self.task == "class":
            return {"labels": torch.randint(0, NUM_LABELS, (batch,), generator=generator)}
        if self.task == "span":
            names = ("start_positions", "end_positions")
            return {n: torch.randint(0, length, (batch,), generator=generator) for n in names}
        columns = target_length(length) if self.task == "target" else length
        classes = NUM_LABELS if self.task == "token_class" else VOCAB
        labels = torch.randint(0, classes, (batch, columns), generator=generator)
        if columns > 2:
            labels[torch.rand(labels.shape, generator=generator) < 0.25] = IGNORED
            labels[:, 1] = 2  # at least one label of each row counts
        if self.task == "target" and columns > 4:
            labels[0, -2:] = IGNORED
        return {"labels": labels}

    def batch(self, batch: int, length: int, seed: int = 1) -> Batch:
        """Inputs and labels; where there are labels, decoder inputs are left to them."""
        inputs, labels = self.inputs(batch, length, seed), self.labels(batch, length, seed + 1)
        if labels:
            inputs.pop("decoder_input_ids", None)
        return {**inputs, **labels}

    def num_items(self, batch: Batch) -> int:
        """Labelled items of a batch, as the loss counts them."""
        if self.task in ("class", "span"):
            return batch["input_ids"].shape[0]
        labels = batch["labels"]
        return int(((labels[:, 1:] if self.task == "next_token" else labels) != IGNORED).sum())

    def scores(self, output: Any) -> Tensor:
        """What the model predicts: `[B, K]` for one prediction a row, else `[B, N, K]`."""
        if self.task is None:
            scores: Tensor = output.last_hidden_state
        elif self.task == "span":
            scores = torch.stack((output.start_logits, output.end_logits), dim=-1)
        else:
            scores = output.logits
        return scores

    def objective(self, output: Any) -> Tensor:
        """The loss; for a bare model some function of all its outputs."""
        if self.task is not None:
            loss: Tensor = output.loss
            return loss
        states = output.last_hidden_state
        pattern = torch.arange(states.numel(), dtype=torch.float32).view_as(states).cos()
        return (states * pattern).mean()


def target_length(length: int) -> int:
    """Length of the target for a source of `length` tokens: not the same, and shorter."""
    return max(1, min(length // 2 + 1, 40))


HEADS: tuple[Head, ...] = (
    Head("model", "ReformerModel", "AutoModel", None),
    Head("causal_lm", "ReformerForCausalLM", "AutoModelForCausalLM", "next_token", causal=True),
    Head("masked_lm", "ReformerForMaskedLM", "AutoModelForMaskedLM", "token"),
    Head(
        "sequence_classification",
        "ReformerForSequenceClassification",
        "AutoModelForSequenceClassification",
        "class",
    ),
    Head(
        "token_classification",
        "ReformerForTokenClassification",
        "AutoModelForTokenClassification",
        "token_class",
    ),
    Head(
        "question_answering",
        "ReformerForQuestionAnswering",
        "AutoModelForQuestionAnswering",
        "span",
    ),
    Head("seq2seq_model", "ReformerSeq2SeqModel", "AutoModel", None),
    Head("seq2seq_lm", "ReformerForConditionalGeneration", "AutoModelForSeq2SeqLM", "target"),
)
HEAD_OF: dict[str, Head] = {head.name: head for head in HEADS}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Gradients by name, of the parameters that have one."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def train_step(
    head: Head, model: ReformerPreTrainedModel, batch: Batch, seed: int = 7, **arguments: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one forward and backward pass from a given random state."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = head.objective(model(**batch, **arguments))
    loss.backward()
    return loss.detach(), gradients(model)


def pad_rows(rows: Sequence[Tensor], sides: str, extra: int = 0) -> tuple[Tensor, Tensor]:
    """A batch of rows of different lengths, and its mask.

    Args:
        rows: 1-D tensors of ids.
        sides: for every row the side on which it is padded, `"r"` or `"l"` (repeated as needed).
        extra: padding beyond the longest row.
    """
    length = max(row.shape[0] for row in rows) + extra
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        start = 0 if sides[i % len(sides)] == "r" else length - row.shape[0]
        ids[i, start : start + row.shape[0]] = row
        mask[i, start : start + row.shape[0]] = 1
    return ids, mask


def assert_close_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """`|actual - expected| <= tolerance |all expected|` (Euclidean norms) for every parameter.

    The tolerance is 1e-6, and 1e-11 in double precision. The scale is the gradient of all
    parameters together, since some gradients cancel to nothing (a bias before a softmax over
    positions, say) and consist of rounding errors.
    """
    assert actual.keys() == expected.keys()
    size = sum(float(wanted.square().sum()) for wanted in expected.values()) ** 0.5
    for name, wanted in expected.items():
        tolerance = 1e-11 if wanted.dtype == torch.float64 else 1e-6
        difference = float((actual[name] - wanted).norm())
        assert difference <= tolerance * size, f"{name}: {difference:.3g} of {size:.3g}"


def assert_equal_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every gradient is the same, bit for bit."""
    assert actual.keys() == expected.keys()
    unequal = [name for name, wanted in expected.items() if not torch.equal(actual[name], wanted)]
    assert not unequal
