"""Getting a pretrained language model used to sparse attention.

Two stages, both over all weights. *Matching*: every attention module reads what the frozen original
reads there, and its output in sparse attention is drawn to the original's in full attention, so
that each layer has a gradient of its own. *Language modelling*: the ordinary loss, in sparse
attention.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reformer_hf.pretrained.attention_mask import MaskKind
from reformer_hf.pretrained.language_model_loss import causal_lm_loss, token_losses
from training.data_files import read_text
from training.whole_saves import WholeSaves


def token_blocks(
    path: str, tokenizer: PreTrainedTokenizerBase, length: int, most: int | None, seed: int
) -> Dataset:
    """Blocks of ``length`` tokens of a text file, from all over it, as ``input_ids``.

    Raises:
        ValueError: a file that cannot be read, or that is shorter than one block.
    """
    text = read_text(path)
    # No token is shorter than a character and few are longer than eight: enough for all blocks.
    needed = None if most is None else most * length * 8
    if needed is not None and len(text) > 2 * needed:
        # Pieces from all over the text, so that not one book is all there is.
        starts = [i * (len(text) // most) for i in range(most)] if most else []
        pieces = [text[start : start + length * 8] for start in starts]
    else:
        pieces = [text]
    blocks: list[list[int]] = []
    for piece in pieces:
        ids = tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        count = 1 if len(pieces) > 1 else len(ids) // length
        blocks += [ids[i * length : (i + 1) * length] for i in range(count)]
    blocks = [block for block in blocks if len(block) == length]
    if not blocks:
        raise ValueError(f"{path}: expected at least one block of {length} tokens, got none")
    random.Random(seed).shuffle(blocks)
    return Dataset.from_dict({"input_ids": blocks[:most]})


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The self-attention modules of a decoder, by name.

    Raises:
        ValueError: none, where a module says which layer it is.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention")
    }
    if not found:
        raise ValueError(
            f"model: expected attention modules with a `layer_idx`, got none in "
            f"{type(model).__name__}"
        )
    return found


@contextmanager
def _recorded(modules: dict[str, nn.Module], into: dict[str, Any]) -> Iterator[None]:
    """What the modules are called with, and what they give."""

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            into[name] = (args, kwargs, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [m.register_forward_hook(record(n), with_kwargs=True) for n, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def matching_loss(model: Any, original: Any, input_ids: Tensor) -> Tensor:
    """Mean over the layers of ``|sparse - full|^2 / |full|^2`` of the attention outputs.

    Args:
        model: in sparse attention.
        original: the same model in full attention, frozen.
        input_ids: ``[B, N]`` int64, without padding.
    """
    records: dict[str, Any] = {}
    with torch.no_grad(), _recorded(attention_modules(original), records):
        original.base_model(input_ids=input_ids, use_cache=False)
    coded = torch.full_like(input_ids, MaskKind(True).code, dtype=torch.int32)
    losses = []
    for name, module in attention_modules(model).items():
        args, kwargs, target = records[name]
        output = module(*args, **{**kwargs, "attention_mask": coded})[0]
        target = target.float()
        losses.append((output.float() - target).square().mean() / target.square().mean())
    return torch.stack(losses).mean()


class AligningTrainer(WholeSaves):
    """Trainer of both stages; the first takes the first ``match_steps`` steps."""

    def __init__(self, *args: Any, match_steps: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.match_steps = match_steps
        self.original: PreTrainedModel | None = None
        if match_steps:
            original = copy.deepcopy(kwargs["model"]).requires_grad_(False).eval()
            original.set_attn_implementation("sdpa")
            self.original = original.to(self.args.device)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        """The loss of the stage."""
        ids, plain = inputs["input_ids"], self.accelerator.unwrap_model(model)
        # The parts of the model are called one by one, so its own forward does not enter autocast.
        with self.accelerator.autocast():
            return self._stage_loss(plain, ids)

    def _stage_loss(self, model: Any, ids: Tensor) -> Tensor:
        if self.original is not None and self.state.global_step < self.match_steps:
            return matching_loss(model, self.original, ids)
        self.original = None  # its memory is needed no more
        return causal_lm_loss(model, ids)


@torch.no_grad()
def held_out_loss(model: Any, blocks: Sequence[list[int]], implementation: str) -> float:
    """Mean loss of blocks of tokens, in nats, in the named attention."""
    before, training = model.config._attn_implementation, model.training
    model.eval().set_attn_implementation(implementation)
    try:
        found = [
            token_losses(model, torch.tensor([block], device=model.device)).mean()
            for block in blocks
        ]
    finally:
        model.train(training).set_attn_implementation(before)
    return float(torch.stack(found).mean())
