"""A forward pass leaves no trace, and randomness is what the seed says."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch

from tests.models.builders import ALL_DROPOUTS, HEAD_OF, NO_DROPOUT, Head, random_ids, train_step


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_forward_leaves_the_configuration_alone(head: Head, training: bool) -> None:
    model = head.build().train(training)
    before = copy.deepcopy(model.config.to_dict())
    head.objective(model(**head.batch(2, 90))).backward()
    model(**head.batch(1, 30), output_hidden_states=True)
    assert model.config.to_dict() == before


def test_evaluation_leaves_all_random_states_alone(head: Head) -> None:
    model = head.build(**ALL_DROPOUTS).eval()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    head.objective(model(**head.batch(2, 90))).backward()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_evaluation_is_deterministic_whatever_came_before(head: Head) -> None:
    model = head.build().eval()
    batch = head.batch(2, 90)
    with torch.no_grad():
        first = head.scores(model(**batch))
        model(**head.batch(1, 300, seed=8))
        model.train()(**head.batch(3, 5, seed=9))
        torch.randn(7)
        second = head.scores(model.eval()(**batch))
    assert torch.equal(first, second)


def test_equal_seeds_give_equal_losses_and_gradients_bit_for_bit(head: Head) -> None:
    model = head.build(**ALL_DROPOUTS)
    batch = head.batch(2, 90)
    loss, expected = train_step(head, model, batch, seed=3)
    again, found = train_step(head, model, batch, seed=3)
    assert torch.equal(loss, again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm"])
def test_training_hashes_afresh_in_every_pass(name: str) -> None:
    head = HEAD_OF[name]
    model = head.build(attn_layers=["lsh"], hash_seed=None, **NO_DROPOUT).train()
    ids = random_ids(1, 200, seed=1)
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm"])
def test_a_hash_seed_fixes_the_hashes_in_training_too(name: str) -> None:
    head = HEAD_OF[name]
    model = head.build(attn_layers=["lsh"], hash_seed=4, **NO_DROPOUT).train()
    ids = random_ids(1, 200, seed=1)
    with torch.no_grad():
        first = model(ids).logits
        assert torch.equal(model(ids).logits, first)
        assert torch.equal(model.eval()(ids).logits, first)
        model.config.hash_seed = 5
        assert not torch.equal(model(ids).logits, first)


def test_layers_of_one_pass_hash_differently() -> None:
    head = HEAD_OF["model"]
    model = head.build(attn_layers=["lsh", "lsh"], **NO_DROPOUT).eval()
    first, second = model.stack.layers
    second.load_state_dict(first.state_dict())
    ids = random_ids(1, 200, seed=1)
    with torch.no_grad():
        different = model(ids).last_hidden_state
        second.attention.layer_index = 0
        assert not torch.equal(model(ids).last_hidden_state, different)


def test_number_of_rounds_can_be_changed_for_one_call(head: Head) -> None:
    model = head.build(num_hashes=1).eval()
    more = head.build(num_hashes=3).eval()
    batch = head.batch(2, 90)
    with torch.no_grad():
        once = head.scores(model(**batch))
        assert torch.equal(head.scores(model(**batch, num_hashes=3)), head.scores(more(**batch)))
        assert not torch.equal(head.scores(model(**batch, num_hashes=3)), once)
        assert torch.equal(head.scores(model(**batch)), once)
    assert model.config.num_hashes == 1
