"""The base class of all models: initial weights, checkpoints, number of positions."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from reformer_hf.checkpoint_conversion import IGNORED_BUFFERS, original_names_known
from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.embeddings import (
    AxialPositionEmbeddings,
    LearnedPositionEmbeddings,
    PositionedInputs,
)
from reformer_hf.models.checkpoint_files import CheckpointFiles
from reformer_hf.ops.sequence_group import SequenceGroup


class ReformerPreTrainedModel(PreTrainedModel):
    """Base class of all models: configuration, initial weights, checkpoints."""

    config: ReformerConfig
    config_class = ReformerConfig
    base_model_prefix = "reformer"
    supports_gradient_checkpointing = True
    _input_embed_layer = "word_embeddings"
    # The stack calls sub-layers, not layers, so these are what must stay on one device.
    _no_split_modules: Collection[str] = (
        "LSHSelfAttention",
        "LocalSelfAttention",
        "FullSelfAttention",
        "CrossAttention",
        "FeedForward",
    )
    _keys_to_ignore_on_load_unexpected = list(IGNORED_BUFFERS)
    # Set by `reformer_hf.parallel.split_sequence`: with whom this process shares every sequence,
    # and whether a decoder's target is split as well as its source.
    sequence_group: SequenceGroup | None = None
    target_is_split: bool = False
    # Arguments that hold something for every token, and of these the ones about a target.
    token_arguments: tuple[str, ...] = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "inputs_embeds",
    )
    target_arguments: tuple[str, ...] = ()

    def __init__(self, config: ReformerConfig) -> None:
        expected = type(self).config_class
        if not isinstance(config, expected):
            raise ValueError(
                f"`config` must be a {expected.__name__} for a {type(self).__name__}, "
                f"got a {type(config).__name__}"
            )
        config.check()
        super().__init__(config)

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers' check, which takes every name that is registered for any model."""
        if attn_implementation == "reformer":
            raise ValueError(
                "attn_implementation='reformer' is for pretrained transformers; a"
                f" {type(self).__name__} attends as `attn_layers` of its configuration says, here"
                f" {self.config.attn_layers}"
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def post_init(self) -> None:
        """What transformers does last in every constructor; the list of modules becomes exact.

        accelerate shards the modules named there (FSDP2) and stops at a name that it cannot find.
        """
        super().post_init()
        found = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = {name for name in self._no_split_modules if name in found}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        **kwargs: Any,
    ) -> Any:
        """transformers' `from_pretrained`, for safetensors only and with a look at the files.

        Raises:
            ValueError: weights are pickled, or a weight file or its index is truncated, damaged or
                missing; with the file's name. See :mod:`reformer_hf.models.checkpoint_files`.
        """
        names = (cls.__name__, cls.config_class.__name__)
        files = CheckpointFiles(pretrained_model_name_or_path, kwargs, *names)
        files.check()
        try:
            with original_names_known():
                return super().from_pretrained(
                    pretrained_model_name_or_path, *model_args, **files.options
                )
        except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
            files.explain(error)
            raise

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AxialPositionEmbeddings):
            for weight in module.weights:
                init.normal_(weight, std=self.config.axial_norm_std)
        elif isinstance(module, LearnedPositionEmbeddings):
            init.normal_(module.weight, std=self.config.axial_norm_std)
        else:
            super()._init_weights(module)

    def get_position_embeddings(self) -> nn.Module:
        """The table of position embeddings (of the source in a sequence-to-sequence model)."""
        return self.base_model.get_position_embeddings()

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change the longest (source) sequence; positions that remain keep their embeddings.

        Raises:
            ValueError: the new number is not a positive integer.
        """
        self.base_model.resize_position_embeddings(new_num_position_embeddings)

    def _resize_positions(
        self, embeddings: PositionedInputs, num_positions: int
    ) -> list[int] | None:
        """Replace a position table; returns the axes of the new one, ``None`` if not axial."""
        integer = isinstance(num_positions, int) and not isinstance(num_positions, bool)
        if not integer or num_positions < 1:
            raise ValueError(
                f"`new_num_position_embeddings` must be a positive integer, got {num_positions!r}"
            )
        embeddings.resize(num_positions, self.config.axial_norm_std)
        table = embeddings.position_embeddings
        return list(table.shape) if isinstance(table, AxialPositionEmbeddings) else None
