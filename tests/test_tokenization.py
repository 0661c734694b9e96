"""Tokenizers lose no text, place their special tokens, and open without this package."""

import functools
import gzip
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from reformer_hf import ReformerConfig, tokenization
from reformer_hf.tokenization import byte_tokenizer, settled_tokens, train_bpe_tokenizer

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

PAD, EOS, BOS, UNK, MASK, CLS, SEP = range(7)
NUM_SPECIAL = 7
SPELLINGS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<cls>", "<sep>"]

ENGLISH = "The book was written by Jane Austen. The other book was not written by her.\n"
CHINESE = "发言人一：这本书是谁写的？发言人二：这本书是她写的。\n"
CORPUS = [ENGLISH, CHINESE] * 20
BPE_SIZE = 330

# Where tokenizers lose text: ends of lines, runs of spaces, controls, characters of several bytes
# or several code points, and punctuation that clean-ups attach to the word before it.
FRAGMENTS = [
    *["\r\n", "\n\n", " ", "   ", "\t", "\0", "\x7f", "\u00a0", "\u3000", "\ufeff", "\ufffd"],
    *["é", "e\u0301", "ﬁ", "书", "这本书", "👩\u200d💻", "🇨🇳", " ,", " n't", " .", "book", "1813"],
]
ANY_TEXTS = st.text() | st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join)
TEXTS = ANY_TEXTS.filter(lambda text: not any(spelling in text for spelling in SPELLINGS))
TEXTS_WITH_SPELLINGS = st.lists(st.sampled_from([*FRAGMENTS, *SPELLINGS])).map("".join)


@functools.cache
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe_tokenizer(CORPUS, vocab_size=BPE_SIZE)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte": functools.cache(byte_tokenizer),
    "enwik8": functools.cache(lambda: byte_tokenizer("enwik8")),
    "bpe": bpe_tokenizer,
}
no_deadline = settings(deadline=None)  # the first example trains
every_tokenizer = pytest.mark.parametrize("name", list(TOKENIZERS))
tokenizers_with_all_special_tokens = pytest.mark.parametrize("name", ["byte", "bpe"])


# ---- text -> ids ----


@no_deadline
@given(text=ANY_TEXTS | TEXTS_WITH_SPELLINGS)
@example(text="".join(SPELLINGS))
def test_enwik8_layout_gives_every_byte_its_value_plus_two(text: str) -> None:
    ids = TOKENIZERS["enwik8"]()(text).input_ids
    assert ids == [b + 2 for b in text.encode()]


@no_deadline
@given(text=TEXTS)
def test_default_layout_gives_bytes_after_the_special_tokens_and_eos(text: str) -> None:
    ids = TOKENIZERS["byte"]()(text).input_ids
    assert ids == [b + NUM_SPECIAL for b in text.encode()] + [EOS]


def test_layouts_have_the_documented_number_of_ids_and_no_other() -> None:
    assert len(TOKENIZERS["byte"]()) == 263
    assert len(TOKENIZERS["enwik8"]()) == 258
    for name in ("byte", "enwik8"):
        assert sorted(TOKENIZERS[name]().get_vocab().values()) == list(
            range(len(TOKENIZERS[name]()))
        )


@tokenizers_with_all_special_tokens
def test_special_tokens_have_the_documented_ids(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    assert tokenizer.convert_tokens_to_ids(SPELLINGS) == list(range(NUM_SPECIAL))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (
        PAD,
        EOS,
        BOS,
    )
    assert (tokenizer.unk_token_id, tokenizer.mask_token_id) == (UNK, MASK)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id) == (CLS, SEP)
    assert tokenizer.convert_tokens_to_ids("no such token") == UNK


def test_enwik8_layout_pads_with_0_and_ends_with_1() -> None:
    tokenizer = TOKENIZERS["enwik8"]()
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert sorted(tokenizer.all_special_ids) == [0, 1]
    assert tokenizer.model_max_length == 65_536
    assert byte_tokenizer("enwik8", append_eos=True)("a").input_ids == [ord("a") + 2, 1]


