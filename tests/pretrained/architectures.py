"""Every architecture of the installed transformers whose attention is looked up by name, tiny.

A model is built from its configuration class alone: numbers that say how large it is are lowered by
the names that transformers gives them, in nested configurations too.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import reformer_hf
from reformer_hf.ops.hybrid_attention import hybrid_attention
from reformer_hf.pretrained import attention_interface

# Classes that read token ids, best first: what a model of each type is for.
_TABLES = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)
_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "hidden_dim": 48,
    "n_inner": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "embedding_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
LENGTH = 160
# Largest difference of logits that sums in another order make in fp32.
TOLERANCE = 1e-4
_MOST_PARAMETERS = 8_000_000


@dataclass(frozen=True)
class Architecture:
    """A type of model and the class that serves it."""

    model_type: str
    model_class: type[PreTrainedModel]
    config_class: type[PreTrainedConfig]

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it reads decoder ids too."""
        return "decoder_input_ids" in inspect.signature(self.model_class.forward).parameters


def architectures() -> Iterator[Architecture]:
    """All that read token ids and look their attention up by name."""
    for model_type, config_name in sorted(CONFIG_MAPPING_NAMES.items()):
        for table in _TABLES:
            name = getattr(modeling_auto, table).get(model_type)
            name = name[0] if isinstance(name, (list, tuple)) else name
            if name is None:
                continue
            model_class = getattr(transformers, name, None)
            config_class = getattr(transformers, config_name, None)
            if model_class is None or config_class is None:
                break
            try:
                module = importlib.import_module(model_class.__module__)
            except ImportError:  # it needs a library that is not installed
                break
            reads = "input_ids" in inspect.signature(model_class.forward).parameters
            if reads and hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
                yield Architecture(model_type, model_class, config_class)
            break


def _shrink(config: PreTrainedConfig) -> None:
    compressed = hasattr(config, "qk_rope_head_dim")  # whose head size follows from its parts
    for name, value in _SMALL.items():
        if isinstance(getattr(config, name, None), int) and not (compressed and name == "head_dim"):
            setattr(config, name, value)
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        rope["mrope_section"] = [2, 1, 1]
    for name in _TOKENS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 1 if name == "pad_token_id" else 2)
    for name in vars(config):
        value = getattr(config, name)
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, 0.0)
        if name in ("layer_types", "mlp_layer_types") and isinstance(value, list):
            setattr(config, name, value[:2])
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            _shrink(part)


def tiny(architecture: Architecture) -> PreTrainedModel:
    """A model of it with random weights, the same ones every time, in full attention."""
    config = architecture.config_class()
    _shrink(config)
    # Whatever follows from the sizes (head sizes, layer types) is worked out again.
    plain = {n: v for n, v in config.to_dict().items() if n not in ("model_type", "dtype")}
    config = architecture.config_class(**plain)
    torch.manual_seed(0)
    try:
        config._attn_implementation = "sdpa"
        model = architecture.model_class(config)
    except ValueError:  # the model has nothing but eager attention of its own
        config._attn_implementation = "eager"
        model = architecture.model_class(config)
    model = model.eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                # Scores that differ from one another, or any attention would do.
                parameter.mul_(4.0 if ("q" in name or "k" in name) else 1.0)
    return model


def inputs(architecture: Architecture, mask: Tensor | None) -> dict[str, Any]:
    """Ids, as long for the decoder as for the encoder."""
    ids = torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {"input_ids": ids}
    if mask is not None:
        given["attention_mask"] = mask
    if architecture.is_encoder_decoder:
        given["decoder_input_ids"] = ids.flip(1)
    if "use_cache" in inspect.signature(architecture.model_class.forward).parameters:
        given["use_cache"] = False
    return given


