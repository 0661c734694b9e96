"""BERTScore: how well the words of two texts match as an encoder sees them.

Zhang et al. 2020, "BERTScore: Evaluating Text Generation with BERT" (arXiv:1904.09675), section 3:
the cosine of a word's vector in one text with the most similar one in the other, averaged over the
words of either (precision and recall). The counting is that of the package bert-score.
"""

from collections.abc import Sequence

from transformers import AutoConfig

BERTSCORE_NAMES = {"bertscore": "BERTScore"}


class BertScore:
    """Mean F1 in percent, neither rescaled nor weighted by how rare words are.

    Args:
        model: encoder, as a Hub id or a directory.
        layer: whose vectors are compared, from 1. None: the one that bert-score names as the best
            for a model that it knows, else the last.

    Raises:
        ValueError: the model cannot be loaded, or has no such layer.
    """

    def __init__(self, model: str, layer: int | None = None) -> None:
        import bert_score  # slow to load, and hardly any run asks for it

        try:
            config = AutoConfig.from_pretrained(model)
            depth = config.num_hidden_layers
            best = min(bert_score.utils.model2layers.get(model, depth), depth)
            self._scorer = bert_score.BERTScorer(
                model,
                num_layers=min(layer or best, depth),
                use_fast_tokenizer=True,
                batch_size=16,
            )
        except (OSError, ValueError, AttributeError, AssertionError) as error:
            raise ValueError(
                f"bert_score_model: expected an encoder to compare words with, got {model!r}"
                f" ({error})"
            ) from error
        if layer is not None and layer > depth:
            raise ValueError(
                f"bert_score_layer: expected at most {depth}, the layers of {model}, got {layer}"
            )
        # Some tokenizers name no limit, and the package does not ask the model for its own.
        tokenizer = self._scorer._tokenizer
        longest = getattr(config, "max_position_embeddings", 512)
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)

    def __call__(self, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """F1 of every text with its reference, averaged; a text without words counts as 0."""
        written = [
            pair for pair in zip(texts, references, strict=True) if pair[0].strip() and pair[1]
        ]
        total = 0.0
        if written:
            total = float(self._scorer.score(*map(list, zip(*written, strict=True)))[2].sum())
        return {"bertscore": 100.0 * total / max(1, len(texts))}
