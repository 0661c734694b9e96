"""Which tokenizer, configuration and model a run uses: given ones, or new ones.

The order is the same for all three: what the user names, else what the named model or the
checkpoint to resume from brings along, else something new (a tokenizer trained on the training
split, a configuration from a preset, random weights).

| preset | width | heads | feed-forward | layers | decoder layers | made for         |
|--------|-------|-------|--------------|--------|----------------|------------------|
| tiny   | 32    | 2     | 64           | 2      | 1              | tests            |
| demo   | 128   | 4     | 512          | 2      | 2              | minutes on a CPU |
| small  | 256   | 4     | 1024         | 4      | 2              | hours on a CPU   |
| base   | 512   | 8     | 2048         | 6      | 6              | one GPU          |
| large  | 1024  | 16    | 4096         | 12     | 12             | several GPUs     |

The README has the numbers of parameters, which depend on vocabulary and lengths. "layers" are those
of an encoder or of a model that has but one stack. Layers alternate local
attention (syntax, close by) and LSH attention (content, anywhere). A summary is short, so its
decoder attends fully.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reformer_hf import (
    ReformerConfig,
    ReformerSeq2SeqConfig,
    configure_attention,
    extend_positions,
)
from reformer_hf.tokenization import byte_tokenizer, train_bpe_tokenizer
from training.adapters import with_adapters
from training.arguments import ModelArguments, require_one_of

logger = logging.getLogger(__name__)

BYTE_TOKENIZER = "byte"
DEFAULT_VOCAB_SIZE = 8192
DEFAULT_PRESET = "small"
_SHORTEST_POSITION_TABLE = 256


def load_tokenizer(
    arguments: ModelArguments,
    checkpoint: str | None,
    training_texts: Iterable[str] | None,
    *,
    train_by_default: bool = True,
    append_eos: bool = True,
) -> PreTrainedTokenizerBase:
    """The tokenizer of this run.

    Args:
        arguments: `tokenizer_name`, `model_name_or_path` and `vocab_size` decide, in this order.
        checkpoint: training resumes here, with the tokenizer that lies there.
        training_texts: what a new tokenizer is trained on; None without training data.
        train_by_default: whether a run that names none gets a trained tokenizer, or else bytes.
        append_eos: whether a new tokenizer ends every text with <eos>; one for prompts must not.

    Raises:
        ValueError: a named tokenizer cannot be loaded, or one must be trained and no text is there.
    """
    if arguments.tokenizer_name == BYTE_TOKENIZER:
        return byte_tokenizer(append_eos=append_eos)
    source = arguments.tokenizer_name or arguments.model_name_or_path or checkpoint
    if source is not None:
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
            argument = "tokenizer_name" if arguments.tokenizer_name else "model_name_or_path"
            raise ValueError(
                f"{argument}: cannot load a tokenizer from {source!r}: {_one_line(error)}"
            ) from error
    if arguments.vocab_size is None and not train_by_default:
        return byte_tokenizer(append_eos=append_eos)
    if training_texts is None:
        raise ValueError(
            "tokenizer_name: expected a tokenizer, a model or training data to train a tokenizer"
            " on, got none of them"
        )
    vocab_size = arguments.vocab_size or DEFAULT_VOCAB_SIZE
    logger.info("Training a tokenizer of %d tokens on the training split", vocab_size)
    return train_bpe_tokenizer(training_texts, vocab_size, append_eos=append_eos)


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the tokenizer can say where its tokens stand in a text."""
    if not tokenizer.is_fast:
        raise ValueError(
            "tokenizer_name: expected a tokenizer that says where its tokens stand (of the"
            f" tokenizers library), got {type(tokenizer).__name__}"
        )


@dataclass(frozen=True)
class Preset:
    """The numbers that make a size; everything else is the configuration's default."""

    hidden_size: int
    num_attention_heads: int
    feed_forward_size: int
    num_layers: int
    num_decoder_layers: int
    num_hashes: int = 2
    dropout: float = 0.1


