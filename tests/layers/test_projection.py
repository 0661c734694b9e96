"""The last product of a sub-layer: without its values, the gradients are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reformer_hf.layers.projection import project


def gradients_of(
    linear: nn.Linear, x: Tensor, values: bool, autocast: bool = False
) -> tuple[Tensor, list[Tensor | None]]:
    """What is returned, and the gradients of input and parameters."""
    leaves = [x, *linear.parameters()]
    for leaf in leaves:
        leaf.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = project(linear, x, values)
    weight = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype).view(out.shape)
    out.backward(weight)
    return out, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, False),
        (torch.float64, False),
        (torch.float64, True),
    ],
)
def test_gradients_do_not_depend_on_the_values(
    dtype: torch.dtype, autocast: bool, bias: bool
) -> None:
    linear = nn.Linear(16, 5, bias=bias, dtype=dtype)
    x = torch.randn(2, 7, 16, dtype=dtype, requires_grad=True)
    out, expected = gradients_of(linear, x, values=True, autocast=autocast)
    blind, found = gradients_of(linear, x, values=False, autocast=autocast)
    assert out.count_nonzero() > 0
    assert blind.count_nonzero() == 0
    assert (blind.shape, blind.dtype) == (out.shape, out.dtype)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    linear = nn.Linear(16, 5)
    x = torch.randn(2, 7, 16, requires_grad=frozen != "x")
    if frozen != "x":
        getattr(linear, frozen).requires_grad_(False)
    for values in (True, False):
        _, found = gradients_of(linear, x, values)
        assert [grad is None for grad in found] == [
            name == frozen for name in ("x", "weight", "bias")
        ]


def test_the_product_is_spared() -> None:
    linear, x = nn.Linear(16, 5), torch.randn(2, 7, 16, requires_grad=True)
    counts = []
    for values in (True, False):
        with FlopCounterMode(display=False) as counter:
            project(linear, x, values)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 14 * 16 * 5, 0]


def test_what_somebody_added_to_the_layer_is_called() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    x, called = torch.randn(3, 16), []
    hooked, patched = nn.Linear(16, 5), nn.Linear(16, 5)
    hooked.register_forward_hook(lambda *_: called.append("hook"))
    before = patched.forward
    patched.forward = lambda x: called.append("patch") or before(x)
    for module in (Scaled(16, 5), hooked, patched):
        assert torch.equal(project(module, x, values=False), module(x))
    assert called == ["hook", "hook", "patch", "patch"]
