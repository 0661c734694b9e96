"""A sub-layer and its step: taken from outside, or within a call of the module."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reformer_hf.layers.sub_layer import SubLayer, raise_wrong_sharding
from reformer_hf.ops.reversible import ResidualStreams, ReversibleStep


class Scaled(SubLayer):
    """`factor * W x + context`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def residual(self, x: Tensor, context: Tensor, *, factor: float) -> Tensor:
        return self.linear(x) * factor + context


def hosted(layer: SubLayer, step: ReversibleStep, factor: float) -> ReversibleStep:
    """The step as it is when the module must be called for its weights to be there."""
    return replace(
        step, parameters=(), host=lambda token, take: layer(token, take=take, factor=factor)
    )


@pytest.mark.parametrize("chunk_size", [0, 3])
def test_a_hosted_step_computes_what_an_ordinary_one_does(chunk_size: int) -> None:
    layers = [Scaled() for _ in range(4)]
    found = []
    for host in (False, True):
        x, context = torch.ones(2, 8, 8), torch.full((1, 1, 8), 0.5, requires_grad=True)
        streams = ResidualStreams(x, reversible=True, grid=2.0**-20)
        for layer in layers:
            layer.zero_grad()
            step = layer.step(inputs=(context,), chunk_size=chunk_size, factor=0.5)
            streams.add(hosted(layer, step, 0.5) if host else step)
        loss = sum(stream.square().sum() for stream in streams.read())
        loss.backward()
        found.append(
            [loss.detach(), context.grad, *(p.grad for m in layers for p in m.parameters())]
        )
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_hooks_of_a_host_see_it_called_before_and_after_its_gradients() -> None:
    layer, events = Scaled(), []
    context = torch.zeros(1, 1, 8)

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
    streams = ResidualStreams(torch.ones(1, 4, 8), reversible=True, grid=2.0**-20)
    streams.add(hosted(layer, layer.step(inputs=(context,), factor=1.0), 1.0))
    assert events == ["computed"]
    streams.read()[0].sum().backward()
    assert events == ["computed", "stream", "computed", "gradient", "token"]


def test_weights_that_zero3_removed_are_refused_on_the_reversible_path_alone() -> None:
    layer, context = Scaled(), torch.zeros(1, 1, 8)
    layer.linear.weight.ds_id = 0  # what DeepSpeed marks such weights with
    step = layer.step(inputs=(context,), factor=1.0)
    ResidualStreams(torch.ones(1, 4, 8), reversible=False, grid=None).add(step)
    with pytest.raises(ValueError, match=r"ZeRO-2, FSDP2 or .*reversible=False.*, got ZeRO-3"):
        ResidualStreams(torch.ones(1, 4, 8), reversible=True, grid=None).add(step)


def test_weights_that_would_not_be_there_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sub-layers .*_no_split_modules.* got Linear: because"):
        raise_wrong_sharding("Linear", "because")
