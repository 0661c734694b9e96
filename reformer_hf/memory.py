"""How much memory a training step needs, before it is tried.

    python -m reformer_hf.memory --config DIR --length 65536

prints a table; :func:`estimate_memory` is the function behind it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig

from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.models.causal_lm import ReformerForCausalLM
from reformer_hf.models.seq2seq import ReformerForConditionalGeneration

# Numbers that an optimizer keeps for every parameter, in the dtype of the parameter.
OPTIMIZER_NUMBERS = {"adamw": 2, "sgd": 0, "none": 0}

# Bytes of the residual streams' numbers: fp32, and int32 as they are stored.
_STREAM = 4
# What the vectorised attention backend forms at a time: scores, and numbers of sorted slices.
SCORE_ELEMENTS = 1 << 19
LINE_ELEMENTS = 1 << 20
# What a stack may keep where gradients leave no room: streams, and bytes at most.
KEPT_STREAMS, KEPT_BYTES = 8, 1 << 28
# Numbers per inner activation of a slice of a feed-forward layer on a CPU.
SLICE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step needs, by kind.

    Attributes:
        parameters: the weights.
        gradients: one number per weight.
        optimizer: what the optimizer keeps between steps.
        streams: the two residual streams that the reversible stack keeps; with
            ``reversible=False`` everything that autograd keeps, which grows with the depth.
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
    logits: int
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
) -> MemoryEstimate:
    """What one training step of the language model needs at its peak.

    With ``n = B N`` tokens, ``d`` features, ``H`` heads of size ``D``, ``R`` rounds, ``w`` bytes of
    the arithmetic's dtype, and ``P`` projections of the attention (2 for LSH, else 3):

    * parameters, gradients, optimizer: 4 bytes per weight for each number;
    * a stream is ``s = 4 n d``; the stack keeps two, whatever its depth;
    * attention, backward: the stream that is read and three gradients, ``4 s``; the normalised
      input (one copy, under autocast one per projection), the output of the layer, ``w n d`` each;
      heads ``w n H D``: ``P`` projections, the attended values, and the gradients of all these;
      sorted copies of the slices at work, and five int64 tensors ``[B, H, R, N]`` of the order;
    * feed-forward, backward: three gradients ``3 s``; for the ``c`` positions of a slice three
      inner activations ``w c f`` and the gradients of its weights once more;
    * head: the streams as they are read ``2 s``, their mean, its normalisation and gradients, and
      three fp32 tensors ``n V`` (log-probabilities and two gradients); with ``chunk_size_lm_head``
      two, of one slice;
    * reserve: streams and activations of some sub-layers, at most as much as the gradients of the
      stack or, if that is more, as eight streams (256 MiB at most); nothing if a stream is larger.

    Sub-layers follow one another, as do head and sub-layers, so the largest counts, not the sum.
    The result is what is in use at the peak, for full sequences without dropout masks. On top come
    the interpreter and the libraries (about 0.4 GB on a CPU), and what an allocator holds on to:
    glibc keeps freed blocks below 32 MiB, in the worst case as much again as a third of the peak,
    unless the environment says ``MALLOC_MMAP_THRESHOLD_=1048576``.

    Args:
        config: a configuration with one stack is taken as a causal language model, a
            [`ReformerSeq2SeqConfig`] as the encoder-decoder.
        batch_size: sequences, ``B``.
        length: tokens of a (source) sequence, ``N``.
        target_length: tokens of a target; default: `max_target_positions`.
        dtype: of the arithmetic. fp16 and bf16 mean autocast: parameters stay in fp32.
        optimizer: ``"adamw"``, ``"sgd"`` or ``"none"``.
        device: ``"cpu"`` or ``"cuda"``: slices of feed-forward layers are shorter on a CPU.

    Raises:
        ValueError: a size that is not positive or above what the configuration allows, or an
            unknown dtype, optimizer or device.

    Example:
        >>> from reformer_hf import ReformerConfig
        >>> short = estimate_memory(ReformerConfig(), 1, 16384)
        >>> long = estimate_memory(ReformerConfig(), 1, 32768)
        >>> short.parameters == long.parameters, long.streams == 2 * short.streams
        (True, True)
    """
    _check(config, batch_size, length, target_length, dtype, optimizer, device)
    weights = count_parameters(config)
    parameters = 4 * weights
    width = dtype.itemsize
    if isinstance(config, ReformerSeq2SeqConfig):
        parts = _encoder_decoder(config, batch_size, length, target_length, width, device)
    else:
        parts = _language_model(config, batch_size, length, width, device)
    streams, sublayer, logits, reserve, held = parts
    return MemoryEstimate(
        parameters=parameters,
        gradients=parameters,
        optimizer=OPTIMIZER_NUMBERS[optimizer] * parameters,
        streams=streams,
        sublayer=sublayer,
        logits=logits,
        reserve=reserve,
        held=held,
    )


def count_parameters(config: ReformerConfig) -> int:
    """Weights of the language model that a configuration describes, shared ones counted once."""
    with torch.device("meta"):
        model: nn.Module
        if isinstance(config, ReformerSeq2SeqConfig):
            model = ReformerForConditionalGeneration(config)
        else:
            model = ReformerForCausalLM(config)
    return sum(p.numel() for p in model.parameters())


def _language_model(
    config: ReformerConfig, batch: int, length: int, width: int, device: str
) -> tuple[int, int, int, int, int]:
    """Bytes of streams, of the costliest sub-layer, of the head, and of the reserve (twice)."""
    rows, inner = batch * length, config.feed_forward_size
    stack = _Stack(config, config.attn_layers, inner, batch, length, width, device)
    head = _head(config, rows, width)
    return stack.kept(), stack.sublayer(), head, stack.reserve(), stack.held()


def _encoder_decoder(
    config: ReformerSeq2SeqConfig,
    batch: int,
    length: int,
    target_length: int | None,
    width: int,
    device: str,
) -> tuple[int, int, int, int, int]:
    """Likewise: the encoder waits with its streams and its output while the decoder works."""
    target = config.max_target_positions if target_length is None else target_length
    inner = config.feed_forward_size
    encoder = _Stack(config, config.attn_layers, inner, batch, length, width, device)
    inner = config.decoder_feed_forward_size or inner
    decoder = _Stack(config, config.decoder_attn_layers, inner, batch, target, width, device)
    # The encoder's merged streams before and after the last norm, and the gradient of the latter.
    states = 3 * _STREAM * batch * length * config.merged_size()
    cross = decoder.cross_attention(batch * length)
    decoding = decoder.kept() + states + max(decoder.sublayer(), cross)
    return (
        encoder.kept(),
        max(encoder.sublayer(), decoding),
        decoder.kept() + states + _head(config, batch * target, width),
        encoder.reserve() + decoder.reserve(),
        encoder.held() + decoder.held(),
    )


@dataclass(frozen=True)
class _Stack:
    """Sizes of one stack; ``width`` is the arithmetic's bytes per number."""

    config: ReformerConfig
    kinds: Sequence[str]
    inner_size: int
    batch: int
    length: int
    width: int
    device: str

    @property
    def _rows(self) -> int:
        return self.batch * self.length

    @property
    def _stream(self) -> int:
        return _STREAM * self._rows * self.config.hidden_size

    def _features(self, rows: int, count: float = 1) -> int:
        """Tensors ``[rows, d]`` in the arithmetic's dtype."""
        return int(count * self.width * rows * self.config.hidden_size)

    def _heads(self, rows: int, count: float = 1) -> int:
        """Tensors ``[rows, H, D]`` in the arithmetic's dtype."""
        config = self.config
        size = config.num_attention_heads * config.attention_head_size
        return int(count * self.width * rows * size)

    def kept(self) -> int:
        """What a forward pass leaves behind for the backward pass."""
        return 2 * self._stream if self.config.reversible else self._all_saved()

    def _all_saved(self) -> int:
        """What plain autograd keeps."""
        layers = (self._attention_saved(kind) + self._inner_saved() for kind in self.kinds)
        return sum(layers) + 2 * self._stream * len(self.kinds)

    def reserve(self) -> int:
        """What the forward pass keeps besides, for the most part where gradients will be."""
        config = self.config
        features = config.num_attention_heads * config.attention_head_size
        attention = sum(self._projections(kind) + 1 for kind in self.kinds) * features
        weights = config.hidden_size * (attention + 2 * self.inner_size * len(self.kinds))
        most = max(4 * weights, min(KEPT_STREAMS * self._stream, KEPT_BYTES))
        return min(most, self._all_saved()) if config.reversible and self._stream <= most else 0

    def held(self) -> int:
        """The reserve without the last layer's part, which its backward pass takes up first."""
        return self.reserve() * (len(self.kinds) - 1) // max(1, len(self.kinds))

    def _projections(self, kind: str) -> int:
        return 2 if kind == "lsh" else 3

    def _attention_saved(self, kind: str) -> int:
        """Normalised input, projections, attended values."""
        projections = self._projections(kind)
        copies = projections if self.width < _STREAM else 1
        return self._features(self._rows, copies) + self._heads(self._rows, projections + 1)

    def _inner_saved(self) -> int:
        """Normalised input, inner layer before and after the activation, of all positions."""
        return self._features(self._rows) + 2 * self.width * self._rows * self.inner_size

    def _moving_streams(self) -> int:
        """Gradients of both streams and of the one read, and the one read."""
        return (4 if self.config.reversible else 3) * self._stream

    def sublayer(self) -> int:
        """The costliest sub-layer in the backward pass, beyond what is kept."""
        attention = max(self._attention(kind) for kind in {*self.kinds})
        return max(3 * self._stream + self._feed_forward(), self._moving_streams() + attention)

    def _attention(self, kind: str) -> int:
        config, projections = self.config, self._projections(kind)
        saved = self._attention_saved(kind) if config.reversible else 0
        gradients = self._heads(self._rows, 1 + projections)
        working = saved + self._features(self._rows) + gradients
        if kind == "full":
            return working
        rounds = config.num_hashes if kind == "lsh" else 1
        if kind == "lsh":
            order = 5 * 8 * self._rows * config.num_attention_heads * rounds
            working += order
        return working + self._slices(kind)

    def _slices(self, kind: str) -> int:
        """Sorted copies of the slices that the vectorised backend works on, and tiles of scores."""
        config = self.config
        size = config.attention_head_size
        slices = min(
            max(1, LINE_ELEMENTS // (self.length * size)), self.batch * config.num_attention_heads
        )
        reach: int = getattr(config, f"{kind}_attn_chunk_length")
        # Gradients by slot, their sums over the rounds, and what is about to be added or written.
        lines = 10 * _STREAM * slices * self.length * size
        # Scores, visibility, weights and their gradients; and inputs of half as many keys.
        scores = min(SCORE_ELEMENTS, 2 * slices * self.length * reach)
        return lines + 5 * _STREAM * scores + 8 * _STREAM * scores * size // (2 * reach)

    def _feed_forward(self) -> int:
        config = self.config
        chunk = config.chunk_size_feed_forward or self.length
        if config.chunk_size_feed_forward and self.device == "cpu":
            chunk = min(chunk, max(1, SLICE_ELEMENTS // (self.batch * self.inner_size)))
        rows = self.batch * min(chunk, self.length)
        inner = 3 * self.width * rows * self.inner_size
        weights = 2 * config.hidden_size * self.inner_size
        again = 2 if rows < self._rows else 1
        casts = 2 * self.width * weights if self.width < _STREAM else 0
        saved = inner if config.reversible else inner // 3
        return saved + self._features(rows, 3) + again * _STREAM * weights + casts

    def cross_attention(self, source_rows: int) -> int:
        """Attention of the target to ``source_rows`` encoder states."""
        states = self._features(source_rows) if self.width < _STREAM else 0
        keys = self._heads(source_rows, 4)
        return self._moving_streams() + states + keys + self._heads(self._rows, 4)


def _head(config: ReformerConfig, rows: int, width: int) -> int:
    """Streams as they are read, their mean, its normalisation, logits, and what comes back."""
    features = config.merged_size()
    hidden = _STREAM * rows * features
    read = 2 * _STREAM * rows * config.hidden_size
    if config.chunk_size_lm_head > 0:
        part = min(rows, config.chunk_size_lm_head)
        return read + 4 * hidden + 2 * _STREAM * part * config.vocab_size
    logits = _STREAM * rows * config.vocab_size
    return read + 2 * hidden + 3 * logits + rows * features * width


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
        prog="python -m reformer_hf.memory", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--config", required=True, help="directory or Hub id of a configuration")
    add("--length", type=int, required=True, help="tokens of a sequence")
    add("--target-length", type=int, help="tokens of a target (sequence-to-sequence)")
    add("--batch-size", type=int, default=1, help="sequences")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--optimizer", choices=[*OPTIMIZER_NUMBERS], default="adamw")
    add("--device", choices=("cpu", "cuda"), default="cpu")
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
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(describe(estimate) + "\n")


if __name__ == "__main__":
    main()
