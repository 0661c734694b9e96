"""The life of a training run: where it starts, when it stops, what it saves on the way."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint

from training.arguments import DataTrainingArguments, RunArguments
from training.loss_curve import save_loss_curve
from training.measurements import StepTimer, peak_memory
from training.model_card import CardFacts, model_card
from training.trainers import CardSeq2SeqTrainer, CardTrainer

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """What a run knows of itself before it has a model.

    Attributes:
        checkpoint: directory to resume from, or None.
        timer: measures the steps; one of `callbacks`.
        callbacks: for the trainer.
    """

    checkpoint: str | None
    timer: StepTimer
    callbacks: list[TrainerCallback]


def begin(
    training: TrainingArguments,
    data: DataTrainingArguments,
    run: RunArguments,
    *,
    cuts_validation: bool = False,
) -> Session:
    """Check what can be checked without data, find the checkpoint to resume from, set the seed.

    Args:
        training: transformers' arguments; completed where early stopping needs it.
        data: the files that are there.
        run: how to start and when to stop.
        cuts_validation: the script takes validation data from the training file if there is no
            other.

    Raises:
        ValueError: the arguments ask for nothing, for data they do not name, or for a start or an
            early stop that cannot be.
    """
    _require_work(training, data, cuts_validation)
    timer = StepTimer()
    callbacks = [timer, *_early_stopping(training, run)]
    checkpoint = _start_checkpoint(training, run)
    if training.device.type == "cpu":
        training.dataloader_pin_memory = False  # has no effect there but a warning
    set_seed(training.seed)
    return Session(checkpoint, timer, callbacks)


def _require_work(
    training: TrainingArguments, data: DataTrainingArguments, cuts_validation: bool
) -> None:
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ValueError("do_train, do_eval, do_predict: expected at least one of them, got none")
    needed = {
        "train": training.do_train,
        "validation": training.do_eval and not (cuts_validation and "train" in data.files),
        "test": training.do_predict,
    }
    if data.files:
        for split, wanted in needed.items():
            if wanted and split not in data.files:
                raise ValueError(f"{split}_file: expected a file for this run, got none")


def _start_checkpoint(training: TrainingArguments, run: RunArguments) -> str | None:
    """The checkpoint to resume from: the one named, else the last one in the output directory."""
    named = training.resume_from_checkpoint
    if named is not None:
        if not Path(named).is_dir():
            raise ValueError(f"resume_from_checkpoint: expected a directory, got {named!r}")
        return str(named)
    output = Path(str(training.output_dir))
    if not training.do_train or not output.is_dir() or not any(output.iterdir()):
        return None
    last = get_last_checkpoint(str(output))
    if run.overwrite_output_dir:
        _remove_checkpoints(output, training)
        return None
    if last is None:
        raise ValueError(
            f"output_dir: expected an empty directory, a checkpoint in it or"
            f" --overwrite_output_dir, got {str(output)!r}"
        )
    logger.info(
        "Resuming from %s, with its model and tokenizer (--overwrite_output_dir starts anew)", last
    )
    return last


def _remove_checkpoints(output: Path, training: TrainingArguments) -> None:
    """Old checkpoints would outnumber the new ones and be taken for the latest."""
    with training.main_process_first(desc="removing old checkpoints"):
        while (old := get_last_checkpoint(str(output))) is not None:
            logger.info("Removing %s", old)
            shutil.rmtree(old)


def _early_stopping(training: TrainingArguments, run: RunArguments) -> list[TrainerCallback]:
    """The callback that stops early, if asked for; sets the training arguments that it needs."""
    if run.early_stopping_patience is None or not training.do_train:
        return []
    if training.eval_strategy == "no":
        raise ValueError("early_stopping_patience: expected --eval_strategy steps or epoch, got no")
    # Going back to the best model needs a checkpoint of every evaluated step.
    training.save_strategy = SaveStrategy(training.eval_strategy.value)
    training.save_steps = training.eval_steps or training.save_steps
    training.load_best_model_at_end = True
    training.metric_for_best_model = training.metric_for_best_model or "loss"
    if training.greater_is_better is None:
        training.greater_is_better = not training.metric_for_best_model.endswith("loss")
    return [EarlyStoppingCallback(early_stopping_patience=run.early_stopping_patience)]


def train(trainer: Trainer, session: Session, examples: int) -> None:
    """Train, on from the checkpoint if there is one; save model, tokenizer, state and metrics."""
    result = trainer.train(resume_from_checkpoint=session.checkpoint)
    trainer.save_model()
    metrics: dict[str, Any] = dict(result.metrics)
    metrics["train_samples"] = examples
    metrics["train_steps"] = trainer.state.global_step
    if session.timer.median_seconds is not None:
        metrics["train_step_seconds_median"] = round(session.timer.median_seconds, 4)
    metrics.update(peak_memory())
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()


def report_metrics(trainer: Trainer, split: str, metrics: dict[str, Any], examples: int) -> None:
    """Show the metrics of `split` ("eval" or "predict") and save them as JSON."""
    metrics[f"{split}_samples"] = examples
    metrics.update(peak_memory())
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def final_evaluation(trainer: Trainer, session: Session) -> dict[str, Any]:
    """Metrics of the trained model on the validation split, with the loss before training.

    A model that this run just evaluated, at its last step, is not evaluated again.
    """
    evaluations = _evaluations(trainer)
    is_fresh = (
        bool(evaluations)
        and evaluations[-1]["step"] == trainer.state.global_step
        and session.timer.median_seconds is not None
        and not trainer.args.load_best_model_at_end
    )
    metrics = dict(evaluations[-1]) if is_fresh else trainer.evaluate()
    metrics.pop("step", None)
    if evaluations and evaluations[0]["step"] == 0 and trainer.state.global_step > 0:
        metrics["eval_loss_at_start"] = evaluations[0]["eval_loss"]
    return metrics


def _evaluations(trainer: Trainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "eval_loss" in entry]


def finish(trainer: CardTrainer | CardSeq2SeqTrainer, facts: CardFacts, session: Session) -> None:
    """Draw the losses, write the model card, push if asked, and print a short summary."""
    output = Path(str(trainer.args.output_dir))
    if trainer.is_world_process_zero():
        has_curve = save_loss_curve(trainer.state.log_history, output / "loss_curve.png")
        if trainer.args.do_train:
            facts.details.update(_costs(session.timer))
            trainer.card = model_card(trainer, facts, has_curve=has_curve)
            trainer.create_model_card()
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    if not trainer.is_world_process_zero():
        return
    print()
    evaluations = _evaluations(trainer)
    if len(evaluations) > 1:
        first, last = evaluations[0], evaluations[-1]
        print(
            f"Evaluation loss: {first['eval_loss']:.4f} (step {first['step']}) ->"
            f" {last['eval_loss']:.4f} (step {last['step']})"
        )
    for name, cost in _costs(session.timer).items():
        print(f"{name}: {cost}")
    print(f"Results: {output.resolve()}")


def _costs(timer: StepTimer) -> dict[str, str]:
    """Time and memory of the run in words."""
    costs = {}
    if timer.median_seconds is not None:
        costs["Median time of a step"] = f"{timer.median_seconds:.3f} s"
    for name, size in peak_memory().items():
        where = "GPU" if "gpu" in name else "process"
        costs[f"Peak memory of the {where}"] = f"{size:,.0f} MiB"
    return costs
