from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reformer_hf.ops.cross_entropy import linear_cross_entropy

TOKENS, WIDTH, VOCABULARY = 23, 6, 31
LABELLED = {"all": 1.0, "some": 0.4, "none": 0.0}


def problem(
    labelled: str = "all", bias: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor]:
    """``[hidden, weight, bias?]`` that need gradients, and labels."""
    shapes = [(TOKENS, WIDTH), (VOCABULARY, WIDTH), *([(VOCABULARY,)] if bias else [])]
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    labels = torch.randint(0, VOCABULARY, (TOKENS,))
    labels[torch.rand(TOKENS) >= LABELLED[labelled]] = -100
    return [t.requires_grad_() for t in tensors], labels


def ours(tensors: list[Tensor], labels: Tensor, chunk_size: int = 4, **options: Any) -> Tensor:
    hidden, weight, *bias = tensors
    return linear_cross_entropy(
        hidden, weight, bias[0] if bias else None, labels, chunk_size=chunk_size, **options
    )


def plain(tensors: list[Tensor], labels: Tensor) -> Tensor:
    logits = F.linear(*tensors)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels,
                           reduction="sum")  # fmt: skip


@pytest.mark.parametrize("chunk_size", [0, 1, 7, 1000], ids="chunk{}".format)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("labelled", LABELLED)
def test_value_and_gradients_are_those_of_linear_and_cross_entropy(labelled, bias, chunk_size):
    tensors, labels = problem(labelled, bias)
    loss, expected = ours(tensors, labels, chunk_size), plain(tensors, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    # A factor on the loss, as a mean or a loss scale puts there, reaches every gradient.
    gradients = torch.autograd.grad(3.0 * loss, tensors)
    for got, want in zip(gradients, torch.autograd.grad(3.0 * expected, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", range(3), ids=["hidden", "weight", "bias"])
def test_a_frozen_tensor_gets_no_gradient_and_changes_no_other(frozen):
    tensors, labels = problem("some")
    expected = torch.autograd.grad(plain(tensors, labels), tensors)
    tensors[frozen].requires_grad_(False)
    ours(tensors, labels).backward()
    for index, (tensor, want) in enumerate(zip(tensors, expected, strict=True)):
        if index == frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context", ["autocast", "bf16 tensors"])
def test_in_bf16_errors_are_at_most_twice_those_of_the_plain_computation(context):
    dtype = torch.float32 if context == "autocast" else torch.bfloat16
    shapes = ((128, 16), (100, 16), (100,))
    narrow = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    exact = [t.detach().double().requires_grad_() for t in narrow]
    labels = torch.randint(0, 100, (128,))
    truth = plain(exact, labels)
    true_gradients = torch.autograd.grad(truth, exact)
    errors = []
    for compute in (ours, plain):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=context == "autocast"):
            loss = compute(narrow, labels)
        gradients = torch.autograd.grad(loss, narrow)
        assert loss.dtype == torch.float32
        assert [g.dtype for g in gradients] == [dtype] * 3
        torch.testing.assert_close(loss, truth.float(), rtol=1e-3, atol=0)
        pairs = zip(gradients, true_gradients, strict=True)
        errors.append([(g - t).square().mean().sqrt() for g, t in pairs])
    for own, other in zip(*errors, strict=True):
        assert own <= 2 * other


def test_autocast_leaves_fp64_alone():
    tensors, labels = problem()
    expected = ours(tensors, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(tensors, labels), expected)


def test_no_label_at_all_gives_a_zero_loss_and_zero_gradients():
    tensors, labels = problem("none")
    loss = ours(tensors, labels)
    loss.backward()
    assert loss.item() == 0.0
    for tensor in tensors:
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_another_ignore_index_is_honoured():
    tensors, labels = problem("some")
    expected = ours(tensors, labels)
    moved = torch.where(labels == -100, -7, labels)
    assert torch.equal(ours(tensors, moved, ignore_index=-7), expected)


def test_rows_without_a_label_do_not_matter():
    tensors, labels = problem("some")
    expected = ours(tensors, labels)
    hidden = tensors[0].detach().clone()
    hidden[labels == -100] = torch.nan
    hidden.requires_grad_()
    loss = ours([hidden, *tensors[1:]], labels)
    gradients = torch.autograd.grad(loss, [hidden, *tensors[1:]])
    assert torch.equal(loss, expected)
    assert all(torch.isfinite(g).all() for g in gradients)


def counted_flops(labelled: str, gradients: bool) -> float:
    """Multiply-adds in units of one product of the labelled rows with the vocabulary."""
    tensors, labels = problem(labelled)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradients):
        ours(tensors, labels)
    return counter.get_total_flops() / (2 * WIDTH * VOCABULARY * int((labels != -100).sum()))


@pytest.mark.parametrize("labelled", ["all", "some"])
def test_work_is_proportional_to_the_labelled_rows(labelled):
    assert counted_flops(labelled, gradients=True) == 3.0


def test_without_gradients_only_the_loss_is_computed():
    assert counted_flops("all", gradients=False) == 1.0
    tensors, labels = problem()
    with torch.no_grad():
        assert ours(tensors, labels).grad_fn is None


def test_no_tensor_of_all_logits_is_formed(live_memory):
    tokens, width, vocabulary, chunk = 512, 16, 400, 32
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,))
    with live_memory() as memory:
        linear_cross_entropy(hidden, weight, None, labels, chunk_size=chunk).backward()
    block = 4 * chunk * vocabulary
    assert memory.largest == block
    assert memory.peak < 4 * block + 4 * 4 * width * (tokens + vocabulary)
    assert memory.peak < 4 * tokens * vocabulary


def test_a_negative_chunk_size_is_refused():
    tensors, labels = problem()
    with pytest.raises(ValueError, match=r"chunk_size.*-1"):
        ours(tensors, labels, chunk_size=-1)


def loss_of(weight: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda hidden: ours([hidden, weight], labels).square()


def test_gradients_by_torch_func_are_those_of_autograd():
    (hidden, weight), labels = problem("some", bias=False)
    loss = loss_of(weight, labels)
    (expected,) = torch.autograd.grad(loss(hidden), hidden)
    torch.testing.assert_close(torch.func.grad(loss)(hidden.detach()), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own modules
def test_what_it_cannot_differentiate_is_refused_with_the_setting_that_can():
    (hidden, weight), labels = problem("some", bias=False)
    loss = loss_of(weight, labels)
    (gradient,) = torch.autograd.grad(loss(hidden), hidden, create_graph=True)
    x = hidden.detach()
    refused = (
        lambda: gradient.sum().backward(retain_graph=True),
        lambda: torch.autograd.grad(gradient.sum(), weight, retain_graph=True),
        lambda: torch.func.grad(lambda y: torch.func.grad(loss)(y).sum())(x),
        lambda: torch.func.jvp(loss, (x,), (x,)),
        lambda: torch.func.vmap(loss)(torch.stack((x, x))),
    )
    for attempt in refused:
        with pytest.raises(RuntimeError, match=r"pass through .* `chunk_size_lm_head=0`"):
            attempt()
