"""Train and evaluate a classifier of long documents.

    python scripts/run_classification.py --train_file train.jsonl.gz \\
        --validation_file dev.jsonl.gz --test_file test.jsonl.gz --text_column_names text \\
        --label_column_name label --max_seq_length 4096 \\
        --do_train --do_eval --do_predict --output_dir classifier

Files are json, jsonl or csv, also gzipped; `--dataset_name` takes a data set of the Hub instead.
Without a model it trains a Reformer of a preset size, without a tokenizer it trains one. Accuracy
and macro-F1 are shown next to the answer that is always the most frequent class. `--help` lists
all arguments; a JSON file that holds them works too.
"""

import sys
from collections.abc import Sequence

import evaluate
from transformers import DataCollatorWithPadding, TrainingArguments

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import (
    ClassificationArguments,
    ModelArguments,
    RunArguments,
    parse_arguments,
)
from training.classification import (
    build_classifier,
    class_names,
    classified_samples,
    given_config,
    load_examples,
    text_encoder,
)
from training.classification_metrics import ClassificationScorer, majority_class
from training.command_line import exit_code, set_up_logging, show_table
from training.data import describe_data, tokenize
from training.model_card import CardFacts, MetricRow
from training.models import load_tokenizer
from training.samples import show_samples
from training.session import begin, final_evaluation, finish, report_metrics, train
from training.trainers import CardTrainer

_OFFLINE_METRICS = (None, "accuracy", "f1", "macro_f1")
_NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
_USAGE = """
inputs = tokenizer(text, truncation=True, max_length={length}, return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])
"""


def classify(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, run, training = parse_arguments(
        (ModelArguments, ClassificationArguments, RunArguments, TrainingArguments), argv
    )
    set_up_logging(training)
    session = begin(training, data, run)

    examples = load_examples(data, model_args, training)
    names = class_names(examples["train"]) if "train" in examples else None
    config = given_config(model_args, session.checkpoint, names)
    tokenizer = load_tokenizer(
        model_args,
        session.checkpoint,
        (lambda: iter(examples["train"]["text"])) if "train" in examples else None,
        train_by_default=True,
    )
    model = build_classifier(model_args, data, tokenizer, config, names)
    label2id = {str(name): int(number) for name, number in model.config.label2id.items()}
    encode = text_encoder(tokenizer, data, label2id)
    encoded = {split: tokenize(rows, encode, data, training) for split, rows in examples.items()}

    known = encoded["train"] if "train" in encoded else next(iter(encoded.values()))
    extra = None
    if data.metric_name not in _OFFLINE_METRICS:
        extra = evaluate.load(data.metric_name, cache_dir=model_args.cache_dir)
    scorer = ClassificationScorer(majority_class(known["labels"]), extra)
    trainer = CardTrainer(
        model=model,
        args=training,
        train_dataset=encoded.get("train"),
        eval_dataset=encoded.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scorer,
        callbacks=session.callbacks,
    )
    if training.do_train:
        train(trainer, session, len(examples["train"]))
    metrics: dict[str, float] = {}
    if training.do_eval:
        metrics |= final_evaluation(trainer, session)
        report_metrics(trainer, "eval", metrics, len(examples["validation"]))
    if training.do_predict:
        predicted = trainer.predict(encoded["test"], metric_key_prefix="predict").metrics or {}
        report_metrics(trainer, "predict", predicted, len(examples["test"]))
        metrics |= predicted

    split, prefix = ("test", "predict") if training.do_predict else ("validation", "eval")
    rows = [
        MetricRow(name, label, metrics[f"{prefix}_{name}"], metrics[f"{prefix}_majority_{name}"])
        for name, label in _NAMES.items()
        if f"{prefix}_{name}" in metrics
    ]
    if rows and trainer.is_world_process_zero():
        show_table(
            f"Percent on {split}",
            [row.name for row in rows],
            [
                ("model", [100 * row.value for row in rows]),
                ("majority class", [100 * (row.baseline or 0.0) for row in rows]),
            ],
        )
        show_samples(classified_samples(model, tokenizer, examples[split], data))
    facts = CardFacts(
        task="text-classification",
        auto_class="AutoModelForSequenceClassification",
        data=describe_data(data, default=""),
        dataset_name=data.dataset_name,
        sizes={name: len(texts) for name, texts in examples.items()},
        lengths=f"It reads up to {data.max_seq_length:,} tokens.",
        evaluated_split=split,
        baseline="always the class that is most frequent in training.",
        rows=rows,
        base_model=model_args.model_name_or_path,
        limits=[
            f"Of a text longer than {data.max_seq_length:,} tokens the rest is not read.",
            f"It knows these classes only: {', '.join(label2id)}.",
        ],
        usage=_USAGE.format(length=data.max_seq_length),
    )
    finish(trainer, facts, session)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run `classify`; the exit code."""
    return exit_code(classify, argv)


if __name__ == "__main__":
    sys.exit(main())
