"""What is measured: one workload at one size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

# Suites of the runner. `model` and `depth` train a language model, `attention` runs one layer's
# attention alone, `prefill` reads a context for generation, `decoding` one token after it; `hybrid`
# runs attention with queries and keys apart, `pretrained` trains a transformer in it.
SUITES = ("model", "depth", "attention", "prefill", "decoding", "hybrid", "pretrained")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one measurement; the defaults are the common model.

    Attributes:
        length: tokens of a sequence, ``N``.
        batch: sequences, ``B``.
        depth: layers, all of them LSH attention where the contender has it.
        hidden_size: width of the residual stream, ``d``.
        num_heads: heads, ``H``.
        head_size: features of a head, ``D``.
        feed_forward_size: inner width of the feed-forward layers.
        vocab_size: tokens of the vocabulary, ``V``.
        chunk_length: tokens of an LSH chunk, ``C``; one chunk of look-back.
        rounds: hash rounds, ``R``.
        feed_forward_slice: positions that a feed-forward layer processes together, for contenders
            that can slice.
        dtype: ``float32``, or the dtype of autocast (model suites) or of the tensors (attention).
        device: where tensors live.
        threads: threads of the CPU.
        seed: seed of weights and inputs.
    """

    length: int
    batch: int = 1
    depth: int = 6
    hidden_size: int = 512
    num_heads: int = 8
    head_size: int = 64
    feed_forward_size: int = 2048
    vocab_size: int = 320
    chunk_length: int = 64
    rounds: int = 2
    feed_forward_slice: int = 4096
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        for name, value in sizes.items():
            if value < (0 if name == "seed" else 1):
                raise ValueError(f"`{name}` must be positive, got {value}")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {sorted(DTYPES)}, got {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return DTYPES[self.dtype]

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``, without an index."""
        return torch.device(self.device).type

    def settings(self) -> dict[str, Any]:
        """All sizes but the two that vary within a run, for the results file."""
        return {k: v for k, v in asdict(self).items() if k not in ("length", "depth", "batch")}
