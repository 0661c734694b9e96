"""Train and evaluate a model that summarizes long documents.

Without data arguments it summarizes the Python standard library, without a model it trains a
Reformer of a preset size, without a tokenizer it trains one: this runs on any machine, offline.

    python scripts/run_summarization.py --output_dir summarizer --do_train --do_eval --do_predict

Fine-tune a model on your own files (json, jsonl or csv, also gzipped), an encoder-decoder or a
causal language model, which is given a prompt:

    python scripts/run_summarization.py --model_name_or_path my-reformer \\
        --train_file train.jsonl.gz --validation_file dev.jsonl.gz --test_file test.jsonl.gz \\
        --text_column document --summary_column summary --max_source_length 8192 \\
        --do_train --do_eval --do_predict --output_dir summarizer

The output directory holds the model (safetensors), its tokenizer and generation settings, a model
card, a picture of the loss, the generated summaries and all metrics as JSON. ROUGE is shown next
to the beginning of the document, at two lengths, and to the best constant output, with the number
of outputs that differ. `--help` lists all arguments; a JSON file that holds them works too.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import ModelArguments, SummarizationArguments, exit_code
from training.bert_score import BertScore
from training.causal_summarization import (
    PLACEHOLDER,
    CausalSummaryTrainer,
    LeftPadding,
    check_training,
)
from training.outlook import TimeLeft, show_outlook, time_attention
from training.reporting import CardFacts, CardSeq2SeqTrainer, show_results, show_samples, verdict
from training.scoring import (
    CONSTANT_CANDIDATES,
    CONSTANT_REFERENCES,
    LeadBaseline,
    SummaryScorer,
    summary_scorers,
)
from training.sequence_to_sequence import encode_pairs, writing_trainer
from training.session import begin
from training.summarization import (
    SUMMARIZATION,
    build_summarizer,
    describe_data,
    encode_prompts,
    is_causal,
    load_pairs,
)
from training.training_arguments import WritingTrainingArguments

_USAGE = """
inputs = tokenizer(document, truncation=True, max_length={length}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
"""


def summarize(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, training, session = begin(
        SummarizationArguments, WritingTrainingArguments, argv
    )
    _require_comparisons(data, model_args, training)
    training.choose_learning_rate(from_scratch=model_args.model_name_or_path is None)
    bert_score = None
    if data.bert_score_model is not None:
        bert_score = BertScore(data.bert_score_model, data.bert_score_layer)
    config = SUMMARIZATION.given_config(model_args, session.checkpoint)
    pairs = load_pairs(data, model_args, training)
    first = "train" if "train" in pairs else next(iter(pairs))
    known = pairs[first]
    tokenizer, model = build_summarizer(model_args, session.checkpoint, config, data, pairs)
    causal = is_causal(config)
    if causal:
        check_training(training)
        encoded = encode_prompts(pairs, tokenizer, data, training)
    else:
        encoded = encode_pairs(pairs, ("document", "summary"), tokenizer, data, training)

    show_outlook(model, training, pairs, encoded, data.source_length(first))

    lead = LeadBaseline.for_references(known["summary"], data.lang)
    scorers: dict[str, SummaryScorer] = {}
    if training.predict_with_generate:
        scorers = summary_scorers(
            *(pairs, encoded, tokenizer, lead),
            use_stemmer=data.rouge_stemmer,
            bert_score=bert_score,
        )
    parts = {
        "model": model,
        "args": training,
        "train_dataset": encoded.get("train"),
        "eval_dataset": encoded.get("validation"),
        "processing_class": tokenizer,
        "compute_metrics": scorers.get("validation"),
        "callbacks": [*session.callbacks, TimeLeft()],
    }
    trainer = _causal_trainer(parts, data) if causal else writing_trainer(parts, data)
    if data.predict_before_training:
        trainer.compute_metrics = scorers["test"]
        trainer.predict(encoded["test"], metric_key_prefix="untrained")
        scorers["test"].remember_untrained()
        trainer.compute_metrics = scorers.get("validation")
    metrics = session.train_and_evaluate(trainer, encoded, scorers.get("test"))
    timed = {}
    if data.time_full_attention:
        timed = time_attention(trainer, encoded["train"])

    if trainer.is_world_process_zero():
        _show_and_save_summaries(scorers, metrics, lead, Path(training.output_dir))
    evaluated, prefix = ("test", "predict") if training.do_predict else ("validation", "eval")
    scorer = scorers.get(evaluated)
    facts = CardFacts(
        task="summarization",
        auto_class="AutoModelForCausalLM" if causal else "AutoModelForSeq2SeqLM",
        data=describe_data(data),
        dataset_name=data.dataset_name,
        sizes={split: len(texts) for split, texts in pairs.items()},
        lengths=(
            f"It reads up to {data.longest_input:,} tokens and writes up to"
            f" {data.longest_output:,}."
        ),
        evaluated_split=evaluated,
        baselines=_baselines(lead, metrics.get(f"{prefix}_output_length"), data, pairs),
        rows=SummaryScorer.rows(metrics, prefix),
        finding="" if scorer is None else scorer.finding,
        claims=scorer is not None and not scorer.ignores_the_document,
        language=lead.lang,
        base_model=model_args.model_name_or_path,
        limits=_limits(data, known, model_args.model_name_or_path is None),
        usage=_usage(data) if causal else _USAGE.format(length=data.longest_input),
        details={
            "longest training document": f"{data.max_source_length:,} tokens",
            "longest training summary": f"{data.max_target_length:,} tokens",
            **timed,
        },
    )
    session.finish(trainer, facts)
    for name, found in timed.items():
        print(f"{name}: {found}")
    return metrics


def _require_comparisons(
    data: SummarizationArguments, model: ModelArguments, training: WritingTrainingArguments
) -> None:
    """Refuse comparisons that the run has nothing to make of.

    Raises:
        ValueError: naming what is missing.
    """
    tested = training.do_train and training.do_predict and training.predict_with_generate
    if data.predict_before_training and not tested:
        raise ValueError(
            "predict_before_training: expected --do_train, --do_predict and generated summaries"
            " next to it, got not all of them"
        )
    sparse = training.do_train and model.attn_implementation == "reformer"
    if data.time_full_attention and not sparse:
        raise ValueError(
            "time_full_attention: expected --do_train and --attn_implementation reformer next to"
            f" it, got {model.attn_implementation!r}"
        )


def _usage(data: SummarizationArguments) -> str:
    """How a causal model is asked for a summary, as code."""
    lines = [f"prompt = {data.prompt_template!r}.replace({PLACEHOLDER!r}, document)"]
    call = "tokenizer(prompt, return_tensors='pt')"
    if data.chat_prompt:
        lines.append("said = [{'role': 'user', 'content': prompt}]")
        call = (
            "tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True,"
            " return_tensors='pt')"
        )
    lines += [
        f"inputs = {call}",
        "written = model.generate(**inputs)[0, inputs['input_ids'].shape[1]:]",
        "print(tokenizer.decode(written, skip_special_tokens=True))",
    ]
    return "\n".join(lines)


def _causal_trainer(parts: dict[str, Any], data: SummarizationArguments) -> CardSeq2SeqTrainer:
    """What trains a causal language model on prompts and summaries."""
    collate = LeftPadding(parts["processing_class"].pad_token_id)
    return CausalSummaryTrainer(
        **parts, data_collator=collate, no_repeat_ngram_size=data.no_repeat_ngram_size
    )


def _show_and_save_summaries(
    scorers: dict[str, SummaryScorer],
    metrics: dict[str, float],
    lead: LeadBaseline,
    output: Path,
) -> None:
    """ROUGE and three samples on screen, all generated summaries in a file."""
    for split, prefix in (("validation", "eval"), ("test", "predict")):
        if split in scorers:
            rows = SummaryScorer.rows(metrics, prefix)
            length = metrics[f"{prefix}_output_length"]
            lengths = f"lead: {lead.length} {lead.unit}, outputs: {length:.0f}"
            show_results(f"scores on {split} ({lengths})", rows)
            print(scorers[split].finding)
            if not scorers[split].ignores_the_document:
                print(verdict(rows))
            with (output / f"{prefix}_generated.jsonl").open("w", encoding="utf-8") as file:
                for record in scorers[split].records():
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    last = scorers.get("test") or scorers.get("validation")
    if last is not None:
        show_samples(last.samples())


def _baselines(
    lead: LeadBaseline,
    output_length: float | None,
    data: SummarizationArguments,
    pairs: dict[str, Dataset],
) -> str:
    """What stands next to the scores, for a reader of the card."""
    trained = " in training" if "train" in pairs else ""
    source = "train" if "train" in pairs else next(iter(pairs))
    bert_score = ""
    if data.bert_score_model is not None:
        bert_score = (
            f" BERTScore is F1 in percent, not rescaled, by {Path(data.bert_score_model).name}."
        )
    judges = "of the validation split" if {"train", "validation"} <= pairs.keys() else "others"
    return (
        f"Lead baseline: the first {lead.length} {lead.unit} of the document, the mean length of a"
        f" reference summary{trained}. Lead of output length: the first {output_length or 0:.0f}"
        f" {lead.unit}, the mean length of the model's outputs. Best constant output: one text for"
        f" every document, of up to {CONSTANT_CANDIDATES} summaries of the {source} split the one"
        f" that scores highest against up to {CONSTANT_REFERENCES} {judges}. ROUGE is F1 in"
        f" percent, counted in {lead.unit}{', stemmed' if data.rouge_stemmer else ''}.{bert_score}"
    )


def _limits(data: SummarizationArguments, known: Dataset, from_scratch: bool) -> list[str]:
    """What a reader of the card must know before relying on the summaries."""
    limits = [
        f"Of a document longer than {data.longest_input:,} tokens the rest is not read.",
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
