"""Byte-level tokenizers: one that needs no training, and a trained byte-pair encoding.

Both functions return a transformers fast tokenizer: what `save_pretrained` writes is read by
`AutoTokenizer.from_pretrained` without this package and without `trust_remote_code`, and encodes
every text the same there.

Text is lossless. Nothing is normalised, unknown, inserted or dropped, so

    tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text

for every `text` that UTF-8 can encode and that does not spell a special token. Ids that are no
valid UTF-8 (a model may generate them) decode to the replacement character U+FFFD.

**Special tokens**, the same in every tokenizer of this module but the `enwik8` layout:

| id | token    | used for                                                          |
|----|----------|-------------------------------------------------------------------|
| 0  | `<pad>`  | padding, left or right; first decoder input of a seq2seq model    |
| 1  | `<eos>`  | end of a text: appended to every encoded text and pair            |
| 2  | `<bos>`  | begin of a text, for whoever wants one; never added               |
| 3  | `<unk>`  | what `convert_tokens_to_ids` answers for something that is no token |
| 4  | `<mask>` | masked language modelling                                         |
| 5  | `<cls>`  | a classification token, for whoever wants one; never added        |
| 6  | `<sep>`  | between the two texts of a pair                                   |

They are not called `<s>` and `</s>`, because documents contain those, as HTML.

**What encoding adds** (`add_special_tokens=True`, the default of a call):

    text               a <eos>
    text, text_pair    a <sep> b <eos>

A seq2seq target must end in `<eos>`, or the model never learns to stop, and the example scripts of
transformers leave that to the tokenizer. A prompt that a causal model shall continue must *not* end
in it: build the tokenizer with `append_eos=False`, or encode with `add_special_tokens=False`.

**Text that spells a special token** (`"... <mask> ..."`) becomes that token, as everywhere in
transformers: fill-mask prompts and chat templates rely on it. With `split_special_tokens=True`,
here or in a call, it is encoded as ordinary text, and then the round trip holds for every text.
Choose that for text you do not trust.

**Words given one by one** (`is_split_into_words=True`) get a space in front of each, as in a text,
so that `["ab", "c"]` and `["a", "bc"]` stay different. This is the one thing that transformers does
otherwise where this package was not imported: there the words are joined without a space.
"""

import io
import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = [
    "ReformerByteLevelTokenizer",
    "byte_tokenizer",
    "settled_tokens",
    "train_bpe_tokenizer",
]

logger = logging.getLogger(__name__)

_NUM_BYTES = 256

# The order is the order of the ids.
_SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<cls>",
    "sep_token": "<sep>",
}
_LAYOUTS = {
    "default": _SPECIAL_TOKENS,
    "enwik8": {"pad_token": "<pad>", "eos_token": "<eos>"},
}
_ENWIK8_MAX_LENGTH = 65_536

# The tokenizers library holds some 100 bytes for each byte of a text while it counts words.
_CHARACTERS_PER_PIECE = 65_536

# Longest word in characters, a space before it not counted: counting pairs takes time quadratic in
# it. Words of a language are far shorter; DNA, minified JSON or Chinese without punctuation is cut.
_LONGEST_WORD = 256
# GPT-2's words, cut at that length. Where all are shorter, these are exactly those of GPT-2.
_UP_TO_LONGEST = f"{{1,{_LONGEST_WORD}}}"
_WORDS = Regex(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".replace(
        "+", _UP_TO_LONGEST
    )
)


class ReformerByteLevelTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer that keeps words apart which are given one by one.

    transformers' own hands each word to the backend without what stood between them.

    Example:
        >>> tokenizer = byte_tokenizer(append_eos=False)
        >>> tokenizer.decode(tokenizer(["ab", "c"], is_split_into_words=True).input_ids)
        ' ab c'
    """

    def _encode_plus(
        self, *args: Any, is_split_into_words: bool = False, **kwargs: Any
    ) -> BatchEncoding:
        if not is_split_into_words:
            return super()._encode_plus(*args, **kwargs)
        # The backend cannot tell a word from a text, so it is told for the time of this call, as
        # transformers does with truncation and padding. It keeps offsets within the given words.
        self.backend_tokenizer.normalizer = normalizers.Prepend(" ")
        try:
            return super()._encode_plus(*args, is_split_into_words=True, **kwargs)
        finally:
            self.backend_tokenizer.normalizer = None


def byte_tokenizer(
    layout: str = "default",
    *,
    model_max_length: int | None = None,
    append_eos: bool | None = None,
    split_special_tokens: bool | None = None,
) -> PreTrainedTokenizerFast:
    """Tokenizer that reads text as its UTF-8 bytes, one token per byte.

    | layout    | ids | byte `b` | special tokens                         | encoding appends |
    |-----------|-----|----------|----------------------------------------|------------------|
    | `default` | 263 | `b + 7`  | the seven of the module's table        | `<eos>`          |
    | `enwik8`  | 258 | `b + 2`  | only 0, which pads, and 1, the `<eos>` | nothing          |

    `enwik8` is the encoding `google/reformer-enwik8` was trained with: the ids of `text` are
    exactly `[b + 2 for b in text.encode()]`, whatever `text` spells.

    Args:
        layout: `"default"` or `"enwik8"`.
        model_max_length: longest input of the model in tokens, the length that `truncation=True`
            cuts to. Unset: no limit; 65,536 for `enwik8`.
        append_eos: whether encoding ends a text and a pair with `<eos>`. Unset: `True`; `False` for
            `enwik8`. Set it to `False` for the prompts of a causal model.
        split_special_tokens: whether text that spells a special token is encoded as the bytes it
            consists of. Unset: `False`; `True` for `enwik8`.

    Returns:
        A fast tokenizer. Offsets count characters: the bytes of one character share its span.

    Raises:
        ValueError: unknown `layout`, or a `model_max_length` that is no positive integer.

    Source: the `encode` function on the model card of `google/reformer-enwik8`, which is the
    `ByteTextEncoder` of tensor2tensor with its two reserved ids.

    Example:
        >>> byte_tokenizer()("hi").input_ids
        [111, 112, 1]
        >>> byte_tokenizer("enwik8")("hi").input_ids
        [106, 107]
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"layout: expected one of {sorted(_LAYOUTS)}, got {layout!r}")
    special_tokens = _LAYOUTS[layout]
    is_enwik8 = layout == "enwik8"
    if model_max_length is None and is_enwik8:
        model_max_length = _ENWIK8_MAX_LENGTH
    if append_eos is None:
        append_eos = not is_enwik8
    if split_special_tokens is None:
        split_special_tokens = is_enwik8

    tokens = [*special_tokens.values(), *_byte_characters()]
    backend = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges=[]))
    backend.add_special_tokens(_added_tokens(special_tokens))
    backend.pre_tokenizer = _bytes()
    backend.post_processor = _template(special_tokens, append_eos=append_eos)
    return _as_transformers_tokenizer(
        backend,
        special_tokens,
        model_max_length=model_max_length,
        split_special_tokens=split_special_tokens,
    )


