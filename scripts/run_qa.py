"""Train and evaluate a model that answers questions with a span of a long document.

Without data arguments it is asked about generated contracts; without a model it trains a Reformer
of a preset size, without a tokenizer it trains one.

    python scripts/run_qa.py --output_dir reader --do_train --do_eval --do_predict

Your own files (json or jsonl, also gzipped) have the columns of SQuAD: "question", "context", and
"answers" with "text" and "answer_start". Documents longer than `--max_seq_length` are read in
pieces that overlap by `--doc_stride` tokens. Exact match and F1 are shown next to the most frequent
answer. `--help` lists all arguments; a JSON file that holds them works too.
"""

import sys
from collections.abc import Sequence

from transformers import DataCollatorWithPadding

import reformer_hf  # noqa: F401  (registers the architecture with the Auto classes)
from training.arguments import QuestionAnsweringArguments, exit_code
from training.outlook import TimeLeft
from training.question_answering import (
    DEFAULT_DATA,
    AnswerScorer,
    build_reader,
    encode_questions,
    load_questions,
    most_frequent_answer,
)
from training.reporting import CardFacts, CardTrainer, show_results, show_samples, verdict
from training.session import begin
from training.training_arguments import ScriptTrainingArguments

_USAGE = """
cut = {{"truncation": "only_second", "max_length": {length}}}
inputs = tokenizer(question, context, return_tensors="pt", **cut)
scores = model(**inputs)
start, end = scores.start_logits.argmax(), scores.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
"""


def answer_questions(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what the arguments ask for; the metrics of the validation and test splits.

    Raises:
        ValueError: arguments, data or model cannot work.
    """
    model_args, data, training, session = begin(
        QuestionAnsweringArguments, ScriptTrainingArguments, argv
    )
    if training.train_sampling_strategy == "group_by_length":
        raise ValueError(
            "train_sampling_strategy: expected another one, pieces are scored in their order, got"
            " 'group_by_length'"
        )
    training.choose_learning_rate(from_scratch=model_args.model_name_or_path is None)
    questions = load_questions(data, model_args, training)
    tokenizer, model = build_reader(model_args, session.checkpoint, data, questions)
    encoded = encode_questions(questions, tokenizer, data, training)

    known = questions["train"] if "train" in questions else next(iter(questions.values()))
    constant = most_frequent_answer(known)
    scorers = {
        split: AnswerScorer(rows, encoded[split], constant, data)
        for split, rows in questions.items()
        if split != "train"
    }
    inputs = {split: rows.remove_columns(["example", "offsets"]) for split, rows in encoded.items()}
    trainer = CardTrainer(
        model=model,
        args=training,
        train_dataset=inputs.get("train"),
        eval_dataset=inputs.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scorers.get("validation"),
        callbacks=[*session.callbacks, TimeLeft()],
    )
    metrics = session.train_and_evaluate(trainer, inputs, scorers.get("test"))

    split, prefix = ("test", "predict") if training.do_predict else ("validation", "eval")
    rows = AnswerScorer.rows(metrics, prefix)
    if rows and trainer.is_world_process_zero():
        show_results(f"Answers on {split}", rows)
        print(verdict(rows))
        show_samples(scorers[split].samples())
    facts = CardFacts(
        task="question-answering",
        auto_class="AutoModelForQuestionAnswering",
        data=data.description or DEFAULT_DATA,
        dataset_name=data.dataset_name,
        sizes={name: len(found) for name, found in questions.items()},
        lengths=(
            f"It reads pieces of up to {data.max_seq_length:,} tokens, which overlap by"
            f" {data.doc_stride:,}."
        ),
        evaluated_split=split,
        baselines="Most frequent answer: the one that is right most often in training.",
        rows=rows,
        base_model=model_args.model_name_or_path,
        limits=["It answers with words of the document, also where the answer is not in it."],
        usage=_USAGE.format(length=data.max_seq_length),
    )
    session.finish(trainer, facts)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run `answer_questions`; the exit code."""
    return exit_code(answer_questions, argv)


if __name__ == "__main__":
    sys.exit(main())
