"""Seeds of one forward pass."""

from __future__ import annotations

import torch

from reformer_hf import ReformerConfig
from reformer_hf.configuration_reformer import DEFAULT_HASH_SEED
from reformer_hf.layers.context import draw_seeds


def test_evaluation_uses_a_fixed_seed_and_no_generator() -> None:
    state = torch.get_rng_state()
    assert draw_seeds(ReformerConfig(), training=False) == (DEFAULT_HASH_SEED, 0)
    assert draw_seeds(ReformerConfig(hash_seed=9), training=False) == (9, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_draws_both_seeds_anew_and_reproducibly() -> None:
    config = ReformerConfig()
    torch.manual_seed(1)
    first = [draw_seeds(config, training=True) for _ in range(3)]
    torch.manual_seed(1)
    assert [draw_seeds(config, training=True) for _ in range(3)] == first
    assert len({seed for pair in first for seed in pair}) == 6


def test_a_configured_seed_fixes_the_hashes_but_not_the_dropout() -> None:
    config = ReformerConfig(hash_seed=9)
    pairs = [draw_seeds(config, training=True) for _ in range(3)]
    assert {hash_seed for hash_seed, _ in pairs} == {9}
    assert len({dropout_seed for _, dropout_seed in pairs}) == 3


def test_a_configured_seed_leaves_the_random_state_as_a_drawn_one_does() -> None:
    states = []
    for hash_seed in (None, 9):
        torch.manual_seed(1)
        draw_seeds(ReformerConfig(hash_seed=hash_seed), training=True)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
