"""Train and evaluate a model that gives every word a tag, such as named entities.

Without data arguments it finds parties, dates, amounts and places in generated contracts; without a
model it trains a Reformer of a preset size, without a tokenizer it trains one.

    python scripts/run_ner.py --output_dir tagger --do_train --do_eval --do_predict

Your own files (json or jsonl, also gzipped) have columns "tokens" and "ner_tags", a list of words
and a list of as many tags ("B-DATE", "I-DATE", "O"). Texts that are too long are read in several
pieces. Precision, recall and F1 of whole entities (seqeval) are shown next to those of looking
every word up. `--help` lists all arguments; a JSON file that holds them works too.
"""

import sys
from collections.abc import Sequence

from transformers import DataCollatorForTokenClassification

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import TokenClassificationArguments, exit_code
from training.outlook import TimeLeft
from training.reporting import CardFacts, CardTrainer, show_results, show_samples, verdict
from training.session import begin
from training.token_classification import (
    DEFAULT_DATA,
    TagScorer,
    build_tagger,
    encode_tagged,
    load_tagged,
    lookup_baseline,
    tagged_samples,
)
from training.training_arguments import ScriptTrainingArguments

_USAGE = """
inputs = tokenizer(text, truncation=True, max_length={length}, return_tensors="pt")
tags = model(**inputs).logits[0].argmax(-1).tolist()  # that of a word stands at its first token
words = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
print([(word, model.config.id2label[tag]) for word, tag in zip(words, tags)])
"""


def tag_words(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, training, session = begin(
        TokenClassificationArguments, ScriptTrainingArguments, argv
    )
    training.choose_learning_rate(from_scratch=model_args.model_name_or_path is None)
    examples = load_tagged(data, model_args, training)
    tokenizer, model = build_tagger(model_args, session.checkpoint, data, examples)
    label2id = {str(name): int(number) for name, number in model.config.label2id.items()}
    encoded = encode_tagged(examples, tokenizer, label2id, data, training)

    known = examples["train"] if "train" in examples else next(iter(examples.values()))
    names = [model.config.id2label[number] for number in range(len(label2id))]
    scorers = {
        split: TagScorer(names, lookup_baseline(known, found))
        for split, found in examples.items()
        if split != "train"
    }
    trainer = CardTrainer(
        model=model,
        args=training,
        train_dataset=encoded.get("train"),
        eval_dataset=encoded.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=scorers.get("validation"),
        # Logits of all tokens of a split would fill the memory.
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
        callbacks=[*session.callbacks, TimeLeft()],
    )
    metrics = session.train_and_evaluate(trainer, encoded, scorers.get("test"))

    split, prefix = ("test", "predict") if training.do_predict else ("validation", "eval")
    rows = TagScorer.rows(metrics, prefix)
    if rows and trainer.is_world_process_zero():
        show_results(f"Entities in percent on {split}", rows, scale=100)
        print(verdict(rows))
        show_samples(tagged_samples(model, tokenizer, examples[split], encoded[split]))
    kinds = sorted({name.split("-", 1)[-1] for name in names if name != "O"})
    facts = CardFacts(
        task="token-classification",
        auto_class="AutoModelForTokenClassification",
        data=data.description or DEFAULT_DATA,
        dataset_name=data.dataset_name,
        sizes={name: len(found) for name, found in examples.items()},
        lengths=f"It reads up to {data.max_seq_length:,} tokens at a time.",
        evaluated_split=split,
        baselines=(
            "Words looked up: every word gets the tag that it has most often in training. Scores"
            " are those of whole entities (seqeval), within the pieces that long texts are read in."
        ),
        rows=rows,
        base_model=model_args.model_name_or_path,
        limits=[f"It knows these entities only: {', '.join(kinds)}."],
        usage=_USAGE.format(length=data.max_seq_length),
    )
    session.finish(trainer, facts)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tag_words`; the exit code."""
    return exit_code(tag_words, argv)


if __name__ == "__main__":
    sys.exit(main())
