"""Generation memory: what a causal Reformer keeps between calls.

``timeline`` numbers the tokens, ``token_memory`` stores them, ``lsh_memory``, ``local_memory`` and
``full_memory`` say what a layer of each kind keeps and how new tokens attend to it, and
``reformer_cache`` is what users and ``generate()`` see. ``chunk_memory`` holds the approximate
memories of the original's attention pattern.
"""

from reformer_hf.cache.reformer_cache import ReformerCache, ReformerEncoderDecoderCache

__all__ = ["ReformerCache", "ReformerEncoderDecoderCache"]
