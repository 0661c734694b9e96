"""Command-line arguments, under the names that transformers' example scripts made familiar.

Each training script parses its model, data and run arguments plus transformers' own training
arguments. Values that cannot work are refused here, before anything is loaded; `exit_code` turns
every refusal into one line on stderr.
"""

import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

logger = logging.getLogger(__name__)

EXIT_BAD_INPUT = 2


def option(help_text: str, default: Any = None) -> Any:
    """A dataclass field that becomes a command-line option."""
    return field(default=default, metadata={"help": help_text})


def require_positive(name: str, value: int | None) -> None:
    """Raise ValueError if `value` is given and below 1."""
    if value is not None and value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value}")


def require_text(owner: object, *names: str) -> None:
    """Raise ValueError if a field of `owner` is given and blank, as an unset shell variable is."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value.strip():
            raise ValueError(f"{name}: expected text, got {value!r}")


def require_one_of(name: str, value: str, accepted: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `accepted`."""
    if value not in accepted:
        raise ValueError(f"{name}: expected one of {list(accepted)}, got {value!r}")


@dataclass
class ModelArguments:
    """Which model and tokenizer to train: existing ones, or new ones of a preset size."""

    model_name_or_path: str | None = option("Checkpoint directory or Hub id to fine-tune.")
    config_name: str | None = option("Configuration of a new model: directory or Hub id.")
    preset: str | None = option(
        "Size of a new model (parameters of a summarizer, layers + decoder layers, width): tiny"
        " (0.3 million, 2+1, 32; tests), demo (2 million, 2+2, 128; minutes on a CPU), small"
        " (7 million, 4+2, 256; hours on a CPU; the default), base (48 million, 6+6, 512; one GPU),"
        " large (355 million, 12+12, 1024; several GPUs)."
    )
    config_overrides: str | None = option(
        "Changes to the configuration of a new model, as a JSON object or as key=value,key=value."
    )
    tokenizer_name: str | None = option(
        "Tokenizer directory or Hub id, or 'byte' for the built-in byte-level tokenizer."
    )
    vocab_size: int | None = option(
        "Size of the tokenizer that is trained on the training split when none is given."
    )
    cache_dir: str | None = option("Where downloads from the Hub are kept.")
    use_fast_tokenizer: bool = option("Prefer the tokenizers-library implementation.", True)
    model_revision: str = option("Branch, tag or commit of the model on the Hub.", "main")
    token: str | None = option("Access token for private Hub repositories.")
    trust_remote_code: bool = option("Run code that a Hub repository brings along.", False)
    resize_position_embeddings: bool | None = option(
        "Lengthen the position embeddings of a given model if the inputs need it."
    )
    ignore_mismatched_sizes: bool = option("Start anew the weights whose shapes differ.", False)
    attn_implementation: str | None = option(
        "Attention of a given model of transformers: sdpa, eager, or reformer for long documents."
    )
    attention_settings: str | None = option(
        "Settings of --attn_implementation reformer, as a JSON object or as key=value,key=value."
    )
    lora_rank: int | None = option(
        "Train low-rank adapters (LoRA) of this rank on the linear layers of a given model, and add"
        " them to its weights at the end."
    )

    def __post_init__(self) -> None:
        require_positive("vocab_size", self.vocab_size)
        require_positive("lora_rank", self.lora_rank)
        if self.lora_rank is not None and self.model_name_or_path is None:
            raise ValueError("lora_rank: expected model_name_or_path next to it, got none")
        require_text(self, "attn_implementation", "attention_settings")
        if self.attn_implementation is not None and self.model_name_or_path is None:
            raise ValueError(
                "attn_implementation: expected model_name_or_path next to it, got none"
            )
        if self.attention_settings is not None and self.attn_implementation != "reformer":
            raise ValueError(
                "attention_settings: expected attn_implementation='reformer' next to it, got "
                f"{self.attn_implementation!r}"
            )
        sources = ("model_name_or_path", "config_name", "preset")
        require_text(self, *sources, "config_overrides", "tokenizer_name", "model_revision")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) > 1 and given != ["model_name_or_path", "config_name"]:
            raise ValueError(f"{given[-1]}: expected one description of the model, got {given}")
        for name, what, described in (
            ("config_overrides", "a new model of a preset size", sources[:2]),
            ("vocab_size", "a new tokenizer", ("tokenizer_name", "model_name_or_path")),
        ):
            other = next((one for one in described if getattr(self, one) is not None), None)
            if getattr(self, name) is not None and other is not None:
                raise ValueError(
                    f"{name}: expected {what}, which it is for, got"
                    f" {other}={getattr(self, other)!r} next to it"
                )


