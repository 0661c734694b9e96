"""The reversible engine against plain autograd: same results, and memory flat in depth."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reformer_hf.ops.kept_results import keep_results, replaying
from reformer_hf.ops.reversible import (
    Keep,
    ResidualStreams,
    ReversibleStep,
    coupling,
    residual_sums,
    tape,
)
from reformer_hf.ops.reversible.grid import from_steps, to_steps

GRID = 2.0**-20
DEPTH, WIDTH, LENGTH = 24, 12, 7
EXAMPLES = settings(deadline=None, derandomize=True, max_examples=100)


class SubLayer(nn.Module):
    """A sub-layer with a norm and dropout; ``mixing`` lets positions see one another.

    The norm is the only reader of ``x``, as in the package's layers: with several readers the two
    paths would add their gradients to that of the stream in different orders.
    """

    def __init__(self, width: int = WIDTH, dropout: float = 0.1, mixing: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.mixing = mixing
        self.found = 0  # calls that were handed a result

    def forward(self, x: Tensor, *inputs: Tensor, values: bool = True) -> Tensor:
        x = nn.functional.layer_norm(x, x.shape[-1:])
        if self.mixing:
            x = x - x.mean(dim=1, keepdim=True)
        for other in inputs:
            x = x + other.mean(dim=1, keepdim=True)
        # Not differentiable, as kept results must be.
        (scale,) = keep_results(lambda: (x.detach().abs().amax(dim=-1, keepdim=True),))
        self.found += replaying()
        x = x / scale
        out = self.dropout(self.down(self.dropout(torch.tanh(self.up(x)))))
        # Wrong values where none are needed, so that a reader of them is found out.
        return out if values else out * 1.0 + 1e3


def sub_layers(depth: int = DEPTH, **options: Any) -> nn.ModuleList:
    return nn.ModuleList(SubLayer(**options) for _ in range(depth))


def tokens(batch: int = 2, length: int = LENGTH, width: int = WIDTH) -> Tensor:
    return torch.randn(batch, length, width, requires_grad=True)


def steps_of(
    layers: nn.ModuleList, inputs: tuple[Tensor, ...] = (), chunk_size: int = 0
) -> list[ReversibleStep]:
    return [
        ReversibleStep(
            layer,
            tuple(layer.parameters()),
            inputs,
            chunk_size,
            without_values=partial(layer, values=False),
        )
        for layer in layers
    ]


def run(
    steps: list[ReversibleStep],
    x: Tensor,
    *,
    grid: float | None = GRID,
    reversible: bool = True,
    keep: Collection[int] = (),
) -> Tensor:
    """The two streams after all steps, ``[2, B, N, d]``."""
    streams = ResidualStreams(x, reversible=reversible, grid=grid)
    for index, step in enumerate(steps):
        streams.add(step, Keep(stream=index in keep, results=index % 2 == 0 and index in keep))
    return torch.stack(streams.read())


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    """Gradients of a loss that treats the streams and their elements differently."""
    weight = torch.linspace(-1.0, 2.0, out.numel(), dtype=torch.float32).view_as(out)
    return list(torch.autograd.grad((out.float() * weight).sum(), leaves, allow_unused=True))


def compare(
    build: Callable[[bool], Tensor], leaves: list[Tensor], tolerance: float | None = None
) -> None:
    """Outputs and gradients of ``build(reversible)`` agree: bit for bit, unless told otherwise.

    Tensors that are no parameters have several readers, whose gradients are added in another order:
    these agree to 1e-6 at least.
    """
    results = []
    for path in (True, False):
        torch.manual_seed(3)
        out = build(path)
        results.append([out, *gradients(out, leaves)])
    for leaf, ours, plain in zip([None, *leaves], *results, strict=True):
        if ours is None or plain is None:
            assert ours is plain
        elif tolerance is None and (leaf is None or isinstance(leaf, nn.Parameter)):
            assert torch.equal(ours, plain)
        else:
            close = 1e-6 if tolerance is None else tolerance
            torch.testing.assert_close(ours, plain, rtol=close, atol=close)


def autocast(enabled: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


PRECISION = pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16-autocast"])


# ---- streams come back ----


class Recorder:
    """Notes what every step's function is given, each time that it is called."""

    def __init__(self, depth: int) -> None:
        self.seen: list[list[Tensor]] = [[] for _ in range(depth)]

    def wrap(self, steps: list[ReversibleStep]) -> list[ReversibleStep]:
        def recording(index: int, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def call(x: Tensor, *inputs: Tensor) -> Tensor:
                self.seen[index].append(x.detach().clone())
                return function(x, *inputs)

            return call

        return [
            ReversibleStep(recording(i, s.function), s.parameters, s.inputs, s.chunk_size)
            for i, s in enumerate(steps)
        ]

    def largest_error(self) -> float:
        """Largest difference between what a step sees in the forward and in the backward pass."""
        errors = []
        for calls in self.seen:
            half = len(calls) // 2
            assert len(calls) == 2 * half > 0
            there, back = torch.cat(calls[:half], dim=1), torch.cat(calls[half:], dim=1)
            errors.append((there.double() - back.double()).abs().max().item())
        return max(errors)


@pytest.mark.parametrize("chunk_size", [0, 3], ids="chunk{}".format)
@PRECISION
def test_streams_are_restored_bit_for_bit_at_depth_24_with_dropout(narrow, chunk_size):
    recorder = Recorder(DEPTH)
    steps = recorder.wrap(steps_of(sub_layers(mixing=not chunk_size), chunk_size=chunk_size))
    with autocast(narrow):
        out = run(steps, tokens())
    out.square().sum().backward()
    assert recorder.largest_error() == 0.0
    assert recorder.seen[0][0].shape[1] == (chunk_size or LENGTH)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 200.0])
