"""What a run shows and leaves behind: cost, tables, samples, the loss curve and the model card."""

import importlib.util
import statistics
import sys
import textwrap
import time
from collections.abc import Sequence
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

import reformer_hf
from training.whole_saves import WholeSaves

_LIBRARY = "reformer_hf"
_BYTES_PER_MIB = 1 << 20
_POINTS_WITH_MARKERS = 60
_SAMPLE_WIDTH = 96
_SAMPLE_INDENT = "    "


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
    """One metric of the model; `baseline` is what the model has to beat."""

    metric_type: str
    name: str
    value: float
    baseline: float | None = None


def show_results(title: str, rows: Sequence[MetricRow], baseline: str, scale: float = 1.0) -> None:
    """Print a table of the model and the `baseline`, with a column for each metric."""
    table = {
        "model": [row.value for row in rows],
        baseline: [row.baseline or 0.0 for row in rows],
    }
    width = max(map(len, [title, *table]))
    print(f"\n{title:<{width}}  " + "  ".join(f"{row.name:>10}" for row in rows))
    for name, values in table.items():
        print(f"{name:<{width}}  " + "  ".join(f"{scale * value:>10.2f}" for value in values))


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
    baseline: str
    rows: Sequence[MetricRow] = ()
    language: str | None = None
    base_model: str | None = None  # Hub id or directory
    limits: Sequence[str] = ()
    usage: str = ""
    details: dict[str, str] = field(default_factory=dict)

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
    name = str(trainer.args.hub_model_id or Path(str(trainer.args.output_dir)).resolve().name)
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
        "## How to load it\n\n" + _loading(name, model, facts),
        f"## Data\n\n{facts.data}. Examples: {sizes}.",
        "## Training\n\n" + _training(trainer, facts),
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
    parameters = model.num_parameters() / 1e6
    return (
        f"A `{type(model).__name__}` for {facts.task} with {parameters:.1f} million parameters,"
        f" {facts.origin}. {facts.lengths}"
    )


def _results(facts: CardFacts) -> str:
    if not facts.rows:
        return "The model was not evaluated in this run."
    lines = [
        f"On the {facts.evaluated_split} split:",
        "",
        "| metric | this model | baseline |",
        "|---|---|---|",
    ]
    for row in facts.rows:
        baseline = "" if row.baseline is None else f"{row.baseline:.3f}"
        lines.append(f"| {row.name} | {row.value:.3f} | {baseline} |")
    return "\n".join([*lines, "", f"Baseline: {facts.baseline}"])


def _loading(name: str, model: PreTrainedModel, facts: CardFacts) -> str:
    own = _own(model)
    imports = f"import {_LIBRARY}  # registers the architecture\n" if own else ""
    install = f"`pip install {_LIBRARY}`, then:\n\n" if own else ""
    return (
        f"{install}```python\n{imports}"
        f"from transformers import {facts.auto_class}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'model = {facts.auto_class}.from_pretrained("{name}")\n'
        f"{facts.usage.strip()}\n```"
    )


def _training(trainer: Trainer, facts: CardFacts) -> str:
    args = trainer.args
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = {
        "optimizer steps": f"{trainer.state.global_step:,}",
        "epochs": f"{trainer.state.epoch or 0:.2f}",
        "batch size": str(batch),
        "learning rate": f"{args.learning_rate:g} ({getattr(args.lr_scheduler_type, 'value', '')})",
        "seed": str(args.seed),
        **facts.details,
        "versions": (
            f"{_LIBRARY} {reformer_hf.__version__}, torch {torch.__version__},"
            f" transformers {transformers.__version__}, datasets {datasets.__version__}"
        ),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {text} |" for key, text in rows.items())])


class _OwnCard:
    """A trainer that keeps the run's own model card when it pushes to the Hub.

    The stock trainer would overwrite README.md with a card that knows no data and no baseline.
    """

    card: ModelCard | None = None

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.card is not None and self.is_world_process_zero():
            self.card.save(Path(str(self.args.output_dir)) / "README.md")


class CardTrainer(_OwnCard, WholeSaves):
    """`Trainer` with the run's own model card."""


class CardSeq2SeqTrainer(_OwnCard, WholeSaves, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with the run's own model card."""
