"""What a token is does not depend on how its accents are stored, in any script."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.rouge import compute_rouge, counts_characters, resolve_language, tokenizer_for

WORDS = {
    "Hindi": "हिन्दी भाषा",
    "Tamil": "தமிழ் மொழி",
    "Bengali": "বাংলা ভাষা",
    "Arabic": "اللُّغَةُ العَرَبِيَّةُ",
    "Hebrew": "שָׁלוֹם עוֹלָם",
    "Persian": "می\u200cخواهم بروم",
    "Vietnamese": "tiếng Việt",
    "Yoruba": "ọ̀rọ̀ Yorùbá",
    "Korean": "한국어 문장",
}
SENTENCES = {
    "zh": ("我爱北京", ["我", "爱", "北", "京"]),
    "ja": ("ガラスを食べる", ["ガ", "ラ", "ス", "を", "食", "べ", "る"]),
    "th": ("ที่นี่", ["ที่", "นี่"]),
    "lo": ("ພາສາລາວ", ["ພ", "າ", "ສ", "າ", "ລ", "າ", "ວ"]),
    "km": ("ភាសាខ្មែរ", ["ភា", "សា", "ខ្", "មែ", "រ"]),
    "my": ("မြန်မာ", ["မြ", "န်", "မာ"]),
    "bo": ("བོད་སྐད", ["བོ", "ད", "སྐ", "ད"]),
}


@pytest.mark.parametrize("text", WORDS.values(), ids=WORDS.keys())
def test_marks_and_joiners_belong_to_words(text):
    expected = unicodedata.normalize("NFC", text.lower()).split()
    assert tokenizer_for(None).tokenize(text) == expected


@pytest.mark.parametrize("lang", SENTENCES)
@pytest.mark.parametrize("detected", [True, False])
def test_scripts_without_spaces_are_counted_by_characters(lang, detected):
    text, characters = SENTENCES[lang]
    assert counts_characters(lang)
    assert resolve_language(None, [text]) == lang
    tokenizer = tokenizer_for(None if detected else lang)
    assert tokenizer.tokenize(f"GPT-2: {text}。") == ["gpt", "2", *characters]
    assert tokenizer.leading(text, 2) == "".join(characters[:2])


def test_words_with_different_vowel_signs_are_different():
    assert compute_rouge(["काली"], ["कुला"])["rouge1"] == 0.0
    assert compute_rouge(["กา"], ["กี"])["rouge1"] == pytest.approx(0.0)


@pytest.mark.parametrize("lang", ["en", "de-AT", "ko"])
def test_foreign_names_are_words_where_the_language_has_spaces(lang):
    assert not counts_characters(lang)
    assert tokenizer_for(lang).tokenize("The word 北京 means") == ["the", "word", "北京", "means"]


@pytest.mark.parametrize(
    ("text", "use_stemmer"),
    [
        ("café résumé", False),
        ("café résumé", True),
        ("naïve Ångström", True),
        ("ガラス", False),
        ("한국어", False),
    ],
)
def test_composed_and_decomposed_texts_are_the_same(text, use_stemmer):
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    scores = compute_rouge([decomposed], [composed], use_stemmer=use_stemmer)
    assert scores["rougeL"] == pytest.approx(100.0)


@given(text=st.text(st.characters(max_codepoint=0x24F)))
def test_latin_text_has_the_words_it_always_had(text):
    composed = unicodedata.normalize("NFC", text).lower()
    # One letter in this range, I with a dot, is a letter and a mark in lower case.
    expected = re.findall(r"[^\W_](?:[^\W_]|\u0307)*", composed)
    assert tokenizer_for(None).tokenize(text) == expected
    assert tokenizer_for("en").tokenize(text) == expected


def test_kana_tell_japanese_from_chinese_and_latin_names_change_nothing():
    assert resolve_language(None, ["東京都議会議員選挙の結果が発表されました"]) == "ja"
    assert resolve_language(None, ["北京市人民代表大会の公布结果，选举委员会"]) == "zh"
    assert resolve_language(None, ["ใช้ BERT ในการสรุป"]) == "th"
    assert resolve_language(None, ["हिन्दी भाषा"]) is None


def test_stemming_is_refused_where_characters_are_counted():
    with pytest.raises(ValueError, match="use_stemmer: expected False for language 'th'"):
        compute_rouge(["กา"], ["กา"], lang="th", use_stemmer=True)