@dataclass
class DataTrainingArguments:
    """Where the examples come from and how many of them to use."""

    dataset_name: str | None = option("Data set on the Hub.")
    dataset_config_name: str | None = option("Configuration of the Hub data set.")
    train_file: str | None = option("Training data file.")
    validation_file: str | None = option("Validation data file.")
    test_file: str | None = option("Test data file.")
    max_train_samples: int | None = option("Use only so many training examples.")
    max_eval_samples: int | None = option("Use only so many validation examples.")
    max_predict_samples: int | None = option("Use only so many test examples.")
    overwrite_cache: bool = option("Preprocess again even if a cached result exists.", False)
    preprocessing_num_workers: int | None = option("Processes for the preprocessing.")

    def __post_init__(self) -> None:
        for name in ("train", "eval", "predict"):
            require_positive(f"max_{name}_samples", getattr(self, f"max_{name}_samples"))
        require_positive("preprocessing_num_workers", self.preprocessing_num_workers)
        require_text(self, "dataset_name", "train_file", "validation_file", "test_file")
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise ValueError(
                "dataset_config_name: expected dataset_name next to it, got"
                f" {self.dataset_config_name!r} alone"
            )
        if self.dataset_name is not None and self.files:
            raise ValueError(
                "dataset_name: expected either a Hub data set or local files, got"
                f" {self.dataset_name!r} and {sorted(self.files.values())}"
            )

    @property
    def files(self) -> dict[str, str]:
        """The local files that were given, by split."""
        named = {split: getattr(self, f"{split}_file") for split in ("train", "validation", "test")}
        return {split: file for split, file in named.items() if file is not None}

    @property
    def description(self) -> str | None:
        """One line that says where the examples come from, without local paths; None if unset."""
        if self.dataset_name is not None:
            return " ".join(filter(None, [self.dataset_name, self.dataset_config_name]))
        if self.files:
            names = [file.replace("\\", "/").rsplit("/", 1)[-1] for file in self.files.values()]
            return "local files " + ", ".join(names)
        return None


@dataclass
class SequenceToSequenceArguments(DataTrainingArguments):
    """Lengths and decoding of a run whose model writes texts."""

    max_source_length: int = option("Longest source in tokens; longer ones are cut.", 4096)
    max_target_length: int = option("Longest training target in tokens.", 128)
    val_max_source_length: int | None = option(
        "Longest evaluated source in tokens, such as more than is trained on. Unset:"
        " max_source_length."
    )
    val_max_target_length: int | None = option(
        "Longest generated and evaluated target in tokens. Unset: max_target_length."
    )
    pad_to_max_length: bool = option(
        "Pad every source to max_source_length instead of to the longest in its batch.", False
    )
    num_beams: int = option("Beams in generation; 1 is greedy.", 1)
    no_repeat_ngram_size: int = option("Generate no sequence of so many tokens twice; 0: off.", 0)
    ignore_pad_token_for_loss: bool = option("Leave padding out of the loss.", True)
    source_prefix: str = option("Text to put in front of every source.", "")
    forced_bos_token: str | None = option("First token of every target (multilingual models).")

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in ("source", "target"):
            require_positive(f"max_{kind}_length", getattr(self, f"max_{kind}_length"))
            require_positive(f"val_max_{kind}_length", getattr(self, f"val_max_{kind}_length"))
        require_positive("num_beams", self.num_beams)
        require_text(self, "forced_bos_token")
        if self.no_repeat_ngram_size < 0:
            raise ValueError(
                f"no_repeat_ngram_size: expected 0 or more, got {self.no_repeat_ngram_size}"
            )

    def source_length(self, split: str) -> int:
        """Longest source of a split in tokens."""
        return self.max_source_length if split == "train" else self.longest_input

    def target_length(self, split: str) -> int:
        """Longest target of a split in tokens."""
        return self.max_target_length if split == "train" else self.longest_output

    @property
    def longest_input(self) -> int:
        """Longest evaluated source in tokens: what the model is to read from now on."""
        return self.val_max_source_length or self.max_source_length

    @property
    def longest_source(self) -> int:
        """Longest source of training or evaluation, in tokens."""
        return max(self.max_source_length, self.longest_input)

    @property
    def longest_output(self) -> int:
        """Longest generated and evaluated target in tokens."""
        return self.val_max_target_length or self.max_target_length

    @property
    def longest_target(self) -> int:
        """Longest target of training or evaluation, in tokens."""
        return max(self.max_target_length, self.longest_output)


