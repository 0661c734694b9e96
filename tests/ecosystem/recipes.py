"""What programs started in other processes and the tests that start them must agree on."""

from __future__ import annotations

from typing import Any

import torch

from reformer_hf import ReformerPreTrainedModel
from tests.models.builders import HEAD_OF, NO_DROPOUT, Batch, Head

# Head and overrides by test id. A chunked language-model head uses its weight without a call.
DATA_PARALLEL_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "causal_lm": ("causal_lm", {}),
    "causal_lm-chunked": ("causal_lm", {"chunk_size_lm_head": 8, "chunk_size_feed_forward": 16}),
    "causal_lm-untied": ("causal_lm", {"chunk_size_lm_head": 8, "tie_word_embeddings": False}),
    "seq2seq_lm": ("seq2seq_lm", {}),
    "sequence_classification": ("sequence_classification", {}),
}
# Which modules of which models FSDP2 shards: the sub-layers (and the rest as one), those that
# accelerate chooses, or the whole model as one.
WRAPPINGS: dict[str, tuple[str, ...]] = {
    "sub-layers": tuple(DATA_PARALLEL_HEADS),
    "accelerate": tuple(DATA_PARALLEL_HEADS),
    "root": ("causal_lm", "seq2seq_lm"),
}
# Modules that the reversible path cannot have sharded, and what the refusal says it got.
REFUSED: dict[str, str] = {
    "layers": "ReformerLayer: the layer",
    "projections": "FeedForward: so are modules inside",
}
SHARDED_STEPS = 2
ROWS, LENGTH = 4, 40
# Batches of a process that make up one optimizer step.
ACCUMULATED = 2
# An interrupted training run: optimizer steps, those that are saved, and the one that is cut off.
STEPS, SAVED_AT, KILLED_AT = 8, 3, 6


def model_and_batch(name: str, **overrides: Any) -> tuple[Head, ReformerPreTrainedModel, Batch]:
    """A small reversible model with fixed rotations, and a batch of `ROWS` rows."""
    head_name, options = DATA_PARALLEL_HEADS[name]
    head = HEAD_OF[head_name]
    options = {"hash_seed": 3, "attn_layers": ["local", "lsh", "lsh"], **options, **overrides}
    model = head.build(**{**NO_DROPOUT, **options})
    return head, model, head.batch(ROWS, LENGTH)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimizer whose step depends on the size of every gradient."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Over all elements of all gradients."""
    assert found.keys() == expected.keys()
    differences = ((found[name] - wanted.detach()).abs().max() for name, wanted in expected.items())
    return max(map(float, differences))