def test_streams_of_any_size_are_restored_bit_for_bit(scale):
    recorder = Recorder(DEPTH)
    x = (scale * tokens()).detach().requires_grad_()
    run(recorder.wrap(steps_of(sub_layers())), x).sum().backward()
    assert recorder.largest_error() == 0.0


def test_fp64_streams_are_restored_bit_for_bit():
    recorder = Recorder(DEPTH)
    out = run(recorder.wrap(steps_of(sub_layers().double())), tokens().detach().double())
    out.sum().backward()
    assert out.dtype == torch.float64
    assert recorder.largest_error() == 0.0


def test_without_a_grid_streams_are_restored_nearly():
    recorder = Recorder(DEPTH)
    run(recorder.wrap(steps_of(sub_layers())), tokens(), grid=None).sum().backward()
    assert 0.0 < recorder.largest_error() < 1e-5


def test_bf16_streams_without_a_grid_are_off():
    # Why the grid exists: gradients would belong to other activations.
    recorder = Recorder(DEPTH)
    steps = recorder.wrap(steps_of(sub_layers().bfloat16()))
    run(steps, tokens().detach().bfloat16(), grid=None).sum().backward()
    assert recorder.largest_error() > 0.01


# ---- gradients ----


@PRECISION
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_equal_those_of_plain_autograd_at_depth_24(dropout, narrow):
    layers, x = sub_layers(dropout=dropout), tokens()

    def build(path: bool) -> Tensor:
        with autocast(narrow):
            return run(steps_of(layers), x, reversible=path)

    compare(build, [x, *layers.parameters()])


KEPT = pytest.mark.parametrize(
    "keep",
    [range(DEPTH), range(0, DEPTH, 3), [DEPTH - 1], [0]],
    ids=["all", "third", "last", "first"],
)


