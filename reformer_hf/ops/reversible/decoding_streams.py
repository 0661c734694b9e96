"""The residual streams of a few tokens while nothing is differentiated.

:class:`~reformer_hf.ops.reversible.ResidualStreams` stores streams as whole numbers of grid steps,
so that earlier values can be restored, and watches their range. A decoding step restores nothing.
Here the same sums are formed in fp64, where sums of grid steps are exact too; what layers read are
the same bits, for a third of the operations, and nothing wraps around.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reformer_hf.ops.precision import wide_dtype
from reformer_hf.ops.reversible.grid import round_to_steps


class DecodingStreams:
    """Two streams that start as ``x``.

    Args:
        x: ``[B, N, d]``.
        grid: what enters a stream is rounded to multiples of this power of two; ``None``: plain
            sums.

    Example:
        >>> import torch
        >>> streams = DecodingStreams(torch.tensor([[[0.3, 0.6]]]), grid=0.25)
        >>> streams.add(lambda x: 2 * x)
        >>> streams.read()
        (tensor([[[0.7500, 1.5000]]]), tensor([[[0.2500, 0.5000]]]))
    """

    def __init__(self, x: Tensor, grid: float | None) -> None:
        self._grid = grid
        self._turn = 0
        if grid is None:
            self._streams = [x, x]
            return
        self._dtype = wide_dtype(x)
        steps = round_to_steps(x, grid).to(torch.float64)
        self._steps = [steps, steps]
        start = self._from_steps(steps, grid)
        self._streams = [start, start]

    def _from_steps(self, steps: Tensor, grid: float) -> Tensor:
        return steps.mul(grid).to(self._dtype)

    def add(self, function: Callable[[Tensor], Tensor]) -> None:
        """Add ``f(other stream)`` to the stream whose turn it is."""
        turn = self._turn
        added = function(self._streams[1 - turn])
        if self._grid is None:
            self._streams[turn] = self._streams[turn] + added
        else:
            self._steps[turn] = self._steps[turn] + round_to_steps(added, self._grid)
            self._streams[turn] = self._from_steps(self._steps[turn], self._grid)
        self._turn = 1 - turn

    def read(self) -> tuple[Tensor, Tensor]:
        """The streams as they are now."""
        return self._streams[0], self._streams[1]
