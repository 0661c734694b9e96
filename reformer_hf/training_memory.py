"""How much memory a training step needs, before it is tried.

    python -m reformer_hf.training_memory --config DIR --length 65536

prints a table; :func:`estimate_memory` is the function behind it. DIR holds a ``config.json``, of
ours or of transformers' own Reformer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig

from reformer_hf.configuration_reformer import (
    CONFIG_READERS,
    ReformerConfig,
    ReformerSeq2SeqConfig,
)
from reformer_hf.layers.footprint import PassShape
from reformer_hf.layers.kept_activations import choose_kept, room_to_keep, size_of_kept
from reformer_hf.layers.stack import ReformerStack
from reformer_hf.models.causal_lm import ReformerForCausalLM
from reformer_hf.models.seq2seq import ReformerForConditionalGeneration

# Numbers that an optimizer keeps for every parameter, in the dtype of the parameter.
OPTIMIZER_NUMBERS = {"adamw": 2, "sgd": 0, "none": 0}

_HOW_TO_WRITE_A_CONFIGURATION = """\
A training run leaves its configuration, that of a preset too, in its output directory. Without one:

  from reformer_hf import ReformerConfig
  config = ReformerConfig(attn_layers=["local", "lsh"] * 3, hidden_size=512, vocab_size=8192)
  config.save_pretrained("my-config")

ReformerSeq2SeqConfig does the same for sequence-to-sequence, with decoder_attn_layers as well.
"""

# Bytes of a number of a residual stream: fp32, and int32 as it is stored.
_STREAM = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step needs, by kind.

    Attributes:
        parameters: the weights.
        gradients: one number per weight.
        optimizer: what the optimizer keeps between steps.
        streams: the two residual streams that the reversible stack keeps, and cosines and sines of
            rotary positions; with ``reversible=False`` everything that autograd keeps, which grows
            with the depth.
        sublayer: working set of the costliest sub-layer in the backward pass.
        logits: working set of the head and the loss. It is gone before the sub-layers need theirs
            and before there are gradients, so that only the larger of the two counts.
        reserve: what a reversible stack keeps in the forward pass so as to compute less twice, most
            of it where its gradients will be in the backward pass: it goes as they come.
        held: what of the reserve is still there when the costliest sub-layer works first.
    """

    parameters: int
    gradients: int
    optimizer: int
    streams: int
    sublayer: int
    logits: int = 0
    reserve: int = 0
    held: int = 0

    @property
    def extra_peak(self) -> int:
        """Above the model itself: activations, and gradients once there are any."""
        sublayer = max(self.gradients, self.held) + self.sublayer
        return self.streams + max(sublayer, self.reserve + self.logits)

    @property
    def total(self) -> int:
        """The whole training step."""
        return self.parameters + self.optimizer + self.extra_peak


