"""Where a run starts: anew, from a checkpoint, or with the model that it evaluates."""

import logging
from pathlib import Path

from transformers import TrainingArguments

from training import run_arguments
from training.arguments import DataTrainingArguments, ModelArguments, RunArguments
from training.checkpoints import (
    checkpoints_in,
    flaw_of_checkpoint,
    flaw_of_model,
    leftovers,
    newest_complete,
)
from training.output_lock import LOCK_FILE

logger = logging.getLogger(__name__)


def start_checkpoint(
    training: TrainingArguments,
    model: ModelArguments,
    data: DataTrainingArguments,
    run: RunArguments,
) -> Path | None:
    """The checkpoint to resume from: the one named, else the last complete one in the output.

    Raises:
        ValueError: the one named is not complete, or there is none and the output directory holds
            something else; or starting anew would delete what the run reads from.
    """
    named = training.resume_from_checkpoint
    output = Path(str(training.output_dir))
    if run.overwrite_output_dir:
        if named is not None:
            raise ValueError(
                "resume_from_checkpoint: expected no --overwrite_output_dir, which starts anew, got"
                f" {named!r} next to it"
            )
        _require_kept(model, data, output)
        return None
    if named is not None:
        checkpoint = Path(named)
        if not checkpoint.is_dir():
            raise ValueError(f"resume_from_checkpoint: expected a directory, got {named!r}")
        if flaw := flaw_of_checkpoint(checkpoint):
            raise ValueError(
                f"resume_from_checkpoint: expected a complete checkpoint, got {named!r}: {flaw}"
            )
        return checkpoint
    last = newest_complete(output)
    if last is not None:
        logger.info(
            "Resuming from %s, with its model and tokenizer (--overwrite_output_dir starts anew)",
            last,
        )
        return last
    if output.is_dir():
        found = {path.name for path in output.iterdir()} - leftovers(output) - {LOCK_FILE}
        if found:
            raise ValueError(
                "output_dir: expected an empty directory, a complete checkpoint in it or"
                f" --overwrite_output_dir, got {str(output)!r}"
            )
    return None


def _require_kept(model: ModelArguments, data: DataTrainingArguments, output: Path) -> None:
    """Refuse to start anew from something that starting anew deletes."""
    sources = {
        "model_name_or_path": model.model_name_or_path,
        "config_name": model.config_name,
        "tokenizer_name": model.tokenizer_name,
        **{f"{split}_file": file for split, file in data.files.items()},
    }
    deleted = {checkpoint.resolve() for checkpoint in checkpoints_in(output)}
    for name, source in sources.items():
        if source is None:
            continue
        path = Path(source).resolve()
        if deleted & {path, *path.parents}:
            raise ValueError(
                f"{name}: expected a path outside of the checkpoints that --overwrite_output_dir"
                f" deletes, got {source!r}"
            )


def choose_evaluated_model(training: TrainingArguments, model: ModelArguments) -> None:
    """Make `model` name what is evaluated: what the user names, else what the output directory has.

    Raises:
        ValueError: there is neither, or arguments describe another model than the one there.
    """
    if training.resume_from_checkpoint is not None:
        raise ValueError(
            "resume_from_checkpoint: expected --do_train next to it (--model_name_or_path names a"
            f" model to evaluate), got {training.resume_from_checkpoint!r}"
        )
    output = Path(str(training.output_dir))
    has_model = output.is_dir() and flaw_of_model(output) is None
    named = model.model_name_or_path
    if named is not None:
        if has_model and Path(named).resolve() != output.resolve():
            logger.warning(
                "Results in %s will be those of %s, not of the model there", output, named
            )
        return
    source = output if has_model else newest_complete(output)
    if source is None:
        if model.preset is None and model.config_name is None:
            raise ValueError(
                "model_name_or_path: expected a model to evaluate, one in output_dir or --do_train,"
                f" got none, and none in {str(output)!r}"
            )
        logger.warning("Evaluating a new model, which was not trained")
        return
    logger.info("Evaluating the model in %s", source)
    run_arguments.keep_model(run_arguments.read(source), model, source)
    model.model_name_or_path, model.config_name = str(source), None
