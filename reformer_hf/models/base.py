"""What all models of the family share: initialisation, validation of inputs, resizing."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
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
from reformer_hf.ops.padding import Padding


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

    def __init__(self, config: ReformerConfig) -> None:
        expected = type(self).config_class
        if not isinstance(config, expected):
            raise ValueError(
                f"`config` must be a {expected.__name__} for a {type(self).__name__}, "
                f"got a {type(config).__name__}"
            )
        config.check()
        super().__init__(config)

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
        embeddings: nn.Module = self.base_model.get_position_embeddings()
        return embeddings

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change the longest (source) sequence; positions that remain keep their embeddings.

        Raises:
            ValueError: the new number is not a positive integer.
        """
        self.base_model.resize_position_embeddings(new_num_position_embeddings)


def resized_shape(embeddings: PositionedInputs, num_positions: int, std: float) -> list[int] | None:
    """Replace a position table by a resized one, in place.

    Returns:
        The axes of the new table, or ``None`` if it is not axial.
    """
    if not isinstance(num_positions, int) or isinstance(num_positions, bool) or num_positions < 1:
        raise ValueError(
            f"`new_num_position_embeddings` must be a positive integer, got {num_positions!r}"
        )
    table = embeddings.position_embeddings.resized(num_positions, std)
    embeddings.position_embeddings = table
    return list(table.shape) if isinstance(table, AxialPositionEmbeddings) else None


def _skip_value_checks(x: Tensor) -> bool:
    """Values cannot be read while a graph is traced or captured, and there are none on meta."""
    return (
        x.device.type == "meta"
        or torch.compiler.is_compiling()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def check_shape(x: Tensor, shape: torch.Size, name: str) -> None:
    """Make sure that a tensor given by the user has the shape of the tokens.

    Raises:
        ValueError: naming the argument, the expected and the actual shape.
    """
    if x.shape != shape:
        raise ValueError(f"`{name}` must be [batch, length] = {list(shape)}, got {list(x.shape)}")


def check_ids(ids: Tensor, limit: int, name: str, limit_name: str = "vocab_size") -> None:
    """Make sure that all ids are in ``[0, limit)``.

    Raises:
        ValueError: naming the argument, the valid range and the offending value.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"`{name}` must hold integers, got dtype {ids.dtype}")
    if ids.numel() == 0 or _skip_value_checks(ids):
        return
    low, high = (int(x) for x in torch.stack(ids.aminmax()).tolist())
    if low < 0 or high >= limit:
        raise ValueError(
            f"`{name}` must be in [0, {limit_name}={limit}), got {low if low < 0 else high}"
        )


def check_labels(labels: Tensor, num_classes: int, name: str = "labels") -> None:
    """Make sure that all labels are -100 or in ``[0, num_classes)``.

    Raises:
        ValueError: naming the argument, the valid range and the offending value.
    """
    if labels.is_floating_point():
        raise ValueError(f"`{name}` must hold integers, got dtype {labels.dtype}")
    if labels.numel() == 0 or _skip_value_checks(labels):
        return
    checked = labels.masked_fill(labels == -100, 0)
    low, high = (int(x) for x in torch.stack(checked.aminmax()).tolist())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"`{name}` must be -100 or in [0, {num_classes}), got {low if low < 0 else high}"
        )


def check_num_hashes(num_hashes: int | None) -> None:
    """Make sure that the hash rounds asked for in a call, if any, are at least one.

    Raises:
        ValueError: with the number.
    """
    if num_hashes is not None and num_hashes < 1:
        raise ValueError(f"`num_hashes` must be at least 1, got {num_hashes}")


def embed_tokens(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    word_embeddings: nn.Embedding,
    prefix: str = "",
) -> Tensor:
    """Token vectors ``[B, N, d]`` from ids or from vectors, whichever was given.

    Args:
        input_ids: ``[B, N]`` int64, or ``None``.
        inputs_embeds: ``[B, N, d]``, or ``None``.
        word_embeddings: the token embedding.
        prefix: prefix of the argument names in errors (``"decoder_"``).

    Raises:
        ValueError: both or neither given, a wrong shape, an empty batch, unknown ids.
    """
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(
            f"exactly one of `{prefix}input_ids` and `{prefix}inputs_embeds` must be given, "
            f"got {given}"
        )
    if inputs_embeds is not None:
        width = word_embeddings.embedding_dim
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != width:
            raise ValueError(
                f"`{prefix}inputs_embeds` must be [batch, length, {width}], "
                f"got {list(inputs_embeds.shape)}"
            )
        vectors = inputs_embeds
    elif input_ids is not None:
        if input_ids.dim() != 2:
            raise ValueError(
                f"`{prefix}input_ids` must be [batch, length], got {list(input_ids.shape)}"
            )
        check_ids(input_ids, word_embeddings.num_embeddings, f"{prefix}input_ids")
        vectors = word_embeddings(input_ids)
    if vectors.shape[0] == 0 or vectors.shape[1] == 0:
        raise ValueError(
            f"`{prefix}input_ids` must hold at least one row and one token, "
            f"got shape {list(vectors.shape[:2])}"
        )
    return vectors


def read_padding(attention_mask: Tensor | None, vectors: Tensor, name: str) -> Padding | None:
    """The padding that an attention mask describes.

    Raises:
        ValueError: the mask does not have the shape of the tokens.
    """
    if attention_mask is not None:
        check_shape(attention_mask, vectors.shape[:2], name)
    return Padding.from_attention_mask(attention_mask)


def read_positions(
    position_ids: Tensor | None,
    padding: Padding | None,
    vectors: Tensor,
    num_positions: int,
    names: tuple[str, str] = ("position_ids", "max_position_embeddings"),
) -> Tensor:
    """Positions ``[B or 1, N]``: those given, or the number of real tokens before each token.

    Args:
        position_ids: positions given by the user.
        padding: which tokens are real.
        vectors: ``[B, N, d]`` token vectors.
        num_positions: positions that the model knows.
        names: names of the argument and of the limit, for errors.

    Raises:
        ValueError: the sequence is longer than the table, or a position lies outside of it.
    """
    name, limit_name = names
    length = vectors.shape[1]
    if position_ids is None:
        # While a graph is traced, the lengths of padded rows are not known and not checked.
        longest = length if padding is None else max((1, *(padding.lengths or ())))
        if longest > num_positions:
            raise ValueError(
                f"the sequence must have at most {limit_name}={num_positions} tokens, "
                f"got {longest}; see `resize_position_embeddings`"
            )
        if padding is not None:
            return padding.positions()
        return torch.arange(length, device=vectors.device).unsqueeze(0)
    batch = vectors.shape[0]
    if position_ids.shape not in ((batch, length), (1, length)):
        raise ValueError(
            f"`{name}` must be [{batch} or 1, {length}], got {list(position_ids.shape)}"
        )
    check_ids(position_ids, num_positions, name, limit_name)
    return position_ids
