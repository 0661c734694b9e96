"""Changing what the layers of a pretrained model see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from reformer_hf.configuration_attention import CONFIG_FIELD, ReformerAttentionSettings
from reformer_hf.configuration_reformer import ReformerConfig


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those of the parts that it is composed of."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _configs(part)


def _most_layers(config: PreTrainedConfig) -> int | None:
    """Layers of the deepest part of a model, if its configuration says it."""
    names = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "n_layer")
    found = [
        count
        for part in _configs(config)
        for count in (getattr(part, name, None) for name in names)
        if isinstance(count, int)
    ]
    return max(found, default=None)


def _config_of_pretrained(model: object) -> PreTrainedConfig:
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"`model` must be a model of transformers, got {type(model).__name__}")
    if isinstance(config, ReformerConfig):
        raise ValueError(
            "`model` must be a pretrained transformer: a Reformer attends as `attn_layers` of its"
            f" configuration says, got a {type(model).__name__}"
        )
    return config


def configure_attention(model: PreTrainedModel, **changes: Any) -> ReformerAttentionSettings:
    """Change settings of ``attn_implementation="reformer"``, from the next forward pass on.

    They are kept in the model's configuration, and saved and loaded with it.

    Args:
        model: any model of transformers (one that PEFT or DDP wraps has it inside).
        **changes: fields of
            :class:`~reformer_hf.configuration_attention.ReformerAttentionSettings`; those not named
            stay as they are.

    Returns:
        The settings as they are now.

    Raises:
        ValueError: an unknown field, a value outside its range, a layer that the model lacks, or a
            Reformer, whose attention its own configuration chooses.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2, attn_implementation="reformer")
        >>> model = LlamaForCausalLM(config)
        >>> settings = configure_attention(model, local_window=128, full_layers=[0])
        >>> model.config.reformer_attention["local_window"], settings.full_layers
        (128, (0,))
    """
    config = _config_of_pretrained(model)
    settings = ReformerAttentionSettings.of(config).changed(**changes)
    layers = _most_layers(config)
    if layers is not None:
        settings.check_layers(layers)
    for part in _configs(config):
        setattr(part, CONFIG_FIELD, settings.to_dict())
    return settings


@contextmanager
def attending(model: PreTrainedModel, implementation: str, **changes: Any) -> Iterator[None]:
    """A model in another attention, or in sparse attention of other settings, for a while.

    Args:
        model: as :func:`configure_attention` takes it.
        implementation: of the attention, a name of ``AttentionInterface``.
        **changes: as :func:`configure_attention` takes them.

    Raises:
        ValueError: as :func:`configure_attention` says.
    """
    config = _config_of_pretrained(model)
    known = [(part, getattr(part, CONFIG_FIELD, None)) for part in _configs(config)]
    before = config._attn_implementation
    configure_attention(model, **changes)
    try:
        model.set_attn_implementation(implementation)
        yield
    finally:
        for part, settings in known:
            if settings is not None:
                setattr(part, CONFIG_FIELD, settings)
            else:  # a model that had no settings is saved without
                delattr(part, CONFIG_FIELD)
        model.set_attn_implementation(before)
