"""Train and evaluate a classifier of long documents.

    python scripts/run_classification.py --train_file train.jsonl.gz \\
        --validation_file dev.jsonl.gz --test_file test.jsonl.gz --text_column_names text \\
        --label_column_name label --max_seq_length 4096 \\
        --do_train --do_eval --do_predict --output_dir classifier

Files are json, jsonl or csv, also gzipped; `--dataset_name` takes a data set of the Hub instead.
`--split_train_texts` trains on pieces of max_seq_length instead of on beginnings, and
`--val_max_seq_length` reads longer texts in evaluation than in training.
Without a model it trains a Reformer of a preset size, without a tokenizer it trains one. Accuracy
and macro-F1 are shown next to the answer that is always the most frequent class. `--help` lists
all arguments; a JSON file that holds them works too.
"""

import sys
from collections.abc import Sequence

import evaluate
from transformers import DataCollatorWithPadding

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import ClassificationArguments, exit_code
from training.classification import (
    build_classifier,
    classified_samples,
    encode_examples,
    load_examples,
)
from training.reporting import CardFacts, CardTrainer, show_results, show_samples
from training.scoring import ClassificationScorer, majority_class
from training.session import begin
from training.training_arguments import ScriptTrainingArguments

_OFFLINE_METRICS = (None, "accuracy", "f1", "macro_f1")
_USAGE = """
inputs = tokenizer(text, truncation=True, max_length={length}, return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])
"""


def classify(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, training, session = begin(
        ClassificationArguments, ScriptTrainingArguments, argv
    )
    training.choose_learning_rate(from_scratch=model_args.model_name_or_path is None)
    examples = load_examples(data, model_args, training)
    tokenizer, model = build_classifier(model_args, session.checkpoint, data, examples)
    label2id = {str(name): int(number) for name, number in model.config.label2id.items()}
    encoded = encode_examples(examples, tokenizer, label2id, data, training)

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
    metrics = session.train_and_evaluate(trainer, encoded, scorer)

    split, prefix = ("test", "predict") if training.do_predict else ("validation", "eval")
    rows = ClassificationScorer.rows(metrics, prefix)
    if rows and trainer.is_world_process_zero():
        show_results(f"Percent on {split}", rows, scale=100)
        show_samples(classified_samples(model, tokenizer, examples[split], data))
    facts = CardFacts(
        task="text-classification",
        auto_class="AutoModelForSequenceClassification",
        data=data.description or "",
        dataset_name=data.dataset_name,
        sizes={name: len(texts) for name, texts in examples.items()},
        lengths=f"It reads up to {data.longest_input:,} tokens.",
        evaluated_split=split,
        baselines="Majority class: always the class that is most frequent in training.",
        rows=rows,
        base_model=model_args.model_name_or_path,
        limits=[
            f"Of a text longer than {data.longest_input:,} tokens the rest is not read.",
            f"It knows these classes only: {', '.join(label2id)}.",
        ],
        usage=_USAGE.format(length=data.longest_input),
    )
    session.finish(trainer, facts)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run `classify`; the exit code."""
    return exit_code(classify, argv)


if __name__ == "__main__":
    sys.exit(main())
