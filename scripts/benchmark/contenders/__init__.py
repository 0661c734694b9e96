"""The registry: every contender of every suite. To add one, write its file and a line here.

Contenders are named, not imported, so that a process loads no more than its own contender needs.
"""

from __future__ import annotations

from benchmark.contender import Contender, import_contender

_MODELS = {
    "reformer_hf": "reformer_hf_model:ReformerHFModel",
    "reformer_hf_plain": "reformer_hf_model:ReformerHFPlain",
    "reformer_hf_chunk": "reformer_hf_model:ReformerHFChunk",
    "transformers_reformer": "transformers_reformer_model:TransformersReformerModel",
    "reformer_pytorch": "reformer_pytorch_model:ReformerPytorchModel",
    "sdpa": "sdpa_model:SDPAModel",
    "sdpa_checkpoint": "sdpa_model:SDPACheckpointModel",
    "products": "matrix_products:ModelProducts",
}
_ATTENTION = {
    "reformer_hf": "reformer_hf_attention:ReformerHFAttention",
    "transformers_reformer": "transformers_reformer_attention:TransformersReformerAttention",
    "reformer_pytorch": "reformer_pytorch_attention:ReformerPytorchAttention",
    "sdpa": "sdpa_attention:SDPAAttention",
    "flex_window": "flex_window_attention:FlexWindowAttention",
    "products": "matrix_products:AttentionProducts",
    "copies": "memory_copies:AttentionCopies",
}
_PREFILL = {
    "reformer_hf": "reformer_hf_decoding:ReformerHFPrefill",
    "transformers_reformer": "transformers_reformer_decoding:TransformersReformerPrefill",
    "gpt2": "gpt2_decoding:GPT2Prefill",
}
_DECODING = {
    "reformer_hf": "reformer_hf_decoding:ReformerHFDecoding",
    "transformers_reformer": "transformers_reformer_decoding:TransformersReformerDecoding",
    "gpt2": "gpt2_decoding:GPT2Decoding",
}
_HYBRID = {
    "reformer_hf": "hybrid_attention:HybridAttention",
    "sdpa": "hybrid_attention:GroupedFullAttention",
}
_PRETRAINED = {
    "reformer_hf": "pretrained_model:SparseLlama",
    "reformer_hf_third": "pretrained_model:ChosenLayersLlama",
    "sdpa": "pretrained_model:FullLlama",
}
REGISTRY = {
    "model": _MODELS,
    "depth": _MODELS,
    "attention": _ATTENTION,
    "prefill": _PREFILL,
    "decoding": _DECODING,
    "hybrid": _HYBRID,
    "pretrained": _PRETRAINED,
}

# What a suite runs if nobody names contenders.
DEFAULT_CONTENDERS = {
    "model": ("reformer_hf", "transformers_reformer", "reformer_pytorch", "sdpa", "products"),
    "depth": (
        "reformer_hf",
        "reformer_hf_plain",
        "transformers_reformer",
        "reformer_pytorch",
        "sdpa",
    ),
    "attention": ("reformer_hf", "transformers_reformer", "reformer_pytorch", "sdpa", "products"),
    "prefill": ("reformer_hf", "transformers_reformer", "gpt2"),
    "decoding": ("reformer_hf", "transformers_reformer", "gpt2"),
    "hybrid": ("reformer_hf", "sdpa"),
    "pretrained": ("reformer_hf", "reformer_hf_third", "sdpa"),
}

# The contender that the others are compared with.
OURS = "reformer_hf"


def check_name(suite: str, name: str) -> str:
    """The path ``module:Class`` of a contender: a name of the registry, or such a path itself.

    Raises:
        ValueError: unknown suite or name.
    """
    if suite not in REGISTRY:
        raise ValueError(f"`suite` must be one of {sorted(REGISTRY)}, got {suite!r}")
    if ":" in name:
        return name
    if name not in REGISTRY[suite]:
        known = [*REGISTRY[suite]]
        raise ValueError(f"a contender of suite {suite!r} must be one of {known}, got {name!r}")
    return f"benchmark.contenders.{REGISTRY[suite][name]}"


def find_contender(suite: str, name: str) -> Contender:
    """One contender.

    Raises:
        ValueError: unknown suite, name or class.
    """
    return import_contender(check_name(suite, name))