PRESETS = {
    "tiny": Preset(32, 2, 64, num_layers=2, num_decoder_layers=1, dropout=0.0),
    "demo": Preset(128, 4, 512, num_layers=2, num_decoder_layers=2, dropout=0.0),
    "small": Preset(256, 4, 1024, num_layers=4, num_decoder_layers=2),
    "base": Preset(512, 8, 2048, num_layers=6, num_decoder_layers=6, num_hashes=4),
    "large": Preset(1024, 16, 4096, num_layers=12, num_decoder_layers=12, num_hashes=4),
}


def preset_named(name: str | None) -> Preset:
    """The preset called `name` (unset: `DEFAULT_PRESET`).

    Raises:
        ValueError: there is no such preset.
    """
    name = name or DEFAULT_PRESET
    require_one_of("preset", name, sorted(PRESETS))
    return PRESETS[name]


def _position_table(length: int) -> int:
    """The next power of two: a size that factors well into axial position embeddings."""
    return max(_SHORTEST_POSITION_TABLE, 1 << (length - 1).bit_length())


def new_config(
    arguments: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    target_length: int | None = None,
    classes: Sequence[str] | None = None,
) -> ReformerConfig | ReformerSeq2SeqConfig:
    """Configuration of a new model: an encoder-decoder with `target_length`, else a single stack.

    Args:
        arguments: `preset` gives the size; `config_overrides` win over everything.
        tokenizer: determines the vocabulary and the ids of special tokens.
        length: longest input in tokens.
        target_length: longest output of an encoder-decoder in tokens.
        classes: names of the classes that a classifier tells apart.

    Raises:
        ValueError: preset, tokenizer or overrides make no possible configuration.
    """
    preset = preset_named(arguments.preset)
    overrides = parse_overrides(arguments.config_overrides)
    fields = {
        "hidden_size": preset.hidden_size,
        "num_attention_heads": preset.num_attention_heads,
        "attention_head_size": preset.hidden_size // preset.num_attention_heads,
        "feed_forward_size": preset.feed_forward_size,
        "attn_layers": ["local" if i % 2 == 0 else "lsh" for i in range(preset.num_layers)],
        "num_hashes": preset.num_hashes,
        "hidden_dropout_prob": preset.dropout,
        "initializer_range": preset.hidden_size**-0.5,
        "max_position_embeddings": _position_table(length),
        **_token_fields(tokenizer),
        **_class_fields(classes),
    }
    config_class = ReformerConfig if target_length is None else ReformerSeq2SeqConfig
    for name in overrides:  # transformers would take any
        require_one_of(
            "config_overrides", name, sorted(f.name for f in dataclasses.fields(config_class))
        )
    if target_length is None:
        return ReformerConfig(**fields | overrides)
    fields |= {
        "decoder_attn_layers": ["full"] * preset.num_decoder_layers,
        "max_target_positions": _position_table(target_length),
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return ReformerSeq2SeqConfig(**fields | overrides)


def _token_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
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


def _class_fields(classes: Sequence[str] | None) -> dict[str, Any]:
    """The configuration fields that number the classes; none without classes."""
    if classes is None:
        return {}
    numbered = dict(enumerate(classes))
    return {"id2label": numbered, "label2id": {name: id_ for id_, name in numbered.items()}}


def parse_overrides(text: str | None, argument: str = "config_overrides") -> dict[str, Any]:
    """Configuration fields from `{"a": 1, "b": [2]}` or `a=1,b=0.5,c=word`.

    Example:
        >>> parse_overrides("hidden_size=64,attention_pattern=chunk")
        {'hidden_size': 64, 'attention_pattern': 'chunk'}

    Raises:
        ValueError: `text` is neither.
    """
    if text is None or not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{argument}: expected JSON, got {text!r}: {error}") from error
        return dict(fields)
    fields = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"{argument}: expected key=value, got {item!r}")
        fields[key.strip()] = _json_or_word(value.strip())
    return fields


def _json_or_word(value: str) -> Any:
    try:
        return json.loads(value.lower() if value in ("True", "False") else value)
    except json.JSONDecodeError:
        return value


