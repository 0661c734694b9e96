"""Convert a checkpoint of transformers' own Reformer into one of ours.

    python scripts/convert_checkpoint.py --checkpoint google/reformer-enwik8 --output_dir enwik8

    python scripts/convert_checkpoint.py --checkpoint my-reformer --output_dir my-causal-reformer \\
        --attention_pattern window

Our classes open such a checkpoint without this, too; a converted one also opens through the Auto
classes, and its configuration can be edited. The pattern `chunk` keeps the original's function,
which is measured against transformers before anything is written. `window` puts the same weights
into our pattern, which is strictly causal and independent of padding; they were not trained in it,
so train them on.

Every setting that changes is listed. The output directory appears complete or not at all.
"""

import copy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig

import reformer_hf
from reformer_hf import ReformerConfig, ReformerPreTrainedModel
from reformer_hf.checkpoint_conversion import ORIGINAL_MODEL_TYPE
from reformer_hf.choices import ATTENTION_PATTERNS
from train_tokenizer import check_output_dir
from training.arguments import exit_code, option, parse_arguments, require_one_of
from training.saving import save_whole

# Its heads -> ours.
MODEL_CLASSES = {
    "ReformerModel": "ReformerModel",
    "ReformerModelWithLMHead": "ReformerForCausalLM",
    "ReformerForMaskedLM": "ReformerForMaskedLM",
    "ReformerForSequenceClassification": "ReformerForSequenceClassification",
    "ReformerForQuestionAnswering": "ReformerForQuestionAnswering",
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
# Of google/reformer-enwik8, which comes without a tokenizer.
BYTE_VOCAB_SIZE = 258
# Hidden states are normalised; fp32 rounding moves them by about 1e-6.
TOLERANCE = 1e-3
COMPARED_CHUNKS = 4
# What transformers writes about the file rather than about the model.
BOOKKEEPING = {"_name_or_path", "architectures", "auto_map", "dtype", "transformers_version"}


@dataclass
class ConversionArguments:
    """What to convert, into what, and where to put it."""

    checkpoint: str = field(metadata={"help": "Directory or Hub id of a transformers Reformer."})
    output_dir: str = field(metadata={"help": "Directory to write; new, or empty."})
    attention_pattern: str = option("chunk (the original's) or window (strictly causal).", "chunk")
    model_class: str | None = option(
        f"One of {', '.join(MODEL_CLASSES.values())}. Unset: the class that was saved."
    )
    model_revision: str = option("Branch, tag or commit of the checkpoint on the Hub.", "main")
    cache_dir: str | None = option("Where downloads from the Hub are kept.")
    token: str | None = option("Access token for private Hub repositories.")

    def __post_init__(self) -> None:
        require_one_of("attention_pattern", self.attention_pattern, ATTENTION_PATTERNS)
        if self.model_class is not None:
            require_one_of("model_class", self.model_class, list(MODEL_CLASSES.values()))


def local_copy(arguments: ConversionArguments) -> Path:
    """The checkpoint's directory, downloaded if it is a Hub id.

    Raises:
        ValueError: it cannot be either.
        OSError: the Hub does not have it, or cannot be reached.
    """
    given = Path(arguments.checkpoint)
    if given.is_dir():
        return given
    if given.exists() or given.is_absolute() or len(given.parts) > 2:
        raise ValueError(
            f"checkpoint: expected a directory or a Hub id, got {arguments.checkpoint!r}"
        )
    patterns = ["*.json", "*.safetensors", "pytorch_model*.bin", *TOKENIZER_FILES]
    folder = snapshot_download(
        arguments.checkpoint,
        revision=arguments.model_revision,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
        allow_patterns=patterns,
    )
    return Path(folder)


def read_fields(source: Path) -> dict[str, Any]:
    """The `config.json` of a transformers Reformer.

    Raises:
        ValueError: it is one of another model.
        OSError: there is none.
    """
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"checkpoint: expected a config.json in {str(source)!r}, got none")
    fields, _ = PreTrainedConfig.get_config_dict(source)
    model_type = fields.get("model_type")
    if model_type != ORIGINAL_MODEL_TYPE:
        raise ValueError(
            f"checkpoint: expected model_type {ORIGINAL_MODEL_TYPE!r}, got {model_type!r} in"
            f" {str(source)!r}"
        )
    return dict(fields)


def pickled_weights(source: Path) -> dict[str, torch.Tensor] | None:
    """The weights of a checkpoint from before safetensors, else None; no code in it is run."""
    files = sorted(source.glob("pytorch_model*.bin"))
    if any(source.glob("*.safetensors")) or not files:
        return None
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights.update(torch.load(file, map_location="cpu", weights_only=True))
    return weights


