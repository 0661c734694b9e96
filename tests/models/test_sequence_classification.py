"""Classes, several labels at once, numbers; and what the classifier reads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from reformer_hf.models.sequence_classification import pool
from tests.models.builders import HEAD_OF, train_step

HEAD = HEAD_OF["sequence_classification"]
GENERATOR = torch.Generator()


def random_labels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=GENERATOR.manual_seed(1))


CASES = {
    "single-label": (3, torch.tensor([0, 2]), lambda x, y: F.cross_entropy(x, y)),
    "multi-label": (
        3,
        random_labels(2, 3).round(),
        lambda x, y: F.binary_cross_entropy_with_logits(x, y),
    ),
    "regression": (1, random_labels(2), lambda x, y: F.mse_loss(x.squeeze(-1), y)),
    "regression-column": (1, random_labels(2, 1), lambda x, y: F.mse_loss(x, y)),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_follows_from_the_labels_and_nothing_is_written_to_the_configuration(
    name: str,
) -> None:
    num_labels, labels, loss = CASES[name]
    model = HEAD.build(num_labels=num_labels).eval()
    before = model.config.to_dict()
    output = model(**HEAD.inputs(2, 30), labels=labels)
    assert output.logits.shape == (2, num_labels)
    assert output.loss.item() == pytest.approx(loss(output.logits, labels).item(), rel=1e-6)
    assert model.config.problem_type is None
    assert model.config.to_dict() == before


def test_a_stated_problem_type_wins_over_the_look_of_the_labels() -> None:
    inputs, labels = HEAD.inputs(2, 30), torch.tensor([[0, 1, 1], [1, 0, 1]])
    model = HEAD.build(problem_type="multi_label_classification").eval()
    output = model(**inputs, labels=labels)
    expected = F.binary_cross_entropy_with_logits(output.logits, labels.float())
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    model = HEAD.build(problem_type="regression").eval()
    output = model(**inputs, labels=labels)
    expected = F.mse_loss(output.logits, labels.float())
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_ignored_rows_have_no_loss() -> None:
    model = HEAD.build().eval()
    inputs = HEAD.inputs(2, 30)
    output = model(**inputs, labels=torch.tensor([2, -100]))
    expected = F.cross_entropy(output.logits[:1], torch.tensor([2]))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_mean_pooling_is_the_mean_of_real_tokens() -> None:
    states = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    pooled = pool(states, mask, "mean")
    assert torch.allclose(pooled[0], states[0, :2].mean(0))
    assert torch.allclose(pooled[1], states[1, 2:].mean(0))
    assert not pooled[2].any()
    assert torch.allclose(pool(states, None, "mean"), states.mean(1), atol=1e-6)


def test_first_pooling_is_the_first_real_token() -> None:
    states = torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    pooled = pool(states, mask, "first")
    assert torch.equal(pooled, torch.stack((states[0, 0], states[1, 2])))
    assert torch.equal(pool(states, None, "first"), states[:, 0])


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_both_poolings_train(pooling: str) -> None:
    model = HEAD.build(classifier_pooling=pooling)
    loss, gradients = train_step(HEAD, model, HEAD.batch(2, 30))
    assert torch.isfinite(loss)
    assert all(gradient.any() for gradient in gradients.values())


def test_poolings_differ() -> None:
    mean = HEAD.build(classifier_pooling="mean").eval()
    first = HEAD.build(classifier_pooling="first").eval()
    inputs = HEAD.inputs(2, 30)
    assert not torch.allclose(mean(**inputs).logits, first(**inputs).logits)


def test_dropout_of_the_classifier_is_its_own() -> None:
    inputs = HEAD.inputs(2, 30)
    options = {"hidden_dropout_prob": 0.0, "hash_seed": 1}
    still = HEAD.build(classifier_dropout=None, **options)
    assert torch.equal(still(**inputs).logits, still(**inputs).logits)
    dropping = HEAD.build(classifier_dropout=0.5, **options)
    assert not torch.equal(dropping(**inputs).logits, dropping(**inputs).logits)
    assert torch.equal(dropping.eval()(**inputs).logits, still.eval()(**inputs).logits)
