"""Longer documents than a model was pretrained for: :func:`extend_positions`.

Three kinds of positions occur, told apart by structure rather than by a list of models:

* *learned tables*, an embedding with a row for each position: the trained rows are repeated, as
  Longformer did (Beltagy et al. 2020, section 5, arXiv:2004.05150), so that positions within the
  trained length are what they were, and neighbours keep their distance almost everywhere;
* *computed tables* (sinusoids): computed for the new length;
* *rotary positions*: transformers' ``yarn`` setting (Peng et al. 2023, arXiv:2309.00071), which
  stretches the slow rotations only.

Models without positions of their own (ALiBi, relative biases) need nothing but the new maximum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from reformer_hf.configuration_reformer import ReformerConfig

_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_source_positions")
_TOKEN_BUFFERS = ("position_ids", "token_type_ids")


def _configs(model: PreTrainedModel) -> Iterator[PreTrainedConfig]:
    """The configurations of a model's parts, each once."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            yield config


def _length_field(config: PreTrainedConfig) -> str | None:
    """The name under which a configuration holds its number of positions."""
    for name in _LENGTH_FIELDS:
        mapped = getattr(config, "attribute_map", {}).get(name, name)
        if isinstance(getattr(config, mapped, None), int):
            return mapped
    return None


def _is_position_table(name: str, module: nn.Module) -> bool:
    """Whether a module is an embedding of absolute positions."""
    last, kind = name.rpartition(".")[2].lower(), type(module).__name__.lower()
    named = last == "wpe" or ("pos" in last and "emb" in last) or "position" in kind
    return isinstance(module, nn.Embedding) and named


def _offset(table: nn.Embedding, positions: int) -> int:
    """Rows in front of the first position.

    BART's tables have a number of rows that no position uses; those of RoBERTa count theirs among
    the positions, up to and including the row of padding.
    """
    extra = table.num_embeddings - positions
    if extra:
        return extra
    return 0 if table.padding_idx is None else table.padding_idx + 1