@dataclass(frozen=True)
class Task:
    """What a model is trained for, and how a model for it is found.

    Attributes:
        name: in messages.
        auto_class: transformers' Auto class.
        accepted: transformers' mapping from configuration classes to models of the task.
        length_argument: the command-line argument for the longest input.
        adapters: peft's name of the task.
    """

    name: str
    auto_class: Any
    accepted: Mapping[Any, Any]
    length_argument: str
    adapters: str

    def given_config(
        self,
        arguments: ModelArguments,
        checkpoint: str | None,
        classes: Sequence[str] | None = None,
    ) -> PretrainedConfig | None:
        """The configuration that is given, or None where the run must make a new one.

        Args:
            arguments: `config_name` and `model_name_or_path` decide, in this order.
            checkpoint: training resumes here.
            classes: names of the classes to train, or None to keep those of the model.

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
                **_class_fields(classes),
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{argument}: cannot load {source!r}: {_one_line(error)}") from error
        # A repository may bring its own model class, which the mapping cannot know.
        remote_code = arguments.trust_remote_code and getattr(config, "auto_map", None)
        if type(config) not in self.accepted and not remote_code:
            raise ValueError(
                f"{argument}: expected a model for {self.name}, got model_type"
                f" {config.model_type!r} in {source!r}"
            )
        return config

    def load_model(
        self,
        arguments: ModelArguments,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
    ) -> PreTrainedModel:
        """The given model's weights, or a new model of `config`.

        It has room for all tokens of `tokenizer` and for inputs of `length` tokens.

        Raises:
            ValueError: the weights cannot be loaded or do not fit the configuration, or the
                position embeddings are too short and may not or cannot grow.
        """
        source = arguments.model_name_or_path
        if source is None:
            model = self.auto_class.from_config(
                config,
                trust_remote_code=arguments.trust_remote_code,
                attn_implementation=arguments.attn_implementation,
            )
            size = count_in_words(model.num_parameters())
            logger.info("A new %s with %s parameters", type(model).__name__, size)
        else:
            try:
                model = self.auto_class.from_pretrained(
                    source,
                    config=config,
                    cache_dir=arguments.cache_dir,
                    revision=arguments.model_revision,
                    token=arguments.token,
                    trust_remote_code=arguments.trust_remote_code,
                    ignore_mismatched_sizes=arguments.ignore_mismatched_sizes,
                    attn_implementation=arguments.attn_implementation,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"model_name_or_path: cannot load {source!r}: {_one_line(error)}"
                ) from error
        grown = len(tokenizer) > model.get_input_embeddings().weight.shape[0]
        if grown and arguments.lora_rank is not None:
            raise ValueError(
                "lora_rank: expected a tokenizer whose tokens the model knows, since embeddings are"
                f" not trained, got {len(tokenizer)} tokens"
            )
        # Never shrink: many checkpoints pad their vocabulary to a round number.
        if grown:
            model.resize_token_embeddings(len(tokenizer))
        self._fit_positions(model, length, arguments.resize_position_embeddings)
        if arguments.attn_implementation == "reformer":
            settings = parse_overrides(arguments.attention_settings, "attention_settings")
            configure_attention(model, **settings)
        if arguments.lora_rank is not None:
            return with_adapters(model, arguments.lora_rank, self.adapters)
        return model

    def _fit_positions(self, model: PreTrainedModel, length: int, resize: bool | None) -> None:
        """Make sure that the model takes inputs of `length` tokens, if `resize` by growing it."""
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is None or length <= limit:
            return
        if not resize:
            raise ValueError(
                f"{self.length_argument}: expected at most {limit}, the model's"
                " max_position_embeddings (or --resize_position_embeddings true), got"
                f" {length}"
            )
        try:
            model.resize_position_embeddings(length)
        except NotImplementedError:  # transformers leaves it to the model, and few have it
            extend_positions(model, length)


def _revision(source: str, arguments: ModelArguments) -> str:
    """`model_revision` belongs to the model's repository, not to another one."""
    return arguments.model_revision if source == arguments.model_name_or_path else "main"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def count_in_words(count: int) -> str:
    """A count as it is read: "12.3 million", and below a million every digit."""
    return f"{count / 1e6:,.1f} million" if count >= 1e6 else f"{count:,}"
