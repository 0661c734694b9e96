"""Train and evaluate a masked language model on long texts.

    python scripts/run_mlm.py --train_file train.txt.gz --validation_file dev.txt.gz \\
        --block_size 4096 --do_train --do_eval --output_dir masked-language-model

Files are txt, json, jsonl or csv, also gzipped; `--dataset_name` takes a data set of the Hub
instead, and without any data the source code of the Python standard library is modelled. The text
is read as bytes unless a tokenizer or `--vocab_size` says otherwise; without a model a Reformer of
a preset size is trained. The loss counts hidden tokens only; it is shown next to that of predicting
them from their frequencies. `--help` lists all arguments; a JSON file that holds them works too.
"""

import math
import sys
from collections.abc import Sequence

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import MaskedLanguageModelingArguments, exit_code
from training.language_modeling import DEFAULT_DATA, encode_documents, load_documents
from training.masked_language_modeling import (
    MASKED_LANGUAGE_MODELING,
    Masking,
    UnigramBaseline,
    build_masked_language_model,
    filled_samples,
)
from training.reporting import CardFacts, CardTrainer, MetricRow, show_results, show_samples
from training.session import begin
from training.training_arguments import ScriptTrainingArguments

_USAGE = """
inputs = tokenizer(f"Paris is the {tokenizer.mask_token} of France.", return_tensors="pt")
print(tokenizer.decode(model(**inputs).logits[0].argmax(-1)))
"""


def model_masked_language(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, training, session = begin(
        MaskedLanguageModelingArguments, ScriptTrainingArguments, argv, cuts_validation=True
    )
    training.choose_learning_rate(from_scratch=model_args.model_name_or_path is None)
    training.prediction_loss_only = True
    config = MASKED_LANGUAGE_MODELING.given_config(model_args, session.checkpoint)
    documents = load_documents(data, model_args)
    tokenizer, model = build_masked_language_model(
        model_args, session.checkpoint, config, data, documents
    )
    blocks = encode_documents(documents, tokenizer, data, training)
    masking = Masking(tokenizer, data.mlm_probability)
    splits = {
        split: found.data if split == "train" else masking.fixed(found.data, training.seed)
        for split, found in blocks.items()
    }
    known = next(iter(blocks.values())).data
    baseline = UnigramBaseline.of(known, model.config.vocab_size)

    trainer = CardTrainer(
        model=model,
        args=training,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=masking,
        callbacks=session.callbacks,
    )
    if training.do_train:
        session.train(trainer)
    evaluated = session.evaluate_by_loss(
        trainer,
        splits,
        lambda split, loss: {
            "unigram_loss": baseline.loss(splits[split]),
            "perplexity": math.exp(min(loss, 700)),
        },
    )
    metrics: dict[str, float] = {}
    rows: list[MetricRow] = []
    for split, found in evaluated.items():
        metrics |= found
        prefix = "eval" if split == "validation" else "predict"
        loss, floor = found[f"{prefix}_loss"], found[f"{prefix}_unigram_loss"]
        rows = [
            MetricRow("loss", "loss (nats per hidden token)", loss, {"frequencies": floor}, True)
        ]
        if trainer.is_world_process_zero():
            show_results(f"Hidden tokens of {split}", rows)

    split = "test" if "test" in splits else "validation"
    if split in splits and data.sample_length and trainer.is_world_process_zero():
        show_samples(filled_samples(model, tokenizer, splits[split], data.sample_length))
    facts = CardFacts(
        task="fill-mask",
        auto_class="AutoModelForMaskedLM",
        data=data.description or DEFAULT_DATA,
        dataset_name=data.dataset_name,
        sizes={f"{name} blocks": len(found) for name, found in splits.items()},
        lengths=f"It was trained on blocks of {data.block_size:,} tokens.",
        evaluated_split=split,
        baselines=(
            "Frequencies: every hidden token predicted from how frequent tokens are in training."
            f" {data.mlm_probability:.0%} of the tokens are hidden."
        ),
        rows=rows,
        base_model=model_args.model_name_or_path,
        limits=["It fills gaps; what it fills in may be false."],
        usage=_USAGE,
    )
    session.finish(trainer, facts)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run `model_masked_language`; the exit code."""
    return exit_code(model_masked_language, argv)


if __name__ == "__main__":
    sys.exit(main())
