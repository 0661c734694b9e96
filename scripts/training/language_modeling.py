"""What is particular to language modelling: the model, and how it continues a text."""

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from training.arguments import LanguageModelingArguments, ModelArguments
from training.models import fit_positions, load_config, load_model, token_fields
from training.presets import preset_named, reformer_config
from training.samples import Sample
from training.text_blocks import Blocks


def given_config(arguments: ModelArguments, checkpoint: str | None) -> PretrainedConfig | None:
    """The configuration of the named model or of the checkpoint; None if there is neither.

    Raises:
        ValueError: there is no such model, or it is not a causal language model.
    """
    return load_config(
        arguments, checkpoint, MODEL_FOR_CAUSAL_LM_MAPPING, "causal language modelling"
    )


def build_language_model(
    arguments: ModelArguments,
    data: LanguageModelingArguments,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig | None,
) -> PreTrainedModel:
    """The given causal language model, or a new Reformer of a preset size.

    Raises:
        ValueError: the model takes no blocks so long.
    """
    if config is None:
        config = reformer_config(
            preset_named(arguments.preset),
            max_length=data.block_size,
            token_fields=token_fields(tokenizer),
            overrides=arguments.config_overrides,
        )
    model = load_model(arguments, config, AutoModelForCausalLM, len(tokenizer))
    fit_positions(model, data.block_size, "block_size", arguments.resize_position_embeddings)
    return model


@torch.no_grad()
def continuation_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks,
    data: LanguageModelingArguments,
    seed: int,
) -> list[Sample]:
    """Beginnings of the first blocks, how they go on, and how the model goes on."""
    set_seed(seed)
    model.eval()
    prompt_length = min(data.sample_prompt_length, data.block_size - 1)
    new_tokens = min(data.sample_length, data.block_size - prompt_length)
    found = []
    for number, row in enumerate(blocks.data.select(range(min(3, len(blocks.data))))):
        ids = row["input_ids"]
        prompt = torch.tensor([ids[:prompt_length]], device=model.device)
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=True,
            top_p=0.9,
        )
        parts = [
            ("text", tokenizer.decode(ids[:prompt_length])),
            ("reference", tokenizer.decode(ids[prompt_length : prompt_length + new_tokens])),
            ("output", tokenizer.decode(output[0, prompt_length:], skip_special_tokens=True)),
        ]
        found.append(Sample(title=f"block {number}", parts=parts))
    return found