def _tiled(weight: Tensor, offset: int, rows: int) -> Tensor:
    """The rows from ``offset`` on repeated until there are ``rows`` in all."""
    trained = weight[offset:]
    times = -(-(rows - offset) // trained.shape[0])
    return torch.cat((weight[:offset], trained.repeat(times, 1)))[:rows]


def _new_table(table: Any, offset: int, rows: int) -> Tensor:
    """The weights of a table with ``rows`` rows."""
    if hasattr(table, "create_weight"):  # a table that is computed, not learned
        longer = type(table)(rows, table.embedding_dim, table.padding_idx)
        return longer.create_weight().to(table.weight)
    return _tiled(table.weight.detach(), offset, rows)


def _replace_weight(table: nn.Embedding, weight: Tensor) -> None:
    table.weight = nn.Parameter(weight.clone(), requires_grad=table.weight.requires_grad)
    table.num_embeddings = weight.shape[0]


def _stretch_rope(config: PreTrainedConfig, old: int, length: int, name: str) -> None:
    """Set rotary positions to reach ``length``, by the setting that transformers has for it."""
    rope = config.rope_parameters
    plain = isinstance(rope, dict) and not any(isinstance(x, dict) for x in rope.values())
    kind = rope.get("rope_type", "default") if plain else "one for each type of layer"
    if kind not in ("default", "yarn"):
        raise ValueError(
            f"`model` ({name}) has rotary positions of type {kind!r}; `extend_positions` extends "
            "'default' and 'yarn': set `config.rope_parameters` yourself, as transformers "
            "documents it"
        )
    original = rope.get("original_max_position_embeddings", old)
    config.rope_parameters = {
        **rope,
        "rope_type": "yarn",
        "factor": length / original,
        "original_max_position_embeddings": original,
    }


def extend_positions(model: PreTrainedModel, length: int) -> None:
    """Let a model read ``length`` tokens, in place.

    Learned position tables are repeated, computed ones computed further, rotary positions stretched
    (``yarn``). With tables, inputs of up to the trained length give what they gave; rotary
    positions change a little everywhere, so the model should be trained on afterwards. What is
    saved opens with stock transformers.

    Args:
        model: any model of transformers.
        length: tokens, at least as many as now.

    Raises:
        ValueError: not a whole number, fewer positions than now, positions of a kind that is not
            known, or a Reformer, which has `resize_position_embeddings`; nothing has changed then.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> config = GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1)
        >>> model = GPT2Model(config)
        >>> extend_positions(model, 20)
        >>> model.wpe.weight.shape[0], bool((model.wpe.weight[8] == model.wpe.weight[0]).all())
        (20, True)
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"`model` must be a model of transformers, got {name}")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"`length` must be a positive whole number, got {length!r}")

    if isinstance(model.config, ReformerConfig):
        raise ValueError(
            f"`model` ({name}) grows by a method of its own: `resize_position_embeddings({length})`"
        )
    found = {id(c): (c, field) for c in _configs(model) if (field := _length_field(c))}
    if not found:
        raise ValueError(
            f"`model` ({name}) has a configuration without `max_position_embeddings`, so its "
            "positions are not known; models without positions of their own need no extension"
        )
    lengths = {getattr(config, field) for config, field in found.values()}
    old = min(lengths)
    tables: dict[str, Any] = {n: m for n, m in model.named_modules() if _is_position_table(n, m)}
    offsets = {n: _offset(m, _positions(m, lengths, n, name)) for n, m in tables.items()}
    inside = max((o for n, o in offsets.items() if tables[n].num_embeddings in lengths), default=0)
    if length + inside < max(lengths):
        raise ValueError(
            f"`length` must be at least the {max(lengths) - inside} tokens that `model` ({name}) "
            f"reads now, got {length}"
        )
    rotary = [c for c, _ in found.values() if getattr(c, "rope_parameters", None)]
    # Everything that can be refused is refused before anything changes.
    stretched = [(config, dict(config.rope_parameters)) for config in rotary]
    try:
        for config in rotary:
            _stretch_rope(config, old, length, name)
    except ValueError:
        for config, before in stretched:
            config.rope_parameters = before
        raise

    with torch.no_grad():
        for key, table in tables.items():
            _replace_weight(table, _new_table(table, offsets[key], length + offsets[key]))
    for config, field in found.values():
        setattr(config, field, length + inside)
    for module in model.modules():
        _lengthen_buffers(module, lengths, length + inside)
        if hasattr(module, "inv_freq") and hasattr(module, "config"):
            _rebuild_rotary(module)
    model.tie_weights()


def _positions(table: nn.Embedding, lengths: set[int], key: str, name: str) -> int:
    """Which of the configurations' lengths a table is made for."""
    fitting = [n for n in lengths if 0 <= table.num_embeddings - n <= 8]
    if not fitting:
        raise ValueError(
            f"`model` ({name}) has {table.num_embeddings} rows in `{key}`, where its configuration "
            f"names {sorted(lengths)} positions; `extend_positions` cannot tell how they belong"
        )
    return max(fitting)


def _lengthen_buffers(module: nn.Module, lengths: set[int], length: int) -> None:
    """Renew the buffers that hold a number for each position."""
    for key in _TOKEN_BUFFERS:
        buffer = getattr(module, key, None)
        if not isinstance(buffer, Tensor) or buffer.shape[-1] not in lengths:
            continue
        longer = torch.zeros(length, dtype=buffer.dtype, device=buffer.device)
        if key == "position_ids":
            longer = torch.arange(length, dtype=buffer.dtype, device=buffer.device)
        setattr(module, key, longer.expand(*buffer.shape[:-1], -1).clone())


def _rebuild_rotary(module: Any) -> None:
    """Compute the frequencies of a rotary embedding again, from its configuration."""
    fresh = type(module)(module.config)
    kept = ("_parameters", "_buffers", "_modules")
    module.__dict__.update({k: v for k, v in fresh.__dict__.items() if k not in kept})
    for key, buffer in fresh._buffers.items():
        module._buffers[key] = buffer.to(module.inv_freq.device)
