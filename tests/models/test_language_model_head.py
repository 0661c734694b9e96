"""The projection to the vocabulary: tied, with one bias, in chunks, on labelled positions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

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


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2.0 * weight


class Wrapper(nn.Module):
    """What adapters and quantisers put in the place of a module: it can be called, no more."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def _doubled(module: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", Doubled())
    return module


def _hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda _module, _inputs, output: 2.0 * output)
    return module


def _replaced_forward(module: nn.Module) -> nn.Module:
    forward = module.forward
    module.forward = lambda x: 2.0 * forward(x)  # type: ignore[method-assign]
    return module


WRAPS: dict[str, Callable[[Any], nn.Module]] = {
    "wrapper": Wrapper,
    "parametrised": _doubled,
    "weight-norm": parametrizations.weight_norm,
    "hook": _hooked,
    "replaced-forward": _replaced_forward,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_whatever_is_put_around_embedding_and_head_is_what_counts(
    language_head: Head, wrap: Callable[[Any], nn.Module]
) -> None:
    batch = language_head.batch(2, 40)
    found = []
    for chunk_size in (0, 7):
        model = language_head.build(
            tie_word_embeddings=False, chunk_size_lm_head=chunk_size, hash_seed=1, **NO_DROPOUT
        )
        plain = model(**batch).loss
        model.set_input_embeddings(wrap(model.get_input_embeddings()))
        model.lm_head = wrap(model.lm_head)
        found.append(train_step(language_head, model, batch))
        if wrap not in (Wrapper, parametrizations.weight_norm):
            assert found[-1][0].item() != pytest.approx(plain.item(), rel=1e-4)
    (expected_loss, expected), (loss, actual) = found
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_close_gradients(actual, expected)


@pytest.mark.parametrize("chunk_size", [0, 7])
def test_a_spectral_norm_of_embedding_and_head_trains(language_head: Head, chunk_size: int) -> None:
    model = language_head.build(tie_word_embeddings=False, chunk_size_lm_head=chunk_size)
    for module in (model.get_input_embeddings(), model.lm_head):
        parametrizations.spectral_norm(module)
    _, found = train_step(language_head, model, language_head.batch(2, 40))
    assert sum("parametrizations.weight.original" in name for name in found) == 2


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantized_head_is_called() -> None:
    head = HEAD_OF["masked_lm"]
    model = head.build(tie_word_embeddings=False, chunk_size_lm_head=7, hash_seed=1, **NO_DROPOUT)
    layers = nn.Sequential(model.lm_head)
    model.lm_head = torch.ao.quantization.quantize_dynamic(layers, {nn.Linear})[0]
    assert not isinstance(model.lm_head.weight, Tensor)
    batch = head.batch(2, 40)
    in_slices = model.train()(**batch).loss
    assert in_slices.item() == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-2)
