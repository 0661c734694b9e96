"""The lead baseline: the beginning of the document, presented as its summary.

A summarizer that does not beat it has learned nothing worth having, and for news or meetings it
is not easy to beat. Its length decides its score, so that length must not depend on the model:
it is the mean length of the reference summaries (of the training split, where there is one,
because a baseline may not look at the references it is scored on). Cut to the length of the
model's own outputs it would be weak whenever the model stops early, and flatter the model.
"""

from collections.abc import Sequence

from training.rouge import tokenizer_for


def mean_length(summaries: Sequence[str], lang: str | None = None) -> int:
    """Mean length of `summaries` in the tokens that ROUGE counts, at least 1.

    Raises:
        ValueError: there are no summaries.
    """
    if not summaries:
        raise ValueError("summaries: expected at least one, got none")
    tokenizer = tokenizer_for(lang)
    lengths = [len(tokenizer.tokenize(summary)) for summary in summaries]
    return max(1, round(sum(lengths) / len(lengths)))


def lead_summaries(documents: Sequence[str], length: int, lang: str | None = None) -> list[str]:
    """The first `length` words (in Chinese: characters) of every document."""
    tokenizer = tokenizer_for(lang)
    return [tokenizer.leading(document, length) for document in documents]
