"""Generated reports: the summary stands in the text, and not at its beginning."""

import random

import pytest
from datasets import Dataset

import run_summarization
from training.reports import report, report_splits


def final_facts(document: str) -> list[str]:
    """What a reader finds who looks for the words that announce it."""
    words = ("The final offer came from ", "The final price was ", "It was signed on ")
    return [document.split(said)[1].split(" .")[0] for said in words]


@pytest.mark.parametrize("words", [1, 150, 3000])
def test_a_reader_of_the_whole_report_can_write_its_summary(words):
    draw = random.Random(1)
    for _ in range(20):
        document, summary = report(draw, words)
        assert " , ".join(final_facts(document)) == summary
        assert abs(len(document.split()) - words) < 80 + 0.1 * words
        # What was said before the end is of the same kinds, and something else.
        assert document.count("earlier") == 2


def test_splits_are_the_same_every_time_and_share_no_report():
    first, second = report_splits(60), report_splits(60)
    assert {name: len(rows) for name, rows in first.items()} == {
        "train": 1600, "validation": 32, "test": 48,
    }  # fmt: skip
    documents = [set(rows["document"]) for rows in first.values()]
    assert not documents[0] & documents[2]
    assert isinstance(first["test"], Dataset)
    assert first["test"]["summary"][:] == second["test"]["summary"][:]


def test_only_the_reports_that_are_needed_are_made_and_they_are_the_same():
    few = report_splits(60, {"test": 3, "validation": None})
    assert {name: len(rows) for name, rows in few.items()} == {"test": 3, "validation": 32}
    assert few["test"]["document"][:] == report_splits(60)["test"]["document"][:3]


def test_reports_are_summarized_where_no_data_are_named(small_run, tmp_path, capsys, data_files):
    options = ["--report_words", "60", "--max_source_length", "200", "--max_target_length", "48"]
    few = ["--max_train_samples", "8", "--max_eval_samples", "4", "--cache_dir", str(tmp_path)]
    run_summarization.summarize([*small_run, *options, *few, "--vocab_size", "400"])
    assert "generated reports of about 60 words" in (tmp_path / "run" / "README.md").read_text()
    assert run_summarization.main([*small_run, *options, *data_files]) == 2
    assert "report_words: expected no other data" in capsys.readouterr().err