def first_tensor(output: Any) -> Tensor:
    """Logits or hidden states ``[B, N, ..]``."""
    for name in ("logits", "last_hidden_state", "prediction_logits"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return next(x for x in output.values() if isinstance(x, Tensor) and x.dim() == 3)


def compare(architecture: Architecture, mask: Tensor | None) -> tuple[float, int]:
    """How far a sparse call in which nothing is hidden is from full attention.

    Returns:
        The largest difference of logits or hidden states of real tokens, and the number of sparse
        attention calls.

    Raises:
        Unbuilt: the model cannot be built, or run in full attention, from its configuration alone.
        ValueError: the model is refused.
    """
    try:
        model = tiny(architecture)
        if sum(p.numel() for p in model.parameters()) > _MOST_PARAMETERS:
            raise Unbuilt("it stays large")
        with torch.no_grad():
            full = first_tensor(model(**inputs(architecture, mask)))
    except Unbuilt:
        raise
    except Exception as error:
        raise Unbuilt(f"{type(error).__name__}: {error}") from error
    calls = 0

    def counted(*arguments: Any, **rest: Any) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return hybrid_attention(*arguments, **rest)

    model.set_attn_implementation("reformer")
    reformer_hf.configure_attention(model, local_window=LENGTH, dense_below=8)
    with mock.patch.object(attention_interface, "hybrid_attention", counted), torch.no_grad():
        own = first_tensor(model(**inputs(architecture, mask)))
    difference = (own - full).abs()
    if mask is not None and difference.shape[1] == LENGTH and not architecture.is_encoder_decoder:
        difference = difference[mask.bool()]
    return float(difference.max()), calls


def padding_masks() -> dict[str, Tensor | None]:
    """No padding, and one row padded on either side."""
    left, right = torch.ones(2, LENGTH, dtype=torch.long), torch.ones(2, LENGTH, dtype=torch.long)
    left[0, :30], right[0, -30:] = 0, 0
    return {"none": None, "left": left, "right": right}


class Unbuilt(Exception):
    """A model that cannot be built tiny from its configuration alone."""


def table() -> str:
    """What becomes of every architecture, as Markdown."""
    found: dict[str, list[str]] = {"sparse": [], "full": [], "untried": []}
    refused: list[tuple[str, str]] = []
    for architecture in architectures():
        name = f"`{architecture.model_type}`"
        try:
            results = [compare(architecture, mask) for mask in padding_masks().values()]
        except Unbuilt:
            found["untried"].append(name)
        except ValueError as error:
            reason = str(error).split(": ", 1)[-1].split("; use")[0]
            refused.append((name, reason))
        else:
            if max(difference for difference, _ in results) > TOLERANCE:
                raise AssertionError(f"{name} differs from full attention: {results}")
            found["sparse" if results[0][1] else "full"].append(name)
    sparse, full, untried = (", ".join(found[kind]) for kind in ("sparse", "full", "untried"))
    rows = "\n".join(f"| {name} | {reason} |" for name, reason in refused)
    return f"""\
# `attn_implementation="reformer"` in every architecture of transformers

transformers {transformers.__version__}: every type of model that reads token ids and looks its
attention up by name, built tiny with random weights, at {LENGTH} tokens, without padding and with
padding on either side. Made by `python -m tests.pretrained.architectures`; the same comparison is a
test (`pytest -m slow tests/pretrained/test_every_architecture.py`).

**Sparse** ({len(found["sparse"])}): equal to full attention where nothing is hidden, by sparse
calls: {sparse}.

**Full** ({len(found["full"])}): long calls cannot be told to be plainly causal or bidirectional (a
position bias, masks of the model's own), or two layers of the model hold no attention. They stay
what `"sdpa"` makes of them, and say so once: {full}.

**Refused** ({len(refused)}), with a `ValueError`:

| model | why |
|---|---|
{rows}

**Not tried** ({len(found["untried"])}): they need images or sound, or their configuration alone
does not build a small model: {untried}.
"""


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    Path(".github/ATTENTION.md").write_text(table(), encoding="utf-8")
