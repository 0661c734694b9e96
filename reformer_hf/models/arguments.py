"""The arguments that models take by name alone, each described once.

The others stand in the signatures. Inputs and labels must, since `Trainer` keeps those columns of
the data whose names it finds there; and in models that generate, everything that `generate` passes
on must, since it refuses names that it does not find.
"""

from __future__ import annotations

from typing import TypedDict, cast

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.losses import NumItems


class OutputKwargs(TypedDict, total=False):
    """What every model takes by name; other names are accepted and have no effect.

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


def for_the_model(given: OutputKwargs) -> ReformerKwargs:
    """What a head hands to the model under it; everything else that it was given ends here."""
    chosen = {name: value for name, value in given.items() if name in _FOR_THE_MODEL}
    return cast("ReformerKwargs", {**chosen, "return_dict": True})


def wanted_outputs(given: OutputKwargs, config: ReformerConfig) -> OutputKwargs:
    """The outputs that a call asks for, or else the configuration."""
    states, attentions = given.get("output_hidden_states"), given.get("output_attentions")
    return {
        "output_hidden_states": bool(config.output_hidden_states if states is None else states),
        "output_attentions": bool(config.output_attentions if attentions is None else attentions),
    }
