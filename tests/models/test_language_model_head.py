"""The projection to the vocabulary: tied, with one bias, in chunks, on labelled positions only."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.models.builders import (
    HEAD_OF,
    IGNORED,
    NO_DROPOUT,
    VOCAB,
    Head,
    assert_close_gradients,
    random_ids,
    train_step,
)


@pytest.mark.parametrize("chunk_size", [1, 16, 10_000])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_chunked_logits_give_the_same_loss_and_gradients(
    language_head: Head, chunk_size: int, tied: bool, dtype: torch.dtype
) -> None:
    options = {"tie_word_embeddings": tied, "hash_seed": 1, **NO_DROPOUT}
    batch = language_head.batch(2, 60)
    model = language_head.build(chunk_size_lm_head=0, **options).to(dtype)
    loss, expected = train_step(language_head, model, batch)
    model.config.chunk_size_lm_head = chunk_size
    again, found = train_step(language_head, model, batch)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close_gradients(found, expected)


def test_logits_are_left_out_only_in_training_with_labels(language_head: Head) -> None:
    model = language_head.build(chunk_size_lm_head=8)
    batch = language_head.batch(2, 30)
    output = model.train()(**batch)
    assert output.logits is None
    assert torch.isfinite(output.loss)
    output = model.eval()(**batch)
    assert output.logits is not None
    assert torch.isfinite(output.loss)
    del batch["labels"]
    if language_head.seq2seq:
        batch["decoder_input_ids"] = random_ids(2, 9, seed=1)
    assert model.train()(**batch).logits is not None


def test_chunked_training_forms_no_more_than_a_chunk_of_logits() -> None:
    head = HEAD_OF["masked_lm"]
    model = head.build(chunk_size_lm_head=8)
    batch = head.batch(2, 60)
    batch["labels"] = torch.where(batch["labels"] % 4 == 0, batch["labels"], IGNORED)
    labelled = int((batch["labels"] != IGNORED).sum())
    assert 8 < labelled < 60
    rows: list[int] = []
    original = F.linear

    def spy(x: torch.Tensor, weight: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if weight.shape[0] == VOCAB:
            rows.append(x.shape[:-1].numel())
        return original(x, weight, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", spy)
        model(**batch).loss.backward()
    # Only labelled positions are computed at all.
    assert sum(rows) == labelled
    assert max(rows) == 8


def test_loss_is_the_mean_over_labelled_positions(language_head: Head) -> None:
    model = language_head.build().eval()
    batch = language_head.batch(2, 30)
    output = model(**batch)
    logits, labels = output.logits, batch["labels"]
    if language_head.task == "next_token":
        logits, labels = logits[:, :-1], labels[:, 1:]
    expected = F.cross_entropy(logits.reshape(-1, VOCAB), labels.reshape(-1))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_tied_head_is_the_embedding_with_one_bias(language_head: Head) -> None:
    model = language_head.build()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    names = [name for name, _ in model.named_parameters() if "lm_head" in name]
    assert names == ["lm_head.bias"]
    assert model.lm_head.bias.shape == (VOCAB,)


def test_untied_head_has_weights_of_its_own(language_head: Head) -> None:
    model = language_head.build(tie_word_embeddings=False)
    names = [name for name, _ in model.named_parameters() if "lm_head" in name]
    assert names == ["lm_head.weight", "lm_head.bias"]
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_bias_of_the_head_is_added() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build().eval()
    ids = random_ids(1, 20, seed=1)
    with torch.no_grad():
        before = model(ids).logits
        model.lm_head.bias += torch.arange(VOCAB)
        assert torch.allclose(model(ids).logits, before + torch.arange(VOCAB), atol=1e-5)
