"""The model card of a run: data, sizes, steps, metrics, baseline, limits and how to load it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, Trainer

import reformer_hf

_LIBRARY = "reformer_hf"


@dataclass(frozen=True)
class MetricRow:
    """One line of the results table; `baseline` is what the model has to beat."""

    metric_type: str
    name: str
    value: float
    baseline: float | None = None


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
        return self.base_model is not None and Path(self.base_model).exists()

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
    sections = [
        f"# {name.split('/')[-1]}",
        _introduction(model, facts),
        "## Results\n\n" + _results(facts),
        "![Loss by step](loss_curve.png)" if has_curve else "",
        "## How to load it\n\n" + _loading(name, model, facts),
        "## Data\n\n" + _data(facts),
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


def _data(facts: CardFacts) -> str:
    sizes = ", ".join(f"{split} {size:,}" for split, size in facts.sizes.items())
    return f"{facts.data}. Examples: {sizes}."


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
