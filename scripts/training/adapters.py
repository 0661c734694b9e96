"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): a run that trains few weights.

A linear layer `W x` becomes `W x + (alpha / r) B A x` with `A` `[r, in]` and `B` `[out, r]`, and
only `A` and `B` are trained. Checkpoints hold the adapters alone; when training ends they are added
to the weights, so that what a run leaves is an ordinary model.
"""

import logging
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, Trainer

logger = logging.getLogger(__name__)

_FILE = "adapter_config.json"


def are_adapters(checkpoint: Path) -> bool:
    """Whether a checkpoint holds adapters, and the weights under them lie elsewhere."""
    return (checkpoint / _FILE).is_file()


def with_adapters(model: PreTrainedModel, rank: int, task: str) -> PeftModel:
    """The model with adapters of this rank on all its linear layers but the head.

    Args:
        model: whose own weights are not trained any more; what is new in it, a classifier say, is.
        rank: `r`; the update is scaled by `alpha / r = 2`.
        task: peft's name of it, from which it knows what is new.
    """
    source = getattr(model.config, "_name_or_path", None)
    settings = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        base_model_name_or_path=source,
    )
    return get_peft_model(model, settings)


def merge_adapters(trainer: Trainer) -> None:
    """Add the adapters of a trainer's model, if it has any, to the weights that they belong to."""
    if isinstance(trainer.model, PeftModel):
        merged = trainer.model.merge_and_unload()
        trainer.model = trainer.model_wrapped = merged
        logger.info("The adapters were added to the weights of the model")
