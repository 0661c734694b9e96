"""Which tokenizer, configuration and model a run uses: given ones, or new ones.

The order is the same for all three: what the user names, else what the named model or the
checkpoint to resume from brings along, else something new (a tokenizer trained on the training
split, a configuration from a preset, random weights).
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reformer_hf.tokenization import byte_tokenizer, train_bpe_tokenizer
from training.arguments import ModelArguments

logger = logging.getLogger(__name__)

BYTE_TOKENIZER = "byte"
DEFAULT_VOCAB_SIZE = 8192


def load_tokenizer(
    arguments: ModelArguments,
    checkpoint: str | None,
    training_texts: Callable[[], Iterable[str]] | None,
    *,
    train_by_default: bool,
    append_eos: bool = True,
) -> PreTrainedTokenizerBase:
    """The tokenizer of this run.

    Args:
        arguments: `tokenizer_name`, `model_name_or_path` and `vocab_size` decide, in this order.
        checkpoint: training resumes here, with the tokenizer that lies there.
        training_texts: gives the texts to train a tokenizer on; None without training data.
        train_by_default: what a run that says nothing gets: a trained tokenizer or bytes.
        append_eos: whether a new tokenizer ends every text; one for prompts must not.

    Raises:
        ValueError: a named tokenizer cannot be loaded, or one must be trained and no text is there.
    """
    if arguments.tokenizer_name == BYTE_TOKENIZER:
        return byte_tokenizer(append_eos=append_eos)
    source = arguments.tokenizer_name or arguments.model_name_or_path or checkpoint
    if source is not None:
        argument = "tokenizer_name" if arguments.tokenizer_name else "model_name_or_path"
        return _tokenizer_from(source, argument, arguments)
    if arguments.vocab_size is None and not train_by_default:
        return byte_tokenizer(append_eos=append_eos)
    if training_texts is None:
        raise ValueError(
            "tokenizer_name: expected a tokenizer, a model or training data to train a tokenizer"
            " on, got none of them"
        )
    vocab_size = arguments.vocab_size or DEFAULT_VOCAB_SIZE
    logger.info("Training a tokenizer of %d tokens on the training split", vocab_size)
    return train_bpe_tokenizer(training_texts(), vocab_size, append_eos=append_eos)


def _tokenizer_from(
    source: str, argument: str, arguments: ModelArguments
) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            source,
            cache_dir=arguments.cache_dir,
            use_fast=arguments.use_fast_tokenizer,
            revision=_revision(source, arguments),
            token=arguments.token,
            trust_remote_code=arguments.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{argument}: cannot load a tokenizer from {source!r}: {_one_line(error)}"
        ) from error


def token_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The configuration fields that a tokenizer determines, for a new model.

    Raises:
        ValueError: the tokenizer cannot pad or cannot end a text.
    """
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer_name: expected a tokenizer with a {name}, got None")
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }


def load_config(
    arguments: ModelArguments,
    checkpoint: str | None,
    accepted: Mapping[Any, Any],
    task: str,
    **fields: Any,
) -> PretrainedConfig | None:
    """The configuration that is given, or None where the run must make a new one.

    Args:
        arguments: `config_name` and `model_name_or_path` decide, in this order.
        checkpoint: training resumes here.
        accepted: transformers' mapping from configuration classes to models of the task.
        task: name of the task in the error message.
        fields: configuration fields to set on the way.

    Raises:
        ValueError: there is no configuration, or it is not one of a model for this task.
    """
    source = arguments.config_name or arguments.model_name_or_path or checkpoint
    if source is None:
        return None
    argument = "config_name" if source == arguments.config_name else "model_name_or_path"
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ValueError(f"{argument}: expected a config.json in {source!r}, got none")
    try:
        config = AutoConfig.from_pretrained(
            source,
            cache_dir=arguments.cache_dir,
            revision=_revision(source, arguments),
            token=arguments.token,
            trust_remote_code=arguments.trust_remote_code,
            **fields,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{argument}: cannot load {source!r}: {_one_line(error)}") from error
    if type(config) not in accepted and not _remote_code_for(config, arguments):
        raise ValueError(
            f"{argument}: expected a model for {task}, got model_type {config.model_type!r} in"
            f" {source!r}"
        )
    return config


def _remote_code_for(config: PretrainedConfig, arguments: ModelArguments) -> bool:
    """Whether the repository brings its own model class, which the mapping cannot know."""
    return arguments.trust_remote_code and bool(getattr(config, "auto_map", None))


def load_model(
    arguments: ModelArguments, config: PretrainedConfig, auto_class: Any, vocabulary: int
) -> PreTrainedModel:
    """The given model's weights, or a new model of `config`, with room for `vocabulary` tokens.

    Raises:
        ValueError: the weights cannot be loaded or do not fit the configuration.
    """
    source = arguments.model_name_or_path
    if source is None:
        model = auto_class.from_config(config, trust_remote_code=arguments.trust_remote_code)
    else:
        try:
            model = auto_class.from_pretrained(
                source,
                config=config,
                cache_dir=arguments.cache_dir,
                revision=arguments.model_revision,
                token=arguments.token,
                trust_remote_code=arguments.trust_remote_code,
                ignore_mismatched_sizes=arguments.ignore_mismatched_sizes,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"model_name_or_path: cannot load {source!r}: {_one_line(error)}"
            ) from error
    # Never shrink: many checkpoints pad their vocabulary to a round number.
    if vocabulary > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(vocabulary)
    return model


def fit_positions(model: PreTrainedModel, length: int, argument: str, resize: bool | None) -> None:
    """Make sure that the model takes inputs of `length` tokens, if `resize` by growing it.

    Raises:
        ValueError: its position embeddings are too short and `resize` is not set.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None or length <= limit:
        return
    if not resize:
        raise ValueError(
            f"{argument}: expected at most {limit}, the model's max_position_embeddings (or"
            f" --resize_position_embeddings true), got {length}"
        )
    try:
        model.resize_position_embeddings(length)
    except NotImplementedError as error:
        raise ValueError(
            f"resize_position_embeddings: expected a model that can, got {type(model).__name__}"
        ) from error


def _revision(source: str, arguments: ModelArguments) -> str:
    """`model_revision` belongs to the model's repository, not to another one."""
    return arguments.model_revision if source == arguments.model_name_or_path else "main"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
