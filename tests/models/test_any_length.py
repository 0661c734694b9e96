"""Any length trains, with the default configuration."""

from __future__ import annotations

import pytest
import torch

from tests.models.builders import HEAD_OF, HEADS, NUM_LABELS, Head, random_ids, train_step

LENGTHS = (1, 2, 63, 64, 65, 1000, 4097)
LONG = 4097

# (head, length): the longest length takes seconds, so by default only one head runs it.
CASES = [
    pytest.param(
        head,
        length,
        id=f"{head.name}-{length}",
        marks=[pytest.mark.slow] if length == LONG and head.name != "causal_lm" else [],
    )
    for head in HEADS
    for length in LENGTHS
]


@pytest.fixture(scope="module")
def default_models() -> dict[str, torch.nn.Module]:
    """Models made so far, by head."""
    return {}


@pytest.mark.parametrize(("head", "length"), CASES)
def test_every_length_trains_and_every_parameter_gets_a_gradient(
    head: Head, length: int, default_models: dict[str, torch.nn.Module]
) -> None:
    if head.name not in default_models:
        torch.manual_seed(0)
        default_models[head.name] = head.model_class(head.config_class(num_labels=NUM_LABELS))
    model = default_models[head.name].train()
    loss, gradients = train_step(head, model, head.batch(1, length))
    assert torch.isfinite(loss)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(torch.isfinite(g).all() for g in gradients.values())
    if length >= 63:
        # Shorter inputs leave some of them at zero, since a lone token has nothing to choose from.
        assert all(g.any() for g in gradients.values())


def test_longest_length_of_the_configuration_trains_and_one_more_token_is_refused() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(max_position_embeddings=100)
    loss, _ = train_step(head, model, head.batch(2, 100))
    assert torch.isfinite(loss)
    with pytest.raises(ValueError, match="max_position_embeddings=100 tokens, got 101"):
        model(**head.inputs(2, 101))


def test_source_and_target_lengths_are_independent() -> None:
    head = HEAD_OF["seq2seq_lm"]
    model = head.build()
    for source, target in ((300, 1), (1, 300), (17, 17)):
        batch = {
            "input_ids": random_ids(2, source, seed=1),
            "labels": random_ids(2, target, seed=2),
        }
        output = model(**batch)
        assert output.logits.shape == (2, target, 61)
        assert output.encoder_last_hidden_state.shape == (2, source, 32)
        assert torch.isfinite(output.loss)
