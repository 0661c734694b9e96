"""From what a caller gives to what a stack works on: vectors, positions and a context.

:func:`prepare_inputs` does it once for all models: for the stack of a model that has one, which is
also the encoder of a sequence-to-sequence model, and for a decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache

from reformer_hf.cache import ReformerCache
from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.context import ForwardContext, draw_seeds
from reformer_hf.layers.embeddings import PositionedInputs
from reformer_hf.models.checks import (
    as_ids,
    as_mask,
    check_device,
    check_num_hashes,
    check_shape,
    check_tensor,
    is_called_plainly,
    readable,
)
from reformer_hf.models.sequence_parts import OwnPart, agree
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.rotary import RotaryTables, rotary_tables
from reformer_hf.ops.sequence_group import SequenceGroup, SequenceShard, together

# Fields that limit the positions -> the method that changes them.
RESIZE_METHODS = {
    "max_position_embeddings": "resize_position_embeddings",
    "max_target_positions": "resize_target_position_embeddings",
}


@dataclass(frozen=True)
class InputSide:
    """Whose inputs these are: which tables they are looked up in, and what errors call them.

    Attributes:
        config: the model's configuration.
        training: every pass draws new seeds.
        word_embeddings: the token embedding ``[V, d]``, or what somebody put around it: its sizes
            are those of the configuration.
        embeddings: what adds positions to tokens.
        prefix: what the names of the arguments begin with.
        limit_name: the field of the configuration that limits the positions.
        group: who shares the sequences; ``None``: nobody.
        split: the tokens are split among the ranks; else the source alone is.
        rotary: in which dtype layers turn queries and keys by their positions, without autocast;
            ``None``: they do not.
    """

    config: ReformerConfig
    training: bool
    word_embeddings: nn.Module
    embeddings: PositionedInputs
    prefix: str = ""
    limit_name: str = "max_position_embeddings"
    group: SequenceGroup | None = None
    split: bool = True
    rotary: torch.dtype | None = None

    @property
    def num_positions(self) -> int:
        """Positions that the model knows; an axial table may have some to spare."""
        return min(self.embeddings.num_positions, getattr(self.config, self.limit_name))


@dataclass(frozen=True)
class Source:
    """What a decoder attends to besides its own tokens.

    Attributes:
        states: ``[B, M, merged_size]``, the encoder's output.
        attention_mask: ``[B, M]``, 0 for padding; ``None``: there is none.
        cache: where the cross-attention layers keep keys and values of the states.
    """

    states: Tensor
    attention_mask: Tensor | None
    cache: EncoderDecoderCache | None


@dataclass(frozen=True)
class PreparedInputs:
    """What a stack works on.

    Attributes:
        vectors: ``[B, N, d]`` token vectors.
        positions: ``[B or 1, N]`` int64; where sequences are split, of this rank's tokens.
        context: what the layers share in this pass.
    """

    vectors: Tensor
    positions: Tensor
    context: ForwardContext


def real_tokens(attention_mask: Tensor | None, tokens: Tensor) -> Tensor:
    """Which tokens an attention mask calls real.

    Args:
        attention_mask: ``[B, N]`` or, with earlier tokens in a cache, ``[B, past + N]``; 0 for
            padding. ``None``: all tokens are real.
        tokens: ``[B, N, ..]``, whatever there is of the tokens in question.

    Returns:
        ``[B, N]`` bool.
    """
    if attention_mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return attention_mask[:, -tokens.shape[1] :] != 0


def prepare_inputs(
    side: InputSide,
    ids: Tensor | None,
    embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: ReformerCache | None,
    num_hashes: int | None,
    planned_lengths: int | Sequence[int] | None,
    source: Source | None = None,
) -> PreparedInputs:
    """Check the inputs of one stack and bring them into the form it works on.

    If there is a cache, its call is opened here; who runs the stack closes it.

    Args:
        side: whose inputs these are.
        ids: ``[B, N]`` token ids of any integer type, or ``None``.
        embeds: ``[B, N, d]`` token vectors, or ``None``; one of the two must be given.
        attention_mask: ``[B, N]``, or ``[B, past + N]`` with earlier tokens in the cache.
        position_ids: ``[B or 1, N]`` of any integer type; ``None``: the number of real tokens
            before each.
        cache: earlier tokens, to which these are added. Hash rounds and planned lengths are those
            of its first call.
        num_hashes: hash rounds of this pass; ``None``: those of the configuration.
        planned_lengths: tokens that each row, or all alike, will have in the end.
        source: what a decoder attends to.

    Raises:
        ValueError: something of another shape, type, range or device than expected, with the
            argument's name; or a source, cache or plan of another batch size.
    """
    group = side.group
    with together(group):
        if group is not None:
            _check_can_be_split(side, cache, planned_lengths)
        if num_hashes is not None:
            check_num_hashes(num_hashes)
        vectors = _embed_tokens(side, ids, embeds)
        encoder_real = (
            None if source is None else _read_source(source, vectors, side.config.merged_size())
        )
        padding = _read_padding(attention_mask, cache, vectors, f"{side.prefix}attention_mask")
        if position_ids is not None:
            _check_position_shape(side, position_ids, vectors)
    hash_seed, dropout_seed = draw_seeds(side.config, side.training)
    shard: SequenceShard | None = None
    source_shard: SequenceShard | None = None
    if group is not None:
        seeds = (hash_seed, dropout_seed)
        part = OwnPart(
            *(vectors, padding, position_ids, num_hashes, side.training, seeds),
            source_length=0 if source is None else source.states.shape[1],
            source_real=encoder_real,
        )
        rows = agree(group, part, side.split, f"{side.prefix}input_ids")
        shard, source_shard, padding = rows.shard, rows.source, rows.padding
        position_ids, encoder_real = rows.position_ids, rows.source_real
        hash_seed, dropout_seed = rows.seeds
    if cache is not None:
        batch, length, _ = vectors.shape
        cache.open(batch, length, padding, vectors.device, hash_seed, num_hashes)
        hash_seed = hash_seed if cache.hash_seed is None else cache.hash_seed
        num_hashes, plan = cache.num_hashes, cache.planned_lengths
    else:
        plan = _read_plan(planned_lengths, vectors.shape[0])
    length = vectors.shape[1] if shard is None else sum(shard.lengths)
    positions = _read_positions(side, position_ids, padding, cache, length, vectors.device)
    if shard is not None:
        positions = positions[:, shard.span]
    context = ForwardContext(
        padding=padding,
        hash_seed=hash_seed,
        dropout_seed=dropout_seed,
        encoder_real=encoder_real,
        num_hashes=num_hashes,
        planned_lengths=plan,
        cache=cache,
        cross_cache=None if source is None else source.cache,
        shard=shard,
        source_shard=source_shard,
        unbroken=shard is not None and (padding is None or padding.unbroken()),
        rotary=_rotary_tables(side, positions, vectors),
    )
    return PreparedInputs(vectors, positions, context)


def _embed_tokens(side: InputSide, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
    """Token vectors ``[B, N, d]`` from ids or from vectors, whichever was given."""
    table, prefix = side.word_embeddings, side.prefix
    if (ids is None) == (embeds is None):
        raise ValueError(
            f"exactly one of `{prefix}input_ids` and `{prefix}inputs_embeds` must be given, "
            f"got {'neither' if ids is None else 'both'}"
        )
    if embeds is not None:
        name, width = f"{prefix}inputs_embeds", side.config.hidden_size
        check_tensor(embeds, name)
        _check_reach(table, embeds, name)
        if embeds.dim() != 3 or embeds.shape[-1] != width:
            raise ValueError(f"`{name}` must be [batch, length, {width}], got {list(embeds.shape)}")
        if not embeds.is_floating_point():
            raise ValueError(f"`{name}` must hold floating-point numbers, got dtype {embeds.dtype}")
        vectors = embeds
    elif ids is not None:
        name = f"{prefix}input_ids"
        check_tensor(ids, name)
        _check_reach(table, ids, name)
        if ids.dim() != 2:
            raise ValueError(f"`{name}` must be [batch, length], got {list(ids.shape)}")
        vectors = table(as_ids(ids, side.config.vocab_size, name))
    if vectors.shape[0] == 0 or vectors.shape[1] == 0:
        raise ValueError(
            f"`{name}` must hold at least one row and one token, "
            f"got shape {list(vectors.shape[:2])}"
        )
    return vectors


def _check_reach(table: nn.Module, given: Tensor, name: str) -> None:
    """Make sure that tokens are where their embeddings are, unless hooks will bring them there."""
    weight = next(table.parameters(), None)
    if weight is None or weight.device.type == "meta":
        return
    if all(is_called_plainly(module) for module in table.modules()):
        check_device(given, weight.device, name)


def _read_source(source: Source, vectors: Tensor, width: int) -> Tensor | None:
    """``[B, M]`` bool, which tokens of the source are real; ``None`` without a mask."""
    states, mask = source.states, source.attention_mask
    name = "encoder_outputs.last_hidden_state"
    if states.dim() != 3 or states.shape[-1] != width or states.shape[1] == 0:
        raise ValueError(
            f"`{name}` must be [batch, length, {width}] with at least one token, "
            f"got {list(states.shape)}"
        )
    if not states.is_floating_point():
        raise ValueError(f"`{name}` must hold floating-point numbers, got dtype {states.dtype}")
    if states.shape[0] != vectors.shape[0]:
        raise ValueError(
            "source and target must have the same batch size, "
            f"got {states.shape[0]} and {vectors.shape[0]}"
        )
    check_device(states, vectors.device, name)
    if mask is None:
        return None
    check_shape(mask, states.shape[:2], "attention_mask")
    return as_mask(mask, states.device, "attention_mask")


def _read_padding(
    attention_mask: Tensor | None, cache: ReformerCache | None, vectors: Tensor, name: str
) -> Padding | None:
    """The padding among the new tokens; the mask may cover those in the cache too."""
    if attention_mask is None:
        return None
    if cache is None:
        check_shape(attention_mask, vectors.shape[:2], name)
        return Padding.from_attention_mask(as_mask(attention_mask, vectors.device, name))
    check_tensor(attention_mask, name)
    batch, length = vectors.shape[:2]
    new, all_tokens = [batch, length], [batch, cache.get_seq_length() + length]
    if list(attention_mask.shape) not in (new, all_tokens):
        raise ValueError(
            f"`{name}` must be [batch, length] = {all_tokens} with the tokens in the cache, "
            f"or {new} without, got {list(attention_mask.shape)}"
        )
    real = as_mask(attention_mask, vectors.device, name)
    return Padding.from_attention_mask(real[:, -length:])


def _read_positions(
    side: InputSide,
    position_ids: Tensor | None,
    padding: Padding | None,
    cache: ReformerCache | None,
    length: int,
    device: torch.device,
) -> Tensor:
    """Positions ``[B or 1, N]``: those given, or the number of real tokens before each token."""
    limit_name, limit = side.limit_name, side.num_positions
    if position_ids is not None:
        name = f"{side.prefix}position_ids"
        positions = as_ids(position_ids, limit, name, limit_name)
        _check_one_text(positions, padding, cache, name)
        return positions
    if cache is not None:
        longest = max(cache.timeline.coming_ends)
    else:
        # While a graph is traced, the lengths of padded rows are not known and not checked.
        longest = length if padding is None else max((1, *(padding.lengths or ())))
    if longest > limit:
        cached = "" if cache is None else f" with {cache.get_seq_length()} in `past_key_values`"
        raise ValueError(
            f"the sequence must have at most {limit_name}={limit} tokens, got {longest}{cached}; "
            f"see `{RESIZE_METHODS[limit_name]}`"
        )
    if cache is not None:
        return cache.timeline.coming_positions()
    if padding is not None:
        return padding.positions()
    return torch.arange(length, device=device).unsqueeze(0)


def _rotary_tables(side: InputSide, positions: Tensor, vectors: Tensor) -> RotaryTables | None:
    """By what layers turn queries and keys, in the dtype in which these will be."""
    theta, dtype, kind = side.config.rope_theta, side.rotary, vectors.device.type
    if theta is None or dtype is None:
        return None
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    return rotary_tables(positions, side.config.attention_head_size, theta, dtype)


def _check_position_shape(side: InputSide, position_ids: Tensor, vectors: Tensor) -> None:
    """Make sure that there is a position for every token."""
    name, (batch, length) = f"{side.prefix}position_ids", vectors.shape[:2]
    check_tensor(position_ids, name)
    if position_ids.shape not in ((batch, length), (1, length)):
        raise ValueError(
            f"`{name}` must be [{batch} or 1, {length}], got {list(position_ids.shape)}"
        )
    check_device(position_ids, vectors.device, name)


def _check_can_be_split(
    side: InputSide,
    cache: ReformerCache | None,
    planned_lengths: int | Sequence[int] | None,
) -> None:
    """Refuse what has no meaning, or no place, while ranks share sequences."""
    if cache is not None:
        raise ValueError(
            "`past_key_values` and `use_cache` must not be given while sequences are split over "
            f"{side.group.size if side.group else 1} ranks, which cannot generate: make the model "
            "whole with `split_sequence(model, None)`"
        )
    if planned_lengths is not None:
        raise ValueError(
            "`planned_lengths` must not be given while sequences are split, "
            f"got {planned_lengths!r}"
        )
    if torch.compiler.is_compiling():
        raise ValueError("a model whose sequences are split cannot be traced in a graph")


def _check_one_text(
    positions: Tensor, padding: Padding | None, cache: ReformerCache | None, name: str
) -> None:
    """Make sure that a row holds one text, since all its tokens see one another.

    Real tokens may be numbered in either direction, but where a number comes again, or numbers
    begin anew, another text begins.
    """
    if not readable(positions):
        return
    real = None
    if padding is not None:
        # Real tokens first, in their order.
        real, order = padding.real.sort(dim=1, descending=True, stable=True)
        positions = positions.expand_as(order).gather(1, order)
    wrong: list[int] = []
    if positions.shape[1] > 1:
        steps = positions.diff(dim=1)
        up, down = steps > 0, steps < 0
        if real is not None:
            up, down = up | ~real[:, 1:], down | ~real[:, 1:]
        wrong = (~(up.all(dim=1) | down.all(dim=1))).nonzero().flatten().tolist()
    if not wrong and cache is not None and cache.get_seq_length():
        earlier, new = cache.timeline.ends, cache.timeline.coming_lengths
        first = positions[:, 0].expand(len(new)).tolist()
        # Each of the earlier tokens has a smaller number.
        wrong = [row for row, n in enumerate(new) if n and first[row] < earlier[row]]
    if wrong:
        raise ValueError(
            f"`{name}` must number the tokens of one text in every row, got a second beginning in "
            f"row {wrong[0]}: texts packed into a row would see one another, so give each its own "
            "row"
        )


def _read_plan(planned_lengths: int | Sequence[int] | None, rows: int) -> tuple[int, ...] | None:
    """Planned lengths of all rows."""
    if planned_lengths is None:
        return None
    plan = [planned_lengths] * rows if isinstance(planned_lengths, int) else planned_lengths
    sequence = isinstance(plan, Sequence) and all(type(n) is int and n > 0 for n in plan)
    if not sequence or len(plan) != rows:
        raise ValueError(
            f"`planned_lengths` must be a positive integer or hold one for each of {rows} rows, "
            f"got {planned_lengths!r}"
        )
    return tuple(plan)