def load_converted(
    source: Path, fields: dict[str, Any], arguments: ConversionArguments
) -> ReformerPreTrainedModel:
    """The model under our names, in the pattern and with the head that the arguments ask for.

    Raises:
        ValueError: the weights cannot be read, do not fit, or lack what the saved class has.
    """
    saved = (fields.get("architectures") or [""])[0]
    name = arguments.model_class or MODEL_CLASSES.get(saved, "ReformerModel")
    model_class: type[ReformerPreTrainedModel] = getattr(reformer_hf, name)
    config = ReformerConfig.from_pretrained(source, attention_pattern=arguments.attention_pattern)
    try:
        weights = pickled_weights(source)
        model, info = model_class.from_pretrained(
            source if weights is None else None,
            config=config,
            state_dict=weights,
            output_loading_info=True,
        )
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint: expected weights that fit and can be read: {error}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing and name == MODEL_CLASSES.get(saved):
        raise ValueError(f"checkpoint: expected weights for {missing}, got none")
    for title, keys in (("new, random", missing), ("left out", sorted(info["unexpected_keys"]))):
        for key in keys:
            print(f"{title}: {key}")
    loaded: ReformerPreTrainedModel = model
    return loaded


@torch.no_grad()
def largest_difference(source: Path, model: ReformerPreTrainedModel) -> tuple[int, float]:
    """How far hidden states of random tokens are from transformers', and of how many tokens."""
    weights = pickled_weights(source)
    config = transformers.ReformerConfig.from_pretrained(source, hash_seed=0)
    original = transformers.ReformerModel.from_pretrained(
        source if weights is None else None, config=config, state_dict=weights, dtype=torch.float32
    ).eval()
    ours = copy.deepcopy(model.base_model).float().eval()
    ours.config.hash_seed = 0
    chunk = max(config.lsh_attn_chunk_length or 0, config.local_attn_chunk_length)
    length = min(COMPARED_CHUNKS * chunk, ours.config.max_position_embeddings)
    tokens = torch.randint(
        0, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)
    )
    # Causal or not, as it was saved, whatever head is on top.
    theirs = original(tokens).last_hidden_state
    return length, float((ours(tokens).last_hidden_state - theirs).abs().max())


def changed_settings(fields: dict[str, Any], config: ReformerConfig) -> list[str]:
    """One line for each setting that is not what it was, or not our default where it is new."""
    before = transformers.ReformerConfig(**fields).to_dict()
    after, defaults = config.to_dict(), ReformerConfig().to_dict()
    lines = []
    for name in sorted(after.keys() - BOOKKEEPING):
        if name in before:
            old, new = (list(x) if isinstance(x, tuple) else x for x in (before[name], after[name]))
            if old != new:
                lines.append(f"{name}: {old!r} -> {new!r}")
        elif after[name] != defaults.get(name):
            lines.append(f"{name}: {after[name]!r}")
    return lines


def convert_checkpoint(argv: Sequence[str] | None = None) -> ReformerPreTrainedModel:
    """Convert, compare, save and report what the arguments ask for.

    Raises:
        ValueError: arguments or checkpoint cannot work; nothing is written then.
        RuntimeError: the converted model computes something else; nothing is written either.
    """
    (arguments,) = parse_arguments((ConversionArguments,), argv)
    output_dir = Path(arguments.output_dir).absolute()
    check_output_dir(output_dir)
    source = local_copy(arguments)
    fields = read_fields(source)
    model = load_converted(source, fields, arguments)

    same_function = arguments.attention_pattern == "chunk" and model.config.is_decoder == bool(
        fields.get("is_decoder", False)
    )
    length, difference = largest_difference(source, model)
    if same_function and not difference <= TOLERANCE:
        raise RuntimeError(
            f"hidden states differ from those of transformers by {difference:.3g}, expected at"
            f" most {TOLERANCE}"
        )
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]

    def save(path: Path) -> None:
        model.save_pretrained(path)
        for file in found:
            shutil.copyfile(file, path / file.name)

    save_whole(save, output_dir)

    print(f"{type(model).__name__}, {model.num_parameters():,} parameters, in {output_dir}")
    for line in changed_settings(fields, model.config):
        print(f"  {line}")
    print(f"hidden states of {length} random tokens differ from transformers' by {difference:.1e}")
    head = getattr(model, "lm_head", None)
    if head is not None and bool(head.bias.any()):
        print("logits differ by lm_head.bias, which transformers 5 stores but does not add")
    if found:
        print(f"tokenizer copied: {', '.join(file.name for file in found)}")
    elif model.config.vocab_size == BYTE_VOCAB_SIZE:
        print(
            "no tokenizer there; scripts/train_tokenizer.py --byte_level --layout enwik8 writes the"
            " one for its bytes"
        )
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the command: 0, or 2 and one line on stderr when the input is at fault."""
    verbosity = transformers.utils.logging.get_verbosity()
    # It advises on the settings of the original, which is only opened for comparison.
    transformers.utils.logging.set_verbosity_error()
    try:
        return exit_code(convert_checkpoint, argv)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


if __name__ == "__main__":
    sys.exit(main())