def train_bpe_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    model_max_length: int | None = None,
    append_eos: bool = True,
    split_special_tokens: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a byte-level byte-pair encoding: frequent byte sequences become one token.

    Ids: 0 to 6 are the special tokens of the module's table, 7 to 262 the single bytes (in the
    order of the characters GPT-2 writes them with, not in byte order), from 263 on the merges, the
    most frequent first. All 256 bytes are there whatever the corpus holds, so nothing is unknown.
    Words are split as in GPT-2: a space belongs to the word after it; a run of more than 256
    letters, digits, signs or spaces is cut, so that time stays linear in the length of a text. The
    same texts give the same tokenizer.

    Args:
        texts: the corpus, read once; a text may be a line or a whole book.
        vocab_size: number of ids, special tokens and bytes included; at least 263. A corpus too
            small for that many gives fewer and logs a warning: size the model by `len(tokenizer)`.
        min_frequency: how often a pair must occur to be merged.
        model_max_length: longest input of the model in tokens, the length that `truncation=True`
            cuts to. Unset: no limit.
        append_eos: whether encoding ends a text and a pair with `<eos>`. Set it to `False` for the
            prompts of a causal model.
        split_special_tokens: whether text that spells a special token is encoded as ordinary text.

    Returns:
        A fast tokenizer. Offsets leave out the space a token starts with, so that an answer cut
        from its context starts with a letter. `<mask>` in a text takes the space before it, as a
        word that is masked does.

    Raises:
        ValueError: `texts` is a single string, holds no text at all, or has an item that is no
            string or cannot be encoded as UTF-8 (lone surrogates); `vocab_size` is below 263;
            `min_frequency` or `model_max_length` is no positive integer.

    Source: Sennrich et al. 2016 (byte-pair encoding), Radford et al. 2019 (on bytes: GPT-2).

    Example:
        >>> tokenizer = train_bpe_tokenizer(["low lower lowest"] * 10, vocab_size=265)
        >>> tokenizer.tokenize("low lower")
        ['low', 'Ġ', 'low', 'e', 'r']
    """
    smallest = len(_SPECIAL_TOKENS) + _NUM_BYTES
    if not _is_integer(vocab_size) or vocab_size < smallest:
        raise ValueError(
            f"vocab_size: expected an integer of at least {smallest} ({len(_SPECIAL_TOKENS)} "
            f"special tokens and {_NUM_BYTES} bytes), got {vocab_size!r}"
        )
    _check_positive("min_frequency", min_frequency)
    _check_max_length(model_max_length)
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise ValueError(f"texts: expected an iterable of strings, got {type(texts).__name__}")

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = _words()
    backend.train_from_iterator(
        _checked_texts(texts),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=_added_tokens(_SPECIAL_TOKENS, strip_before_mask=True),
            initial_alphabet=_byte_characters(),
            show_progress=False,
        ),
    )
    trained_size = backend.get_vocab_size()
    if trained_size < vocab_size:
        logger.warning(
            "vocab_size: %d ids were asked for, the texts give %d: no further pair occurs at least "
            "%d times",
            vocab_size,
            trained_size,
            min_frequency,
        )
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=False, trim_offsets=True),
            _template(_SPECIAL_TOKENS, append_eos=append_eos),
        ]
    )
    return _as_transformers_tokenizer(
        backend,
        _SPECIAL_TOKENS,
        model_max_length=model_max_length,
        split_special_tokens=split_special_tokens,
    )


def settled_tokens(tokenizer: PreTrainedTokenizerBase, beginning: str) -> int | None:
    """How many of the first tokens of `beginning` are those of every text that begins so.

    Encoding looks ahead: a word may go on, and so may the spelling of a special token, which takes
    the spaces before it along if it is `<mask>`; it looks no further than the longest word and the
    longest such spelling. Where words have no bound (in tokenizers of GPT-2's kind, and in those
    that earlier versions of this module trained), only what a space ends is settled.

    Args:
        tokenizer: any; answered for those of this module and of GPT-2's kind, loaded or new.
        beginning: of a text.

    Returns:
        A number of tokens, special tokens around the text not counted; None if it cannot be told.

    Example:
        >>> tokenizer = byte_tokenizer()
        >>> settled_tokens(tokenizer, "a long text that goes on")  # it may spell <mask> at its end
        17
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    length = _settled_length(tokenizer, beginning)
    if length is None:
        return None
    offsets = tokenizer(
        beginning, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    ).offset_mapping
    # Offsets may leave out the space before a word: what starts later may seem to start too late
    # but never too early.
    starts = (start for start, _ in offsets)
    return sum(1 for _ in itertools.takewhile(lambda start: start < length, starts))


def _settled_length(tokenizer: PreTrainedTokenizerFast, beginning: str) -> int | None:
    """The characters of `beginning` in words that no continuation changes; None: unknown."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None or backend.pre_tokenizer is None:
        return None
    splitter = json.loads(backend.pre_tokenizer.__getstate__())
    added = tokenizer.added_tokens_decoder.values()
    limit = len(beginning) - max((len(token.content) for token in added), default=0) - 1
    if splitter == json.loads(_words().__getstate__()):
        limit -= _LONGEST_WORD + 1  # with the space before it
    elif splitter["type"] != "ByteLevel":
        return None
    elif splitter["use_regex"]:
        return _word_end(beginning, 0, limit) if limit > 0 else 0
    elif json.loads(backend.model.__getstate__()).get("merges"):
        return None
    settled = beginning[: max(limit, 0)]
    return len(settled.rstrip() if any(token.lstrip for token in added) else settled)


def _bytes() -> pre_tokenizers.PreTokenizer:
    """Without merges words mean nothing: the whole text is one piece, encoded in linear time."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(_WORDS, behavior="isolated"), _bytes()])


