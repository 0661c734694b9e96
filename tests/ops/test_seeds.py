from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_hf.ops.seeds import cpu_generator, fold_seed, fresh_seed

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=100)
INTEGERS = st.integers(min_value=-(2**70), max_value=2**70)


@EXAMPLES
@given(seed=INTEGERS, path=st.lists(INTEGERS, max_size=4))
def test_a_folded_seed_is_a_fixed_63_bit_number(seed, path):
    folded = fold_seed(seed, *path)
    assert 0 <= folded < 2**63
    assert folded == fold_seed(seed, *path)
    torch.Generator().manual_seed(folded)


def test_neighbouring_seeds_and_layers_never_share_a_folded_seed():
    paths = [(), *((i,) for i in range(64)), *itertools.product(range(16), range(16))]
    folded = [fold_seed(seed, *path) for seed in range(-5, 20) for path in paths]
    assert len(set(folded)) == len(folded)


def test_the_order_of_the_path_matters():
    assert fold_seed(7, 1, 2) != fold_seed(7, 2, 1)


def test_one_flipped_bit_of_the_seed_or_path_flips_about_half_the_bits():
    changed = []
    for bit in range(64):
        changed.append((fold_seed(3, 5) ^ fold_seed(3 ^ (1 << bit), 5)).bit_count())
        changed.append((fold_seed(3, 5) ^ fold_seed(3, 5 ^ (1 << bit))).bit_count())
    assert min(changed) >= 15
    assert 30 < sum(changed) / len(changed) < 33


def test_fresh_seed_follows_the_global_state_and_draws_one_number():
    torch.manual_seed(11)
    first = fresh_seed()
    after = torch.get_rng_state()
    torch.manual_seed(11)
    torch.randint(0, 2**62, ())
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(11)
    assert fresh_seed() == first
    assert fresh_seed() != first
    assert 0 <= first < 2**63


def test_a_generator_repeats_its_draws_and_leaves_the_global_state(untouched_random_state):
    with untouched_random_state:
        first = torch.randn(5, generator=cpu_generator(3))
        second = torch.randn(5, generator=cpu_generator(3))
        other = torch.randn(5, generator=cpu_generator(4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
