"""Train and evaluate a model that summarizes long documents.

Without data arguments it summarizes the Python standard library, without a model it trains a
Reformer of a preset size, without a tokenizer it trains one: this runs on any machine, offline.

    python scripts/run_summarization.py --output_dir summarizer --do_train --do_eval --do_predict

Fine-tune a model on your own files (json, jsonl or csv, also gzipped):

    python scripts/run_summarization.py --model_name_or_path my-reformer \\
        --train_file train.jsonl.gz --validation_file dev.jsonl.gz --test_file test.jsonl.gz \\
        --text_column document --summary_column summary --max_source_length 8192 \\
        --do_train --do_eval --do_predict --output_dir summarizer

The output directory holds the model (safetensors), its tokenizer and generation settings, a model
card, a picture of the loss, the generated summaries and all metrics as JSON. ROUGE is shown next
to the lead baseline, the beginning of the document. `--help` lists all arguments; a JSON file
that holds them works too.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import (
    ModelArguments,
    RunArguments,
    SummarizationArguments,
    parse_arguments,
)
from training.command_line import exit_code, set_up_logging, show_table
from training.data import IGNORED_LABEL, describe_data, pair_encoder, tokenize
from training.language import resolve_language, unit
from training.lead_baseline import mean_length
from training.model_card import CardFacts, MetricRow
from training.models import load_tokenizer
from training.rouge import ROUGE_TYPES
from training.samples import show_samples
from training.session import begin, final_evaluation, finish, report_metrics, train
from training.stdlib_corpus import PAIRS_DESCRIPTION
from training.summarization import build_summarizer, given_config, load_pairs, texts_of
from training.summary_scoring import SummaryScorer, table_rows
from training.trainers import CardSeq2SeqTrainer

_ROUGE_NAMES = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
_USAGE = """
inputs = tokenizer(document, truncation=True, max_length={length}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
"""


@dataclass
class SummarizationTrainingArguments(Seq2SeqTrainingArguments):
    """transformers' arguments; a summarizer is judged by what it generates, so it generates."""

    predict_with_generate: bool = field(
        default=True, metadata={"help": "Generate summaries in evaluation and compute ROUGE."}
    )


def summarize(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, run, training = parse_arguments(
        (ModelArguments, SummarizationArguments, RunArguments, SummarizationTrainingArguments),
        argv,
    )
    set_up_logging(training)
    session = begin(training, data, run)
    config = given_config(model_args, session.checkpoint)

    pairs = load_pairs(data, model_args, training)
    known = pairs["train"] if "train" in pairs else next(iter(pairs.values()))
    lang = resolve_language(data.lang, known["summary"])
    lead_length = mean_length(known["summary"], lang)

    tokenizer = load_tokenizer(
        model_args,
        session.checkpoint,
        (lambda: texts_of(pairs["train"])) if "train" in pairs else None,
        train_by_default=True,
    )
    model = build_summarizer(model_args, data, tokenizer, config)
    encoded, scorers = {}, {}
    for split, texts in pairs.items():
        target_length = data.max_target_length if split == "train" else data.val_max_target_length
        encode = pair_encoder(tokenizer, data, target_length)
        encoded[split] = tokenize(texts, encode, data, training)
        if split != "train" and training.predict_with_generate:
            scorers[split] = SummaryScorer(
                tokenizer,
                texts,
                encoded[split]["labels"],
                lead_length=lead_length,
                lang=lang,
                use_stemmer=data.rouge_stemmer,
            )

    trainer = CardSeq2SeqTrainer(
        model=model,
        args=training,
        train_dataset=encoded.get("train"),
        eval_dataset=encoded.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(
            tokenizer,
            model=model,
            label_pad_token_id=(
                IGNORED_LABEL if data.ignore_pad_token_for_loss else tokenizer.pad_token_id
            ),
        ),
        compute_metrics=scorers.get("validation"),
        callbacks=session.callbacks,
    )
    if training.do_train:
        train(trainer, session, len(pairs["train"]))
    metrics: dict[str, float] = {}
    if training.do_eval:
        metrics |= final_evaluation(trainer, session)
        report_metrics(trainer, "eval", metrics, len(pairs["validation"]))
    if training.do_predict:
        trainer.compute_metrics = scorers.get("test")
        predicted = trainer.predict(encoded["test"], metric_key_prefix="predict").metrics or {}
        report_metrics(trainer, "predict", predicted, len(pairs["test"]))
        metrics |= predicted

    _show_and_save_texts(trainer, scorers, metrics, lead_length, lang)
    evaluated, prefix = ("test", "predict") if training.do_predict else ("validation", "eval")
    facts = CardFacts(
        task="summarization",
        auto_class="AutoModelForSeq2SeqLM",
        data=describe_data(data, default=PAIRS_DESCRIPTION),
        dataset_name=data.dataset_name,
        sizes={split: len(texts) for split, texts in pairs.items()},
        lengths=(
            f"It reads up to {data.max_source_length:,} tokens and writes up to"
            f" {data.val_max_target_length:,}."
        ),
        evaluated_split=evaluated,
        baseline=(
            f"the first {lead_length} {unit(lang)} of the document, the mean length of a reference"
            f" summary{' in training' if 'train' in pairs else ''}. ROUGE is F1 in percent,"
            f" counted in {unit(lang)}{', stemmed' if data.rouge_stemmer else ''}."
        ),
        rows=[
            MetricRow(
                name.lower(),
                label,
                metrics[f"{prefix}_{name}"],
                metrics[f"{prefix}_lead_{name}"],
            )
            for name, label in zip(ROUGE_TYPES, _ROUGE_NAMES, strict=True)
            if f"{prefix}_{name}" in metrics
        ],
        language=lang,
        base_model=model_args.model_name_or_path,
        limits=_limits(data, known, model_args.model_name_or_path is None),
        usage=_USAGE.format(length=data.max_source_length),
        details={"longest training summary": f"{data.max_target_length} tokens"},
    )
    finish(trainer, facts, session)
    return metrics


def _show_and_save_texts(
    trainer: CardSeq2SeqTrainer,
    scorers: dict[str, SummaryScorer],
    metrics: dict[str, float],
    lead_length: int,
    lang: str | None,
) -> None:
    """The ROUGE table and three samples on screen, all generated summaries in a file."""
    for split, prefix in (("validation", "eval"), ("test", "predict")):
        scorer = scorers.get(split)
        if scorer is None or not trainer.is_world_process_zero():
            continue
        show_table(
            f"ROUGE on {split} (lead: {lead_length} {unit(lang)})",
            _ROUGE_NAMES,
            table_rows(metrics, prefix),
        )
        path = Path(str(trainer.args.output_dir)) / f"{prefix}_generated.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for record in scorer.records():
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    last = scorers.get("test") or scorers.get("validation")
    if last is not None and trainer.is_world_process_zero():
        show_samples(last.samples())


def _limits(data: SummarizationArguments, known: Dataset, from_scratch: bool) -> list[str]:
    """What a reader of the card must know before relying on the summaries."""
    limits = [
        f"Of a document longer than {data.max_source_length:,} tokens the rest is not read.",
        "Summaries are generated, not checked: they can state what the document does not say.",
    ]
    if from_scratch:
        limits.append(
            f"Trained from scratch on {len(known):,} examples only. Published results start from"
            " models pretrained on far more text, and this one does not reach them."
        )
    return limits


def main(argv: Sequence[str] | None = None) -> int:
    """Run `summarize`; the exit code."""
    return exit_code(summarize, argv)


if __name__ == "__main__":
    sys.exit(main())
