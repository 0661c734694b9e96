"""The words that settings choose from: read by the configuration and by the operations."""

from __future__ import annotations

ATTENTION_KINDS = ("lsh", "local", "full", "hybrid")
ATTENTION_PATTERNS = ("window", "chunk")
# Implementations of windowed and of hybrid attention; "auto" is the fastest that can serve a call.
ATTENTION_BACKENDS = ("auto", "reference", "torch", "triton")
HASH_FAMILIES = ("angular", "euclidean", "random")
HEAD_MERGES = ("concat", "average")
STREAM_MERGES = ("mean", "concat")
CLASSIFIER_POOLINGS = ("mean", "first")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
