"""Watching the range of integer streams, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.reversible.grid import STEP_LIMIT, STREAM_LIMIT

# How far apart the restored streams may end: far beyond rounding, far below a dropped element.
_RESTORED_WITHIN = 2.0**-10


class RangeGauge:
    """The range that the streams of one forward pass have used.

    Attributes:
        grid: the size of a step.
        peak: 0-d tensor, the largest share of its limit that a stream or a step has reached.
    """

    def __init__(self, grid: float) -> None:
        self.grid = grid
        self.peak: Tensor | None = None

    def factor(self, stored: Tensor, steps: Tensor, limit: float = STEP_LIMIT) -> Tensor:
        """The grid as a 0-d tensor, or NaN if the sum cannot be trusted.

        Infinite and undefined residuals, which integers cannot represent, become NaN this way too.

        Args:
            stored: a stored stream after a step.
            steps: what the step added, in steps of the grid but still as floats.
            limit: steps that may be added.
        """
        wide = steps.dtype
        used = torch.maximum(_largest(stored).to(wide) / STREAM_LIMIT, _largest(steps) / limit)
        self.note(used)
        return torch.where(used < 1.0, self.grid, torch.nan).to(wide)

    def note(self, used: Tensor) -> None:
        """Take down a share of a limit, a 0-d tensor."""
        # fmax passes over NaN: what a stream turns into must not hide how it came to that.
        self.peak = used if self.peak is None else torch.fmax(self.peak, used)

    def check(self) -> None:
        """Make sure that no stream so far left its range (one device sync).

        Raises:
            OverflowError: a sum was too large to be stored; what is read of it is NaN.
        """
        if self.peak is None:
            return
        peak, grid = float(self.peak), self.grid
        # Infinite and undefined values are a numerical failure that the loss shows by itself.
        if 1.0 <= peak < float("inf"):
            raise OverflowError(
                f"a residual stream or step reached {peak:.3g} times what residual_grid={grid} "
                f"allows ({STREAM_LIMIT * grid:.4g} for a stream, {STEP_LIMIT * grid:.4g} for one "
                "step): lower the learning rate, raise `residual_grid` or set "
                "`exact_reversible=False`"
            )

    def check_restored(self, first: Tensor, second: Tensor) -> None:
        """Make sure that the streams are again what both began as, the same embedding.

        Where the streams kept their range (else the loss is undefined anyway). One look a backward
        pass, at its end, which on a device waits for it. A few steps of the grid are left to
        rounding.

        Raises:
            RuntimeError: they are not, so that the gradients are those of other activations.
        """
        if first.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        if torch.equal(first, second):
            return
        off = float((first.double() - second.double()).abs().amax()) * self.grid
        if self.peak is not None and float(self.peak) < 1.0 and off > _RESTORED_WITHIN:
            raise RuntimeError(
                "the backward pass must compute what the forward pass computed, but its streams "
                f"end {off:.3g} apart: a sub-layer gave something else the second time (does it "
                "keep state of its own, or draw random numbers in several threads?); set "
                "`config.reversible=False`"
            )


def _largest(x: Tensor) -> Tensor:
    """``max |x|`` (a norm would take twenty times as long on a CPU); NaN where there is any."""
    lowest, highest = x.aminmax()
    return torch.maximum(-lowest, highest)
