"""LSH attention of one new token in the original ``chunk`` pattern, as transformers decodes it.

The new token is sorted into its place among the tokens so far, and attends to the chunks around
that place. In a pass over the whole sequence it would attend to the chunks around its place among
*all* tokens, and earlier tokens, whose keys and values are kept here as they were, would have met
others in theirs: what this computes is close to such a pass, and not equal to it.
Source: transformers, ``models/reformer`` (``_get_relevant_hid_states_and_buckets``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.ops.attention_window import SELF_SCORE, AttentionWindow
from reformer_hf.ops.precision import widen
from reformer_hf.ops.sorting import sort_by_bucket


def attend_in_chunks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    buckets: Tensor,
    *,
    num_buckets: int,
    window: AttentionWindow,
) -> Tensor:
    """Attention of the last token to the chunks around its place in every round.

    With ``s`` its sorted slot among ``T`` tokens and ``c = s // C``, it sees the tokens in the
    slots ``(c - before) C .. (c + after + 1) C``, modulo ``T``; a token that several rounds or the
    wrap-around show counts each time.

    Args:
        query: ``[B, H, 1, D]``.
        keys: ``[B, H, T, D]``, normalised, those of the last token included.
        values: ``[B, H, T, D]``.
        buckets: ``[B, H, R, T]`` int64.
        num_buckets: a number above all buckets.
        window: length ``C`` of a chunk, chunks ``before`` and ``after`` its own, and dropout.

    Returns:
        ``[B, H, 1, D]``.
    """
    length = keys.shape[2]
    order = sort_by_bucket(buckets, num_buckets)
    start = (order.rank[..., -1:] // window.chunk_length - window.before) * window.chunk_length
    chunks = window.before + 1 + window.after
    reach = torch.arange(chunks * window.chunk_length, device=keys.device)
    token = order.order.gather(-1, (start + reach).remainder(length)).flatten(2)
    index = token.unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
    scores = torch.matmul(query, keys.gather(2, index).transpose(-1, -2))
    scores = torch.where((token == length - 1).unsqueeze(2), SELF_SCORE, widen(scores))
    weights = F.dropout(scores.softmax(dim=-1), window.dropout).to(values.dtype)
    return torch.matmul(weights, values.gather(2, index))
