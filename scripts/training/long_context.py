"""Comparing full attention, a local window and LSH rounds in a pretrained language model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import regex
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import reformer_hf
from reformer_hf.pretrained.configuring import attending as attending_in
from reformer_hf.pretrained.diagnosis import diagnose


@dataclass(frozen=True)
class Contender:
    """One way to attend.

    Attributes:
        name: how it is called in tables.
        implementation: of the attention; ``None``: the one it has.
        changes: settings of sparse attention.
        keys: visible keys of a query, mean; ``None``: all.
    """

    name: str
    implementation: str | None
    changes: dict[str, int]
    keys: float | None = None


def window_with_as_many_keys(keys: float, length: int, sinks: int) -> int:
    """The local window with which a query sees about so many keys, sinks included.

    Query ``i`` of ``length`` sees ``min(i + 1, window + sinks)`` keys; their mean is matched.
    """

    def mean(seen: int) -> float:
        return seen - seen * (seen - 1) / (2 * length)

    seen = next((n for n in range(1, length + 1) if mean(n) >= keys), length)
    return max(1, seen - sinks)


def contenders(model: Any, input_ids: Tensor, rounds: Sequence[int]) -> list[Contender]:
    """Full attention; per number of rounds LSH attention and a local window of as many keys.

    A model of the family attends as it was made to.
    """
    if isinstance(model.config, reformer_hf.ReformerConfig):
        return [Contender("its own", None, {})]
    found = [Contender("full", "sdpa", {})]
    settings = reformer_hf.configure_attention(model)
    for number in rounds:
        layers = diagnose(model, input_ids, num_hashes=number)
        keys = sum(x.hybrid_keys for x in layers) / len(layers)
        window = window_with_as_many_keys(keys, input_ids.shape[1], settings.sink_tokens)
        local = {"num_hashes": 0, "local_window": window}
        found.append(Contender(f"lsh {number}", "reformer", {"num_hashes": number}, keys))
        found.append(Contender(f"local = lsh {number}", "reformer", local, keys))
    return found


@contextmanager
def attending(model: Any, contender: Contender) -> Iterator[None]:
    """The model attending as a contender does, for a while."""
    if contender.implementation is None:
        yield
        return
    with attending_in(model, contender.implementation, **contender.changes):
        yield


_WORD = regex.compile(r"\p{L}{4,}")


def count_words(text: str) -> Counter[str]:
    """How often each word of four letters or more occurs, in lower case."""
    return Counter(_WORD.findall(text.lower()))


def rare_repeats(
    pieces: Sequence[str], counts: Mapping[str, int], *, distance: int, rarest: float
) -> Tensor:
    """Tokens of rare words that were last seen long ago: what a model can only look up.

    Args:
        pieces: text of every token.
        counts: how often words occur, see `count_words`.
        distance: tokens since the word's last occurrence, at least.
        rarest: a word is rare below this share of all words that were counted.

    Returns:
        ``[N]`` bool.
    """
    owner = [token for token, piece in enumerate(pieces) for _ in piece]
    # As long as the text itself: some letters have a lower case of two.
    text = "".join(c if len(c.lower()) > 1 else c.lower() for c in "".join(pieces))
    most = rarest * sum(counts.values())
    found = torch.zeros(len(pieces), dtype=torch.bool)
    seen: dict[str, int] = {}
    for match in _WORD.finditer(text):
        word, first, last = match.group(), owner[match.start()], owner[match.end() - 1]
        if word in seen and first - seen[word] > distance and counts.get(word, 0) < most:
            found[first : last + 1] = True
        seen[word] = last
    return found


@dataclass(frozen=True)
class Passkey:
    """A text in which a number is hidden, and the number.

    Attributes:
        prompt: ``[1, N]`` int64, ends with the question.
        answer: ``[n]`` int64.
        depth: where in the text it stands, from 0 (at the beginning) to 1.
    """

    prompt: Tensor
    answer: Tensor
    depth: float


def make_passkeys(
    text: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int
) -> list[Passkey]:
    """Texts of ``length`` tokens with a five-digit key at depths from beginning to end.

    Raises:
        ValueError: a text that is too short.
    """
    draw = random.Random(seed)

    def encode(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False, verbose=False).input_ids

    found = []
    for index in range(count):
        key = draw.randint(10_000, 99_999)
        depth = (index + 0.5) / count
        needle = encode(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
        head = encode("There is a pass key hidden in this text. Find it and remember it.\n")
        question = encode("\nWhat is the pass key? The pass key is")
        answer = encode(f" {key}")
        room = length - len(head) - len(needle) - len(question)
        start = draw.randrange(max(1, len(text) - room * 8))
        hay = encode(text[start : start + room * 8])[:room]
        if len(hay) < room:
            raise ValueError(f"text: expected {room} tokens of it, got {len(hay)}")
        place = int(depth * room)
        ids = [*head, *hay[:place], *needle, *hay[place:], *question]
        found.append(Passkey(torch.tensor([ids]), torch.tensor(answer), depth))
    return found


@torch.no_grad()
def answer_at_once(model: Any, passkey: Passkey) -> Tensor:
    """Which tokens of the answer are predicted, each given those before it, without a cache.

    Every position is read in the model's attention, the answer's own too.
    """
    answer = passkey.answer
    ids = torch.cat((passkey.prompt, answer.unsqueeze(0)), dim=1).to(model.device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    hidden = hidden[0, -len(answer) - 1 : -1]
    return model.get_output_embeddings()(hidden).argmax(dim=-1).cpu() == answer


@torch.no_grad()
def answer_by_generation(model: Any, passkey: Passkey) -> Tensor:
    """Which tokens of the answer `generate` writes, greedily, with its cache."""
    answer, prompt = passkey.answer, passkey.prompt.to(model.device)
    written = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(answer),
        min_new_tokens=len(answer),
        do_sample=False,
        pad_token_id=0,
    )
    return written[0, prompt.shape[1] :].cpu() == answer
