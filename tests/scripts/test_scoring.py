"""Scores against values computed by hand, each with its baseline, and what joins them."""

import math

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset
from rouge_score import rouge_scorer
from transformers import BertConfig, BertModel, EvalPrediction

from reformer_hf.tokenization import byte_tokenizer
from training.bert_score import BertScore
from training.rouge import Rouge, compute_rouge, resolve_language, tokenizer_for
from training.scoring import (
    ClassificationScorer,
    LeadBaseline,
    SummaryScorer,
    accuracy,
    best_constant,
    language_modeling_metrics,
    macro_f1,
    majority_class,
    summary_scorers,
    xz_bits_per_byte,
)


def approx(**scores: float):
    return pytest.approx(scores, abs=1e-3)


def test_chinese_rouge_counts_characters():
    # Common characters 我 爱: 2 of 4 and 2 of 4. Common pairs 我爱: 1 of 3 and 1 of 3.
    # Longest common subsequence 我爱: 2 of 4 and 2 of 4.
    scores = compute_rouge(["我爱北京"], ["我爱上海"], lang="zh")
    assert scores == approx(rouge1=50.0, rouge2=33.3333, rougeL=50.0)


def test_chinese_rouge_of_unequal_lengths():
    # Prediction 模型很好 (4), reference 这个模型好 (5); common 模 型 好.
    # ROUGE-1: P 3/4, R 3/5, F 2/3. ROUGE-2: common 模型, P 1/3, R 1/4, F 2/7. ROUGE-L: 模型好 = 3.
    scores = compute_rouge(["模型很好。"], ["这个模型，好！"], lang="zh")
    assert scores == approx(rouge1=66.6667, rouge2=28.5714, rougeL=66.6667)


def test_latin_words_and_numbers_in_chinese_stay_whole():
    tokens = tokenizer_for("zh-CN").tokenize("用BERT-2训练模型")
    assert tokens == ["用", "bert", "2", "训", "练", "模", "型"]


def test_word_rouge_by_hand():
    # Common words the, sat; the cat sat | the dog sat down: P 2/3, R 2/4; no common pair.
    scores = compute_rouge(["The cat sat"], ["the dog sat, down"])
    assert scores == approx(rouge1=57.1429, rouge2=0.0, rougeL=57.1429)


def test_scores_are_the_mean_over_examples():
    scores = compute_rouge(["a b", "x y"], ["a b", "p q"])
    assert scores == approx(rouge1=50.0, rouge2=50.0, rougeL=50.0)


def test_words_of_english_text_are_those_of_rouge_score():
    prediction = "A module's parser: it reads the JSON-encoded file_name, twice (2x)."
    reference = "This module reads a file name and parses the JSON it holds."
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, prediction)
    ours = compute_rouge([prediction], [reference])
    assert ours == approx(**{name: 100 * score.fmeasure for name, score in theirs.items()})


def test_stemming_is_rouge_scores():
    assert compute_rouge(["running dogs"], ["run dog"])["rouge1"] == 0.0
    assert compute_rouge(["running dogs"], ["run dog"], use_stemmer=True)["rouge2"] == 100.0
    with pytest.raises(ValueError, match="use_stemmer"):
        compute_rouge(["我"], ["我"], lang="zh", use_stemmer=True)


def test_accented_letters_are_part_of_words():
    assert tokenizer_for(None).tokenize("Éléphant übel") == ["éléphant", "übel"]


def test_rouge_is_an_offline_metric_of_evaluate():
    metric = Rouge()
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=["a b"], references=["a c"])
    assert metric.compute()["rouge1"] == pytest.approx(50.0)