def estimate_memory(
    config: ReformerConfig,
    batch_size: int,
    length: int,
    *,
    target_length: int | None = None,
    dtype: torch.dtype = torch.float32,
    optimizer: str = "adamw",
    device: str = "cpu",
    sequence_parallel_size: int = 1,
) -> MemoryEstimate:
    """What one training step of the language model needs at its peak.

    With ``n = B N`` tokens, ``d`` features and ``w`` bytes of the arithmetic's dtype:

    * parameters, gradients, optimizer: 4 bytes per weight for each number;
    * a stream is ``s = 4 n d``; the stack keeps two, whatever its depth, and rotary positions
      ``w N D`` (``D``: size of a head);
    * a sub-layer in the backward pass: gradients of both streams and of the one that is read,
      ``3 s``, and what its own footprint says
      (:class:`~reformer_hf.layers.footprint.Footprint`): what is computed again, and what is formed
      at work;
    * head: the streams as they are read ``2 s``, their mean, its normalisation and gradients, and
      three fp32 tensors ``n V`` (log-probabilities and two gradients); with ``chunk_size_lm_head``
      two, of one slice;
    * reserve: what the forward pass chooses to keep
      (:func:`~reformer_hf.layers.kept_activations.choose_kept`).

    Sub-layers follow one another, as do head and sub-layers, so the largest counts, not the sum.
    The result is what is in use at the peak, for full sequences. On top come
    the interpreter and the libraries (about 0.4 GB on a CPU), and what an allocator holds on to:
    glibc keeps freed blocks below 32 MiB, in the worst case as much again as a third of the peak,
    unless the environment says ``MALLOC_MMAP_THRESHOLD_=1048576``.

    Args:
        config: a configuration with one stack is taken as a causal language model, a
            [`ReformerSeq2SeqConfig`] as the encoder-decoder. One of transformers' own Reformer is
            read as ours.
        batch_size: sequences, ``B``.
        length: tokens of a (source) sequence, ``N``.
        target_length: tokens of a target; default: `max_target_positions`.
        dtype: of the arithmetic. fp16 and bf16 mean autocast: parameters stay in fp32.
        optimizer: ``"adamw"``, ``"sgd"`` or ``"none"``.
        device: ``"cpu"`` or ``"cuda"``: slices of feed-forward layers are shorter on a CPU.
        sequence_parallel_size: ranks that share every sequence, ``P``
            (:func:`~reformer_hf.parallel.split_sequence`). The estimate is that of one rank, which
            holds ``N / P`` tokens of the (source) sequence, all tokens of a target, all weights,
            and at work also what attention layers send and receive.

    Raises:
        ValueError: a size that is not positive or above what the configuration allows, an unknown
            dtype, optimizer or device, or ranks that the heads cannot be shared among.

    Example:
        >>> from reformer_hf import ReformerConfig
        >>> short = estimate_memory(ReformerConfig(), 1, 16384)
        >>> long = estimate_memory(ReformerConfig(), 1, 32768)
        >>> short.parameters == long.parameters, long.streams == 2 * short.streams
        (True, True)
    """
    if getattr(config, "model_type", None) in CONFIG_READERS:
        config = ReformerConfig.from_dict(config.to_dict())
    _check(config, batch_size, length, target_length, dtype, optimizer, device)
    ranks = sequence_parallel_size
    _check_ranks(config, length, ranks)
    model = _model_without_weights(config)
    parameters = 4 * sum(p.numel() for p in model.parameters())
    shape = PassShape(batch_size, -(-length // ranks), dtype.itemsize, device=device, ranks=ranks)
    if isinstance(model, ReformerForConditionalGeneration):
        target = config.max_target_positions if target_length is None else target_length
        parts = _encoder_decoder(model, shape, target)
    else:
        parts = replace(_of_stack(model.reformer.stack, shape), logits=_head(config, shape))
    kept = OPTIMIZER_NUMBERS[optimizer] * parameters
    return replace(parts, parameters=parameters, gradients=parameters, optimizer=kept)


def _model_without_weights(
    config: ReformerConfig,
) -> ReformerForCausalLM | ReformerForConditionalGeneration:
    with torch.device("meta"):
        if isinstance(config, ReformerSeq2SeqConfig):
            return ReformerForConditionalGeneration(config)
        return ReformerForCausalLM(config)


def _encoder_decoder(
    model: ReformerForConditionalGeneration, shape: PassShape, target_length: int
) -> MemoryEstimate:
    """The encoder waits with its streams and its output while the decoder works."""
    config, source = model.config, shape.length
    encoder = _of_stack(model.model.encoder.stack, shape)
    target = replace(shape, length=target_length, source_length=source, ranks=1)
    decoder = _of_stack(model.model.decoder.stack, target)
    # The encoder's merged streams before and after the last norm, and the gradient of the latter.
    states = 3 * _STREAM * shape.positions * config.merged_size()
    return replace(
        encoder,
        sublayer=max(encoder.sublayer, decoder.streams + states + decoder.sublayer),
        logits=decoder.streams + states + _head(config, target),
        reserve=encoder.reserve + decoder.reserve,
        held=encoder.held + decoder.held,
    )


def _of_stack(stack: ReformerStack, shape: PassShape) -> MemoryEstimate:
    """What a stack needs, without its weights and a head."""
    config, depth = stack.config, len(stack.layers)
    stream = _STREAM * shape.positions * config.hidden_size
    footprints = stack.footprints(shape)
    tables = 0
    if stack.rotary_dtype is not None:
        tables = shape.length * config.attention_head_size * shape.width
    if not config.reversible:
        kept = tables + sum(own.saved for own in footprints)
        working = 3 * stream + max(own.working for own in footprints)
        return MemoryEstimate(0, 0, 0, streams=kept, sublayer=working)
    room = room_to_keep(stack.parameters(), stream, shape.ranks)
    reserve = size_of_kept(footprints, choose_kept(footprints, room, stream), stream)
    return MemoryEstimate(
        *(0, 0, 0),
        streams=2 * stream + tables,
        sublayer=3 * stream + max(own.recomputed + own.working for own in footprints),
        reserve=reserve,
        # Without the last layer's part, which its backward pass takes up first.
        held=reserve * (depth - 1) // depth,
    )


def _head(config: ReformerConfig, shape: PassShape) -> int:
    """Streams as they are read, their mean, its normalisation, logits, and what comes back."""
    rows, features = shape.positions, config.merged_size()
    hidden = _STREAM * rows * features
    read = 2 * _STREAM * rows * config.hidden_size
    if config.chunk_size_lm_head > 0:
        part = min(rows, config.chunk_size_lm_head)
        return read + 4 * hidden + 2 * _STREAM * part * config.vocab_size
    logits = _STREAM * rows * config.vocab_size
    return read + 2 * hidden + 3 * logits + rows * features * shape.width


def _check(
    config: ReformerConfig,
    batch_size: int,
    length: int,
    target_length: int | None,
    dtype: torch.dtype,
    optimizer: str,
    device: str,
) -> None:
    if not isinstance(config, ReformerConfig):
        raise ValueError(f"`config` must be a ReformerConfig, got {type(config).__name__}")
    _check_size("batch_size", batch_size)
    _check_size("length", length, config.max_position_embeddings, "max_position_embeddings")
    if target_length is not None:
        if not isinstance(config, ReformerSeq2SeqConfig):
            raise ValueError(
                "`target_length` is for a ReformerSeq2SeqConfig, "
                f"got {target_length} with a {type(config).__name__}"
            )
        limit = config.max_target_positions
        _check_size("target_length", target_length, limit, "max_target_positions")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    if dtype not in dtypes:
        raise ValueError(f"`dtype` must be one of {dtypes}, got {dtype}")
    if optimizer not in OPTIMIZER_NUMBERS:
        raise ValueError(f"`optimizer` must be one of {[*OPTIMIZER_NUMBERS]}, got {optimizer!r}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"`device` must be 'cpu' or 'cuda', got {device!r}")


def _check_ranks(config: ReformerConfig, length: int, ranks: int) -> None:
    _check_size("sequence_parallel_size", ranks, length, "length")
    if config.num_attention_heads % ranks:
        raise ValueError(
            "`sequence_parallel_size` must divide num_attention_heads="
            f"{config.num_attention_heads}, got {ranks}"
        )


def _check_size(name: str, value: int, limit: int | None = None, limit_name: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}")
    if limit is not None and value > limit:
        raise ValueError(f"`{name}` must be at most {limit_name}={limit}, got {value}")


def describe(estimate: MemoryEstimate) -> str:
    """The estimate as a table, in MiB."""
    rows = [
        ("parameters", estimate.parameters),
        ("gradients", estimate.gradients),
        ("optimizer", estimate.optimizer),
        ("streams", estimate.streams),
        ("sub-layer, backward", estimate.sublayer),
        ("logits and loss", estimate.logits),
        ("reserve", estimate.reserve),
        ("of it beside a sub-layer", estimate.held),
        ("peak above the model", estimate.extra_peak),
        ("total", estimate.total),
    ]
    lines = [f"{name:<24}{size / 2**20:>12,.1f} MiB" for name, size in rows]
    note = (
        "Logits are gone before sub-layers need memory, and the reserve goes as gradients come: "
        "only the larger counts."
    )
    return "\n".join([*lines, note])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m reformer_hf.training_memory",
        description=__doc__.splitlines()[0],
        epilog=_HOW_TO_WRITE_A_CONFIGURATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", required=True, help="directory or Hub id with a config.json")
    add("--length", type=int, required=True, help="tokens of a sequence")
    add("--target-length", type=int, help="tokens of a target (sequence-to-sequence)")
    add("--batch-size", type=int, default=1, help="sequences")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--optimizer", choices=[*OPTIMIZER_NUMBERS], default="adamw")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--sequence-parallel-size", type=int, default=1, help="ranks that share every sequence")
    arguments = parser.parse_args(argv)
    try:
        estimate = estimate_memory(
            AutoConfig.from_pretrained(arguments.config),
            arguments.batch_size,
            arguments.length,
            target_length=arguments.target_length,
            dtype=getattr(torch, arguments.dtype),
            optimizer=arguments.optimizer,
            device=arguments.device,
            sequence_parallel_size=arguments.sequence_parallel_size,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(describe(estimate) + "\n")


if __name__ == "__main__":
    main()
