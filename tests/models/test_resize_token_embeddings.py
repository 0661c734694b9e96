"""A vocabulary that grows or shrinks keeps what its tokens had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.builders import HEAD_OF, VOCAB, Head, random_ids, train_step

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def ids_of(vocabulary: int) -> torch.Tensor:
    return torch.arange(2, vocabulary).repeat(2)[-60:].view(2, 30)


@TIED
@pytest.mark.parametrize("size", [VOCAB + 9, 40], ids=["bigger", "smaller"])
def test_everything_follows_a_new_size(head: Head, tied: bool, size: int, tmp_path: Path) -> None:
    model = head.build(tie_word_embeddings=tied).eval()
    inputs = head.inputs(2, 30)
    inputs = {name: value.clamp(max=min(size, VOCAB) - 1) for name, value in inputs.items()}
    with torch.no_grad():
        expected = head.scores(model(**inputs))
        model.resize_token_embeddings(size)
        actual = head.scores(model(**inputs))
    assert model.config.vocab_size == size
    assert model.get_input_embeddings().weight.shape == (size, 32)
    if hasattr(model, "lm_head"):
        assert model.lm_head.weight.shape == (size, 32)
        assert model.lm_head.bias.shape == (size,)
        assert model.lm_head.out_features == size
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
        kept = min(size, VOCAB)
        expected, actual = expected[..., :kept], actual[..., :kept]
    assert torch.allclose(actual, expected, atol=1e-5)

    # All tokens of the new vocabulary are known, and none beyond.
    inputs["input_ids"] = ids_of(size)
    with torch.no_grad():
        expected = head.scores(model(**inputs))
    assert torch.isfinite(expected).all()
    inputs["input_ids"] = torch.full((2, 30), size)
    with pytest.raises(ValueError, match=rf"in \[0, vocab_size={size}\), got {size}"):
        model(**inputs)

    model.save_pretrained(tmp_path)
    loaded = head.model_class.from_pretrained(tmp_path).eval()
    assert loaded.config.vocab_size == size
    inputs["input_ids"] = ids_of(size)
    with torch.no_grad():
        assert torch.equal(head.scores(loaded(**inputs)), expected)


@TIED
@pytest.mark.parametrize("chunk_size", [0, 8])
def test_new_tokens_can_be_learned(language_head: Head, tied: bool, chunk_size: int) -> None:
    model = language_head.build(tie_word_embeddings=tied, chunk_size_lm_head=chunk_size)
    model.resize_token_embeddings(VOCAB + 9)
    batch = {"input_ids": ids_of(VOCAB + 9), "labels": ids_of(VOCAB + 9)}
    loss, gradients = train_step(language_head, model, batch)
    assert torch.isfinite(loss)
    embedding = next(g for name, g in gradients.items() if "word_embeddings" in name)
    # But for the last token of the input, which predicts nothing in a causal model.
    assert embedding[VOCAB:-1].any(dim=1).all()
    assert gradients["lm_head.bias"][VOCAB:].all()


def test_size_can_be_rounded_up() -> None:
    model = HEAD_OF["causal_lm"].build()
    model.resize_token_embeddings(VOCAB + 1, pad_to_multiple_of=64)
    assert model.config.vocab_size == 64
    assert model.lm_head.bias.shape == (64,)
    assert torch.isfinite(model(random_ids(1, 9, seed=1)).logits).all()
