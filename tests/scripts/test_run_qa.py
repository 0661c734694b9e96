"""Question answering: pieces, spans, scores, and small runs end to end."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering

import run_qa
from reformer_hf import ReformerForQuestionAnswering, byte_tokenizer
from training.arguments import QuestionAnsweringArguments
from training.contracts import question_splits
from training.question_answering import (
    AnswerScorer,
    _select,
    answer_scores,
    encode_questions,
    most_frequent_answer,
)

SMALL = ["--max_seq_length", "96", "--doc_stride", "16", "--vocab_size", "300"]
FEW = ["--max_train_samples", "8", "--max_eval_samples", "4", "--max_predict_samples", "4"]


def questions(context: str, answer: str, **options):
    found = {"text": [answer], "answer_start": [context.index(answer)]}
    row = {"question": "Who?", "context": context, "answers": found}
    return _select(Dataset.from_list([row]), QuestionAnsweringArguments(**options))


def encoded(rows, data):
    training = run_qa.ScriptTrainingArguments(use_cpu=True)
    return encode_questions({"test": rows}, byte_tokenizer(), data, training)["test"]


def test_scores_ignore_case_punctuation_and_articles():
    assert answer_scores(["The Cat."], [["cat"]]) == {"exact_match": 100.0, "f1": 100.0}
    found = answer_scores(["black cat", ""], [["a cat", "dog"], []])
    assert found["exact_match"] == 50.0
    assert found["f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    # Two of three characters.
    assert answer_scores(["北京市"], [["北京"]])["f1"] == pytest.approx(80.0)
    assert answer_scores(["x"], [[]])["f1"] == 0.0


def test_answers_of_generated_contracts_stand_in_them():
    for table in question_splits().values():
        for row in table:
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start : start + len(text)] == text


def test_the_answer_is_labelled_in_every_piece_that_holds_it_and_in_no_other():
    context = "filler words " * 20 + "Alder Ltd" + " more of them" * 20
    data = QuestionAnsweringArguments(max_seq_length=80, doc_stride=30)
    pieces = encoded(questions(context, "Alder Ltd"), data)
    assert len(pieces) > 5
    assert max(len(row["input_ids"]) for row in pieces) <= 80
    held = 0
    for row in pieces:
        start, end = row["start_positions"], row["end_positions"]
        if (start, end) == (0, 0):
            continue
        held += 1
        first, stop = row["offsets"][start][0], row["offsets"][end][1]
        assert context[first:stop] == "Alder Ltd"
    assert held >= 1
    covered = {at for row in pieces for a, b in row["offsets"] if a >= 0 for at in range(a, b)}
    assert covered == set(range(len(context)))


def scores_of(pieces, chosen: str, context: str, sure: float):
    """Logits that point at a text in the pieces that hold it."""
    first, stop = context.index(chosen), context.index(chosen) + len(chosen)
    length = max(len(row["input_ids"]) for row in pieces)
    starts, ends = (np.full((len(pieces), length), -5.0) for _ in range(2))
    for number, row in enumerate(pieces):
        for at, (a, b) in enumerate(row["offsets"]):
            starts[number, at] += sure * (a == first)
            ends[number, at] += sure * (b == stop)
    return starts, ends


def test_the_best_span_of_all_pieces_is_the_answer():
    context = "filler words " * 20 + "Alder Ltd" + " more of them" * 20
    data = QuestionAnsweringArguments(max_seq_length=80, doc_stride=30, max_answer_length=20)
    rows = questions(context, "Alder Ltd")
    pieces = encoded(rows, data)
    scorer = AnswerScorer(rows, pieces, "Birch", data)
    predictions = scores_of(pieces, "Alder Ltd", context, sure=20.0)
    found = scorer(SimpleNamespace(predictions=predictions))
    assert found == {
        "exact_match": 100.0,
        "f1": 100.0,
        "constant_exact_match": 0.0,
        "constant_f1": 0.0,
    }
    short = QuestionAnsweringArguments(max_seq_length=80, doc_stride=30, max_answer_length=3)
    scorer = AnswerScorer(rows, pieces, "Birch", short)
    assert scorer(SimpleNamespace(predictions=predictions))["exact_match"] == 0.0


def test_no_answer_is_given_where_nothing_is_surer():
    context = "Alder Ltd pays."
    data = QuestionAnsweringArguments(
        max_seq_length=80, doc_stride=30, version_2_with_negative=True
    )
    rows = _select(
        Dataset.from_list(
            [{"question": "Who?", "context": context, "answers": {"text": [], "answer_start": []}}]
        ),
        data,
    )
    pieces = encoded(rows, data)
    assert pieces[0]["start_positions"] == pieces[0]["end_positions"] == 0
    scorer = AnswerScorer(rows, pieces, "", data)
    starts, ends = scores_of(pieces, "Alder Ltd", context, sure=3.0)
    assert scorer(SimpleNamespace(predictions=(starts, ends)))["exact_match"] == 0.0
    starts[:, 0], ends[:, 0] = 9.0, 9.0
    assert scorer(SimpleNamespace(predictions=(starts, ends)))["exact_match"] == 100.0


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["x"], "answer_start": [0]}, "stands in the context in row 1"),
        ({"text": ["Alder"], "answer_start": []}, "stands in the context in row 1"),
        ({"text": [], "answer_start": []}, "version_2_with_negative: expected true"),
    ],
)
def test_answers_that_cannot_be_are_refused(answers, message):
    table = Dataset.from_list([{"question": "Who?", "context": "Alder", "answers": answers}])
    with pytest.raises(ValueError, match=message):
        _select(table, QuestionAnsweringArguments())


def test_questions_without_room_for_the_context_are_refused():
    data = QuestionAnsweringArguments(max_seq_length=30, doc_stride=26)
    with pytest.raises(ValueError, match="max_seq_length: expected more than a question of"):
        encoded(questions("Alder Ltd", "Alder"), data)


def test_the_most_frequent_answer():
    rows = [questions("Alder Ltd", "Alder")[0]] * 2 + [questions("Alder Ltd", "Ltd")[0]]
    assert most_frequent_answer(Dataset.from_list(rows)) == "Alder"


def test_run_leaves_a_complete_model_directory(small_run, tmp_path, capsys):
    assert run_qa.main([*small_run, *SMALL, *FEW, "--do_predict"]) == 0
    run = tmp_path / "run"
    model = AutoModelForQuestionAnswering.from_pretrained(run)
    assert isinstance(model, ReformerForQuestionAnswering)
    metrics = json.loads((run / "all_results.json").read_text())
    for prefix in ("eval", "predict"):
        for name in ("exact_match", "f1", "constant_exact_match", "constant_f1"):
            assert 0 <= metrics[f"{prefix}_{name}"] <= 100
    card = (run / "README.md").read_text()
    assert "AutoModelForQuestionAnswering.from_pretrained" in card
    shown = capsys.readouterr().out
    assert "most frequent answer" in shown
    assert "question:" in shown


def test_grouping_by_length_is_refused(small_run, capsys):
    grouped = ["--train_sampling_strategy", "group_by_length"]
    assert run_qa.main([*small_run, *SMALL, *grouped]) == 2
    assert "train_sampling_strategy: expected another one" in capsys.readouterr().err
