"""Train and evaluate a model that translates, into one language or several.

Without data arguments it writes numbers in words, English and German; without a model it trains a
Reformer of a preset size, without a tokenizer it trains one: this runs on any machine, offline.

    python scripts/run_translation.py --output_dir translator --do_train --do_eval --do_predict

Your own files (json, jsonl or csv, also gzipped) have columns "source" and "target", and for
several languages "target_lang": the model then reads a tag of the language before every source.

    python scripts/run_translation.py --train_file train.jsonl --validation_file dev.jsonl \\
        --test_file test.jsonl --max_source_length 128 --max_target_length 128 \\
        --do_train --do_eval --do_predict --output_dir translator

BLEU and chrF (sacreBLEU) are shown next to those of the copied source. `--help` lists all
arguments; a JSON file that holds them works too.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import TranslationArguments, exit_code
from training.outlook import TimeLeft, show_outlook
from training.reporting import CardFacts, show_results, show_samples, verdict
from training.sequence_to_sequence import encode_pairs, writing_trainer
from training.session import begin
from training.training_arguments import WritingTrainingArguments
from training.translation import (
    DEFAULT_DATA,
    TRANSLATION,
    TranslationScorer,
    build_translator,
    load_translations,
    tag,
)

_USAGE = """
inputs = tokenizer({source}, truncation=True, max_length={length}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
"""


def translate(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, training, session = begin(
        TranslationArguments, WritingTrainingArguments, argv
    )
    training.choose_learning_rate(from_scratch=model_args.model_name_or_path is None)
    config = TRANSLATION.given_config(model_args, session.checkpoint)
    pairs = load_translations(data, model_args, training)
    tokenizer, model = build_translator(model_args, session.checkpoint, config, data, pairs)
    encoded = encode_pairs(pairs, ("text", "target"), tokenizer, data, training)
    read = {split: table.rename_column("text", "document") for split, table in pairs.items()}
    show_outlook(model, training, read, encoded, data.source_length(next(iter(read))))

    scorers: dict[str, TranslationScorer] = {}
    if training.predict_with_generate:
        scorers = {
            split: TranslationScorer(tokenizer, table, encoded[split]["labels"])
            for split, table in pairs.items()
            if split != "train"
        }
    parts = {
        "model": model,
        "args": training,
        "train_dataset": encoded.get("train"),
        "eval_dataset": encoded.get("validation"),
        "processing_class": tokenizer,
        "compute_metrics": scorers.get("validation"),
        "callbacks": [*session.callbacks, TimeLeft()],
    }
    trainer = writing_trainer(parts, data)
    metrics = session.train_and_evaluate(trainer, encoded, scorers.get("test"))

    evaluated, prefix = ("test", "predict") if training.do_predict else ("validation", "eval")
    rows = TranslationScorer.rows(metrics, prefix)
    scorer = scorers.get(evaluated)
    if scorer is not None and trainer.is_world_process_zero():
        show_results(f"Translation on {evaluated}", rows)
        print(verdict(rows))
        show_samples(scorer.samples())
        output = Path(training.output_dir) / f"{prefix}_generated.jsonl"
        with output.open("w", encoding="utf-8") as file:
            for record in scorer.records():
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    langs = sorted({lang for table in pairs.values() for lang in set(table["lang"]) if lang})
    source = f'"{tag(langs[0])} " + text' if langs else "text"
    facts = CardFacts(
        task="translation",
        auto_class="AutoModelForSeq2SeqLM",
        data=data.description or DEFAULT_DATA,
        dataset_name=data.dataset_name,
        sizes={split: len(table) for split, table in pairs.items()},
        lengths=(
            f"It reads up to {data.longest_input:,} tokens and writes up to"
            f" {data.longest_output:,}."
        ),
        evaluated_split=evaluated,
        baselines=(
            "Copied source: the source as it is. BLEU and chrF are sacreBLEU's, of the split in"
            f" each language, averaged over {max(1, len(langs))}; Chinese and Japanese are compared"
            " by characters in BLEU."
        ),
        rows=rows,
        base_model=model_args.model_name_or_path,
        limits=[
            f"Of a source longer than {data.longest_input:,} tokens the rest is not read.",
            *([f"It writes these languages: {', '.join(langs)}."] if langs else []),
        ],
        usage=_USAGE.format(source=source, length=data.longest_input),
        details={
            f"chrF, {lang}": f"{metrics[f'{prefix}_chrf_{lang}']:.1f} (copied source:"
            f" {metrics[f'{prefix}_copy_chrf_{lang}']:.1f})"
            for lang in langs
            if f"{prefix}_chrf_{lang}" in metrics
        },
    )
    session.finish(trainer, facts)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run `translate`; the exit code."""
    return exit_code(translate, argv)


if __name__ == "__main__":
    sys.exit(main())
