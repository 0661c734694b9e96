"""The arguments that models take by name alone, each described once.

The others stand in the signatures. Inputs and labels must, since `Trainer` keeps those columns of
the data whose names it finds there; and in models that generate, everything that `generate` passes
on must, since it refuses names that it does not find.
"""

from __future__ import annotations

from typing import TypedDict, cast

import torch

from reformer_hf.configuration_checks import misspelt
from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.checks import check_flag
from reformer_hf.models.losses import NumItems


class OutputKwargs(TypedDict, total=False):
    """What every model takes by name.

    Other names are accepted and have no effect, except those that say that a row holds several
    texts, and those so close to an argument that it must have been meant.

    Attributes:
        output_hidden_states: also return ``hidden_states``, the merged streams ``[B, N, d]`` (twice
            the features with ``stream_merge="concat"``) before the first layer and after each, the
            last of them normalised; default: ``config.output_hidden_states``.
        output_attentions: also return ``attentions``, the weights ``[B, H, N, N]`` of every layer
            (and ``[B, H, N, M]`` of cross-attention), for inputs that are short and whole: there is
            a limit on ``N``, and no earlier token may be in a cache; default:
            ``config.output_attentions``.
        num_items_in_batch: number of labelled items by which the sum of the losses is divided, in
            a model with a loss; default: the number in this batch. `Trainer` passes that of all
            batches whose gradients it accumulates.
        return_dict: false: the output is a tuple; default: ``config.return_dict``. transformers'
            decorator of ``forward`` sees to that.
    """

    output_hidden_states: bool | None
    output_attentions: bool | None
    num_items_in_batch: NumItems
    return_dict: bool | None


class ReformerKwargs(OutputKwargs, total=False):
    """What a head on a model with one stack takes by name.

    Attributes:
        num_hashes: hash rounds of this call, at least 1; default: ``config.num_hashes``.
    """

    num_hashes: int | None


_FOR_THE_MODEL = ("num_hashes", "output_hidden_states", "output_attentions")

# How collators that pack texts into one row say where each begins.
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")

# Everything that some model takes, in its signature or here.
_ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "inputs_embeds",
    "decoder_input_ids",
    "decoder_attention_mask",
    "decoder_position_ids",
    "decoder_inputs_embeds",
    "encoder_outputs",
    "labels",
    "shift_labels",
    "start_positions",
    "end_positions",
    "logits_to_keep",
    "past_key_values",
    "use_cache",
    "planned_lengths",
    *ReformerKwargs.__annotations__,
)


def _check_names(given: OutputKwargs) -> None:
    """Refuse what must not be left out without a word.

    Raises:
        ValueError: packed texts, or a misspelt name.
    """
    if torch.compiler.is_compiling():
        return
    for name in given:
        if name in _PACKED and cast("dict[str, object]", given)[name] is not None:
            raise ValueError(
                f"`{name}` must not be given: texts packed into a row would see one another, so "
                "give each its own row"
            )
        misspelt(name, _ARGUMENTS, "argument of the model")


def for_the_model(given: OutputKwargs) -> ReformerKwargs:
    """What a head hands to the model under it; everything else that it was given ends here."""
    _check_names(given)
    chosen = {name: value for name, value in given.items() if name in _FOR_THE_MODEL}
    return cast("ReformerKwargs", {**chosen, "return_dict": True})


def wanted_outputs(given: OutputKwargs, config: ReformerConfig) -> OutputKwargs:
    """The outputs that a call asks for, or else the configuration."""
    _check_names(given)
    states, attentions = given.get("output_hidden_states"), given.get("output_attentions")
    check_flag(states, "output_hidden_states")
    check_flag(attentions, "output_attentions")
    return {
        "output_hidden_states": bool(config.output_hidden_states if states is None else states),
        "output_attentions": bool(config.output_attentions if attentions is None else attentions),
    }
