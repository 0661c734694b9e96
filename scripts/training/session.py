"""The life of a training run: where it starts, when it stops, what it measures and saves."""

import logging
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import datasets
import transformers
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import SaveStrategy

from training import run_arguments
from training.adapters import merge_adapters
from training.arguments import (
    DataTrainingArguments,
    ModelArguments,
    RunArguments,
    parse_arguments,
    require_sound_training,
)
from training.checkpoints import AlreadyTrained, MakeRoom, StopAtTheEnd
from training.command import shown_command
from training.data import needed_splits
from training.models import parse_overrides, preset_named
from training.output_lock import OutputLock
from training.reporting import (
    CardFacts,
    CardSeq2SeqTrainer,
    CardTrainer,
    StepTimer,
    costs,
    model_card,
    peak_memory,
    save_loss_curve,
)
from training.starting_point import choose_evaluated_model, start_checkpoint

logger = logging.getLogger(__name__)

DataT = TypeVar("DataT", bound=DataTrainingArguments)
TrainingT = TypeVar("TrainingT", bound=TrainingArguments)


@dataclass
class Session:
    """One training run: where it resumes, what it measures, and its steps from training to report.

    Attributes:
        checkpoint: directory to resume from, or None.
        timer: measures the steps; one of `callbacks`.
        callbacks: for the trainer.
        arguments: what the run began with and cannot change, also where it is resumed, by name.
        command: how the run was called, for its model card.
    """

    checkpoint: str | None
    timer: StepTimer
    callbacks: list[TrainerCallback]
    arguments: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    _release: Callable[[], object] = lambda: None

    def train_and_evaluate(
        self,
        trainer: CardTrainer | CardSeq2SeqTrainer,
        splits: dict[str, Dataset],
        score_test: Callable[[EvalPrediction], dict[str, float]] | None,
    ) -> dict[str, Any]:
        """Train, evaluate and predict as far as asked for; the metrics of the latter two.

        Args:
            trainer: has the training and the validation split, and computes the latter's metrics.
            splits: the encoded splits, with "test" if it is asked for.
            score_test: computes the metrics of the test split.
        """
        metrics: dict[str, Any] = {}
        if trainer.args.do_train:
            self.train(trainer)
        if trainer.args.do_eval:
            metrics |= self.evaluate(trainer)
            self.report(trainer, "eval", metrics, len(trainer.eval_dataset))
        if trainer.args.do_predict:
            trainer.compute_metrics = score_test
            predicted = trainer.predict(splits["test"], metric_key_prefix="predict").metrics or {}
            self.report(trainer, "predict", predicted, len(splits["test"]))
            metrics |= predicted
        return metrics

    def train(self, trainer: CardTrainer | CardSeq2SeqTrainer) -> None:
        """Train, from the checkpoint if there is one; save model, tokenizer, state, metrics."""
        trainer.run_arguments = self.arguments
        metrics: dict[str, Any] = {}
        try:
            metrics |= trainer.train(resume_from_checkpoint=self.checkpoint).metrics
        except AlreadyTrained as found:
            logger.info("%s", found)
            if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
                trainer._load_best_model()
        merge_adapters(trainer)
        trainer.save_model()
        if metrics:
            metrics["train_steps"] = trainer.state.global_step
            if self.timer.median_seconds is not None:
                metrics["train_step_seconds_median"] = round(self.timer.median_seconds, 4)
            self.report(trainer, "train", metrics, len(trainer.train_dataset))
        trainer.save_state()

    def evaluate(self, trainer: Trainer) -> dict[str, Any]:
        """Metrics of the trained model on the validation split, with the loss before training.

        A model that this run just evaluated, at its last step, is not evaluated again.
        """
        evaluations = _evaluations(trainer)
        is_fresh = (
            bool(evaluations)
            and evaluations[-1]["step"] == trainer.state.global_step
            and self.timer.median_seconds is not None
            and not trainer.args.load_best_model_at_end
        )
        metrics = dict(evaluations[-1]) if is_fresh else trainer.evaluate()
        metrics.pop("step", None)
        if evaluations and evaluations[0]["step"] == 0 and trainer.state.global_step > 0:
            metrics["eval_loss_at_start"] = evaluations[0]["eval_loss"]
        return metrics

    def evaluate_by_loss(
        self,
        trainer: Trainer,
        splits: Mapping[str, Dataset],
        score: Callable[[str, float], dict[str, float]],
    ) -> dict[str, dict[str, Any]]:
        """Metrics of "validation" and "test" that follow from the loss, so nothing is predicted.

        Args:
            trainer: holds the model and the validation split.
            splits: those that this run needs.
            score: what a split's loss amounts to, by name.
        """
        metrics: dict[str, dict[str, Any]] = {}
        for split, prefix in (("validation", "eval"), ("test", "predict")):
            if split not in splits:
                continue
            if split == "validation":
                found = self.evaluate(trainer)
            else:
                found = trainer.evaluate(splits[split], metric_key_prefix=prefix)
            scores = score(split, found[f"{prefix}_loss"])
            found |= {f"{prefix}_{name}": value for name, value in scores.items()}
            self.report(trainer, prefix, found, len(splits[split]))
            metrics[split] = found
        return metrics

    @staticmethod
    def report(trainer: Trainer, split: str, metrics: dict[str, Any], examples: int) -> None:
        """Show the metrics of `split` ("train", "eval" or "predict") and save them as JSON."""
        metrics[f"{split}_samples"] = examples
        metrics.update(peak_memory())
        trainer.log_metrics(split, metrics)
        trainer.save_metrics(split, metrics)

    def finish(self, trainer: CardTrainer | CardSeq2SeqTrainer, facts: CardFacts) -> None:
        """Draw the losses, write the model card, push if asked, and print a short summary.

        Other runs may use the output directory from then on.
        """
        output = Path(str(trainer.args.output_dir))
        # Where a run is resumed, the name of what it began with may be left out.
        facts.base_model = facts.base_model or self.arguments.get("model_name_or_path")
        if trainer.is_world_process_zero():
            has_curve = save_loss_curve(trainer.state.log_history, output / "loss_curve.png")
            if trainer.args.do_train:
                facts.details.update(costs(self.timer))
                facts.command = self.command
                trainer.card = model_card(trainer, facts, has_curve=has_curve)
                trainer.create_model_card()
        if trainer.args.push_to_hub:
            trainer.push_to_hub()
        self._release()
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
        for name, cost in costs(self.timer).items():
            print(f"{name}: {cost}")
        print(f"Results: {output.resolve()}")