@KEPT
@PRECISION
@pytest.mark.parametrize("chunk_size", [0, 3], ids="chunk{}".format)
def test_where_streams_are_kept_values_are_not_needed(chunk_size, narrow, keep):
    layers, x = sub_layers(dropout=0.2, mixing=not chunk_size), tokens()

    def build(kept: bool) -> Tensor:
        with autocast(narrow):
            return run(steps_of(layers, chunk_size=chunk_size), x, keep=keep if kept else ())

    compare(build, [x, *layers.parameters()])
    slices = 1 if chunk_size == 0 else -(-LENGTH // chunk_size)
    assert [layer.found for layer in layers] == [
        slices * (k % 2 == 0 and k in keep) for k in range(DEPTH)
    ]


@KEPT
def test_streams_kept_without_a_grid_give_nearly_the_gradients_of_plain_autograd(keep):
    layers, x = sub_layers(), tokens()

    def build(path: bool) -> Tensor:
        return run(steps_of(layers), x, grid=None, reversible=path, keep=keep)

    compare(build, [x, *layers.parameters()], tolerance=1e-4)


def test_a_kept_stream_serves_a_second_backward_pass():
    layers, x = sub_layers(), tokens()
    out = run(steps_of(layers), x, keep=range(0, DEPTH, 2))
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        loss = out.square().sum()
        found.append(torch.autograd.grad(loss, [x, *layers.parameters()], retain_graph=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_weight_that_changes_before_the_backward_pass_is_noticed():
    layers = sub_layers()
    out = run(steps_of(layers), tokens(), keep=range(DEPTH))
    with torch.no_grad():
        layers[3].up.weight.mul_(1.01)
    with pytest.raises(RuntimeError, match=r"weight \[.*\] of step 3 of the reversible stack was"):
        out.sum().backward()


def test_gradients_pass_straight_through_the_rounding():
    layers, x = sub_layers(4, dropout=0.0), tokens()
    coarse = run(steps_of(layers), x, grid=2.0**-2)
    fine = run(steps_of(layers), x, grid=2.0**-20)
    assert (coarse - fine).abs().max() > 0.05
    leaves = [x, *layers.parameters()]
    for rough, exact in zip(gradients(coarse, leaves), gradients(fine, leaves), strict=True):
        assert torch.nn.functional.cosine_similarity(rough.flatten(), exact.flatten(), 0) > 0.9


def test_without_a_grid_gradients_equal_those_of_plain_autograd_nearly():
    layers, x = sub_layers(), tokens()
    compare(
        lambda path: run(steps_of(layers), x, grid=None, reversible=path),
        [x, *layers.parameters()],
        tolerance=1e-4,
    )


@pytest.mark.parametrize("chunk_size", [1, 3, LENGTH, 100], ids="chunk{}".format)
def test_chunked_steps_have_the_gradients_of_whole_ones(chunk_size):
    layers = sub_layers(6, dropout=0.0, mixing=False).double()
    x = tokens().detach().double().requires_grad_()

    def build(path: bool) -> Tensor:
        return run(steps_of(layers, chunk_size=chunk_size if path else 0), x, reversible=path)

    compare(build, [x, *layers.parameters()], tolerance=1e-12)


def test_chunked_steps_with_dropout_equal_plain_autograd_in_the_same_chunks():
    layers, x = sub_layers(6, dropout=0.3, mixing=False), tokens()
    compare(
        lambda path: run(steps_of(layers, chunk_size=3), x, reversible=path),
        [x, *layers.parameters()],
        tolerance=1e-6,
    )


@PRECISION
def test_further_inputs_get_their_gradients(narrow):
    layers, x = sub_layers(6), tokens()
    first, second = tokens(length=5), tokens(length=3)
    constant = tokens(length=4).detach()

    def build(path: bool) -> Tensor:
        with autocast(narrow):
            steps = steps_of(layers, (first, constant, 2.0 * second))
            return run(steps, x, reversible=path)

    compare(build, [x, first, second, *layers.parameters()], tolerance=1e-6)


def test_a_source_without_gradient_is_fine():
    layers, x = sub_layers(6), tokens().detach()
    compare(lambda path: run(steps_of(layers), x, reversible=path), list(layers.parameters()))


@pytest.mark.parametrize("frozen", ["first steps", "last steps", "single parameters", "all"])
@pytest.mark.parametrize("x_needs_gradient", [True, False], ids=["", "constant-x"])
def test_frozen_parameters_get_none_and_change_no_other_gradient(frozen, x_needs_gradient):
    layers = sub_layers(6)
    x = tokens().detach().requires_grad_(x_needs_gradient)
    parts: dict[str, Iterator[nn.Parameter]] = {
        "first steps": layers[:3].parameters(),
        "last steps": layers[3:].parameters(),
        "single parameters": (layer.up.weight for layer in layers),
        "all": layers.parameters(),
    }
    for parameter in parts[frozen]:
        parameter.requires_grad_(False)
    leaves = [p for p in (x, *layers.parameters()) if p.requires_grad]
    if leaves:
        compare(lambda path: run(steps_of(layers), x, reversible=path), leaves)
    else:
        assert not run(steps_of(layers), x).requires_grad


def test_a_function_that_ignores_its_source_passes_no_gradient_to_it():
    bias, x = nn.Parameter(torch.randn(1, 1, WIDTH)), tokens()

    def ignore(source: Tensor) -> Tensor:
        return bias.expand(source.shape)

    steps = [ReversibleStep(ignore, (bias,)), ReversibleStep(lambda s: torch.ones_like(s), ())]
    compare(lambda path: run(steps, x, reversible=path), [x, bias], tolerance=1e-6)


def test_states_read_in_between_pass_their_gradients_on():
    layers, x = sub_layers(7), tokens()

    def build(path: bool) -> Tensor:
        streams = ResidualStreams(x, reversible=path, grid=GRID)
        states = [torch.stack(streams.read())]
        for step in steps_of(layers):
            streams.add(step)
            states.append(torch.stack(streams.read()))
        return torch.stack(states)

    compare(build, [x, *layers.parameters()], tolerance=1e-6)


def test_a_loss_on_a_state_in_between_alone_is_fine():
    layers, x = sub_layers(6), tokens()

    def build(path: bool) -> Tensor:
        streams = ResidualStreams(x, reversible=path, grid=GRID)
        for step in steps_of(layers)[:4]:
            streams.add(step)
        middle = torch.stack(streams.read())
        for step in steps_of(layers)[4:]:
            streams.add(step)
        streams.read()
        return middle

    compare(build, [x, *layers.parameters()])


@pytest.mark.parametrize("kept", [0, 1], ids=["first", "second"])
def test_a_loss_on_one_stream_alone_is_fine(kept):
    layers, x = sub_layers(5), tokens()
    compare(
        lambda path: run(steps_of(layers), x, reversible=path)[kept],
        [x, *layers.parameters()],
        tolerance=1e-6,
    )


def test_two_forward_passes_before_one_backward_pass():
    layers, x, y = sub_layers(6), tokens(), tokens(length=4)

    def build(path: bool) -> Tensor:
        outs = [run(steps_of(layers), z, reversible=path) for z in (x, y)]
        return torch.cat([o.flatten() for o in outs])

    compare(build, [x, y, *layers.parameters()], tolerance=1e-6)


def test_a_stack_on_top_of_a_stack():
    first, second, x = sub_layers(4), sub_layers(5), tokens()

    def build(path: bool) -> Tensor:
        states = run(steps_of(first), x, reversible=path).mean(dim=0)
        return run(steps_of(second, (states,)), x, reversible=path)

    compare(build, [x, *first.parameters(), *second.parameters()], tolerance=1e-6)


def test_backward_twice_with_a_retained_graph_doubles_the_gradients():
    layers, x = sub_layers(6), tokens()
    loss = run(steps_of(layers), x).square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in (x, *layers.parameters())]
    loss.backward()
    for p, single in zip((x, *layers.parameters()), once, strict=True):
        assert torch.equal(p.grad, 2.0 * single)


def test_gradients_accumulate_over_batches():
    layers, batches = sub_layers(6, dropout=0.0), [tokens(), tokens(), tokens()]
    expected = [torch.zeros_like(p) for p in layers.parameters()]
    for x in batches:
        loss = run(steps_of(layers), x).square().sum()
        for total, g in zip(
            expected, torch.autograd.grad(loss, list(layers.parameters())), strict=True
        ):
            total += g
    for x in batches:
        run(steps_of(layers), x).square().sum().backward()
    for p, total in zip(layers.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, total, rtol=1e-6, atol=1e-6)


def test_gradients_of_gradients_are_refused():
    layers, x = sub_layers(2), tokens()
    (gradient,) = torch.autograd.grad(run(steps_of(layers), x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second order .* `config\.reversible=False`"):
        gradient.sum().backward()


def test_a_weight_that_is_also_used_outside_under_the_same_autocast_gets_both_gradients():
    # A copy cast while gradients are off must not stay in autocast's cache.
    layers, x = sub_layers(3), tokens()

    def build(path: bool) -> Tensor:
        with autocast(True):
            out = run(steps_of(layers), x, reversible=path)
            return torch.nn.functional.linear(out, layers[0].up.weight)

    compare(build, [x, *layers.parameters()], tolerance=1e-2)
    torch.manual_seed(3)
    out = build(True)
    (used_twice,) = torch.autograd.grad(out.sum(), layers[0].up.weight)
    torch.manual_seed(3)
    with autocast(True):
        inner = run(steps_of(layers), x)
        outside = torch.nn.functional.linear(inner.detach(), layers[0].up.weight)
    (only_outside,) = torch.autograd.grad(outside.sum(), layers[0].up.weight)
    assert (used_twice - only_outside).abs().max() > 1e-2


# ---- surroundings ----


@pytest.mark.parametrize("chunk_size", [0, 3], ids="chunk{}".format)
def test_the_random_state_moves_as_in_plain_autograd(chunk_size):
    layers, x = sub_layers(6, mixing=False), tokens()
    states = []
    for path in (True, False):
        torch.manual_seed(5)
        out = run(steps_of(layers, chunk_size=chunk_size), x, reversible=path)
        forward_state = torch.get_rng_state()
        torch.rand(3)
        before = torch.get_rng_state()
        out.sum().backward()
        assert torch.equal(torch.get_rng_state(), before)
        states.append(forward_state)
    assert torch.equal(*states)


class Fragile(nn.Module):
    """Fails in the backward pass while ``broken``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = SubLayer()
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken and torch.is_grad_enabled():
            raise MemoryError("out of memory, say")
        return self.inner(x)


@PRECISION
def test_an_error_in_the_middle_of_a_backward_pass_leaves_later_passes_usable(narrow):
    layers = nn.ModuleList([SubLayer(), SubLayer(), Fragile(), SubLayer(), SubLayer()])
    x, leaves = tokens(), list(layers.parameters())

    def forward() -> Tensor:
        torch.manual_seed(5)
        with autocast(narrow):
            return run(steps_of(layers), x).square().sum()

    expected = torch.autograd.grad(forward(), leaves)
    loss = forward()
    layers[2].broken = True
    before = torch.get_rng_state()
    with pytest.raises(MemoryError):
        torch.autograd.grad(loss, leaves, retain_graph=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.is_autocast_enabled("cpu")
    layers[2].broken = False
    for again in (loss, forward()):  # the same graph once more, and a new one
        for got, want in zip(torch.autograd.grad(again, leaves), expected, strict=True):
            assert torch.equal(got, want)


def test_threads_do_not_disturb_one_another():
    problems = [(sub_layers(12, dropout=0.0), tokens(), []) for _ in range(2)]

    def train(layers: nn.ModuleList, x: Tensor, found: list[list[Tensor]], times: int) -> None:
        for _ in range(times):
            loss = run(steps_of(layers), x).square().sum()
            found.append(list(torch.autograd.grad(loss, [x, *layers.parameters()])))

    expected = []
    for layers, x, _ in problems:
        train(layers, x, expected, times=1)
    threads = [threading.Thread(target=train, args=(*p, 10)) for p in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (_, _, found), wanted in zip(problems, expected, strict=True):
        assert len(found) == 10
        for got in found:
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_hooks_of_parameters_fire_before_the_step_below_is_recomputed():
    # Data-parallel training sends a layer's gradients while those of the next are computed.
    layers, log = sub_layers(5), []
    for i, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, i=i, name=name: log.append(f"{i} {name}")
            )

    def logging(i: int, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            log.append(f"{i} called")
            return layer(x)

        return call

    steps = [
        ReversibleStep(logging(i, layer), tuple(layer.parameters()))
        for i, layer in enumerate(layers)
    ]
    loss = run(steps, tokens()).sum()
    assert log == [f"{i} called" for i in range(5)]
    log.clear()
    loss.backward()
    for place, i in enumerate(reversed(range(5))):
        part = log[4 * place : 4 * place + 4]
        assert part[0] == f"{i} called"
        assert sorted(part[1:]) == [f"{i} down.weight", f"{i} up.bias", f"{i} up.weight"]


def test_hooks_of_modules_see_both_computations():
    layers, calls = sub_layers(3), []
    layers[1].up.register_forward_hook(lambda module, args, out: calls.append(out.requires_grad))
    run(steps_of(layers), tokens()).sum().backward()
    assert calls == [False, True]


@pytest.mark.parametrize("grid", [GRID, None], ids=["grid", "plain"])
@pytest.mark.parametrize("path", [True, False], ids=["reversible", "plain"])
def test_without_gradients_no_function_is_recorded(path, grid, monkeypatch):
    layers, x = sub_layers(4), tokens()
    expected = run(steps_of(layers.eval()), x, grid=grid, reversible=path)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("the engine was used")

    monkeypatch.setattr(coupling.Coupling, "apply", refuse)
    monkeypatch.setattr(tape.Anchor, "apply", refuse)
    with torch.no_grad():
        out = run(steps_of(layers), x, grid=grid, reversible=path)
    assert out.grad_fn is None
    assert torch.equal(out, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_the_plain_path_changes_no_gradient(reentrant):
    layers, x, calls = sub_layers(4), tokens(), []

    def run_checkpointed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        calls.append(1)
        return checkpoint(function, *tensors, use_reentrant=reentrant)

    def build(checkpointed: bool) -> Tensor:
        streams = ResidualStreams(
            x,
            reversible=False,
            grid=GRID,
            checkpoint=run_checkpointed if checkpointed else None,
        )
        for step in steps_of(layers):
            streams.add(step)
        return torch.stack(streams.read())

    leaves = [x, *layers.parameters()]
    results = []
    for checkpointed in (True, False):
        for leaf in leaves:
            leaf.grad = None
        torch.manual_seed(3)
        out = build(checkpointed)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    assert len(calls) == 4
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- memory ----


def live_after_forward(depth: int, path: bool, grid: float | None, live_memory: Any) -> list[int]:
    """Bytes alive after the forward pass, and the peak of the backward pass."""
    layers = sub_layers(depth, width=32)
    for parameter in layers.parameters():
        parameter.requires_grad_(False)  # parameters and their gradients do grow with depth
    x = tokens(2, 256, 32)
    memory = live_memory()
    with memory:
        out = run(steps_of(layers), x, reversible=path, grid=grid)
        alive = memory.live
        memory.peak = 0
        out.sum().backward()
    return [alive, memory.peak]


STREAM = 4 * 2 * 256 * 32  # bytes


@pytest.mark.parametrize("grid", [GRID, None], ids=["grid", "plain-sums"])
def test_memory_does_not_grow_with_depth(grid, live_memory):
    shallow = live_after_forward(6, True, grid, live_memory)
    deep = live_after_forward(24, True, grid, live_memory)
    states = 18 * torch.get_rng_state().numel()  # one per step, whatever the batch
    for less, more in zip(shallow, deep, strict=True):
        assert more <= less + states
        assert less < 24 * STREAM
    assert states < 2 * STREAM


def test_memory_of_plain_autograd_does_grow_with_depth(live_memory):
    shallow = live_after_forward(6, False, GRID, live_memory)
    deep = live_after_forward(24, False, GRID, live_memory)
    assert deep[0] > shallow[0] + 18 * STREAM


def test_tensors_saved_for_the_backward_pass_do_not_grow_with_depth():
    def saved_bytes(depth: int) -> int:
        sizes = []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel() * x.element_size())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            run(steps_of(sub_layers(depth)), tokens())
        return sum(sizes)

    assert 0 < saved_bytes(24) == saved_bytes(6)


@pytest.mark.parametrize("grid", [GRID, None], ids=["grid", "plain-sums"])
def test_a_forward_pass_without_a_backward_pass_is_freed(grid, live_memory):
    layers, x = sub_layers(6), tokens()
    gc.collect()
    gc.disable()  # it must go by reference counts alone
    try:
        memory = live_memory()
        with memory:
            out = run(steps_of(layers), x, grid=grid)
            assert memory.live > 0
            del out
            assert memory.live == 0
    finally:
        gc.enable()


# ---- the grid ----

FINITE = st.floats(min_value=-400.0, max_value=400.0, width=32)
GRIDS = st.integers(min_value=-22, max_value=-4).map(lambda k: 2.0**k)


@EXAMPLES
@given(x=st.lists(FINITE, min_size=1, max_size=20), grid=GRIDS)
def test_rounding_is_to_the_nearest_step(x, grid):
    wide = torch.tensor(x, dtype=torch.float64)
    stored = to_steps(wide.float(), grid)
    assert stored.dtype == torch.int32
    assert (stored.double() * grid - wide).abs().max() <= grid / 2
    assert torch.equal(to_steps(wide, grid), stored.long())


@EXAMPLES
@given(steps=st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=20), grid=GRIDS)
def test_steps_that_fp32_can_hold_are_read_and_stored_unchanged(steps, grid):
    stored = torch.tensor(steps, dtype=torch.int32)
    read = from_steps(stored, grid)
    assert read.dtype == torch.float32
    assert torch.equal(read.double(), stored.double() * grid)
    assert torch.equal(to_steps(read, grid), stored)


@EXAMPLES
@given(stream=st.lists(FINITE, min_size=1, max_size=20), step=FINITE, grid=GRIDS)
def test_subtracting_a_step_gives_the_stored_stream_back(stream, step, grid):
    stored = to_steps(torch.tensor(stream), grid)
    added = to_steps(torch.tensor(step), grid)
    assert torch.equal((stored + added) - added, stored)


def test_ties_go_to_even_steps():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert to_steps(x, 1.0).tolist() == [0, 2, 2, 0, -2]


def test_without_a_grid_numbers_are_stored_as_they_are():
    x = torch.randn(3)
    assert to_steps(x, None) is x
    assert from_steps(x, None) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_narrow_inputs_are_widened_before_they_are_rounded(dtype):
    x = torch.tensor([300.0, -1.0 / 3.0]).to(dtype)
    torch.testing.assert_close(from_steps(to_steps(x, GRID), GRID), x.float(), rtol=0, atol=GRID)
    streams = ResidualStreams(x.view(1, 1, 2), reversible=True, grid=GRID)
    assert streams.read()[0].dtype == torch.float32


# ---- range ----


def streams_with(*residuals: float, start: float = 1.0, path: bool = True) -> ResidualStreams:
    """Streams to which constants were added in turn, followed by two steps that read them."""
    x = torch.full((1, 3, 2), 1.0).index_fill_(1, torch.tensor([1]), start).requires_grad_()
    streams = ResidualStreams(x, reversible=path, grid=GRID)
    for value in residuals:
        streams.add(ReversibleStep(lambda s, v=value: 0.0 * s + v, ()))
    for _ in range(2):
        streams.add(ReversibleStep(lambda s: 0.5 * s, ()))
    return streams


PATHS = pytest.mark.parametrize("path", [True, False], ids=["reversible", "plain"])


@PATHS
@pytest.mark.parametrize(
    ("residuals", "start"),
    [
        pytest.param((600.0,), 1.0, id="large step"),
        pytest.param((1e9,), 1.0, id="huge step"),
        pytest.param((500.0, 0.0) * 4, 1.0, id="growing stream"),
        pytest.param((-500.0, 0.0) * 4, 1.0, id="falling stream"),
        pytest.param((), 1700.0, id="large start"),
        pytest.param((), -3000.0, id="start beyond the integers"),
        pytest.param((), 1e20, id="huge start"),
    ],
)
def test_outgrowing_the_range_raises_even_when_everything_after_it_is_nan(residuals, start, path):
    streams = streams_with(*residuals, start=start, path=path)
    assert torch.stack(streams.read()).isnan().any()
    with pytest.raises(OverflowError, match=r"residual_grid=9\.5.*1536 for a stream.*512 for one"):
        streams.check_range()


@PATHS
def test_staying_within_the_range_is_fine(path):
    streams = streams_with(500.0, 400.0, -500.0, -400.0, start=-600.0, path=path)
    streams.check_range()
    assert torch.isfinite(torch.stack(streams.read())).all()


@PATHS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("place", ["start", "step"])
def test_infinite_and_undefined_values_turn_into_nan_and_raise_nothing(place, value, path):
    if place == "start":
        streams = streams_with(1.0, start=value, path=path)
    else:
        streams = streams_with(1.0, value, path=path)
    streams.check_range()
    assert torch.stack(streams.read()).isnan().any()


def test_without_a_grid_there_is_no_range():
    x = torch.full((1, 2, 2), 1e30)
    streams = ResidualStreams(x, reversible=True, grid=None)
    streams.add(ReversibleStep(lambda s: s, ()))
    streams.check_range()
    assert torch.equal(streams.read()[0], 2 * x)


@pytest.mark.parametrize("elements", [1, 40])
def test_updating_streams_in_blocks_changes_nothing(elements, monkeypatch):
    layers, x = sub_layers(4), tokens()
    expected = run(steps_of(layers.eval()), x)
    monkeypatch.setattr(residual_sums, "_BLOCK_ELEMENTS", elements)
    assert torch.equal(run(steps_of(layers), x), expected)