def test_lists_must_match():
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        compute_rouge(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 predictions"):
        compute_rouge([], [])


def test_lead_is_the_beginning_of_the_document_with_its_punctuation():
    assert LeadBaseline(3).summaries(["One, two. Three four"]) == ["One, two. Three"]
    assert LeadBaseline(5, "zh").summaries(["发言人1：我休息一下"]) == ["发言人1：我"]
    assert LeadBaseline(9).summaries(["short", ""]) == ["short", ""]


def test_mean_length_counts_what_rouge_counts():
    assert LeadBaseline.for_references(["one two", "one two three four"]).length == 3
    assert LeadBaseline.for_references(["我爱北京。"], "zh").length == 4
    assert LeadBaseline.for_references(["..."]).length == 1
    with pytest.raises(ValueError, match="at least one"):
        LeadBaseline.for_references([])


def test_lead_scores_perfectly_where_the_summary_is_the_lead():
    lead = LeadBaseline(2).summaries(["alpha beta gamma delta"])
    assert compute_rouge(lead, ["alpha beta"])["rougeL"] == pytest.approx(100.0)


def test_chinese_is_recognised_and_a_named_language_wins():
    assert resolve_language(None, ["发言人1：defi 请回答2021，我们有请 piggy 协议开发团队"]) == "zh"
    assert resolve_language(None, ["The word 北京 means Beijing, which is the capital."]) is None
    assert resolve_language(None, ["123 456"]) is None
    assert resolve_language(None, ["我爱北京"]) == "zh"
    assert resolve_language("ja", ["我爱北京"]) == "ja"
    assert resolve_language(None, ["plain text"]) is None


@pytest.fixture
def scorer():
    tokenizer = byte_tokenizer()
    pairs = Dataset.from_dict(
        {
            "document": ["alpha beta gamma", "one two three", "red green blue"],
            "summary": ["alpha beta delta epsilon", "one two", "green"],
        }
    )
    labels = [
        tokenizer(text, max_length=12, truncation=True).input_ids for text in pairs["summary"]
    ]
    return tokenizer, labels, SummaryScorer(tokenizer, pairs, labels, LeadBaseline(2), "one two")


def prediction(tokenizer, labels, rows, texts):
    def padded(ids, filler):
        return ids + [filler] * (64 - len(ids))

    outputs = [padded([tokenizer.pad_token_id, *tokenizer(text).input_ids], -100) for text in texts]
    return EvalPrediction(
        predictions=np.array(outputs),
        label_ids=np.array([padded(labels[row], tokenizer.pad_token_id) for row in rows]),
    )


def test_scorer_compares_with_the_whole_reference(scorer):
    tokenizer, labels, score = scorer
    metrics = score(prediction(tokenizer, labels, [0], ["alpha beta"]))
    # The labels were cut to "alpha beta "; the reference has four words.
    assert metrics["rouge1"] == pytest.approx(66.6667, abs=1e-3)
    assert metrics["gen_len"] == len("alpha beta") + 1


def test_scorer_finds_references_in_any_order_and_repeated(scorer):
    tokenizer, labels, score = scorer
    texts = ["green", "alpha beta delta epsilon", "one two", "green"]
    metrics = score(prediction(tokenizer, labels, [2, 0, 1, 2], texts))
    assert metrics["rougeL"] == pytest.approx(100.0)
    assert score.records() == [
        {"reference": text, "generated": text}
        for text in ["alpha beta delta epsilon", "one two", "green"]
    ]


def test_scorer_puts_the_lead_baseline_next_to_the_model(scorer):
    tokenizer, labels, score = scorer
    metrics = score(prediction(tokenizer, labels, [1], ["nothing right"]))
    expected = compute_rouge(
        ["alpha beta", "one two", "red green"], ["alpha beta delta epsilon", "one two", "green"]
    )
    assert metrics["rouge1"] == 0.0
    for name, value in expected.items():
        assert metrics[f"lead_{name}"] == pytest.approx(value, abs=1e-3)


def test_a_lead_as_long_as_the_outputs_stands_next_to_the_model(scorer):
    tokenizer, labels, score = scorer
    metrics = score(prediction(tokenizer, labels, [0, 1], ["alpha", "one"]))
    expected = compute_rouge(["alpha", "one"], ["alpha beta delta epsilon", "one two"])
    assert metrics["output_length"] == 1
    for name, value in expected.items():
        assert metrics[f"output_length_lead_{name}"] == pytest.approx(value, abs=1e-3)
        assert metrics[name] == metrics[f"output_length_lead_{name}"]


def test_best_constant_stands_next_to_the_model(scorer):
    tokenizer, labels, score = scorer
    metrics = score(prediction(tokenizer, labels, [0], ["alpha"]))
    # "one two" for three documents: right once.
    assert metrics["constant_rouge1"] == pytest.approx(100 / 3, abs=1e-3)
    (rouge1, *_) = SummaryScorer.rows({f"eval_{k}": v for k, v in metrics.items()}, "eval")
    assert set(SummaryScorer.BASELINES.values()) - set(rouge1.baselines) == {
        "model before training"
    }


def test_what_the_model_wrote_before_training_stands_next_to_it(scorer):
    tokenizer, labels, score = scorer
    before = score(prediction(tokenizer, labels, [0], ["alpha"]))
    score.remember_untrained()
    metrics = score(prediction(tokenizer, labels, [0], ["one two"]))
    assert metrics["untrained_rouge1"] == before["rouge1"]
    (rouge1, *_) = SummaryScorer.rows({f"eval_{k}": v for k, v in metrics.items()}, "eval")
    assert rouge1.baselines["model before training"] == before["rouge1"]
    names = [name for name, _ in score.samples()[0].parts]
    assert names[1:] == ["reference", "before training", "output"]


def test_best_constant_is_the_candidate_nearest_to_the_held_out_summaries():
    held_out = ["the group agreed on the budget", "the group agreed on the date", "they ate"]
    candidates = ["they ate", "the group agreed on the plan", "nothing"]
    assert best_constant(candidates, held_out) == 1
    assert best_constant(["我爱北京", "你好"], ["我爱上海", "我爱"], lang="zh") == 0
    with pytest.raises(ValueError, match="candidates: expected at least one"):
        best_constant([], held_out)


def test_best_constant_of_the_references_themselves_does_not_count_itself():
    # Each is perfect for itself; but for that, the first is nearest to the others.
    summaries = ["a b c d", "a b x y", "c d v w", "unlike every other one here"]
    assert best_constant(summaries, None) == 0
    assert best_constant(["alone"], None) == 0


def test_finding_the_best_constant_is_bounded(monkeypatch):
    compared = []

    def count(predictions, references, **options):
        compared.append(len(predictions))
        return {"rouge1": float(predictions[0].split()[1])}

    monkeypatch.setattr("training.scoring.compute_rouge", count)
    best_constant([f"word {number}" for number in range(5000)], ["word 1"] * 3000)
    assert compared == [50] * 10


def test_a_split_without_training_data_does_not_count_the_constants_own_document():
    tokenizer = byte_tokenizer()
    pairs = Dataset.from_dict({"document": ["x", "y", "z"], "summary": ["a b", "a c", "d"]})
    encoded = Dataset.from_dict({"labels": [tokenizer(t).input_ids for t in pairs["summary"]]})

    def constant_rouge1(splits):
        scorers = summary_scorers(
            splits, dict.fromkeys(splits, encoded), tokenizer, LeadBaseline(1)
        )
        labels = encoded["labels"][:]
        assert set(scorers) == {"validation"}
        texts = ["a b", "a c", "d"]
        metrics = scorers["validation"](prediction(tokenizer, labels, [0, 1, 2], texts))
        return metrics["constant_rouge1"]

    # "a b" or "a c": half right for the other one, wrong for "d".
    assert constant_rouge1({"validation": pairs}) == pytest.approx(25.0)
    # As a training summary it may be right by chance.
    assert constant_rouge1({"train": pairs, "validation": pairs}) == pytest.approx(50.0)


def many(count, outputs):
    """The finding about `outputs` for `count` different documents and references."""
    tokenizer = byte_tokenizer()
    texts = [f"summary number {row}" for row in range(count)]
    pairs = Dataset.from_dict({"document": texts, "summary": texts})
    labels = [tokenizer(text).input_ids for text in texts]
    score = SummaryScorer(tokenizer, pairs, labels, LeadBaseline(2), "summary number 1")
    metrics = score(prediction(tokenizer, labels, list(range(count)), outputs))
    return score, metrics


def test_one_output_for_every_document_is_called_by_its_name():
    score, metrics = many(37, ["summary number 9"] * 37)
    assert metrics["distinct_outputs"] == 1
    assert score.ignores_the_document
    assert score.finding.startswith("1 distinct output of 37: the model ignores the document")


def test_one_string_that_beats_the_lead_does_not_beat_the_best_constant():
    tokenizer = byte_tokenizer()
    topics = ["budget", "remote", "design", "market", "school", "law", "hash", "robot"]
    summaries = [f"the group discussed the {topic} and then the date" for topic in topics]
    pairs = Dataset.from_dict({"document": ["Yeah. Okay, right."] * 8, "summary": summaries})
    encoded = Dataset.from_dict({"labels": [tokenizer(text).input_ids for text in summaries]})
    splits = {"train": pairs, "test": pairs}
    score = summary_scorers(splits, dict.fromkeys(splits, encoded), tokenizer, LeadBaseline(9))
    outputs = ["the the the, the the."] * 8
    metrics = score["test"](prediction(tokenizer, encoded["labels"][:], range(8), outputs))
    for name in ("rouge1", "rougeL"):
        assert metrics[f"lead_{name}"] < metrics[name] < metrics[f"constant_{name}"]
    assert score["test"].ignores_the_document


def test_outputs_that_hardly_differ_ignore_the_document_and_others_do_not():
    few = ["summary number 1", "summary number 2", "summary number 3", *["one more"] * 34]
    assert many(37, [text.replace("3", "2") for text in few])[0].ignores_the_document
    assert not many(37, few)[0].ignores_the_document
    assert many(2, ["same", "same"])[0].ignores_the_document
    assert many(2, ["one", "other"])[0].finding == "2 distinct outputs of 2."
    assert not many(1, ["alone"])[0].ignores_the_document


def test_a_constant_is_right_where_the_references_are_one():
    tokenizer = byte_tokenizer()
    pairs = Dataset.from_dict({"document": ["x", "y"], "summary": ["yes", "yes"]})
    labels = [tokenizer("yes").input_ids] * 2
    score = SummaryScorer(tokenizer, pairs, labels, LeadBaseline(1), "yes")
    score(prediction(tokenizer, labels, [0, 1], ["yes", "yes"]))
    assert not score.ignores_the_document


@pytest.fixture
def encoder(tmp_path):
    """The directory of a small encoder, whose tokenizer names no longest text."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_bert_score_is_highest_for_the_same_words_and_nothing_for_none(encoder):
    score = BertScore(encoder)
    texts = ["one two", "a longer text " * 20]  # the second is longer than the encoder reads
    assert score(texts, texts) == approx(bertscore=100.0)
    other = score(["one two"], ["seven of nine"])["bertscore"]
    assert other < 100.0
    assert score(["one two", " "], ["seven of nine", "nine"]) == approx(bertscore=other / 2)
    assert score([""], ["nine"]) == approx(bertscore=0.0)
    # Whose vectors are compared matters; unless named they are those of the last layer.
    assert BertScore(encoder, 2)(["one two"], ["seven of nine"]) == approx(bertscore=other)
    assert BertScore(encoder, 1)(["one two"], ["seven of nine"]) != approx(bertscore=other)


def test_encoders_that_cannot_compare_words_are_refused_by_name(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"bert_score_layer: expected at most 2, .* got 3"):
        BertScore(encoder, 3)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="bert_score_model: expected an encoder"):
        BertScore(str(tmp_path / "nothing"))


def test_summaries_and_baselines_are_scored_by_bert_score_where_it_is_asked_for(encoder, scorer):
    tokenizer, labels, without = scorer
    pairs = Dataset.from_dict(
        {"document": ["alpha beta", "one two three"], "summary": ["alpha beta", "one two"]}
    )
    score = SummaryScorer(
        *(tokenizer, pairs, [tokenizer(text).input_ids for text in pairs["summary"]]),
        LeadBaseline(2),
        "one two",
        bert_score=BertScore(encoder),
    )
    own = [tokenizer(text).input_ids for text in pairs["summary"]]
    metrics = score(prediction(tokenizer, own, [0, 1], ["alpha beta", "three"]))
    assert metrics["lead_bertscore"] == pytest.approx(100.0)
    assert 50.0 < metrics["bertscore"] < 100.0
    named = {f"eval_{name}": value for name, value in metrics.items()}
    (row,) = (row for row in SummaryScorer.rows(named, "eval") if row.name == "BERTScore")
    assert row.baselines["lead baseline"] == pytest.approx(100.0)
    plain = without(prediction(tokenizer, labels, [0], ["alpha beta"]))
    assert "bertscore" not in plain


def test_accuracy_and_macro_f1_by_hand():
    actual = np.array([0, 0, 0, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0])
    # Class 0: 2 hits, 3 predicted, 3 true: 4/6. Class 1: 1, 2, 1: 2/3. Class 2: 0.
    assert accuracy(predicted, actual) == pytest.approx(0.6)
    assert macro_f1(predicted, actual) == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)


def test_majority_baseline_stands_next_to_the_model():
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
    scorer = ClassificationScorer(majority=0)
    scores = scorer(EvalPrediction(predictions=logits, label_ids=np.array([0, 1, 1])))
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["majority_accuracy"] == pytest.approx(1 / 3)
    assert scores["majority_macro_f1"] == pytest.approx((2 * 1 / (3 + 1)) / 2)


def test_majority_class_is_the_most_frequent_and_of_several_the_first():
    assert majority_class([2, 1, 2]) == 2
    assert majority_class([3, 1, 1, 3]) == 1


def test_bits_per_byte_of_uniform_guessing():
    scores = language_modeling_metrics(math.log(256), tokens_per_byte=1.0)
    assert scores["bits_per_byte"] == pytest.approx(8.0)
    assert scores["perplexity"] == pytest.approx(256.0)
    # A token of two bytes that costs 8 bits costs 4 bits a byte.
    assert language_modeling_metrics(math.log(256), 0.5)["bits_per_byte"] == pytest.approx(4.0)
    assert language_modeling_metrics(1e4, 1.0)["perplexity"] == math.inf


def test_xz_baseline_knows_repetition_from_noise():
    noise = "".join(map(chr, np.random.default_rng(0).integers(33, 127, 20_000)))
    assert xz_bits_per_byte([noise]) > 6
    assert xz_bits_per_byte(["ab" * 10_000]) < 0.2
