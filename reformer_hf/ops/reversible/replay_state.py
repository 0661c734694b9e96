"""What a recomputation must find as the first computation did: random states and autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


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
        on_cpu = device.type == "cpu"
        state = None if on_cpu else torch.get_device_module(device).get_rng_state(device)
        return ReplayState(
            device,
            torch.get_rng_state(),
            state,
            (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)),
            (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        )

    @contextlib.contextmanager
    def autocast_uncached(self) -> Iterator[None]:
        """The same autocast, without its cache of cast weights.

        A weight that is cast while gradients are off would stay in the cache without a gradient and
        be handed to other users of the same weight.
        """
        with contextlib.ExitStack() as stack:
            kinds = {self.device.type: self.autocast, "cpu": self.cpu_autocast}
            for kind, (enabled, dtype) in kinds.items():
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                )
            yield

    @contextlib.contextmanager
    def replay(self) -> Iterator[None]:
        """Random states and autocast as captured; the present random states come back after."""
        on_cpu = self.device.type == "cpu"
        devices = [] if on_cpu else [self.device]
        kind = "cuda" if on_cpu else self.device.type
        with torch.random.fork_rng(devices, device_type=kind), self.autocast_uncached():
            torch.set_rng_state(self.cpu_state)
            if self.device_state is not None:
                torch.get_device_module(self.device).set_rng_state(self.device_state, self.device)
            yield