def _as_transformers_tokenizer(
    backend: Tokenizer,
    special_tokens: dict[str, str],
    *,
    model_max_length: int | None,
    split_special_tokens: bool,
) -> PreTrainedTokenizerFast:
    _check_max_length(model_max_length)
    backend.decoder = decoders.ByteLevel()
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    return ReformerByteLevelTokenizer(
        tokenizer_object=backend,
        split_special_tokens=split_special_tokens,
        **special_tokens,
        **limit,
    )


def _added_tokens(
    special_tokens: dict[str, str], *, strip_before_mask: bool = False
) -> list[AddedToken]:
    return [
        AddedToken(
            token,
            special=True,
            normalized=False,
            lstrip=strip_before_mask and role == "mask_token",
        )
        for role, token in special_tokens.items()
    ]


def _template(special_tokens: dict[str, str], *, append_eos: bool) -> processors.TemplateProcessing:
    """What encoding puts around a text and between the texts of a pair."""
    ids = {token: id_ for id_, token in enumerate(special_tokens.values())}
    separator = [special_tokens["sep_token"]] if "sep_token" in special_tokens else []
    end = [special_tokens["eos_token"]] if append_eos else []
    return processors.TemplateProcessing(
        single=["$A:0", *(f"{token}:0" for token in end)],
        pair=[
            "$A:0",
            *(f"{token}:0" for token in separator),
            "$B:1",
            *(f"{token}:1" for token in end),
        ],
        special_tokens=[(token, ids[token]) for token in [*separator, *end]],
    )


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte, in byte order.

    Printable characters of Latin-1 stand for their own byte, every other byte gets the next
    character from U+0100 on: GPT-2's table, which `ByteLevel` of the tokenizers library builds in.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(_NUM_BYTES) if byte not in printable]
    replacement = {byte: chr(_NUM_BYTES + rank) for rank, byte in enumerate(others)}
    return [replacement.get(byte, chr(byte)) for byte in range(_NUM_BYTES)]


def _checked_texts(texts: Iterable[str]) -> Iterator[str]:
    is_empty = True
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{index}]: expected a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"texts[{index}]: expected text that UTF-8 can encode, got the lone surrogate "
                f"{text[error.start]!a} at character {error.start}"
            ) from error
        is_empty = is_empty and not text
        yield from _pieces(text)
    if is_empty:
        raise ValueError("texts: expected at least one text that is not empty, got none")


def _pieces(text: str) -> Iterator[str]:
    """`text` cut at ends of lines, so that a book does not take a hundred times its size.

    A longer line is cut where a word ends, or anywhere if there is no space in it.
    """
    lines = io.StringIO(text, newline="")
    while piece := "".join(lines.readlines(_CHARACTERS_PER_PIECE)):
        start = 0
        while len(piece) - start > 2 * _CHARACTERS_PER_PIECE:
            limit = start + _CHARACTERS_PER_PIECE
            end = _word_end(piece, start, limit) or limit
            yield piece[start:end]
            start = end
        yield piece[start:]


def _word_end(text: str, start: int, limit: int) -> int:
    """The last place after `start` where a space follows something else; 0: nowhere."""
    end = text.rfind(" ", start + 1, limit + 1)
    while end > 0 and text[end - 1].isspace():
        end = text.rfind(" ", start + 1, end)
    return max(end, 0)


def _check_max_length(model_max_length: int | None) -> None:
    if model_max_length is not None:
        _check_positive("model_max_length", model_max_length)


def _check_positive(field: str, value: int) -> None:
    if not _is_integer(value) or value < 1:
        raise ValueError(f"{field}: expected a positive integer, got {value!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
