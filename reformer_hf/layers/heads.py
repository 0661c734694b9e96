"""Splitting features into heads and merging heads again."""

from __future__ import annotations

from torch import Tensor, nn

from reformer_hf.layers.projection import project


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, N, H * D]`` as ``[B, H, N, D]``, a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class HeadMerge(nn.Module):
    """Bring the heads' outputs ``[B, H, N, D]`` back to the stream's width ``[B, N, d]``.

    ``"concat"`` projects the concatenated heads, ``"average"`` projects their mean, which needs
    ``H`` times fewer parameters.
    """

    def __init__(self, merge: str, num_heads: int, head_size: int, hidden_size: int) -> None:
        super().__init__()
        self.average = merge == "average"
        features = head_size if self.average else num_heads * head_size
        self.dense = nn.Linear(features, hidden_size, bias=False)
        # Per position.
        self.multiplications = features * hidden_size

    def forward(self, heads: Tensor, values: bool = True) -> Tensor:
        """Merge and project; with ``values=False`` for the gradients only, see :func:`project`."""
        merged = heads.mean(dim=1) if self.average else heads.transpose(1, 2).flatten(2)
        return project(self.dense, merged, values)
