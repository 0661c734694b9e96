"""Training in half precision and extreme inputs stay finite, in every head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerPreTrainedModel
from tests.models.builders import ALL_DROPOUTS, HEAD_OF, Batch, Head, train_step

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def train(head: Head, dtype: torch.dtype, steps: int) -> list[float]:
    """Losses of clipped steps under autocast; every loss and gradient norm must be finite."""
    model = head.build(**ALL_DROPOUTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        batch = head.batch(2, 30 + step % 40, seed=step % 4)
        with torch.autocast("cpu", dtype=dtype):
            loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        assert torch.isfinite(loss), f"step {step}: loss {loss}, gradient norm {norm}"
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    return losses


@HALF
@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_training_under_autocast_stays_finite(name: str, dtype: torch.dtype) -> None:
    train(HEAD_OF[name], dtype, 20)


@pytest.mark.slow
@HALF
def test_300_steps_under_autocast_stay_finite_and_learn(
    head_with_loss: Head, dtype: torch.dtype
) -> None:
    losses = train(head_with_loss, dtype, 300)
    assert sum(losses[-40:]) < sum(losses[:40])


# ---- extreme inputs ----


def extreme(kind: str, batch: Batch) -> Batch:
    """The batch with one token everywhere, or with padding in all places but one or in all."""
    batch = dict(batch)
    for name in ("input_ids", "decoder_input_ids"):
        if name in batch and kind == "equal":
            batch[name] = torch.full_like(batch[name], 5)
    if kind in ("one-token", "one-token-on-the-right", "padding-only"):
        mask = torch.zeros_like(batch["input_ids"])
        if kind != "padding-only":
            mask[:, 0 if kind == "one-token" else -1] = 1
        batch["attention_mask"] = mask
        if "labels" in batch and batch["labels"].shape == mask.shape:
            batch["labels"] = batch["labels"].masked_fill(mask == 0, -100)
    return batch


def assert_finite(head: Head, model: ReformerPreTrainedModel, batch: Batch) -> None:
    """Scores, loss and gradients, in training mode and in evaluation."""
    loss, grads = train_step(head, model, batch)
    # Where no label counts, a mean over them is undefined, in any model.
    if "labels" not in batch or bool((batch["labels"] != -100).any()):
        assert torch.isfinite(loss), loss
        assert grads.keys() == dict(model.named_parameters()).keys()
        wrong = [name for name, grad in grads.items() if not torch.isfinite(grad).all()]
        assert not wrong
    with torch.no_grad():
        assert torch.isfinite(head.scores(model.eval()(**batch))).all()


@pytest.mark.parametrize("length", [1, 2, 100])
@pytest.mark.parametrize("kind", ["equal", "one-token", "one-token-on-the-right", "padding-only"])
def test_extreme_batches_are_finite(head: Head, kind: str, length: int) -> None:
    model = head.build(attn_layers=["lsh", "local", "full"])
    assert_finite(head, model, extreme(kind, head.batch(2, length)))


@pytest.mark.parametrize("pattern", ["window", "chunk"])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_equal_tokens_are_finite_in_both_patterns(head: Head, pattern: str, backend: str) -> None:
    model = head.build(attention_pattern=pattern, attention_backend=backend)
    for kind in ("equal", "one-token"):
        assert_finite(head, model.train(), extreme(kind, head.batch(2, 33)))


@HALF
def test_extreme_batches_are_finite_in_half_precision(head: Head, dtype: torch.dtype) -> None:
    model = head.build(attn_layers=["lsh", "local", "full"])
    with torch.autocast("cpu", dtype=dtype):
        for kind in ("equal", "one-token", "one-token-on-the-right"):
            assert_finite(head, model.train(), extreme(kind, head.batch(2, 33)))


def test_a_vocabulary_of_one_token_is_finite(head: Head) -> None:
    model = head.build(vocab_size=1, eos_token_id=None)
    only_token = {name: torch.zeros_like(value) for name, value in head.batch(2, 40).items()}
    assert_finite(head, model, only_token)


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e18], ids=str)
def test_embeddings_of_any_size_are_finite(scale: float) -> None:
    # The layers read normalised streams; hashing and attention normalise again.
    head = HEAD_OF["causal_lm"]
    model = head.build(exact_reversible=False, attn_layers=["lsh", "local", "full"])
    embedded: Tensor = torch.randn(2, 50, model.config.hidden_size) * scale
    model(inputs_embeds=embedded, labels=head.batch(2, 50)["labels"]).loss.backward()
    named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert named
    assert all(torch.isfinite(grad).all() for grad in named.values())
