"""A trainer whose checkpoints and final model are complete or not there."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from training import run_arguments
from training.checkpoints import UNFINISHED, WEIGHT_FILE, newest_complete, opens
from training.saving import flush, replace_directory

logger = logging.getLogger(__name__)


class WholeSaves(Trainer):
    """A trainer that saves under another name, and renames what is complete.

    transformers' trainer writes into the directory that counts, file by file. Here files are
    written into `UNFINISHED` and renamed. It also writes there what the run began with
    (`training.run_arguments`), and `use_cache` as the configuration said: transformers turns that
    off for training, and the saved model would generate without a cache.

    Attributes:
        run_arguments: what the run began with; empty outside of training.
    """

    run_arguments: dict[str, Any]
    _aside: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = kwargs["model"] if "model" in kwargs else args[0]
        # Before transformers changes it.
        self._use_cache = getattr(model.config, "use_cache", None)
        self.run_arguments = {}
        super().__init__(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        target = Path(str(self.args.output_dir))
        if output_dir is not None and Path(output_dir) != target:
            super().save_model(output_dir, _internal_call)
            return
        with self._written_aside(target, "the model") as aside:
            complete = aside / "model"
            super().save_model(str(complete), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._replace_model(complete, target)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _replace_model(self, complete: Path, target: Path) -> None:
        self._write_run_arguments(complete)
        flush(complete)
        names = {path.name for path in complete.iterdir()}
        for path in complete.iterdir():
            path.replace(target / path.name)
        for path in target.iterdir():  # weights in another number of files would be read first
            if WEIGHT_FILE.fullmatch(path.name) and path.name not in names:
                path.unlink()

    def _write_run_arguments(self, complete: Path) -> None:
        if self.run_arguments:
            run_arguments.write(self.run_arguments, complete)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        config = self.accelerator.unwrap_model(self.model).config
        in_training = getattr(config, "use_cache", None)
        if self._use_cache is not None:
            config.use_cache = self._use_cache
        try:
            super()._save(*args, **kwargs)
        finally:
            if self._use_cache is not None:
                config.use_cache = in_training

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside or super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:  # otherwise the folder is about to be renamed
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(super()._get_output_dir(trial))
        final = output / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._written_aside(output, final.name) as aside:
            complete = aside / final.name
            self._aside = aside
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = None
            self.accelerator.wait_for_everyone()
            is_best = self.state.best_model_checkpoint == str(complete)
            if is_best:
                self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                if is_best:
                    self.state.save_to_json(str(complete / "trainer_state.json"))
                self._write_run_arguments(complete)
                replace_directory(complete, final)
                for old in self._surplus(final):  # a name must not outlive a file in it
                    old.rename(aside / old.name)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _surplus(self, newest: Path) -> list[Path]:
        """The oldest checkpoints beyond `save_total_limit`; never the newest or the best one."""
        if self.args.save_total_limit is None:
            return []
        found = [Path(path) for path in sort_checkpoints(str(newest.parent), use_mtime=True)]
        kept = {newest, Path(self.state.best_model_checkpoint or newest)}
        excess = len(found) - max(self.args.save_total_limit, len(kept))
        return [path for path in found if path not in kept][: max(excess, 0)]

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        earlier = Path(str(self.args.output_dir)) / "all_results.json"
        if self.is_world_process_zero() and earlier.exists() and not opens(earlier):
            logger.warning("Writing %s anew, which was cut short", earlier)
            earlier.unlink()
        super().save_metrics(split, metrics, combined)

    @contextlib.contextmanager
    def _written_aside(self, output: Path, what: str) -> Iterator[Path]:
        """An empty directory in `output`, gone afterwards also where saving fails.

        Raises:
            OSError: saving failed; the message says what remains to go on from.
        """
        aside = output / UNFINISHED
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            yield aside
        except (OSError, SafetensorError, RuntimeError) as error:
            if not _is_of_the_disk(error):
                raise
            last = newest_complete(output)
            remains = "there is no complete checkpoint"
            if last is not None:
                remains = f"{last.name} is complete, and the same command resumes there"
            reason = " ".join(str(error).split())
            if not isinstance(error, OSError):  # its own words are about the format
                reason = f"{reason} (is the disk full?)"
            raise OSError(
                f"output_dir: cannot save {what} in {str(output)!r}: {reason}; {remains}"
            ) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed: safetensors and torch have no type of their own for that."""
    words = ("PytorchStreamWriter", "inline_container", "iostream error")
    return isinstance(error, OSError | SafetensorError) or any(word in str(error) for word in words)
