"""Train and evaluate a causal language model on long texts.

    python scripts/run_clm.py --train_file train.txt.gz --validation_file dev.txt.gz \\
        --block_size 4096 --do_train --do_eval --output_dir language-model

Files are txt, json, jsonl or csv, also gzipped; `--dataset_name` takes a data set of the Hub
instead, and without any data the source code of the Python standard library is modelled. The text
is read as bytes unless a tokenizer or `--vocab_size` says otherwise; without a model a Reformer of
a preset size is trained. Reported are loss, perplexity, and bits per byte next to what the xz
compressor needs. `--help` lists all arguments; a JSON file that holds them works too.
"""

import sys
from collections.abc import Sequence

from transformers import TrainingArguments

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import (
    LanguageModelingArguments,
    ModelArguments,
    RunArguments,
    parse_arguments,
)
from training.command_line import exit_code, set_up_logging, show_table
from training.data import describe_data
from training.language_modeling import build_language_model, continuation_samples, given_config
from training.model_card import CardFacts, MetricRow
from training.models import load_tokenizer
from training.samples import show_samples
from training.session import begin, final_evaluation, finish, report_metrics, train
from training.stdlib_corpus import SOURCES_DESCRIPTION
from training.text_blocks import (
    Blocks,
    collate_blocks,
    language_modeling_metrics,
    load_documents,
    make_blocks,
    xz_bits_per_byte,
)
from training.trainers import CardTrainer

_USAGE = """
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100, do_sample=True)[0]))
"""


def model_language(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, run, training = parse_arguments(
        (ModelArguments, LanguageModelingArguments, RunArguments, TrainingArguments), argv
    )
    set_up_logging(training)
    # Logits of whole blocks would fill the memory, and nothing here looks at them.
    training.prediction_loss_only = True
    session = begin(training, data, run, cuts_validation=True)
    config = given_config(model_args, session.checkpoint)

    documents = load_documents(data, model_args)
    tokenizer = load_tokenizer(
        model_args,
        session.checkpoint,
        (lambda: iter(documents["train"])) if "train" in documents else None,
        train_by_default=False,
        append_eos=False,
    )
    model = build_language_model(model_args, data, tokenizer, config)
    limits = {
        "train": (training.do_train, data.max_train_samples),
        "validation": (training.do_eval, data.max_eval_samples),
        "test": (training.do_predict, data.max_predict_samples),
    }
    blocks: dict[str, Blocks] = {}
    for split, (needed, limit) in limits.items():
        if needed:
            if split not in documents:
                raise ValueError(f"{split}: expected a {split!r} split, got {sorted(documents)}")
            blocks[split] = make_blocks(documents[split], tokenizer, data.block_size, limit, split)

    trainer = CardTrainer(
        model=model,
        args=training,
        train_dataset=blocks["train"].data if "train" in blocks else None,
        eval_dataset=blocks["validation"].data if "validation" in blocks else None,
        processing_class=tokenizer,
        data_collator=collate_blocks,
        callbacks=session.callbacks,
    )
    if training.do_train:
        train(trainer, session, len(blocks["train"].data))
    metrics: dict[str, float] = {}
    rows: list[MetricRow] = []
    for split, prefix in (("validation", "eval"), ("test", "predict")):
        if split not in blocks:
            continue
        if split == "validation":
            found = final_evaluation(trainer, session)
        else:
            found = trainer.evaluate(blocks[split].data, metric_key_prefix=prefix)
        scores = language_modeling_metrics(found[f"{prefix}_loss"], blocks[split].tokens_per_byte)
        scores["xz_bits_per_byte"] = xz_bits_per_byte(documents[split])
        found |= {f"{prefix}_{name}": value for name, value in scores.items()}
        report_metrics(trainer, prefix, found, len(blocks[split].data))
        metrics |= found
        rows = _card_rows(found[f"{prefix}_loss"], scores)
        if trainer.is_world_process_zero():
            show_table(
                f"Bits per byte on {split}",
                [split],
                [
                    ("model", [scores["bits_per_byte"]]),
                    ("xz compressor", [scores["xz_bits_per_byte"]]),
                ],
            )

    split = "test" if "test" in blocks else "validation"
    if split in blocks and data.sample_length and trainer.is_world_process_zero():
        show_samples(continuation_samples(model, tokenizer, blocks[split], data, training.seed))
    facts = CardFacts(
        task="text-generation",
        auto_class="AutoModelForCausalLM",
        data=describe_data(data, default=SOURCES_DESCRIPTION),
        dataset_name=data.dataset_name,
        sizes={f"{name} blocks": len(found.data) for name, found in blocks.items()},
        lengths=f"It was trained on blocks of {data.block_size:,} tokens.",
        evaluated_split=split,
        baseline="the xz compressor on the same text.",
        rows=rows,
        base_model=model_args.model_name_or_path,
        limits=[
            "It continues text; what it states may be false.",
            f"Every block of {data.block_size:,} tokens is predicted without what precedes it.",
        ],
        usage=_USAGE,
    )
    finish(trainer, facts, session)
    return metrics


def _card_rows(loss: float, scores: dict[str, float]) -> list[MetricRow]:
    bits, floor = scores["bits_per_byte"], scores["xz_bits_per_byte"]
    return [
        MetricRow("loss", "loss (nats per token)", loss),
        MetricRow("perplexity", "perplexity per token", scores["perplexity"]),
        MetricRow("bits_per_byte", "bits per byte", bits, floor),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `model_language`; the exit code."""
    return exit_code(model_language, argv)


if __name__ == "__main__":
    sys.exit(main())
