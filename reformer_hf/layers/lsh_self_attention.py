"""Self-attention among tokens that hash alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.ops.lsh_attention import lsh_attention, lsh_attention_weights
from reformer_hf.ops.seeds import fold_seed


class LSHSelfAttention(SelfAttention):
    """LSH attention with shared queries and keys; see :func:`~reformer_hf.ops.lsh_attention`."""

    projections = ("query_key", "value")

    def _arguments(self, context: ForwardContext) -> dict[str, Any]:
        config = self.config
        # The original draws the same rotations in every layer; ours differ from layer to layer.
        shared = config.attention_pattern == "chunk"
        seed = context.hash_seed if shared else fold_seed(context.hash_seed, self.layer_index)
        return {
            "window": self._window("lsh", context, exclude_self=True),
            "num_hashes": context.num_hashes or config.num_hashes,
            "num_buckets": context.num_buckets or config.num_buckets,
            "hash_seed": seed,
            "hash_family": config.hash_family,
            "bucket_width": config.hash_bucket_width,
            "padding": context.padding,
        }

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """LSH attention of ``query_key`` and ``value`` heads."""
        out, _ = lsh_attention(
            *heads, backend=self.config.attention_backend, **self._arguments(context)
        )
        return out

    def weights(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """The merged weights of all rounds."""
        return lsh_attention_weights(*heads, **self._arguments(context))
