"""What a recomputation must find as the first computation did: random states and autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class ReplayState:
    """Random states and autocast at one moment.

    Attributes:
        device: where the step is computed.
        cpu_state: of the CPU's random numbers.
        device_state: of the device's, if it is another.
        autocast: whether autocast is on for the device, and its dtype.
        cpu_autocast: likewise for the CPU.
    """

    device: torch.device
    cpu_state: Tensor
    device_state: Tensor | None
    autocast: tuple[bool, torch.dtype]
    cpu_autocast: tuple[bool, torch.dtype]

    @staticmethod
    def capture(device: torch.device) -> ReplayState:
        """The states as they are now."""
        return ReplayState(
            device,
            *_random_states(device),
            (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)),
            (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        )

    @contextlib.contextmanager
    def uncached(self) -> Iterator[None]:
        """The same autocast, without its cache of cast weights and that of parametrized ones.

        A weight that is computed while gradients are off would stay in the cache without a gradient
        and be handed to other users of the same weight.
        """
        with contextlib.ExitStack() as stack:
            kinds = {self.device.type: self.autocast, "cpu": self.cpu_autocast}
            for kind, (enabled, dtype) in kinds.items():
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                )
            if parametrize._cache_enabled:
                stack.callback(setattr, parametrize, "_cache_enabled", parametrize._cache_enabled)
                parametrize._cache_enabled = 0
            yield

    @contextlib.contextmanager
    def replay(self) -> Iterator[None]:
        """Random states and autocast as captured; the present random states come back after."""
        on_cpu = self.device.type == "cpu"
        devices = [] if on_cpu else [self.device]
        kind = "cuda" if on_cpu else self.device.type
        with torch.random.fork_rng(devices, device_type=kind), self.uncached():
            torch.set_rng_state(self.cpu_state)
            if self.device_state is not None:
                torch.get_device_module(self.device).set_rng_state(self.device_state, self.device)
            yield

    def check_drawn(self, expected: tuple[int, ...], index: int) -> None:
        """Make sure, within :meth:`replay`, that the same random numbers were drawn again.

        Args:
            expected: :func:`fingerprint` after the first computation.
            index: of the step.

        Raises:
            RuntimeError: others were.
        """
        now = fingerprint(self.device)
        if now not in (expected, _fingerprint(self.cpu_state, self.device_state)):
            raise RuntimeError(
                f"the backward pass must compute what the forward pass computed, but step {index} "
                "of the reversible stack did not draw the random numbers that it drew then: "
                "another thread or a hook drew some in between (dropout in several threads needs "
                "`config.reversible=False`)"
            )


def fingerprint(device: torch.device) -> tuple[int, ...]:
    """A number for each random state, which changes with every number that is drawn."""
    return _fingerprint(*_random_states(device))


def _fingerprint(*states: Tensor | None) -> tuple[int, ...]:
    words = [state.view(torch.int64) for state in states if state is not None]
    # Weighted, since a draw moves one count up and another down.
    return tuple(int(w.dot(torch.arange(1, w.numel() + 1))) for w in words)


def _random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_cpu = device.type == "cpu"
    state = None if on_cpu else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), state
