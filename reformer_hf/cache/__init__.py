"""The generation cache: what a causal Reformer keeps between calls.

``timeline`` numbers the tokens and ``token_layer`` stores them; ``lsh_layer``, ``local_layer`` and
``full_layer`` say what a layer of each kind keeps and how new tokens attend to it, ``chunk_layers``
the same, approximately, for the original's attention pattern. ``reformer_cache`` is what users and
``generate()`` see.
"""

from reformer_hf.cache.reformer_cache import ReformerCache, ReformerEncoderDecoderCache

__all__ = ["ReformerCache", "ReformerEncoderDecoderCache"]
