"""What all layers of one forward pass share."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from reformer_hf.cache import ReformerCache
from reformer_hf.configuration_reformer import DEFAULT_HASH_SEED, ReformerConfig
from reformer_hf.ops.head_share import HeadShare
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.rotary import RotaryTables
from reformer_hf.ops.seeds import fold_seed, fresh_seed
from reformer_hf.ops.sequence_group import SequenceGroup, SequenceShard


@dataclass(frozen=True)
class ForwardContext:
    """Settings of one forward pass through a stack; layers read it and never change it.

    Attributes:
        padding: which tokens are real; ``None`` if all are.
        hash_seed: seed of the hash rotations of this pass.
        dropout_seed: seed of the attention dropout of this pass.
        encoder_real: ``[B, M]`` bool, which encoder tokens are real; ``None`` if all are.
        num_hashes: overrides the configured number of hash rounds.
        num_buckets: overrides the configured number of buckets.
        output_attentions: attention layers return their weights.
        planned_lengths: tokens of every row that numbers of buckets are chosen for, if not those
            of the pass.
        cache: the tokens before the new ones, which attend to them and go into it.
        shard: this rank's part of the tokens, where sequences are split; ``padding`` is that of
            whole rows.
        source_shard: likewise of the encoder's tokens; ``encoder_real`` is that of whole rows.
        unbroken: where sequences are split, real tokens stand side by side in every row.
        cross_cache: where cross-attention layers keep the keys and values of the encoder's output,
            and find them in the next decoding step.
        rotary: by what layers with rotary positions turn their queries and keys; ``None``: not at
            all.
    """

    padding: Padding | None
    hash_seed: int
    dropout_seed: int
    encoder_real: Tensor | None = None
    num_hashes: int | None = None
    num_buckets: int | list[int] | None = None
    output_attentions: bool = False
    planned_lengths: tuple[int, ...] | None = None
    shard: SequenceShard | None = None
    unbroken: bool = False
    source_shard: SequenceShard | None = None
    cache: ReformerCache | None = field(default=None, compare=False)
    cross_cache: EncoderDecoderCache | None = field(default=None, compare=False)
    rotary: RotaryTables | None = field(default=None, compare=False)

    def head_share(self, num_heads: int) -> HeadShare | None:
        """Which of a layer's heads attend here; ``None``: all."""
        if self.shard is None:
            return None
        return HeadShare(self.shard.heads(num_heads)[0], num_heads)

    @property
    def group(self) -> SequenceGroup | None:
        """Who takes part in this pass besides, each with a part of the tokens or of the source."""
        either = self.shard or self.source_shard
        return None if either is None else either.group

    def randomness(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """Where dropout draws: ranks that share a sequence differ by their tokens alone."""
        if self.shard is not None:
            return self.shard.randomness(self.dropout_seed, device)
        if self.source_shard is not None:
            return self.source_shard.randomness(self.dropout_seed, device, own=False)
        return contextlib.nullcontext()


def draw_seeds(config: ReformerConfig, training: bool) -> tuple[int, int]:
    """Seeds of hashing and of attention dropout for one forward pass.

    Training draws fresh ones (a single number from torch's global generator, so that seeding and
    resuming reproduce a run) unless ``config.hash_seed`` fixes the rotations. Evaluation always
    hashes with the same rotations and touches no generator.
    """
    fixed = DEFAULT_HASH_SEED if config.hash_seed is None else config.hash_seed
    if not training:
        return fixed, 0
    seed = fresh_seed()
    return (fold_seed(seed, 1) if config.hash_seed is None else fixed), fold_seed(seed, 2)
