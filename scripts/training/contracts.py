"""Contracts that need no data: generated, with the tag of every word, and questions about them.

Parties, dates, amounts and places. Which party is the supplier and which the customer is told by
the sentence alone: names are drawn for both from one list, so that looking words up does not help.
"""

import random
from collections.abc import Iterator

from datasets import Dataset

from training import invented

_FILLER = (
    "Neither party may assign this Agreement without the other's consent .",
    "The parties shall keep all information confidential .",
    "If a provision is void , the others remain in force .",
    "Notices must be in writing .",
    "This Agreement replaces all earlier ones .",
    "Deliveries are made during business hours .",
)
_SIZES = {"train": 400, "validation": 60, "test": 60}

Tagged = list[tuple[str, str]]


def _entity(text: str, kind: str) -> Tagged:
    words = text.split()
    return [(word, f"{'B' if i == 0 else 'I'}-{kind}") for i, word in enumerate(words)]


def _plain(text: str) -> Tagged:
    return [(word, "O") for word in text.split()]


def _sentences(draw: random.Random) -> Iterator[Tagged]:
    """The sentences of a contract that hold entities."""
    names: list[str] = []
    while len(names) < 2:
        name = invented.company(draw)
        if name not in names:
            names.append(name)
    supplier, customer = _entity(names[0], "SUPPLIER"), _entity(names[1], "CUSTOMER")

    def date() -> Tagged:
        return _entity(invented.date(draw), "DATE")

    def amount() -> Tagged:
        return _entity(invented.amount(draw), "AMOUNT")

    place = _entity(invented.place(draw), "PLACE")
    opening = [
        [*_plain("Made on"), *date(), *_plain("in"), *place, *_plain(".")],
        [*_plain("Made in"), *place, *_plain("on"), *date(), *_plain(".")],
    ]
    yield draw.choice(opening)
    sale = [
        [*supplier, *_plain("sells the goods to"), *customer, *_plain(".")],
        [*customer, *_plain("buys the goods from"), *supplier, *_plain(".")],
        [*_plain("The goods are sold to"), *customer, *_plain("by"), *supplier, *_plain(".")],
    ]
    yield draw.choice(sale)
    payment = [
        [*customer, *_plain("pays"), *amount(), *_plain("by"), *date(), *_plain(".")],
        [*_plain("The price is"), *amount(), *_plain(", due on"), *date(), *_plain(".")],
    ]
    yield draw.choice(payment)
    yield [*_plain("If"), *supplier, *_plain("is late it owes"), *amount(), *_plain("a day .")]


def contract(draw: random.Random) -> Tagged:
    """Words and tags of one contract: sentences with entities among others without."""
    found: Tagged = []
    for sentence in _sentences(draw):
        found += sentence
        for filler in draw.sample(_FILLER, draw.randint(0, 3)):
            found += _plain(filler)
    return found


def contract_splits() -> dict[str, Dataset]:
    """Splits with columns "tokens" and "ner_tags" (names of tags)."""
    draw = random.Random(0)
    splits = {}
    for split, size in _SIZES.items():
        contracts = [contract(draw) for _ in range(size)]
        splits[split] = Dataset.from_dict(
            {
                "tokens": [[word for word, _ in found] for found in contracts],
                "ner_tags": [[tag for _, tag in found] for found in contracts],
            }
        )
    return splits


_QUESTIONS = {
    "SUPPLIER": "Who sells the goods?",
    "CUSTOMER": "Who buys the goods?",
    "PLACE": "Where was the agreement made?",
    "DATE": "When was the agreement made?",
    "AMOUNT": "What is the price?",
}


def question_splits() -> dict[str, Dataset]:
    """Splits with columns "question", "context" and "answers": a question about each contract.

    The answer to every question is the first entity of its kind: the date of the contract stands
    before that of the payment, and the price before the penalty.
    """
    draw = random.Random(1)
    splits = {}
    for split, size in _SIZES.items():
        rows = []
        for _ in range(size):
            tagged = contract(draw)
            kind = draw.choice(list(_QUESTIONS))
            context = " ".join(word for word, _ in tagged)
            first = next(i for i, (_, tag) in enumerate(tagged) if tag == f"B-{kind}")
            words = [tagged[first][0]]
            for word, tag in tagged[first + 1 :]:
                if tag != f"I-{kind}":
                    break
                words.append(word)
            start = sum(len(word) + 1 for word, _ in tagged[:first])
            answer = {"text": [" ".join(words)], "answer_start": [start]}
            rows.append({"question": _QUESTIONS[kind], "context": context, "answers": answer})
        splits[split] = Dataset.from_list(rows)
    return splits
