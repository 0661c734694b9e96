"""Checkpoints on disk: which of them are complete, and the one that a run goes on from.

A save that was cut short (a kill, a full disk) never counts: `training.saving` writes it under
another name, and what an earlier release or another program left half-written is recognised here.
"""

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

# In an output directory: what is written or deleted just now. The Hub is not sent what begins with
# an underscore.
UNFINISHED = "_unfinished"
_BROKEN_PREFIX = "_broken-"
WEIGHT_FILE = re.compile(
    r"(adapter_model|model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
)
_SHARDED_WEIGHTS = ("pytorch_model_fsdp", "global_step")  # of FSDP and DeepSpeed
_PICKLED = (".pt", ".pth", ".bin")


def checkpoints_in(directory: Path) -> list[Path]:
    """The directories called checkpoint-N, by N, complete or not."""
    numbered = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    if not directory.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in directory.iterdir()
        if (match := numbered.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def newest_complete(directory: Path) -> Path | None:
    """The last checkpoint in `directory` that can be opened; a warning names those after it."""
    flaws = {}
    complete = None
    for checkpoint in reversed(checkpoints_in(directory)):
        flaw = flaw_of_checkpoint(checkpoint)
        if flaw is None:
            complete = checkpoint
            break
        flaws[checkpoint] = flaw
    for checkpoint, flaw in flaws.items():
        instead = f"using {complete.name} instead" if complete else "no earlier one is complete"
        logger.warning("Passing over %s: %s; %s", checkpoint, flaw, instead)
    return complete


def flaw_of_checkpoint(checkpoint: Path) -> str | None:
    """Why training cannot resume from `checkpoint`, as a phrase; None if it can."""
    names = {path.name for path in checkpoint.iterdir()}
    # The state is written last: without it the save did not come to its end.
    if "trainer_state.json" not in names:
        return "it has no trainer_state.json"
    state = {"optimizer.pt", "scheduler.pt"}  # none of them, if only the model is saved
    if names & state and not state <= names:
        return f"it has no {min(state - names)}"
    if names & state and not any(name.startswith("rng_state") for name in names):
        return "it has no rng_state.pth"
    for name in sorted(names):
        if not opens(checkpoint / name):
            return f"{name} is cut short or damaged"
    return flaw_of_model(checkpoint)


def flaw_of_model(directory: Path) -> str | None:
    """Why the model in `directory` cannot be loaded, as a phrase; None if it can.

    Files are opened, not read: whether one was cut short shows at its beginning or at its end.
    """
    if not any((directory / name).is_file() for name in ("config.json", "adapter_config.json")):
        return "it has no config.json"
    paths = list(directory.iterdir())
    weights = [path for path in paths if WEIGHT_FILE.fullmatch(path.name)]
    if not weights and not any(path.name.startswith(_SHARDED_WEIGHTS) for path in paths):
        return "it has no weights"
    for path in sorted([*weights, *directory.glob("*config.json")]):
        if not opens(path):
            return f"{path.name} is cut short or damaged"
    for path in weights:
        if path.name.endswith(".index.json"):
            shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
            missing = sorted(shard for shard in shards if not (directory / shard).is_file())
            if missing:
                return f"it has no {missing[0]}"
    return None


def opens(path: Path) -> bool:
    """Whether a file is whole, as far as its format tells."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # compares the header with the size
                pass
        elif path.suffix in _PICKLED:
            with zipfile.ZipFile(path):  # reads the table of contents, which is at the end
                pass
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def leftovers(directory: Path) -> set[str]:
    """Names of what interrupted saves left in `directory`: nothing that a run could go on from."""
    broken = {path.name for path in checkpoints_in(directory) if flaw_of_checkpoint(path)}
    aside = {path.name for path in directory.glob(f"{_BROKEN_PREFIX}{PREFIX_CHECKPOINT_DIR}-*")}
    return broken | aside | {UNFINISHED}


class MakeRoom(TrainerCallback):
    """Clears the output directory when training begins: by then all that can be refused was.

    Args:
        everything: old checkpoints are deleted (they would outnumber the new ones and be taken for
            the latest); otherwise incomplete ones are renamed, so that nothing counts them.
    """

    def __init__(self, *, everything: bool) -> None:
        self._everything = everything

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        output = Path(str(args.output_dir))
        unfinished = output / UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        for checkpoint in checkpoints_in(output):
            if self._everything:
                logger.info("Removing %s", checkpoint)
                unfinished.mkdir(exist_ok=True)
                checkpoint.rename(unfinished / checkpoint.name)
            elif flaw_of_checkpoint(checkpoint) is not None:
                aside = checkpoint.with_name(_BROKEN_PREFIX + checkpoint.name)
                shutil.rmtree(aside, ignore_errors=True)
                logger.warning("Renaming %s, which is not complete, to %s", checkpoint, aside.name)
                checkpoint.rename(aside)
        shutil.rmtree(unfinished, ignore_errors=True)


class AlreadyTrained(Exception):
    """The checkpoint is that of the last step; nothing is left to train."""


class StopAtTheEnd(TrainerCallback):
    """Keeps transformers from a step too many: a resumed run trains one before it counts them.

    Raises:
        AlreadyTrained: when training begins, with the checkpoint's weights and state loaded.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            raise AlreadyTrained(
                f"Step {state.global_step} of {state.max_steps} was reached before"
            )