@dataclass
class SummarizationArguments(SequenceToSequenceArguments):
    """Columns, prompt and scores of a summarization run."""

    lang: str | None = option("Language of the summaries; 'zh' counts characters. Unset: detected.")
    text_column: str | None = option("Column of the documents.")
    summary_column: str | None = option("Column of the summaries.")
    report_words: int | None = option(
        "Without data: summarize generated reports of so many words, not the standard library."
    )
    prompt_template: str = option(
        "What a causal language model is given: text with {document} in it.",
        "{document}\n\nSummary:\n",
    )
    chat_prompt: bool = option(
        "Put the prompt into the chat template of the tokenizer, as what a user says.", False
    )
    rouge_stemmer: bool = option("Compare English word stems, as many papers do.", False)
    bert_score_model: str | None = option(
        "Score summaries by BERTScore too, with this encoder (Hub id or directory), such as"
        " microsoft/deberta-xlarge-mnli."
    )
    bert_score_layer: int | None = option(
        "Layer of the encoder to compare vectors of. Unset: the best known for it, else its last."
    )
    predict_before_training: bool = option(
        "Summarize the test split with the given model first, to compare with.", False
    )
    time_full_attention: bool = option(
        "Time a step of the longest document in full attention too, after training.", False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text(self, "lang", "text_column", "summary_column", "bert_score_model")
        require_positive("report_words", self.report_words)
        require_positive("bert_score_layer", self.bert_score_layer)
        if self.bert_score_layer is not None and self.bert_score_model is None:
            raise ValueError("bert_score_layer: expected bert_score_model next to it, got none")
        if self.report_words is not None and self.description is not None:
            raise ValueError(
                f"report_words: expected no other data next to it, got {self.description}"
            )


@dataclass
class TranslationArguments(SequenceToSequenceArguments):
    """Columns and languages of a translation run."""

    source_column: str | None = option("Column of the sources. Unset: 'source'.")
    target_column: str | None = option("Column of the targets. Unset: 'target'.")
    target_lang_column: str | None = option(
        "Column of the target's language, for a model of several. Unset: 'target_lang', if there."
    )
    target_langs: str | None = option("Use only these target languages, separated by commas.")

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = ("source_column", "target_column", "target_lang_column")
        require_text(self, *columns, "target_langs")


@dataclass
class LanguageModelingArguments(DataTrainingArguments):
    """Blocks and samples of a language-modelling run."""

    text_column: str | None = option("Text column of json and csv files. Unset: 'text'.")
    block_size: int = option("Tokens in one training sequence.", 1024)
    validation_split_percentage: int = option(
        "Share of the training text to validate on when there is no validation data.", 5
    )
    sample_prompt_length: int = option("Tokens of context in each printed sample.", 128)
    sample_length: int = option("Tokens to generate in each printed sample; 0: no samples.", 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text(self, "text_column")
        if self.block_size < 2:
            raise ValueError(f"block_size: expected at least 2, got {self.block_size}")
        if not 0 < self.validation_split_percentage < 100:
            raise ValueError(
                "validation_split_percentage: expected a number between 0 and 100, got"
                f" {self.validation_split_percentage}"
            )
        require_positive("sample_prompt_length", self.sample_prompt_length)
        if self.sample_length < 0:
            raise ValueError(f"sample_length: expected 0 or more, got {self.sample_length}")


@dataclass
class MaskedLanguageModelingArguments(LanguageModelingArguments):
    """Blocks of a masked-language-modelling run, and how much of them is hidden."""

    mlm_probability: float = option("Share of the tokens that are hidden.", 0.15)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mlm_probability < 1:
            raise ValueError(
                f"mlm_probability: expected a number between 0 and 1, got {self.mlm_probability}"
            )


@dataclass
class ClassificationArguments(DataTrainingArguments):
    """Columns, splits and lengths of a sequence-classification run."""

    text_column_names: str | None = option("Text columns, separated by commas. Unset: 'text'.")
    text_column_delimiter: str = option("What joins several text columns.", " ")
    label_column_name: str | None = option("Column of the classes. Unset: 'label'.")
    train_split_name: str | None = option("Hub split to train on. Unset: 'train'.")
    validation_split_name: str | None = option("Hub split to validate on. Unset: 'validation'.")
    test_split_name: str | None = option("Hub split to test on. Unset: 'test'.")
    max_seq_length: int = option("Longest text in tokens; longer ones are cut.", 4096)
    val_max_seq_length: int | None = option(
        "Longest evaluated text in tokens, such as more than is trained on. Unset: max_seq_length."
    )
    split_train_texts: bool = option(
        "Train on the whole of longer texts, cut into pieces that have the text's class each.",
        False,
    )
    pad_to_max_length: bool = option(
        "Pad every text to max_seq_length instead of to the longest in its batch.", False
    )
    shuffle_train_dataset: bool = option("Shuffle before max_train_samples is applied.", False)
    shuffle_seed: int = option("Seed of that shuffle.", 42)
    metric_name: str | None = option(
        "Another metric of the `evaluate` library to report; needs the Hub."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("max_seq_length", self.max_seq_length)
        require_positive("val_max_seq_length", self.val_max_seq_length)
        splits = ("train_split_name", "validation_split_name", "test_split_name")
        require_text(self, "text_column_names", "label_column_name", "metric_name", *splits)
        if self.shuffle_seed < 0:
            raise ValueError(f"shuffle_seed: expected 0 or more, got {self.shuffle_seed}")

    @property
    def longest_input(self) -> int:
        """Longest evaluated text in tokens: what the model is to read from now on."""
        return self.val_max_seq_length or self.max_seq_length


@dataclass
class TokenClassificationArguments(DataTrainingArguments):
    """Columns and lengths of a token-classification run."""

    text_column_name: str | None = option("Column of the words. Unset: 'tokens'.")
    label_column_name: str | None = option("Column of the words' tags. Unset: 'ner_tags'.")
    max_seq_length: int = option(
        "Longest text in tokens; longer ones are read in several pieces.", 4096
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("max_seq_length", self.max_seq_length)
        require_text(self, "text_column_name", "label_column_name")


@dataclass
class QuestionAnsweringArguments(DataTrainingArguments):
    """Columns and lengths of a question-answering run."""

    question_column_name: str | None = option("Column of the questions. Unset: 'question'.")
    context_column_name: str | None = option("Column of the documents. Unset: 'context'.")
    answer_column_name: str | None = option("Column of the answers. Unset: 'answers'.")
    max_seq_length: int = option("Longest piece of a document in tokens, question included.", 4096)
    doc_stride: int = option("Tokens that the pieces of a document have in common.", 128)
    max_answer_length: int = option("Longest answer in tokens.", 64)
    version_2_with_negative: bool = option("Some questions have no answer.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_seq_length", "doc_stride", "max_answer_length"):
            require_positive(name, getattr(self, name))
        columns = ("question_column_name", "context_column_name", "answer_column_name")
        require_text(self, *columns)


@dataclass
class RunArguments:
    """How a run starts and when it stops, beyond transformers' training arguments."""

    overwrite_output_dir: bool = option(
        "Start anew in an output directory that is not empty; its checkpoints are deleted.", False
    )
    early_stopping_patience: int | None = option(
        "Stop after so many evaluations in a row without improvement, and keep the best model."
    )

    def __post_init__(self) -> None:
        require_positive("early_stopping_patience", self.early_stopping_patience)


# What transformers takes without a look and what then means nothing, or something else: a run of
# no steps, a loss that rises. For each range the fields, then what it includes and what not.
_SOUND_TRAINING: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "eval_accumulation_steps",
            "save_total_limit",
            "generation_max_length",
            "generation_num_beams",
        ),
        "a positive integer",
        lambda value: value >= 1,
    ),
    (
        ("num_train_epochs", "adam_epsilon"),
        "a finite number above 0",
        lambda value: 0 < value < math.inf,
    ),
    (
        ("logging_steps", "eval_steps", "save_steps"),
        "a positive number of steps, or below 1 a share of all steps",
        lambda value: 0 < value < math.inf,
    ),
    (
        ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay"),
        "a finite number of 0 or more",
        lambda value: 0 <= value < math.inf,
    ),
    (
        ("adam_beta1", "adam_beta2", "label_smoothing_factor"),
        "a number from 0 to below 1",
        lambda value: 0 <= value < 1,
    ),
    (
        ("seed", "data_seed"),
        "an integer from 0 to below 2**32",
        lambda value: 0 <= value < 2**32,
    ),
    (("dataloader_num_workers",), "0 or more", lambda value: value >= 0),
    (("max_steps",), "a positive integer, or -1 for none", lambda value: value == -1 or value >= 1),
)


def require_sound_training(training: TrainingArguments) -> None:
    """Raise ValueError, with the argument, if training arguments are out of their range."""
    for names, expected, is_sound in _SOUND_TRAINING:
        for name in names:
            value = getattr(training, name, None)
            if value is not None and not is_sound(value):
                raise ValueError(f"{name}: expected {expected}, got {value}")


class _Parser(HfArgumentParser):
    """Refuses with ValueError instead of a page of usage and an exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(classes: Sequence[Any], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One object per dataclass from a command line, or from a single JSON file named on it.

    Raises:
        ValueError: an argument is impossible, or the JSON file cannot be read.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        known = {entry.name for kind in classes for entry in fields(kind) if entry.init}
        arguments = _command_line(Path(arguments[0]), known)
    parser = _Parser(list(classes))
    return tuple(parser.parse_args_into_dataclasses(args=arguments, look_for_args_file=False))


def _command_line(path: Path, known: set[str]) -> list[str]:
    """The arguments in a JSON file as they stand on a command line, which checks their types."""
    if not path.is_file():
        raise ValueError(f"arguments: expected a JSON file, got {str(path)!r}")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"arguments: cannot read {str(path)!r} as JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(
            f"arguments: expected an object in {str(path)!r}, got {type(given).__name__}"
        )
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f"arguments: expected names of arguments in {str(path)!r}, got {unknown}")
    arguments = []
    for name, value in given.items():
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            arguments.append(f"--{name}={text}")
    return arguments


def exit_code(
    run: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None
) -> int:
    """Call `run(argv)`; 0 if it returns, `EXIT_BAD_INPUT` and a one-line message if it refuses.

    The scripts and the libraries below them refuse bad input with ValueError and unreachable
    files with OSError. Anything else is a defect and keeps its traceback, which `--log_level
    debug` shows for refusals as well.
    """
    try:
        run(argv)
    except (ValueError, OSError) as error:
        logger.debug("The refusal came from here", exc_info=True)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0
