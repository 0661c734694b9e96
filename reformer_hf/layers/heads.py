"""Splitting features into heads and merging heads again."""

from __future__ import annotations

from torch import Tensor, nn


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, N, H * D]`` as ``[B, H, N, D]``, a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class _Merge(nn.Module):
    """Heads ``[B, H, N, D]`` side by side ``[B, N, H * D]``, or their mean ``[B, N, D]``."""

    def __init__(self, average: bool) -> None:
        super().__init__()
        self.average = average

    def forward(self, heads: Tensor) -> Tensor:
        return heads.mean(dim=1) if self.average else heads.transpose(1, 2).flatten(2)


class HeadMerge(nn.Sequential):
    """Bring the heads' outputs ``[B, H, N, D]`` back to the stream's width ``[B, N, d]``.

    ``"concat"`` projects the concatenated heads, ``"average"`` projects their mean, which needs
    ``H`` times fewer parameters.
    """

    dense: nn.Linear

    def __init__(self, merge: str, num_heads: int, head_size: int, hidden_size: int) -> None:
        super().__init__()
        average = merge == "average"
        features = head_size if average else num_heads * head_size
        self.merge = _Merge(average)
        self.dense = nn.Linear(features, hidden_size, bias=False)
