"""The operators keep what they promise to autograd and to compilers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.windowed_attention import WindowedAttentionCall
from reformer_hf.ops.windowed_attention.operators import _arguments, meets_itself_again

OPERATOR = torch.ops.reformer_hf.windowed_attention
BACKWARD = torch.ops.reformer_hf.windowed_attention_backward
VARIANTS = {
    "one round": {"rounds": 1},
    "rounds": {"rounds": 3},
    "dropout": {"dropout": 0.2},
    "union": {"count_duplicates": False},
    "own keys": {"own_keys": True, "exclude_self": False},
    "own keys, sequence": {"own_keys": True, "exclude_self": False, "order": "sequence"},
    "padding": {"padding": "middle"},
    "bf16": {"dtype": torch.bfloat16},
    "fp64": {"dtype": torch.float64},
}
WINDOW_OPTIONS = ("dropout", "count_duplicates", "exclude_self")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(VARIANTS[request.param])


def build(
    variant: dict[str, Any], pattern: str, make_problem: Any, make_window: Any, grad: bool = True
) -> tuple[Any, WindowedAttentionCall]:
    options = dict(variant)
    dtype = options.pop("dtype", torch.float32)
    window_options = {n: options.pop(n) for n in WINDOW_OPTIONS if n in options}
    window = make_window(pattern, 1 if pattern == "chunk" else 5, **window_options)
    problem = make_problem(21, window, **options).to(dtype)
    tensors = (problem.query, problem.key, problem.value)
    query, key, value = (None if x is None else x.clone().requires_grad_(grad) for x in tensors)
    call = WindowedAttentionCall(
        query, key, value, problem.order, problem.real, window, problem.scale
    )
    return problem, call


@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_opcheck_passes(variant, pattern, make_problem, make_window):
    _, call = build(variant, pattern, make_problem, make_window)
    torch.library.opcheck(OPERATOR.default, _arguments(call, "torch"))


@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_opcheck_passes_for_the_backward_operator(variant, pattern, make_problem, make_window):
    problem, call = build(variant, pattern, make_problem, make_window, grad=False)
    arguments = _arguments(call, "torch")
    results = OPERATOR(*arguments)
    torch.library.opcheck(BACKWARD.default, (problem.grad_out, *results, *arguments))


@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_results_lie_in_memory_as_heads_split_from_a_projection(
    variant, pattern, make_problem, make_window
):
    problem, call = build(variant, pattern, make_problem, make_window, grad=False)
    arguments = _arguments(call, "torch")
    out, lse, mass = OPERATOR(*arguments)
    gradients = BACKWARD(problem.grad_out, out, lse, mass, *arguments)
    for x in (out, *gradients):
        assert x.numel() == 0 or x.transpose(1, 2).is_contiguous()
    order = None if call.order is None else call.order.order
    assert (mass.shape == lse.shape) == meets_itself_again(pattern, order)


def test_a_gradient_of_a_gradient_is_refused(make_problem, make_window):
    problem, call = build({}, "window", make_problem, make_window)
    out = OPERATOR(*_arguments(call, "torch"))[0]
    (first,) = torch.autograd.grad(out.sum(), call.query, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second order .* `attention_backend=\"reference\"`"):
        first.sum().backward()


def loss_of(problem: Any, backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of queries and values, which is linear in neither."""

    def loss(query: Tensor, value: Tensor) -> Tensor:
        out = replace(problem, query=query, value=value).attend(backend)[0]
        return (out * problem.grad_out).sum()

    return loss


@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_gradients_by_torch_func_are_those_of_autograd(variant, pattern, make_problem, make_window):
    problem, _ = build(variant, pattern, make_problem, make_window)
    expected = problem.solve("torch")
    gradients = torch.func.grad(loss_of(problem, "torch"), (0, 1))(problem.query, problem.value)
    for name, gradient in zip(("dq", "dv"), gradients, strict=True):
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_batches_of_torch_func_are_calls_one_after_the_other(backend, make_problem, make_window):
    problem = make_problem(21, make_window())
    gradient = torch.func.grad(loss_of(problem, backend))
    queries = torch.randn(3, *problem.query.shape, dtype=torch.float64)
    found = torch.func.vmap(gradient, (0, None))(queries, problem.value)
    expected = torch.stack([gradient(query, problem.value) for query in queries])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own modules
def test_forward_mode_and_second_derivatives_by_torch_func_are_refused(make_problem, make_window):
    problem = make_problem(21, make_window())
    loss, inputs = loss_of(problem, "torch"), (problem.query, problem.value)
    for function in (
        lambda *x: torch.func.jvp(loss, x, x),
        torch.func.hessian(loss),
        torch.func.jacrev(torch.func.grad(loss)),
    ):
        with pytest.raises(RuntimeError, match=r"derivatives .*attention_backend=\"reference\""):
            function(*inputs)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_the_reference_has_second_derivatives_in_every_mode(pattern, make_problem, make_window):
    window = make_window(pattern, 1 if pattern == "chunk" else 3)
    problem = make_problem(6, window, batch=1, heads=1, size=2)
    loss, inputs = loss_of(problem, "reference"), (problem.query, problem.value)
    leaves = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(loss, leaves)
    forward_over_reverse = torch.func.hessian(loss)(*inputs)
    reverse_over_reverse = torch.autograd.functional.hessian(
        lambda q: loss(q, inputs[1]), inputs[0]
    )
    torch.testing.assert_close(forward_over_reverse, reverse_over_reverse, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 17, (1 << 63) - 1, 1 << 63, (1 << 64) + 17, -5])
def test_dropout_seeds_of_any_size_drop_what_the_reference_drops(seed, make_problem, make_window):
    problem = make_problem(21, make_window(dropout=0.4, dropout_seed=seed))
    expected = problem.attend("reference")[0]
    torch.testing.assert_close(problem.attend("torch")[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_attention_is_one_graph_and_changes_no_bit(backend, make_problem, make_window):
    problem = make_problem(21, make_window(dropout=0.2)).to(torch.float32)

    def attend(query: Tensor, value: Tensor) -> Tensor:
        return replace(problem, query=query, value=value).attend("torch")[0]

    torch.compiler.reset()
    found = []
    for function in (attend, torch.compile(attend, backend=backend, fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in (problem.query, problem.value)]
        out = function(*leaves)
        found.append((out, *torch.autograd.grad(out, leaves, problem.grad_out)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
