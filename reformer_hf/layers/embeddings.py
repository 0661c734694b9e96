"""Token and position embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from reformer_hf.configuration_reformer import ReformerConfig


class AxialPositionEmbeddings(nn.Module):
    """A table of position vectors, factorised over axes.

    With axes ``(a, b)`` position ``p`` has the coordinates ``(p // b, p mod b)``, and its vector is
    the concatenation of one vector for each coordinate: ``a d_1 + b d_2`` numbers instead of
    ``a b d``. Works for every length up to the product of the axes, in training too.
    Source: Reformer, section 4.1 and appendix (arXiv:2001.04451), Ho et al. (arXiv:1912.12180).

    Args:
        shape: length of each axis.
        dims: features of each axis.
    """

    def __init__(self, shape: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        # Parameters of this very module, not of a list in it: transformers initialises only modules
        # that hold parameters themselves.
        for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
            self.register_parameter(f"axis_{axis}", nn.Parameter(torch.empty(size, dim)))

    @property
    def weights(self) -> list[nn.Parameter]:
        """The vectors ``[size, dim]`` of each axis."""
        return [getattr(self, f"axis_{axis}") for axis in range(len(self.shape))]

    @property
    def num_positions(self) -> int:
        """Positions that have a vector."""
        return math.prod(self.shape)

    def forward(self, positions: Tensor) -> Tensor:
        """``[.., d]`` vectors of ``[..]`` int64 positions."""
        parts: list[Tensor] = []
        rest = positions
        for size, weight in zip(reversed(self.shape), reversed(self.weights), strict=True):
            parts.append(F.embedding(rest.remainder(size), weight))
            rest = rest.div(size, rounding_mode="floor")
        return torch.cat(parts[::-1], dim=-1)

    @torch.no_grad()
    def resized(self, num_positions: int, std: float) -> AxialPositionEmbeddings:
        """A table for another number of positions; positions that both have keep their vectors.

        Only the first axis grows or shrinks, since the others decide which coordinates a position
        has. New vectors are drawn from a normal distribution.
        """
        inner = math.prod(self.shape[1:])
        rows = -(-num_positions // inner)
        dims = [weight.shape[1] for weight in self.weights]
        table = AxialPositionEmbeddings((rows, *self.shape[1:]), dims).to(self.weights[0])
        nn.init.normal_(table.weights[0], std=std)
        kept = min(rows, self.shape[0])
        table.weights[0][:kept] = self.weights[0][:kept]
        for new, old in zip(table.weights[1:], self.weights[1:], strict=True):
            new.copy_(old)
        return table


class LearnedPositionEmbeddings(nn.Embedding):
    """One vector per position."""

    @property
    def num_positions(self) -> int:
        """Positions that have a vector."""
        return self.num_embeddings

    @torch.no_grad()
    def resized(self, num_positions: int, std: float) -> LearnedPositionEmbeddings:
        """A table for another number of positions; positions that both have keep their vectors."""
        table = LearnedPositionEmbeddings(num_positions, self.embedding_dim).to(self.weight)
        nn.init.normal_(table.weight, std=std)
        kept = min(num_positions, self.num_embeddings)
        table.weight[:kept] = self.weight[:kept]
        return table


PositionEmbeddings = AxialPositionEmbeddings | LearnedPositionEmbeddings


class PositionedInputs(GradientCheckpointingLayer):
    """``dropout(token vector) + dropout(position vector)``.

    Reversible layers store no activations, so this is what transformers' gradient checkpointing
    finds to do in a reversible model: the dropout masks are drawn again instead of kept.

    Args:
        config: the model's configuration.
        shape: axes of the position table.
        max_positions: positions that must have a vector.

    Attributes:
        num_positions: positions that have a vector.
    """

    def __init__(self, config: ReformerConfig, shape: Sequence[int], max_positions: int) -> None:
        super().__init__()
        self.position_embeddings: PositionEmbeddings
        if config.axial_pos_embds:
            dims = config.position_dims(len(shape))
            self.position_embeddings = AxialPositionEmbeddings(shape, dims)
        else:
            self.position_embeddings = LearnedPositionEmbeddings(max_positions, config.hidden_size)
        # Kept here as well, for the table may be wrapped later (an adapter) and not tell any more.
        self.num_positions = self.position_embeddings.num_positions
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def resize(self, num_positions: int, std: float) -> None:
        """Replace the table by one for another number of positions.

        Raises:
            ValueError: the table is wrapped, by an adapter say, which keeps its size.
        """
        table = self.position_embeddings
        if not isinstance(table, PositionEmbeddings):
            raise ValueError(
                "`position_embeddings` must be a table of this model to be resized, got a "
                f"{type(table).__name__} around it: resize before it is wrapped"
            )
        self.position_embeddings = table.resized(num_positions, std)
        self.num_positions = self.position_embeddings.num_positions

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Vectors ``[B, N, d]``.

        Args:
            tokens: ``[B, N, d]`` token vectors.
            positions: ``[B, N]`` or ``[1, N]`` int64.
        """
        embedded: Tensor = self.dropout(tokens) + self.dropout(self.position_embeddings(positions))
        return embedded
