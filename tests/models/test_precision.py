"""Half-precision models and autocast give finite numbers, close to those of fp32."""

from __future__ import annotations

import pytest
import torch

from reformer_hf.layers import stack
from tests.models.builders import ALL_DROPOUTS, HEAD_OF, NO_DROPOUT, Head, train_step

LAYERS = {"attn_layers": ["local", "lsh", "full"], "decoder_attn_layers": ["full", "lsh", "local"]}


def options(head: Head) -> dict[str, list[str]]:
    return {k: v for k, v in LAYERS.items() if head.seq2seq or k == "attn_layers"}


def padded_batch(head: Head) -> dict[str, torch.Tensor]:
    batch = head.batch(2, 60)
    batch["attention_mask"] = torch.ones(2, 60)
    batch["attention_mask"][1, 25:] = 0
    for name in ("start_positions", "end_positions"):
        if name in batch:
            batch[name] %= 25
    return batch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "plain-sums"])
def test_models_of_any_dtype_train(head: Head, dtype: torch.dtype, exact: bool) -> None:
    model = head.build(exact_reversible=exact, **options(head), **ALL_DROPOUTS).to(dtype)
    batch = padded_batch(head)
    loss, gradients = train_step(head, model, batch)
    assert torch.isfinite(loss)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert {gradient.dtype for gradient in gradients.values()} == {dtype}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    scores = head.scores(model(**batch))
    assert scores.dtype == dtype
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_and_keeps_gradients_in_fp32(head: Head, dtype: torch.dtype) -> None:
    model = head.build(**options(head), **ALL_DROPOUTS)
    with torch.autocast("cpu", dtype):
        loss, gradients = train_step(head, model, padded_batch(head))
    assert torch.isfinite(loss)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("way", ["model", "autocast"])
def test_bf16_is_close_to_fp32(way: str) -> None:
    # Local and full attention only: a hash of rounded vectors is another hash.
    head = HEAD_OF["causal_lm"]
    model = head.build(attn_layers=["local", "full"], **NO_DROPOUT).eval()
    ids = head.inputs(2, 60)
    with torch.no_grad():
        expected = model(**ids).logits
        if way == "model":
            actual = model.bfloat16()(**ids).logits
        else:
            with torch.autocast("cpu", torch.bfloat16):
                actual = model(**ids).logits
    assert (actual.float() - expected).norm() <= 0.02 * expected.norm()


def test_double_precision_is_close_to_fp32(head: Head) -> None:
    model = head.build().eval()
    batch = head.batch(2, 60)
    with torch.no_grad():
        expected = head.scores(model(**batch))
        actual = head.scores(model.double()(**batch))
    assert (actual.float() - expected).abs().max() <= 1e-5


def test_training_goes_on_with_plain_sums_where_a_stream_outgrows_the_exact_range(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "_said", [])
    head = HEAD_OF["causal_lm"]
    model = head.build(residual_grid=2.0**-24)
    with torch.no_grad():
        model.reformer.stack.layers[0].feed_forward.outer.bias += 1e3
    torch.manual_seed(0)
    for _ in range(2):
        loss = model(**head.batch(2, 20)).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    (message,) = (record.getMessage() for record in caplog.records)
    assert "residual_grid" in message
    model.config.exact_reversible = False
    model.eval()
    expected = model(**head.batch(2, 20)).loss
    model.config.exact_reversible = True
    model.config.residual_grid = 2.0**-12
    torch.testing.assert_close(model(**head.batch(2, 20)).loss, expected, rtol=1e-3, atol=1e-3)
