"""A sub-layer and its step, taken from outside or within a call, and without its last product."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reformer_hf.layers.sub_layer import SubLayer, product_without_values, raise_wrong_sharding
from reformer_hf.ops.reversible import ResidualStreams, ReversibleStep


class Scaled(SubLayer):
    """`W (x / 2 + shift)`, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.0)

    @property
    def last_module(self) -> nn.Module:
        return self.linear

    def hidden(self, x: Tensor, *inputs: Tensor, context: None) -> tuple[Tensor, None]:
        (shift,) = inputs
        return 0.5 * x + shift, None


def hosted(layer: SubLayer, step: ReversibleStep) -> ReversibleStep:
    """The step as it is when the module must be called for its weights to be there."""
    return replace(step, parameters=(), host=lambda token, take: layer(token, take=take))


@pytest.mark.parametrize("chunk_size", [0, 3])
def test_a_hosted_step_computes_what_an_ordinary_one_does(chunk_size: int) -> None:
    layers = [Scaled() for _ in range(4)]
    found = []
    for host in (False, True):
        x, shift = torch.ones(2, 8, 8), torch.full((1, 1, 8), 0.5, requires_grad=True)
        streams = ResidualStreams(x, reversible=True, grid=2.0**-20)
        for layer in layers:
            layer.zero_grad()
            step = replace(layer.step(x, inputs=(shift,)), chunk_size=chunk_size)
            streams.add(hosted(layer, step) if host else step)
        loss = sum(stream.square().sum() for stream in streams.read())
        loss.backward()
        found.append([loss.detach(), shift.grad, *(p.grad for m in layers for p in m.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_hooks_of_a_host_see_it_called_before_and_after_its_gradients() -> None:
    layer, events = Scaled(), []
    x, shift = torch.ones(1, 4, 8), torch.zeros(1, 1, 8)

    class Behind(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, token: Tensor) -> Tensor:
            return token.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            events.append("token")
            return grad

    def before(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (Behind.apply(arguments[0]),)

    def after(_: nn.Module, __: object, out: Tensor) -> None:
        out.register_hook(lambda _: events.append("stream"))

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after)
    layer.linear.register_forward_pre_hook(lambda *_: events.append("computed"))
    layer.linear.weight.register_post_accumulate_grad_hook(lambda _: events.append("gradient"))
    streams = ResidualStreams(x, reversible=True, grid=2.0**-20)
    streams.add(hosted(layer, layer.step(x, inputs=(shift,))))
    assert events == ["computed"]
    streams.read()[0].sum().backward()
    assert events == ["computed", "stream", "computed", "gradient", "token"]


def test_weights_that_zero3_removed_are_refused_on_the_reversible_path_alone() -> None:
    layer, x, shift = Scaled(), torch.ones(1, 4, 8), torch.zeros(1, 1, 8)
    layer.linear.weight.ds_id = 0  # what DeepSpeed marks such weights with
    step = layer.step(x, inputs=(shift,))
    ResidualStreams(x, reversible=False, grid=None).add(step)
    with pytest.raises(ValueError, match=r"ZeRO-2, FSDP2 or .*reversible=False.*, got ZeRO-3"):
        ResidualStreams(x, reversible=True, grid=None).add(step)


def test_weights_that_would_not_be_there_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sub-layers .*_no_split_modules.* got Linear: because"):
        raise_wrong_sharding("Linear", "because")


# ---- without the last product ----


def gradients_of(
    linear: nn.Linear, x: Tensor, values: bool, autocast: bool = False
) -> tuple[Tensor, list[Tensor | None]]:
    """What is returned, and the gradients of input and parameters."""
    leaves = [x, *linear.parameters()]
    for leaf in leaves:
        leaf.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = linear(x) if values else product_without_values(linear, x)
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
            _ = linear(x) if values else product_without_values(linear, x)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 14 * 16 * 5, 0]


def test_a_product_that_somebody_added_to_is_not_left_out() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    plain, adapted, hooked, patched, watched = (Scaled() for _ in range(5))
    adapted.linear = Doubled(8, 8)
    hooked.linear.register_forward_hook(lambda *_: None)
    patched.linear.forward = patched.linear.forward
    watched.dropout.register_forward_pre_hook(lambda *_: None)
    x, inputs = torch.ones(1, 4, 8), (torch.zeros(1, 1, 8),)
    assert plain.step(x, inputs=inputs).without_values is not None
    for layer in (adapted, hooked, patched, watched):
        assert layer.step(x, inputs=inputs).without_values is None
