"""Seeds: one integer per forward pass, from which every layer derives its own.

Nothing in the package reads or writes the global random state in evaluation. Randomness that has
to be replayed (hash rotations, attention dropout) comes from plain integers, so replaying it
means passing the same integer again.
"""

from __future__ import annotations

import torch

_MASK64 = (1 << 64) - 1


def fold_seed(seed: int, *path: int) -> int:
    """Derive an independent 63-bit seed from ``seed`` and a path of integers.

    Each step is one round of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable
    pseudorandom number generators") over the running state plus the path element, so that
    neighbouring layers and neighbouring seeds give unrelated streams.

    Args:
        seed: any integer.
        *path: for example ``(layer_index,)`` or ``(layer_index, purpose)``.

    Returns:
        An integer in ``[0, 2**63)``, which ``torch.Generator.manual_seed`` accepts.
    """
    state = seed & _MASK64
    for element in (*path, 0):
        state = (state + (element & _MASK64) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state >> 1


def fresh_seed() -> int:
    """Draw one seed from torch's global CPU generator (training only).

    Drawing it there makes ``torch.manual_seed`` and a Trainer's saved random state reproduce a
    run bit for bit. One number is drawn per forward pass, whatever the depth.
    """
    return int(torch.randint(0, 2**62, (), dtype=torch.int64).item())


def cpu_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, whatever the model's device: equal draws on every machine."""
    return torch.Generator(device="cpu").manual_seed(seed)
