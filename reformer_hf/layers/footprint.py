"""What a sub-layer costs: counted once, for the planner of kept activations and the estimate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassShape:
    """What the cost of a forward and backward pass depends on, beside the configuration.

    Attributes:
        batch: ``B``.
        length: ``N``; where sequences are split, tokens of one rank.
        width: bytes of a number in the arithmetic (2 under autocast).
        stream_width: bytes of a number of a stream, as it is stored and as it is read.
        num_hashes: hash rounds of the pass; ``None``: the configured ones.
        source_length: tokens of the source, ``M``, that a decoder attends to.
        device: type of the device.
        ranks: over how many ranks sequences are split.
    """

    batch: int
    length: int
    width: int = 4
    stream_width: int = 4
    num_hashes: int | None = None
    source_length: int = 0
    device: str = "cpu"
    ranks: int = 1

    @property
    def positions(self) -> int:
        """``n = B N``."""
        return self.batch * self.length

    @property
    def copies(self) -> int:
        """1 under autocast, which casts what a projection reads for every projection; else 0."""
        return int(self.width < 4)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one sub-layer in one pass.

    Attributes:
        saved: what autograd keeps of the whole call for its backward pass, the stream that is read
            included.
        recomputed: the same of as many positions as are recomputed together.
        working: what the backward pass needs besides, at its peak.
        results: of what is saved, the results that operations keep of themselves (see
            :mod:`reformer_hf.ops.kept_results`), as they keep them.
        last_product: multiplications of the product that ends the sub-layer; 0 if it cannot be left
            out.
    """

    saved: int
    recomputed: int
    working: int
    last_product: int
    results: int = 0
