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

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from reformer_hf.parallel import split_sequence
from training.arguments import LanguageModelingArguments, exit_code
from training.language_modeling import (
    DEFAULT_DATA,
    LANGUAGE_MODELING,
    build_language_model,
    collate_blocks,
    continuation_samples,
    encode_documents,
    load_documents,
)
from training.reporting import (
    CardFacts,
    MetricRow,
    SharedDocumentTrainer,
    show_results,
    show_samples,
)
from training.session import begin
from training.training_arguments import SharedDocumentArguments

_USAGE = """
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100, do_sample=True)[0]))
"""


def model_language(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, training, session = begin(
        LanguageModelingArguments, SharedDocumentArguments, argv, cuts_validation=True
    )
    training.choose_learning_rate(from_scratch=model_args.model_name_or_path is None)
    # Logits of whole blocks would fill the memory, and nothing here looks at them.
    training.prediction_loss_only = True
    config = LANGUAGE_MODELING.given_config(model_args, session.checkpoint)
    documents = load_documents(data, model_args)
    tokenizer, model = build_language_model(model_args, session.checkpoint, config, data, documents)
    blocks = encode_documents(documents, tokenizer, data, training)

    trainer = SharedDocumentTrainer(
        model=model,
        args=training,
        train_dataset=blocks["train"].data if "train" in blocks else None,
        eval_dataset=blocks["validation"].data if "validation" in blocks else None,
        processing_class=tokenizer,
        data_collator=collate_blocks,
        callbacks=session.callbacks,
    )
    if training.do_train:
        session.train(trainer)
    evaluated = session.evaluate_by_loss(
        trainer,
        {split: found.data for split, found in blocks.items()},
        lambda split, loss: blocks[split].scores(loss),
    )
    metrics: dict[str, float] = {}
    rows: list[MetricRow] = []
    for split, found in evaluated.items():
        metrics |= found
        rows = _rows(found, "eval" if split == "validation" else "predict")
        if trainer.is_world_process_zero():
            show_results(f"Scores on {split}", rows)

    if training.sequence_parallel_size > 1:
        split_sequence(model, None)  # one process writes the samples
    split = "test" if "test" in blocks else "validation"
    if split in blocks and data.sample_length and trainer.is_world_process_zero():
        show_samples(continuation_samples(model, tokenizer, blocks[split], data, training.seed))
    facts = CardFacts(
        task="text-generation",
        auto_class="AutoModelForCausalLM",
        data=data.description or DEFAULT_DATA,
        dataset_name=data.dataset_name,
        sizes={f"{name} blocks": len(found.data) for name, found in blocks.items()},
        lengths=f"It was trained on blocks of {data.block_size:,} tokens.",
        evaluated_split=split,
        baselines="xz compressor: what it needs for the same text.",
        rows=rows,
        base_model=model_args.model_name_or_path,
        limits=[
            "It continues text; what it states may be false.",
            f"Every block of {data.block_size:,} tokens is predicted without what precedes it.",
        ],
        usage=_USAGE,
    )
    session.finish(trainer, facts)
    return metrics


def _rows(metrics: dict[str, float], prefix: str) -> list[MetricRow]:
    """Loss, perplexity and bits per byte, from metrics with a trainer's `prefix`."""
    loss, perplexity, bits, floor = (
        metrics[f"{prefix}_{name}"]
        for name in ("loss", "perplexity", "bits_per_byte", "xz_bits_per_byte")
    )
    return [
        MetricRow("loss", "loss (nats per token)", loss, lower_is_better=True),
        MetricRow("perplexity", "perplexity per token", perplexity, lower_is_better=True),
        MetricRow("bits_per_byte", "bits per byte", bits, {"xz compressor": floor}, True),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `model_language`; the exit code."""
    return exit_code(model_language, argv)


if __name__ == "__main__":
    sys.exit(main())
