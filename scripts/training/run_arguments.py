"""What a run began with, kept next to its weights: a run that goes on is the same run.

A resumed run takes its model, its tokenizer and the state of its optimizer from the checkpoint.
Arguments that say otherwise can have no effect, so they are refused, or where they are but left at
their defaults, the run's own values are put in their place.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from training.adapters import are_adapters
from training.arguments import ModelArguments
from training.models import parse_overrides

logger = logging.getLogger(__name__)

# The Hub is not sent what begins with an underscore: there are paths of this machine in it.
_FILE = "_run_arguments.json"
# No part of a saved configuration, so that a run that goes on has to be told.
_ATTENTION = "attn_implementation"
_ADAPTERS = "lora_rank"
# In the configuration of a saved model, but not of the weights under adapters.
_SETTINGS = "attention_settings"
_OF_THE_MODEL = (
    "model_name_or_path",
    "config_name",
    "preset",
    "config_overrides",
    "tokenizer_name",
    "vocab_size",
    _ATTENTION,
    _ADAPTERS,
)
_OF_THE_OPTIMIZER = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim",
)


def arguments_of(model: ModelArguments, training: TrainingArguments) -> dict[str, Any]:
    """The arguments that a run cannot change once it has begun, by name."""
    found = {name: getattr(model, name) for name in (*_OF_THE_MODEL, _SETTINGS)}
    for name in ("model_name_or_path", "config_name", "tokenizer_name"):
        if found[name] is not None and Path(found[name]).exists():
            found[name] = str(Path(found[name]).resolve())
    return found | {name: _plain(getattr(training, name)) for name in _OF_THE_OPTIMIZER}


def write(arguments: Mapping[str, Any], directory: Path) -> None:
    """Put the arguments next to the weights in `directory`."""
    (directory / _FILE).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")


def read(directory: Path) -> dict[str, Any]:
    """The arguments of the run whose weights are in `directory`; none if it has no record."""
    path = directory / _FILE
    if not path.is_file():
        return {}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def keep_model(begun: Mapping[str, Any], model: ModelArguments, source: Path) -> None:
    """Refuse arguments that describe another model or tokenizer than those in `source`.

    Raises:
        ValueError: an argument is given that differs from what the run began with.
    """
    given = {name: getattr(model, name) for name in _OF_THE_MODEL if getattr(model, name)}
    if not begun and given:
        logger.warning(
            "%s: no effect, model and tokenizer are those in %s", ", ".join(given), source
        )
        return
    for name, value in given.items():
        if _comparable(name, value) != _comparable(name, begun.get(name)):
            raise _differs(name, begun.get(name), value, source)
    if model.attn_implementation is None and begun.get(_ATTENTION):
        logger.info("%s: %s, with which the run began", _ATTENTION, begun[_ATTENTION])
        model.attn_implementation = begun[_ATTENTION]
    if are_adapters(source):
        # The weights under them are where the run began.
        model.lora_rank = begun.get(_ADAPTERS)
        model.model_name_or_path = begun.get("model_name_or_path")
        model.attention_settings = model.attention_settings or begun.get(_SETTINGS)


def keep_optimizer(begun: Mapping[str, Any], training: TrainingArguments, source: Path) -> None:
    """Give `training` the settings that the optimizer's state in `source` brings along.

    Raises:
        ValueError: an argument is given that differs from what the run began with.
    """
    defaults = {field.name: field.default for field in fields(training)}
    for name in _OF_THE_OPTIMIZER:
        value = getattr(training, name)
        if name not in begun or _plain(value) == begun[name]:
            continue
        if _plain(value) != _plain(defaults[name]):
            raise _differs(name, begun[name], _plain(value), source)
        logger.info("%s: %s, with which the run in %s began", name, begun[name], source)
        setattr(training, name, begun[name] if value is None else type(value)(begun[name]))


def _differs(name: str, begun: Any, value: Any, source: Path) -> ValueError:
    return ValueError(
        f"{name}: expected {begun!r}, with which the run in {str(source)!r} began and which stays"
        f" (--overwrite_output_dir starts anew), got {value!r}"
    )


def _comparable(name: str, value: Any) -> Any:
    """`value` in one of the ways to write it."""
    if name == "config_overrides":
        return parse_overrides(value)
    if name != "preset" and isinstance(value, str) and Path(value).exists():
        return str(Path(value).resolve())
    return value


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
