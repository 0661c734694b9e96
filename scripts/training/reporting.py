"""What a run shows and leaves behind: cost, tables, samples, the loss curve and the model card."""

import importlib.util
import logging
import statistics
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from transformers import (
    PreTrainedModel,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

import reformer_hf
from reformer_hf.parallel.trainer import SequenceParallelMixin
from training.models import count_in_words
from training.whole_saves import WholeSaves

logger = logging.getLogger(__name__)

_LIBRARY = "reformer_hf"
# A run that ends before its first logging step shows its loss so often instead.
_LEAST_LOGS = 20
_BYTES_PER_MIB = 1 << 20
_POINTS_WITH_MARKERS = 60
_SAMPLE_WIDTH = 96
_SAMPLE_INDENT = "    "
_INSTALL = (
    f"The package is not on PyPI: install it from a clone, `pip install path/to/{_LIBRARY}`, or"
    " from wherever it was published since. Then:\n\n"
)


class StepTimer(TrainerCallback):
    """Times every optimizer step: forward, backward and update, without evaluation and saving."""

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._started: float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._started is not None:
            self._durations.append(time.perf_counter() - self._started)
            self._started = None

    @property
    def median_seconds(self) -> float | None:
        """Median over the steps of this run (the first ones are slower); None before any."""
        return statistics.median(self._durations) if self._durations else None


class ShortRunLogger(TrainerCallback):
    """Lets a run that is shorter than `logging_steps` show its loss all the same."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        by_steps = args.logging_strategy == IntervalStrategy.STEPS
        if by_steps and state.logging_steps > state.max_steps > 0:
            asked, state.logging_steps = state.logging_steps, -(-state.max_steps // _LEAST_LOGS)
            logger.info(
                "logging_steps is %d, and the run has %d steps: the loss is logged every %d steps",
                *(asked, state.max_steps, state.logging_steps),
            )


def peak_memory() -> dict[str, float]:
    """Largest memory in MiB so far: of the process, and of its GPU where there is one."""
    memory = {}
    if importlib.util.find_spec("resource") is not None:  # not on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
        memory["peak_rss_mib"] = round(peak * unit / _BYTES_PER_MIB, 1)
    if torch.cuda.is_available():
        memory["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / _BYTES_PER_MIB, 1)
    return memory


def costs(timer: StepTimer) -> dict[str, str]:
    """Time and memory of the run in words."""
    costs = {}
    if timer.median_seconds is not None:
        costs["Median time of a step"] = f"{timer.median_seconds:.3f} s"
    for name, size in peak_memory().items():
        where = "GPU" if "gpu" in name else "process"
        costs[f"Peak memory of the {where}"] = f"{size:,.0f} MiB"
    return costs


@dataclass(frozen=True)
class MetricRow:
    """One metric of the model.

    Attributes:
        metric_type: the Hub's name of the metric.
        name: in tables.
        value: of the model.
        baselines: what the model has to beat, by name.
        lower_is_better: as for a loss.
    """

    metric_type: str
    name: str
    value: float
    baselines: Mapping[str, float] = field(default_factory=dict)
    lower_is_better: bool = False

    def beats(self, baseline: str) -> bool:
        """Whether the model is better than that baseline, and not just as good."""
        other = self.baselines[baseline]
        return self.value < other if self.lower_is_better else self.value > other


def _baseline_names(rows: Sequence[MetricRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.baselines))


def verdict(rows: Sequence[MetricRow]) -> str:
    """One sentence: which baselines the model does not beat, and in which metrics."""
    lost = {
        name: [row.name for row in rows if name in row.baselines and not row.beats(name)]
        for name in _baseline_names(rows)
    }
    if not lost:
        return "There is no baseline to compare with."
    parts = [f"{name} ({', '.join(metrics)})" for name, metrics in lost.items() if metrics]
    if not parts:
        return f"The model beats what it is compared with: {', '.join(lost)}."
    return f"The model does not beat: {', '.join(parts)}."


def show_results(title: str, rows: Sequence[MetricRow], scale: float = 1.0) -> None:
    """Print a table of the model and its baselines, with a column for each metric."""
    table: dict[str, list[float | None]] = {"model": [row.value for row in rows]}
    for name in _baseline_names(rows):
        table[name] = [row.baselines.get(name) for row in rows]
    lines = [(title, [row.name for row in rows])]
    for name, values in table.items():
        lines.append((name, ["" if v is None else f"{scale * v:.2f}" for v in values]))
    first = max(len(head) for head, _ in lines)
    widths = [max(10, len(row.name)) for row in rows]
    print()
    for head, cells in lines:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        print("  ".join([f"{head:<{first}}", *padded]))


@dataclass(frozen=True)
class Sample:
    """Named texts of one example, in reading order."""

    title: str
    parts: Sequence[tuple[str, str]]


def show_samples(samples: Sequence[Sample], characters: int = 400) -> None:
    """Print the samples, each of their texts cut to `characters`."""
    for number, sample in enumerate(samples, start=1):
        print(f"\nSample {number}: {sample.title}")
        for name, text in sample.parts:
            print(f"  {name}:")
            print(_indented(text, characters))


def _indented(text: str, characters: int) -> str:
    text = text.strip()
    shown = text[:characters] + (" ..." if len(text) > characters else "")
    lines = [
        piece
        for line in shown.splitlines()
        for piece in textwrap.wrap(line, _SAMPLE_WIDTH, drop_whitespace=False) or [""]
    ]
    return textwrap.indent("\n".join(lines) or "(nothing)", _SAMPLE_INDENT, lambda line: True)


def save_loss_curve(log_history: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the losses in a trainer's log history; False, and no file, if there are none."""
    drawn = False
    # A Figure of its own needs no display and leaves no global plotting state behind.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            steps, losses = zip(*points, strict=True)
            marker = "o" if len(points) <= _POINTS_WITH_MARKERS else ""
            axes.plot(steps, losses, label=label, marker=marker, markersize=3)
            drawn = True
    if not drawn:
        return False
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross-entropy (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True


@dataclass
class CardFacts:
    """What only the script knows about its run."""

    task: str  # as on the Hub: "summarization", "text-generation", "text-classification"
    auto_class: str
    data: str
    dataset_name: str | None  # Hub id
    sizes: dict[str, int]  # examples by split
    lengths: str
    evaluated_split: str
    baselines: str  # what they are, in words
    rows: Sequence[MetricRow] = ()
    finding: str = ""  # what the scores do not show: a sentence next to them
    claims: bool = True  # False: no comparison with the baselines, whatever the scores
    language: str | None = None
    base_model: str | None = None  # Hub id or directory
    limits: Sequence[str] = ()
    usage: str = ""
    details: dict[str, str] = field(default_factory=dict)
    command: str = ""  # how the run was called

    @property
    def base_model_is_local(self) -> bool:
        """Whether the base model is a directory on this machine."""
        if self.base_model is None:
            return False
        path = Path(self.base_model)
        return path.is_absolute() or path.exists()  # it may have been moved since

    @property
    def origin(self) -> str:
        """What training started from."""
        if self.base_model is None:
            return "trained from scratch"
        name = Path(self.base_model).resolve().name if self.base_model_is_local else self.base_model
        return f"fine-tuned from `{name}`"


def model_card(trainer: Trainer, facts: CardFacts, *, has_curve: bool) -> ModelCard:
    """The card of the model that `trainer` holds."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    asked = trainer.args.hub_model_id or ""
    # A name alone is no id yet: the Hub puts the user's name before it when the model is pushed.
    hub_id = getattr(trainer, "hub_model_id", None) or (asked if "/" in asked else None)
    name = str(hub_id or asked or Path(str(trainer.args.output_dir)).resolve().name)
    results = [
        EvalResult(
            task_type=facts.task,
            dataset_type=facts.dataset_name or "custom",
            dataset_name=facts.data,
            dataset_split=facts.evaluated_split,
            metric_type=row.metric_type,
            metric_name=row.name,
            metric_value=round(row.value, 4),
        )
        for row in facts.rows
    ]
    data = ModelCardData(
        library_name="transformers",
        model_name=name.split("/")[-1],
        pipeline_tag=facts.task,
        language=facts.language,
        # The Hub wants one of its own ids here.
        base_model=None if facts.base_model_is_local else facts.base_model,
        datasets=[facts.dataset_name] if facts.dataset_name else None,
        metrics=sorted({row.metric_type for row in facts.rows}) or None,
        eval_results=results or None,
        tags=_tags(model),
    )
    sizes = ", ".join(f"{split} {size:,}" for split, size in facts.sizes.items())
    sections = [
        f"# {name.split('/')[-1]}",
        _introduction(model, facts),
        "## Results\n\n" + _results(facts),
        "![Loss by step](loss_curve.png)" if has_curve else "",
        "## How to load it\n\n" + _loading(hub_id, model, facts),
        f"## Data\n\n{facts.data}. Examples: {sizes}.",
        "## Training\n\n" + _training(trainer, model, facts),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in facts.limits),
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _own(model: PreTrainedModel) -> bool:
    """Whether the model is one of this package, and not one it is compared with."""
    return bool(model.config.model_type.startswith(_LIBRARY))


def _tags(model: PreTrainedModel) -> list[str]:
    """What the Hub finds the model by: its type, and the package that all of its types are in."""
    kinds = [_LIBRARY] if _own(model) else []
    return list(
        dict.fromkeys([*kinds, model.config.model_type, "long-document", "generated_from_trainer"])
    )


def _introduction(model: PreTrainedModel, facts: CardFacts) -> str:
    sentences = [
        f"A `{type(model).__name__}` for {facts.task} with"
        f" {count_in_words(model.num_parameters())} parameters, {facts.origin}.",
        facts.lengths,
    ]
    if facts.rows:
        sentences.append(verdict(facts.rows) if facts.claims else facts.finding)
    return " ".join(sentences)


def _results(facts: CardFacts) -> str:
    if not facts.rows:
        return "The model was not evaluated in this run."
    names = _baseline_names(facts.rows)
    lines = [
        f"On the {facts.evaluated_split} split:",
        "",
        "| " + " | ".join(["metric", "this model", *names]) + " |",
        "|---" * (2 + len(names)) + "|",
    ]
    for row in facts.rows:
        values = [row.value, *(row.baselines.get(name) for name in names)]
        cells = ("" if value is None else f"{value:.3f}" for value in values)
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", " ".join(filter(None, [facts.finding, facts.baselines]))])


def _loading(hub_id: str | None, model: PreTrainedModel, facts: CardFacts) -> str:
    own, sparse = _own(model), model.config._attn_implementation == "reformer"
    lines = []
    if own or sparse:
        lines.append(f"import {_LIBRARY}  # registers the {'architecture' if own else 'attention'}")
    lines.append(f"from transformers import {facts.auto_class}, AutoTokenizer\n")
    if hub_id is None:
        lines.append('model_folder = "."  # the folder of this card, or the id it has on the Hub')
    place = "model_folder" if hub_id is None else f'"{hub_id}"'
    # A configuration does not keep how the model attended.
    argument = ', attn_implementation="reformer"' if sparse else ""
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
        f"model = {facts.auto_class}.from_pretrained({place}{argument})",
        facts.usage.strip(),
    ]
    code = "\n".join(lines)
    return f"{_INSTALL if own or sparse else ''}```python\n{code}\n```"


def _training(trainer: Trainer, model: PreTrainedModel, facts: CardFacts) -> str:
    args = trainer.args
    rows = {
        "model": _architecture(model),
        "optimizer steps": f"{trainer.state.global_step:,}",
        "epochs": f"{trainer.state.epoch or 0:.2f}",
        "batch size": str(trainer.get_total_train_batch_size(args)),
        "learning rate": _learning_rate(trainer),
        "seed": str(args.seed),
        **facts.details,
        "versions": (
            f"{_LIBRARY} {reformer_hf.__version__}, torch {torch.__version__},"
            f" transformers {transformers.__version__}, datasets {datasets.__version__}"
        ),
    }
    table = ["| | |", "|---|---|", *(f"| {key} | {text} |" for key, text in rows.items())]
    command = ["", "```bash", facts.command, "```"] if facts.command else []
    return "\n".join([*table, *command])


def _architecture(model: PreTrainedModel) -> str:
    """Layers, width, heads and vocabulary of the model as it is, not as it was asked for."""
    config = model.config
    parts = [f"`{config.model_type}`"]
    for name, field_name in (("layers", "attn_layers"), ("decoder layers", "decoder_attn_layers")):
        if kinds := getattr(config, field_name, None):
            parts.append(f"{name} {len(kinds)} ({', '.join(kinds)})")
    for name, field_name in (
        ("width", "hidden_size"),
        ("heads", "num_attention_heads"),
        ("vocabulary", "vocab_size"),
    ):
        value = getattr(config, field_name, None)
        if isinstance(value, int):  # in other people's models it may be one for each layer
            parts.append(f"{name} {value:,}")
    return ", ".join(parts)


def _learning_rate(trainer: Trainer) -> str:
    """What the optimizer worked with: a resumed run goes on with that of its checkpoint."""
    groups = getattr(trainer.optimizer, "param_groups", [{}])
    history = trainer.state.log_history
    logged = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    highest = groups[0].get("initial_lr", max(logged, default=None))
    if highest is None:
        return "not recorded"
    scheduler = getattr(trainer.args.lr_scheduler_type, "value", trainer.args.lr_scheduler_type)
    course = f", logged from {logged[0]:.3g} to {logged[-1]:.3g}" if logged else ""
    return f"{highest:g} ({scheduler}){course}"


class _RunTrainer:
    """A trainer that shows what a run did: losses of short runs, and the run's own model card.

    The stock trainer would overwrite README.md with a card that knows no data and no baseline when
    it pushes to the Hub.
    """

    card: ModelCard | None = None

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(ShortRunLogger())

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.card is not None and self.is_world_process_zero():
            self.card.save(Path(str(self.args.output_dir)) / "README.md")

    def _issue_warnings_after_load(self: Any, load_result: Any) -> None:
        # A checkpoint stores tied weights once, and they are back once their source is.
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]


class CardTrainer(_RunTrainer, WholeSaves):
    """`Trainer` with the run's own model card."""


class SharedDocumentTrainer(SequenceParallelMixin, CardTrainer):
    """The same, with processes that share every text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        size = kwargs["args"].sequence_parallel_size
        super().__init__(*args, sequence_parallel_size=size, **kwargs)


class CardSeq2SeqTrainer(_RunTrainer, WholeSaves, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with the run's own model card."""