def begin(
    data_class: type[DataT],
    training_class: type[TrainingT],
    argv: Sequence[str] | None,
    *,
    cuts_validation: bool = False,
) -> tuple[ModelArguments, DataT, TrainingT, Session]:
    """Parse the arguments, refuse what cannot work even without data, and set the seed.

    Nothing is written but a lock on the output directory, and nothing deleted: `Session.callbacks`
    do that when training begins, after data and model proved sound.

    Args:
        data_class: the data arguments of the script.
        training_class: transformers' training arguments, completed where early stopping needs it.
        argv: the command line; None: that of the process.
        cuts_validation: the script takes validation data from the training file if there is no
            other.

    Raises:
        ValueError: the arguments ask for nothing, for data they do not name, or for a start or an
            early stop that cannot be, or another run uses the output directory.
    """
    model, data, run, training = parse_arguments(
        (ModelArguments, data_class, RunArguments, training_class), argv
    )
    _set_up_logging(training)
    require_sound_training(training)
    _require_work(training, data, cuts_validation)
    _require_model(model)
    timer = StepTimer()
    callbacks = [timer, *_early_stopping(training, run)]
    output = Path(str(training.output_dir))
    with ExitStack() as opened:
        if training.process_index == 0:
            opened.callback(OutputLock(output).release)
        checkpoint: Path | None = None
        arguments = run_arguments.arguments_of(model, training)
        if training.do_train:
            checkpoint = start_checkpoint(training, model, data, run)
            callbacks += [MakeRoom(everything=run.overwrite_output_dir), StopAtTheEnd()]
        else:
            choose_evaluated_model(training, model)
            for name in ("overwrite_output_dir", "early_stopping_patience"):
                if getattr(run, name):
                    logger.warning("%s: no effect without --do_train", name)
        if checkpoint is not None:
            begun = run_arguments.read(checkpoint)
            run_arguments.keep_model(begun, model, checkpoint)
            run_arguments.keep_optimizer(begun, training, checkpoint)
            arguments |= begun
        session = Session(
            None if checkpoint is None else str(checkpoint),
            timer,
            callbacks,
            arguments,
            shown_command(argv),
        )
        # A run that fails does not come to `finish`.
        session._release = weakref.finalize(session, opened.pop_all().close)
    if training.device.type == "cpu":
        training.dataloader_pin_memory = False  # has no effect there but a warning
    set_seed(training.seed)
    return model, data, training, session


def _set_up_logging(training: TrainingArguments) -> None:
    """Log to stderr at the level the training arguments ask for (default: info)."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    level = training.get_process_log_level()
    quiet_level = max(level, logging.WARNING)  # libraries report progress through their bars
    logging.getLogger("training").setLevel(
        logging.INFO if training.log_level == "passive" and training.should_log else level
    )
    datasets.utils.logging.set_verbosity(quiet_level)
    transformers.utils.logging.set_verbosity(quiet_level)


def _require_work(
    training: TrainingArguments, data: DataTrainingArguments, cuts_validation: bool
) -> None:
    needed = [split for split, _, _ in needed_splits(data, training)]
    if not needed:
        raise ValueError("do_train, do_eval, do_predict: expected at least one of them, got none")
    if cuts_validation and "train" in data.files and "validation" in needed:
        needed.remove("validation")
    for split in needed:
        if data.files and split not in data.files:
            raise ValueError(f"{split}_file: expected a file for this run, got none")
    for split, file in data.files.items():
        if not Path(file).is_file():
            raise ValueError(f"{split}_file: expected a file, got {file!r}")


def _require_model(model: ModelArguments) -> None:
    """Refuse descriptions of a new model that are wrong whatever the data are."""
    preset_named(model.preset)
    parse_overrides(model.config_overrides)


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


def _evaluations(trainer: Trainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "eval_loss" in entry]
