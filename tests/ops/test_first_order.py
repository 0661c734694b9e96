"""What a hand-written backward pass cannot do is refused with the setting that can."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from reformer_hf.ops.first_order import first_order_only, refuse_transforms, refused

# torch's forward mode is compiled by torch's own deprecated compiler when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
ADVICE = "use `plain=True`"


class Cube(torch.autograd.Function):
    """``x^3``; a gradient with respect to the second argument does not exist."""

    @staticmethod
    def forward(x: Tensor, other: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @first_order_only(ADVICE)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return 3 * ctx.saved_tensors[0] ** 2 * grad, None

    jvp = staticmethod(refused("forward-mode derivatives", ADVICE))
    vmap = staticmethod(refused("batches of torch.func.vmap", ADVICE))


def cube(x: Tensor) -> Tensor:
    return Cube.apply(x, torch.zeros(()))


@pytest.fixture
def x() -> Tensor:
    return torch.tensor(2.0, requires_grad=True)


def test_first_derivatives_are_those_of_the_backward_function(x):
    cube(x).backward()
    assert x.grad == 12.0
    assert not x.grad.requires_grad


def test_first_derivatives_come_from_torch_func():
    assert torch.func.grad(cube)(torch.tensor(2.0)) == 12.0


def test_a_gradient_with_a_graph_is_refused_only_once_somebody_differentiates_it(x):
    (gradient,) = torch.autograd.grad(cube(x), x, create_graph=True)
    assert gradient == 12.0
    with pytest.raises(RuntimeError, match=r"second order .* use `plain=True`"):
        gradient.backward()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_second_derivative_with_respect_to_named_tensors_is_refused(x, checkpointed):
    found = checkpoint(cube, x, use_reentrant=False) if checkpointed else cube(x)
    (gradient,) = torch.autograd.grad(found, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second order .* use `plain=True`"):
        torch.autograd.grad(gradient, x, allow_unused=True)


def test_a_penalty_on_a_gradient_among_others_is_refused(x):
    with warnings.catch_warnings():  # of the reference cycle that create_graph makes
        warnings.simplefilter("ignore")
        cube(2.0 * x).backward(create_graph=True)
    with pytest.raises(RuntimeError, match=r"second order .* use `plain=True`"):
        (x.grad**2).backward()


def test_a_gradient_with_a_graph_may_be_changed_in_place(x):
    (gradient,) = torch.autograd.grad(cube(x), x, create_graph=True)
    with torch.no_grad():
        gradient.mul_(0.5)
    assert gradient.mul_(2.0) == 12.0


def test_a_second_derivative_by_torch_func_is_refused():
    with pytest.raises(RuntimeError, match=r"second order .* use `plain=True`"):
        torch.func.grad(torch.func.grad(cube))(torch.tensor(2.0))


def test_forward_mode_is_refused():
    one = torch.ones(())
    with pytest.raises(RuntimeError, match=r"forward-mode .* use `plain=True`"):
        torch.func.jvp(cube, (one,), (one,))
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match=r"forward-mode .* use `plain=True`"),
    ):
        cube(forward_ad.make_dual(one, one))


@pytest.mark.parametrize("order", [torch.func.jacfwd, torch.func.jacrev])
def test_a_hessian_is_refused_in_either_mode(order):
    with pytest.raises(RuntimeError, match=r"derivatives .* use `plain=True`"):
        order(torch.func.grad(cube))(torch.tensor(2.0))


def test_batches_are_refused():
    with pytest.raises(RuntimeError, match=r"vmap .* use `plain=True`"):
        torch.func.vmap(cube)(torch.ones(3))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacfwd])
def test_a_call_within_a_transform_can_be_refused(transform):
    def call(x: Tensor) -> Tensor:
        refuse_transforms(ADVICE)
        return x.sum()

    with pytest.raises(RuntimeError, match=r"torch\.func .* use `plain=True`"):
        transform(call)(torch.ones(3))
    assert call(torch.ones(3)) == 3.0