def test_trained_tokenizer_has_every_byte_and_its_merges() -> None:
    tokenizer = bpe_tokenizer()
    assert len(tokenizer) == BPE_SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(BPE_SIZE))
    for text in ("Book", "这本书"):  # one frequent word each
        assert len(tokenizer(text, add_special_tokens=False).input_ids) < len(text.encode())
    for byte in range(128):
        assert len(tokenizer(chr(byte), add_special_tokens=False).input_ids) == 1


# ---- ids -> text ----


@every_tokenizer
@no_deadline
@given(text=TEXTS)
def test_decoding_gives_the_text_back(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@every_tokenizer
@no_deadline
@given(text=ANY_TEXTS | TEXTS_WITH_SPELLINGS)
@example(text="".join(SPELLINGS))
def test_text_that_spells_special_tokens_survives_when_they_are_split(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer(text, split_special_tokens=True, add_special_tokens=False).input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@tokenizers_with_all_special_tokens
def test_text_that_spells_special_tokens_becomes_them_by_default(name: str) -> None:
    ids = TOKENIZERS[name]()("a<sep>b<mask><pad>", add_special_tokens=False).input_ids
    assert [i for i in ids if i < NUM_SPECIAL] == [SEP, MASK, PAD]


def test_a_corpus_full_of_special_tokens_does_not_teach_a_merge_that_is_one() -> None:
    tokenizer = train_bpe_tokenizer(["<mask> <mask><eos>"] * 50, 300, split_special_tokens=True)
    ids = tokenizer("<mask> <mask><eos>", add_special_tokens=False).input_ids
    assert min(ids) >= NUM_SPECIAL
    assert tokenizer.decode(ids) == "<mask> <mask><eos>"


@pytest.mark.parametrize(("name", "space_stays"), [("byte", True), ("bpe", False)])
def test_mask_takes_the_space_before_it_where_words_do(name: str, space_stays: bool) -> None:
    encode = functools.partial(TOKENIZERS[name](), add_special_tokens=False)
    before = encode("the " if space_stays else "the").input_ids
    after = encode(" by").input_ids
    assert encode("the <mask> by").input_ids == [*before, MASK, *after]


@every_tokenizer
def test_a_cut_character_decodes_to_the_replacement_character(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer("a🙂", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids[:-1]) == "a\ufffd"


# ---- what encoding adds, for the tasks ----


@tokenizers_with_all_special_tokens
def test_targets_end_in_eos_even_when_truncated(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    labels = tokenizer(text_target=["by her", CHINESE], max_length=4, truncation=True).input_ids
    assert [row[-1] for row in labels] == [EOS, EOS]
    assert max(map(len, labels)) == 4


@pytest.mark.parametrize(
    "build",
    [byte_tokenizer, functools.partial(train_bpe_tokenizer, CORPUS, BPE_SIZE)],
    ids=["byte", "bpe"],
)
def test_prompts_end_without_eos_when_asked_for(build: Callable[..., Any]) -> None:
    tokenizer = build(append_eos=False)
    assert EOS not in tokenizer("The book", "was written").input_ids
    assert tokenizer.decode(tokenizer("The book").input_ids) == "The book"


@tokenizers_with_all_special_tokens
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_masked_on_either_side(name: str, side: str) -> None:
    tokenizer = TOKENIZERS[name]()
    texts = ["a", CHINESE, ""]
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    assert list(batch) == ["input_ids", "attention_mask"]
    assert batch.input_ids.shape == batch.attention_mask.shape
    for text, ids, mask in zip(texts, batch.input_ids, batch.attention_mask, strict=True):
        expected = tokenizer(text).input_ids
        assert ids[mask.bool()].tolist() == expected
        assert (ids[~mask.bool()] == PAD).all()
        kept = mask[-len(expected) :] if side == "left" else mask[: len(expected)]
        assert kept.all()


@tokenizers_with_all_special_tokens
def test_answers_in_pairs_are_found_again_by_offsets_and_sequence_ids(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    question, answer = "Who wrote it? 谁写的？", "Jane Austen"
    context = CHINESE * 3 + ENGLISH + CHINESE * 3
    start = context.index(answer)
    context_length = len(tokenizer(context, add_special_tokens=False).input_ids)
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=len(tokenizer(question).input_ids) + 1 + context_length // 2,
        stride=context_length // 4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for index, (ids, offsets) in enumerate(
        zip(windows.input_ids, windows.offset_mapping, strict=True)
    ):
        sequence = windows.sequence_ids(index)
        assert ids.count(SEP) == 1
        assert (ids[-1], sequence[-1]) == (EOS, None)
        separator = ids.index(SEP)
        assert set(sequence[:separator]) == {0}
        assert sequence[separator] is None
        assert set(sequence[separator + 1 : -1]) == {1}
        inside = [
            (a, b)
            for (a, b), part in zip(offsets, sequence, strict=True)
            if part == 1 and start <= a < b <= start + len(answer)
        ]
        found.append(context[inside[0][0] : inside[-1][1]] if inside else "")
    assert len(found) > 1
    assert answer in found


@pytest.mark.parametrize("name", ["byte", "enwik8"])
def test_offsets_of_bytes_are_the_span_of_their_character(name: str) -> None:
    encoding = TOKENIZERS[name]()("a书 b", add_special_tokens=False, return_offsets_mapping=True)
    assert encoding.offset_mapping == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3), (3, 4)]


@tokenizers_with_all_special_tokens
def test_words_given_one_by_one_can_be_labelled(name: str) -> None:
    encoding = TOKENIZERS[name]()(["Jane", "书"], is_split_into_words=True)
    word_ids = encoding.word_ids()
    assert sorted(set(word_ids[:-1])) == [0, 1]
    assert word_ids == [*sorted(word_ids[:-1]), None]


@every_tokenizer
@no_deadline
@given(words=st.lists(st.sampled_from(["a", "b", "ab", "c", "书", "é"]), min_size=1, max_size=6))
def test_words_given_one_by_one_keep_their_boundaries(name: str, words: list[str]) -> None:
    tokenizer = TOKENIZERS[name]()
    encode = functools.partial(tokenizer, add_special_tokens=False)
    encoding = encode(words, is_split_into_words=True, return_offsets_mapping=True)
    assert encoding.input_ids == encode("".join(f" {word}" for word in words)).input_ids
    assert tokenizer.decode(encoding.input_ids).split(" ")[1:] == words
    # Offsets stand within the word; the space before it takes no character away.
    for number, (start, end) in zip(encoding.word_ids(), encoding.offset_mapping, strict=True):
        assert 0 <= start <= end <= len(words[number])


@every_tokenizer
@pytest.mark.parametrize("with_model", [False, True])
def test_loaded_tokenizers_keep_words_apart(name: str, with_model: bool, tmp_path: Path) -> None:
    TOKENIZERS[name]().save_pretrained(tmp_path)
    if with_model:
        ReformerConfig().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for words in (["ab", "c"], ["a", "bc"]):
        expected = TOKENIZERS[name]()(words, is_split_into_words=True).input_ids
        assert loaded(words, is_split_into_words=True).input_ids == expected


@every_tokenizer
def test_texts_are_encoded_as_before_after_words_were_given_one_by_one(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    before = tokenizer(["the book", "谁"]).input_ids
    pairs = tokenizer([["a"], ["b", "c"]], [["d", "e"], ["f"]], is_split_into_words=True)
    assert pairs.input_ids == tokenizer([" a", " b c"], [" d e", " f"]).input_ids
    with pytest.raises(ValueError, match="must be of type"):
        tokenizer([3], is_split_into_words=True)
    assert tokenizer(["the book", "谁"]).input_ids == before


@tokenizers_with_all_special_tokens
def test_a_special_token_may_be_one_of_the_words(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoding = tokenizer(["the", "<mask>", "book"], is_split_into_words=True)
    assert encoding.input_ids == tokenizer(" the<mask> book").input_ids


@tokenizers_with_all_special_tokens
def test_masked_language_modelling_masks_text_and_no_special_token(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=1.0, mask_replace_prob=1.0, random_replace_prob=0.0
    )
    rows = [tokenizer("the book"), tokenizer("书", "her")]
    batch = collator(rows)
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        for i, original in enumerate(row.input_ids):
            is_special = original < NUM_SPECIAL
            assert ids[i] == (original if is_special else MASK)
            assert labels[i] == (-100 if is_special else original)


# ---- saving and loading ----

LOAD_WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["reformer_hf"] = None  # an import of it now fails
from transformers import AutoTokenizer
directory, text, pair = sys.argv[1:]
tokenizers = {
    name: AutoTokenizer.from_pretrained(f"{directory}/{name}") for name in ("byte", "enwik8", "bpe")
}
tokenizers["split"] = AutoTokenizer.from_pretrained(directory + "/bpe", split_special_tokens=True)
print(json.dumps({
    name: [type(t).__module__.split(".")[0], t.model_max_length, list(t(text, pair)),
           t(text, pair).input_ids, t.decode(t(text).input_ids, skip_special_tokens=True)]
    for name, t in tokenizers.items()
}))
"""


def test_saved_tokenizers_open_the_same_in_a_process_without_the_package(tmp_path: Path) -> None:
    text, pair = "\r\n 谁 <mask> ,it?<eos> ", "<pad> Jane"
    for name, tokenizer in TOKENIZERS.items():
        tokenizer().save_pretrained(tmp_path / name)
    # A model of ours lies in the same directory; transformers alone does not know its type.
    (tmp_path / "byte" / "config.json").write_text(json.dumps({"model_type": "reformer_hf"}))
    (tmp_path / "enwik8" / "config.json").write_text(json.dumps({"model_type": "reformer"}))

    command = [sys.executable, "-c", LOAD_WITHOUT_THE_PACKAGE, str(tmp_path), text, pair]
    answer = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    loaded = json.loads(answer)

    fields = ["input_ids", "attention_mask"]
    for name, build in TOKENIZERS.items():
        original = build()
        ids = original(text, pair).input_ids
        decoded = original.decode(original(text).input_ids, skip_special_tokens=True)
        assert loaded[name] == ["transformers", original.model_max_length, fields, ids, decoded]
    assert loaded["enwik8"][-1] == text
    assert loaded["split"][-1] == text


# ---- training ----


def test_training_twice_gives_the_same_tokenizer() -> None:
    first = bpe_tokenizer().backend_tokenizer.to_str()
    assert train_bpe_tokenizer(iter(CORPUS), BPE_SIZE).backend_tokenizer.to_str() == first


def test_a_book_in_one_string_trains_the_same_tokenizer_as_its_lines() -> None:
    lines = [f"chapter {i // 100}, {ENGLISH}" for i in range(2000)] + ["Epilogue\n"] * 9
    whole = train_bpe_tokenizer(["".join(lines)], 400)
    assert whole.tokenize("Epilogue") == ["Epilogue"]
    assert whole.get_vocab() == train_bpe_tokenizer(lines, 400).get_vocab()


def test_a_corpus_too_small_for_the_vocabulary_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = train_bpe_tokenizer(["aa aa"], 1000)
    assert len(tokenizer) == 264
    assert "1000 ids were asked for, the texts give 264" in caplog.text


def test_min_frequency_decides_what_is_merged() -> None:
    texts = ["aabbaa"] * 3
    assert len(train_bpe_tokenizer(texts, 270, min_frequency=3)) > 263
    assert len(train_bpe_tokenizer(texts, 270, min_frequency=7)) == 263


# ---- speed ----


@pytest.mark.parametrize("name", ["byte", "bpe"])
@pytest.mark.parametrize("unit", ["a", "书", " "])
def test_a_long_text_without_words_is_encoded_in_linear_time(name: str, unit: str) -> None:
    tokenizer = TOKENIZERS[name]()
    text = unit * (300_000 // len(unit.encode()))
    begin = time.perf_counter()
    ids = tokenizer(text).input_ids
    seconds = time.perf_counter() - begin
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert seconds < 10, "0.2 s is usual: only an algorithm worse than linear takes so long"


def characters_per_word(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return max(end - start for _, (start, end) in words)


LONG_LINES = {
    "DNA": "ACGTTGCAAT" * 200,
    "JSON": '{"a":[[],{}]}' * 150 + "}" * 2000,
    "Chinese": "这本书是谁写的" * 300,
    "digits": "31415926" * 300,
    "spaces": "a" + " " * 3000 + "b",
    "line ends": "\n" * 3000,
}


@pytest.mark.parametrize("line", LONG_LINES.values(), ids=LONG_LINES.keys())
def test_no_word_is_longer_than_a_bound_in_training_and_after_loading(
    line: str, tmp_path: Path
) -> None:
    tokenizer = train_bpe_tokenizer([line], BPE_SIZE)
    tokenizer.save_pretrained(tmp_path)
    for found in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert characters_per_word(found, line) <= 257
        assert found.decode(found(line).input_ids, skip_special_tokens=True) == line
    assert max(map(len, tokenizer.get_vocab())) <= 4 * 257


@given(text=TEXTS | st.lists(st.sampled_from([*FRAGMENTS, "a" * 250, " " * 250])).map("".join))
def test_shorter_words_are_those_of_gpt2(text: str) -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    expected = gpt2.pre_tokenize_str(text)
    if all(end - start <= 256 for _, (start, end) in expected):
        assert bpe_tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) == expected


def test_a_long_line_is_cut_between_words_so_that_the_tokenizer_stays_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: list[int] = []
    train = Tokenizer.train_from_iterator

    def measured(self: Tokenizer, texts: Iterator[str], trainer: object) -> None:
        train(self, (lengths.append(len(text)) or text for text in texts), trainer)

    monkeypatch.setattr(Tokenizer, "train_from_iterator", measured)
    text = ENGLISH.replace("\n", "   ") * 6000
    one_line = train_bpe_tokenizer([text], 400)
    assert max(lengths) <= 2 * 65_536
    assert sum(lengths) == len(text)
    monkeypatch.setattr(tokenization, "_CHARACTERS_PER_PIECE", len(text))
    assert train_bpe_tokenizer([text], 400).get_vocab() == one_line.get_vocab()
    assert max(lengths) == len(text)


# ---- how far encoding looks ahead ----


@functools.cache
def gpt2_like_tokenizer() -> PreTrainedTokenizerFast:
    """What earlier versions trained: words have no bound."""
    tokenizer = train_bpe_tokenizer(CORPUS, vocab_size=BPE_SIZE)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


LONG_FRAGMENTS = [*FRAGMENTS, *SPELLINGS, "a" * 300, " " * 300, "书" * 300, "\n" * 40, "'s", "ab c"]
LONG_TEXTS = st.lists(st.sampled_from(LONG_FRAGMENTS), max_size=40).map("".join)


@pytest.mark.parametrize("name", [*TOKENIZERS, "gpt2"])
@no_deadline
@given(text=LONG_TEXTS, more=LONG_TEXTS, size=st.integers(0, 10_000))
@example(text="a" * 600 + " " * 300 + "<ma", more="sk> b", size=10_000)
@example(text="book " * 60 + "book", more="s", size=10_000)
def test_settled_tokens_are_those_of_every_longer_text(
    name: str, text: str, more: str, size: int
) -> None:
    tokenizer = gpt2_like_tokenizer() if name == "gpt2" else TOKENIZERS[name]()
    encode = functools.partial(tokenizer, add_special_tokens=False)
    count = settled_tokens(tokenizer, text[:size])
    assert count is not None
    ids = encode(text[:size]).input_ids
    assert count <= len(ids)
    assert encode(text + more).input_ids[:count] == ids[:count]


@pytest.mark.parametrize("name", [*TOKENIZERS, "gpt2"])
def test_all_but_the_end_of_a_text_is_settled(name: str) -> None:
    tokenizer = gpt2_like_tokenizer() if name == "gpt2" else TOKENIZERS[name]()
    text = ENGLISH * 20
    settled = tokenizer.decode(tokenizer(text).input_ids[: settled_tokens(tokenizer, text)])
    assert len(text) - 300 < len(settled) < len(text)


def test_saved_tokenizers_settle_as_before_and_unknown_ones_are_not_judged(tmp_path: Path) -> None:
    for name, build in TOKENIZERS.items():
        build().save_pretrained(tmp_path / name)
        loaded = AutoTokenizer.from_pretrained(tmp_path / name)
        assert settled_tokens(loaded, ENGLISH * 9) == settled_tokens(build(), ENGLISH * 9)
    other = train_bpe_tokenizer(CORPUS, vocab_size=BPE_SIZE)
    other.backend_tokenizer.normalizer = normalizers.NFKC()
    assert settled_tokens(other, ENGLISH) is None
    other = train_bpe_tokenizer(CORPUS, vocab_size=BPE_SIZE)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert settled_tokens(other, ENGLISH) is None
    # Merges without words: every token may depend on all that follows.
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    assert settled_tokens(other, ENGLISH) is None


# ---- real text ----


@pytest.mark.skipif(not DATA.is_dir(), reason="the long documents are not on this machine")
def test_real_novels_and_meetings_are_compressed_without_loss() -> None:
    with gzip.open(DATA / "books_lm" / "validation.txt.gz", "rt", encoding="utf-8") as file:
        novel = file.read(200_000)
    with gzip.open(DATA / "vcsum_zh" / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        meetings = [json.loads(line)["document"] for line in itertools.islice(file, 20)]
    tokenizer = train_bpe_tokenizer([novel, *meetings], 4096)
    assert len(tokenizer) == 4096
    for text in (novel, *meetings):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(text.encode()) > 3 * len(ids)


# ---- bad input ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: byte_tokenizer("utf16"), r"layout: expected .*'default', 'enwik8'.*got 'utf16'"),
        (lambda: byte_tokenizer(model_max_length=0), "model_max_length: expected .* got 0"),
        (lambda: train_bpe_tokenizer(["a"], 262), "vocab_size: .* at least 263 .* got 262"),
        (lambda: train_bpe_tokenizer(["a"], True), "vocab_size: expected an integer .* got True"),
        (lambda: train_bpe_tokenizer(["a"], 300, min_frequency=0), "min_frequency: .* got 0"),
        (lambda: train_bpe_tokenizer(["a"], 300, model_max_length=-1), "model_max_.* got -1"),
        (lambda: train_bpe_tokenizer([], 300), "texts: expected at least one .* got none"),
        (lambda: train_bpe_tokenizer(["", ""], 300), "texts: expected at least one .* got none"),
        (lambda: train_bpe_tokenizer("one text", 300), "texts: expected an iterable .* got str"),
        (lambda: train_bpe_tokenizer(None, 300), "texts: expected an iterable .* got NoneType"),
        (lambda: train_bpe_tokenizer(["a", 3], 300), r"texts\[1\]: expected a string, got int"),
        (lambda: train_bpe_tokenizer(["a\ud800"], 300), r"texts\[0\]: .* '\\ud800' at character 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_field_expected_and_actual(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
