"""The reversible engine: residual streams whose earlier values are recomputed, bit for bit.

Two streams ``s_0, s_1``; step ``k`` adds ``f_k(s_{1 - k mod 2})`` to ``s_{k mod 2}``. The input of
every step can be recovered from its output, ``s_{k mod 2} - f_k(s_{1 - k mod 2})``, so training
keeps the two final streams instead of every intermediate one: memory does not grow with depth.
Source: RevNet (arXiv:1707.04585); Reformer, section 3 (arXiv:2001.04451).

Reading order: ``grid`` (why sums are exact), ``range_gauge`` (how far they may go),
``residual_sums`` (adding and subtracting a step), ``step`` (what a step is, and what may be kept of
it), ``replay_state`` (what a recomputation must find again), ``tape`` (the streams on their way
back), ``coupling`` (one step forward and backward), ``residual_streams`` (what a stack of layers
uses), ``decoding_streams`` (the same sums for a few tokens without gradients).
"""

from reformer_hf.ops.reversible.decoding_streams import DecodingStreams
from reformer_hf.ops.reversible.residual_streams import ResidualStreams
from reformer_hf.ops.reversible.step import Keep, ReversibleStep, Take

__all__ = ["DecodingStreams", "Keep", "ResidualStreams", "ReversibleStep", "Take"]
