"""The registry: every contender of every suite. To add one, write its file and a line here."""

from __future__ import annotations

from benchmark.contender import Contender, import_contender
from benchmark.contenders.flex_window_attention import FlexWindowAttention
from benchmark.contenders.matrix_products import AttentionProducts, ModelProducts
from benchmark.contenders.reformer_hf_attention import ReformerHFAttention
from benchmark.contenders.reformer_hf_model import (
    ReformerHFChunk,
    ReformerHFModel,
    ReformerHFPlain,
)
from benchmark.contenders.reformer_pytorch_attention import ReformerPytorchAttention
from benchmark.contenders.reformer_pytorch_model import ReformerPytorchModel
from benchmark.contenders.sdpa_attention import SDPAAttention
from benchmark.contenders.sdpa_model import SDPACheckpointModel, SDPAModel
from benchmark.contenders.transformers_reformer_attention import TransformersReformerAttention
from benchmark.contenders.transformers_reformer_model import TransformersReformerModel

_MODELS: tuple[type[Contender], ...] = (
    ReformerHFModel,
    ReformerHFPlain,
    ReformerHFChunk,
    TransformersReformerModel,
    ReformerPytorchModel,
    SDPAModel,
    SDPACheckpointModel,
    ModelProducts,
)
_ATTENTION: tuple[type[Contender], ...] = (
    ReformerHFAttention,
    TransformersReformerAttention,
    ReformerPytorchAttention,
    SDPAAttention,
    FlexWindowAttention,
    AttentionProducts,
)
_REGISTRY = {"model": _MODELS, "depth": _MODELS, "attention": _ATTENTION}

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
}

# The contender that the others are compared with.
OURS = "reformer_hf"


def contenders_of(suite: str) -> dict[str, Contender]:
    """All contenders of a suite by name.

    Raises:
        ValueError: unknown suite.
    """
    if suite not in _REGISTRY:
        raise ValueError(f"`suite` must be one of {sorted(_REGISTRY)}, got {suite!r}")
    return {kind.name: kind() for kind in _REGISTRY[suite]}


def find_contender(suite: str, name: str) -> Contender:
    """One contender: a name of the registry, or ``module:Class``.

    Raises:
        ValueError: unknown suite, name or class.
    """
    if ":" in name:
        return import_contender(name)
    found = contenders_of(suite)
    if name not in found:
        raise ValueError(f"a contender of suite {suite!r} must be one of {[*found]}, got {name!r}")
    return found[name]
