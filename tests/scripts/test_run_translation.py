"""Translation: languages, scores, number words, and small runs end to end."""

import json

import pytest
import sacrebleu
from transformers import AutoModelForSeq2SeqLM

import run_translation
from reformer_hf import ReformerForConditionalGeneration
from training.arguments import TranslationArguments
from training.number_words import english, german, number_splits
from training.translation import _select, translation_scores

LENGTHS = ["--max_source_length", "32", "--max_target_length", "24", "--vocab_size", "300"]


@pytest.fixture
def translations(tmp_path):
    """Arguments that name files of two languages."""
    arguments = ["--cache_dir", str(tmp_path / "cache")]
    rows = [
        {"source": word, "target": f"{word}{lang}", "target_lang": lang}
        for word in ("red", "green", "blue", "white")
        for lang in ("xx", "zh_Hans")
    ]
    for split in ("train", "validation", "test"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        arguments += [f"--{split}_file", str(path)]
    return arguments


def test_numbers_in_words():
    assert english(0) == "zero"
    assert english(999_021) == "nine hundred ninety-nine thousand twenty-one"
    assert english(1000) == "one thousand"
    assert german(0) == "null"
    assert german(1) == "eins"
    assert german(999_021) == "neunhundertneunundneunzigtausendeinundzwanzig"
    assert german(101_001) == "einhunderteintausendeins"
    for write in (english, german):
        assert len({write(n) for n in range(3000)}) == 3000


def test_no_number_is_in_two_splits():
    splits = number_splits()
    sources = {name: set(table["source"]) for name, table in splits.items()}
    assert not sources["train"] & (sources["validation"] | sources["test"])
    assert not sources["validation"] & sources["test"]


def test_scores_are_those_of_sacrebleu_and_characters_in_chinese_and_japanese():
    texts, references = ["the cat sat on the mat"], ["the cat sat on a mat"]
    found = translation_scores(texts, references)
    assert found["bleu"] == sacrebleu.corpus_bleu(texts, [references]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(texts, [references]).score
    # One of seven characters differs: by words nothing is right.
    texts, references = ["我们讨论了模型"], ["我们讨论了模式"]
    assert translation_scores(texts, references, "de")["bleu"] < 1
    for lang in ("zh", "zh_Hans", "ja", "zh-CN"):
        assert translation_scores(texts, references, lang)["bleu"] > 50


def test_the_language_that_is_asked_for_stands_before_the_source():
    table = number_splits()["test"]
    found = _select(table, TranslationArguments(), limit=2)
    assert found["text"] == [f"<2en> {found[0]['source']}", f"<2de> {found[1]['source']}"]
    german_only = _select(table, TranslationArguments(target_langs="de"), limit=None)
    assert set(german_only["lang"]) == {"de"}
    with pytest.raises(ValueError, match=r"target_langs: expected one of \['de', 'en'\], got 'fr'"):
        _select(table, TranslationArguments(target_langs="fr"), limit=None)
    plain = table.remove_columns("target_lang")
    assert _select(plain, TranslationArguments(), limit=1)["text"] == [plain[0]["source"]]
    with pytest.raises(ValueError, match="target_langs: expected a column of languages"):
        _select(plain, TranslationArguments(target_langs="de"), limit=None)


def test_run_leaves_a_complete_model_directory(translations, small_run, tmp_path, capsys):
    assert run_translation.main([*translations, *small_run, *LENGTHS, "--do_predict"]) == 0
    run = tmp_path / "run"
    assert isinstance(AutoModelForSeq2SeqLM.from_pretrained(run), ReformerForConditionalGeneration)
    metrics = json.loads((run / "all_results.json").read_text())
    for prefix in ("eval", "predict"):
        for name in ("bleu", "chrf", "copy_bleu", "copy_chrf", "chrf_xx", "copy_chrf_zh_Hans"):
            assert 0 <= metrics[f"{prefix}_{name}"] <= 100
    # "red" of "redxx" and "redzh_Hans".
    assert metrics["eval_copy_chrf_xx"] > metrics["eval_copy_chrf_zh_Hans"] > 0
    card = (run / "README.md").read_text()
    assert "| chrF, xx |" in card
    assert '"<2xx> " + text' in card
    assert "copied source" in card
    shown = capsys.readouterr().out
    assert "copied source" in shown
    assert "to xx" in shown
    assert len((run / "predict_generated.jsonl").read_text().splitlines()) == 8


def test_missing_columns_are_refused(translations, small_run, capsys):
    arguments = [*translations, *small_run, *LENGTHS, "--source_column", "body"]
    assert run_translation.main(arguments) == 2
    assert "source_column: expected one of ['source', 'target'" in capsys.readouterr().err


def test_without_data_numbers_are_written_in_words(small_run, tmp_path):
    few = ["--max_train_samples", "8", "--max_eval_samples", "4", "--max_steps", "1"]
    metrics = run_translation.translate([*small_run, *LENGTHS, *few])
    assert metrics["eval_copy_chrf"] < 20
    assert "numbers below a million" in (tmp_path / "run" / "README.md").read_text()
