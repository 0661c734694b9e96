"""Hash families: every token goes into one of ``nb`` buckets, once per round.

Similar vectors should share a bucket; attention then only looks inside buckets.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_hf.choices import HASH_FAMILIES
from reformer_hf.ops.head_share import HeadShare, numbering
from reformer_hf.ops.seeds import cpu_generator
from reformer_hf.ops.triton_support import usable_on

# Above this many buckets one arg-max over all of them costs more than two over the factors.
_FACTORIZE_ABOVE = 128
# Projections are formed for as many tokens at a time as keep this many numbers (2 MiB of fp32).
_BLOCK_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class HashSettings:
    """How a layer hashes.

    Attributes:
        num_hashes: rounds, ``R``.
        seed: of the projections; equal seeds hash equal vectors alike, on every device.
        num_buckets: ``nb``, or its factors (see :func:`factorize_buckets`); ``None``: chosen for
            the real tokens of each row.
        family: one of ``HASH_FAMILIES``:

            * ``angular``: ``argmax([xR; -xR])`` with a Gaussian ``R``. Vectors at a small angle
              collide. Source: Andoni et al. 2015 (arXiv:1509.02897); Reformer, section 2
              (arXiv:2001.04451).
            * ``euclidean``: ``floor((x . a + u) / width) mod nb``, the p-stable scheme. Source:
              Datar et al. 2004, "Locality-sensitive hashing scheme based on p-stable
              distributions".
            * ``random``: a bucket drawn for each position, independent of the content: the baseline
              against which the other two are worth their cost.
        bucket_width: width of a Euclidean bucket, in units of the vectors.
        planned_lengths: tokens that every row will have in the end, if a number of buckets is to be
            chosen for them and not for those at hand.
        heads: which of a layer's heads are hashed; ``None``: all.

    Raises:
        ValueError: unknown family.
    """

    num_hashes: int
    seed: int
    num_buckets: int | Sequence[int] | None = None
    family: str = "angular"
    bucket_width: float = 1.0
    planned_lengths: Sequence[int] | None = None
    heads: HeadShare | None = None

    def __post_init__(self) -> None:
        if self.family not in HASH_FAMILIES:
            raise ValueError(f"`family` must be one of {HASH_FAMILIES}, got {self.family!r}")


def choose_num_buckets(length: int, window: int) -> int:
    """The largest power of two with ``nb * window <= length``: buckets for a sequence.

    A bucket then holds between ``window`` and ``2 * window`` tokens on average, so that a window
    covers most of its bucket while no window is wider than the bucket it looks at.

    Args:
        length: real tokens of the sequence.
        window: tokens that one token may attend to in a round, ``W``.

    Returns:
        A power of two, at least 1 (one bucket: no hashing at all).
    """
    return 1 << max(0, (length // max(1, window)).bit_length() - 1)


def factorize_buckets(num_buckets: int | Sequence[int]) -> tuple[int, ...]:
    """Split a number of buckets into the factors that are hashed separately.

    ``bucket = h_0 + b_0 * h_1`` with ``h_f`` in ``[0, b_f)`` needs ``b_0 + b_1`` projections
    instead of ``b_0 * b_1``. A sequence is taken as it is; an integer above 128 that is a power of
    two is split into two near-equal powers of two.

    Raises:
        ValueError: a factor is neither 1 nor even (each projection serves two buckets, its sign).
    """
    factors = (num_buckets,) if isinstance(num_buckets, int) else tuple(num_buckets)
    if not factors or any(b < 1 or (b > 1 and b % 2) for b in factors):
        raise ValueError(
            f"`num_buckets` must be 1 or even, as must each of its factors, got {num_buckets!r}"
        )
    single = isinstance(num_buckets, int)
    if single and factors[0] > _FACTORIZE_ABOVE and factors[0].bit_count() == 1:
        bits = factors[0].bit_length() - 1
        factors = (1 << (bits // 2), 1 << (bits - bits // 2))
    return factors


def angular_rotations(
    num_heads: int,
    head_size: int,
    num_hashes: int,
    factors: Sequence[int],
    generator: torch.Generator,
) -> Tensor:
    """Gaussian projections of the angular hash.

    Returns:
        ``[H, D, R, sum(factors) / 2]`` fp32 on the CPU: the layout and the order of drawing of
        transformers' Reformer, so that equal seeds give equal rotations.
    """
    columns = sum(b // 2 for b in factors)
    shape = (num_heads, head_size, num_hashes, columns)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _angular_block(vectors: Tensor, rotations: Tensor, factors: Sequence[int]) -> Tensor:
    """Buckets ``[B, H, n, R]`` of ``[B, H, n, D]`` vectors under ``[H, D, R * cols]`` rotations."""
    num_hashes = rotations.shape[2]
    projected = torch.matmul(vectors, rotations.flatten(2)).unflatten(-1, (num_hashes, -1))
    buckets: Tensor | None = None
    start, stride = 0, 1
    for size in factors:
        half = size // 2
        part = projected[..., start : start + half]
        # argmax([p; -p]) without forming the concatenation: the largest |p|, then its sign.
        largest, index = part.abs().max(dim=-1, keepdim=True)
        negative = part.gather(-1, index) != largest
        hashed = (index + half * negative).squeeze(-1) * stride
        buckets = hashed if buckets is None else buckets + hashed
        start, stride = start + half, stride * size
    if buckets is None:
        raise ValueError("`factors` must name at least one factor, got none")
    return buckets


def _euclidean_block(
    vectors: Tensor, directions: Tensor, offsets: Tensor, width: float, num_buckets: int
) -> Tensor:
    """Buckets ``[B, H, n, R]``: ``floor((x . a + u) / width) mod nb``."""
    projected = torch.matmul(vectors, directions)
    return torch.floor((projected + offsets) / width).to(torch.int64).remainder(num_buckets)


@dataclass(frozen=True)
class HashProjections:
    """What a hash function draws; drawn once, it hashes any number of vectors alike.

    Attributes:
        family: one of ``HASH_FAMILIES``.
        num_hashes: rounds, ``R``.
        factors: of the number of buckets; factors of one bucket have no projection.
        weights: ``angular``: ``[H, D, R, cols]``; ``euclidean``: directions ``[H, D, R]``;
            ``random``: the bucket of every position, ``[positions, H, R]`` int64.
        offsets: ``[H, 1, R]``, in units of the vectors (``euclidean`` only).
        bucket_width: width of a Euclidean bucket.
    """

    family: str
    num_hashes: int
    factors: tuple[int, ...]
    weights: Tensor
    offsets: Tensor | None = None
    bucket_width: float = 1.0

    @property
    def num_buckets(self) -> int:
        """Buckets of a round, ``nb``."""
        return math.prod(self.factors)


def draw_projections(
    settings: HashSettings,
    factors: Sequence[int],
    num_heads: int,
    head_size: int,
    *,
    num_positions: int = 0,
    device: torch.device | None = None,
) -> HashProjections:
    """Draw the hash functions of all heads and rounds, the same ones on every device.

    Args:
        settings: rounds, seed and family.
        factors: of the number of buckets, from :func:`factorize_buckets`.
        num_heads: ``H``, of the call.
        head_size: ``D``.
        num_positions: positions that can be hashed (``random`` only). More of them leave the
            buckets of the first ones as they are.
        device: where the vectors will be.
    """
    factors, rounds = tuple(factors), settings.num_hashes
    first, all_heads = numbering(settings.heads, num_heads)
    own = slice(first, first + num_heads)
    generator = cpu_generator(settings.seed)
    if settings.family == "random":
        shape = (num_positions, all_heads, rounds)
        table = torch.randint(0, math.prod(factors), shape, generator=generator)[:, own]
        return HashProjections(settings.family, rounds, factors, table.to(device))
    if settings.family == "angular":
        hashed = tuple(b for b in factors if b > 1)
        rotations = angular_rotations(all_heads, head_size, rounds, hashed, generator)
        return HashProjections(settings.family, rounds, factors, rotations[own].to(device))
    width = settings.bucket_width
    directions = torch.randn((all_heads, head_size, rounds), generator=generator)[own]
    offsets = torch.rand((all_heads, 1, rounds), generator=generator)[own] * width
    return HashProjections(
        settings.family, rounds, factors, directions.to(device), offsets.to(device), width
    )


def _project_block(vectors: Tensor, projections: HashProjections) -> Tensor:
    """Buckets ``[B, H, n, R]`` of ``[B, H, n, D]`` fp32 vectors."""
    if projections.offsets is not None:
        return _euclidean_block(
            vectors,
            projections.weights,
            projections.offsets,
            projections.bucket_width,
            projections.num_buckets,
        )
    factors = tuple(b for b in projections.factors if b > 1)
    return _angular_block(vectors, projections.weights, factors)


@torch.no_grad()
def apply_projections(
    vectors: Tensor,
    projections: HashProjections,
    positions: Tensor | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Hash vectors with projections drawn before.

    Always computed in fp32, whatever the model's dtype: rounding flips an arg-max.

    Args:
        vectors: ``[B, H, N, D]``, any floating dtype.
        projections: from :func:`draw_projections`.
        positions: ``[B, N]`` int64 (``random`` only; default ``0 .. N-1``).
        centre: ``[B, H, 1, D]`` fp32, taken from all vectors before they are hashed.

    Returns:
        ``[B, H, R, N]`` int64 in ``[0, nb)``.
    """

    def centred(part: Tensor) -> Tensor:
        return part.float() if centre is None else part.float() - centre

    batch, heads, length, _ = vectors.shape
    num_hashes, device = projections.num_hashes, vectors.device
    if projections.num_buckets == 1:
        return vectors.new_zeros((batch, heads, num_hashes, length), dtype=torch.int64)
    if projections.family == "random":
        table = projections.weights
        if positions is None:
            return table[:length].permute(1, 2, 0).expand(batch, -1, -1, -1)
        return table[positions].permute(0, 2, 3, 1)
    if projections.offsets is None and usable_on(device):
        from reformer_hf.ops import triton_hash

        factors = tuple(b for b in projections.factors if b > 1)
        if triton_hash.fits(vectors, factors):
            return triton_hash.hash_angular(
                vectors if centre is None else centred(vectors), projections.weights, factors
            )
    plain: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if torch.is_autocast_enabled(device.type):
        plain = torch.autocast(device.type, enabled=False)
    with plain:
        columns = projections.weights[0, 0].numel()
        block = max(1, _BLOCK_ELEMENTS // max(1, batch * heads * columns))
        if length <= block:
            return _project_block(centred(vectors), projections).transpose(2, 3)
        buckets = torch.empty((batch, heads, num_hashes, length), dtype=torch.int64, device=device)
        for start in range(0, length, block):
            part = vectors[:, :, start : start + block]
            hashed = _project_block(centred(part), projections)
            buckets[..., start : start + block] = hashed.transpose(2, 3)
    return buckets
