"""LoRA adapters (PEFT) train on the reversible path, with the gradients of the plain one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.models.builders import (
    ALL_DROPOUTS,
    HEAD_OF,
    NO_DROPOUT,
    Head,
    assert_close_gradients,
    assert_equal_gradients,
    gradients,
)


def adapted(name: str, reversible: bool) -> torch.nn.Module:
    model = HEAD_OF[name].build(reversible=reversible, attn_layers=["lsh"] * 4, **ALL_DROPOUTS)
    adapters = LoraConfig(target_modules=["query_key", "value"], r=4, lora_dropout=0.1)
    torch.manual_seed(1)
    wrapped = get_peft_model(model, adapters)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return wrapped.train()


@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_adapters_train_with_the_same_gradients_on_both_paths(name: str) -> None:
    batch = HEAD_OF[name].batch(2, 40)
    found = []
    for reversible in (True, False):
        model = adapted(name, reversible)
        torch.manual_seed(2)
        loss = model(**batch).loss
        loss.backward()
        found.append((loss, gradients(model)))
    (loss, actual), (expected_loss, expected) = found
    assert torch.equal(loss, expected_loss)
    assert actual
    assert all("lora_" in parameter for parameter in actual)
    assert all(gradient.any() for gradient in actual.values())
    assert_close_gradients(actual, expected)
    # Several decoder layers read the encoder's output, and autograd adds their gradients up in
    # another order.
    own = [parameter for parameter in expected if "encoder" not in parameter]
    assert_equal_gradients({n: actual[n] for n in own}, {n: expected[n] for n in own})


def test_a_few_steps_of_training_the_adapters_lower_the_loss() -> None:
    model = adapted("causal_lm", reversible=True)
    batch = HEAD_OF["causal_lm"].batch(2, 40)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def linears(model: nn.Module) -> set[str]:
    """Names of all matrices, by the last part of their path."""
    return {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def step(head: Head, model: nn.Module) -> None:
    """One step, so that the adapters change what is computed."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    head.objective(model(**head.batch(2, 40))).backward()
    assert all(parameter.grad is not None for parameter in chosen)
    torch.optim.Adam(chosen, lr=1e-2).step()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_adapters_on_every_matrix_train_come_back_and_merge(head: Head, tmp_path: Path) -> None:
    base = head.build(tie_word_embeddings=False, **NO_DROPOUT)
    base.save_pretrained(tmp_path / "base")
    names = sorted(linears(base))
    model = get_peft_model(base, LoraConfig(target_modules=names, r=2, init_lora_weights=False))
    inputs = head.inputs(2, 40)
    model.eval()
    with torch.no_grad():
        start = head.scores(model(**inputs))
    model.train()
    step(head, model)
    model.eval()
    with torch.no_grad():
        expected = head.scores(model(**inputs))
    assert not torch.allclose(expected, start, atol=1e-3)
    model.save_pretrained(tmp_path / "adapters")
    again = head.model_class.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(again, tmp_path / "adapters").eval()
    with torch.no_grad():
        assert torch.equal(head.scores(again(**inputs)), expected)
    merged = again.merge_and_unload()
    assert type(merged) is head.model_class
    # Rounded differently, so compare away from where a token changes its bucket.
    with torch.no_grad():
        difference = (head.scores(merged(**inputs)) - expected).abs()
    assert difference.median() <= 1e-5
    merged.save_pretrained(tmp_path / "merged")
    loaded = head.model_class.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.equal(head.scores(loaded(**inputs)), head.scores(merged(**inputs)))


def test_adapters_on_the_head_count_in_slices_of_the_loss(language_head: Head) -> None:
    found = []
    for chunk_size in (0, 7):
        model = language_head.build(
            tie_word_embeddings=False, chunk_size_lm_head=chunk_size, hash_seed=1, **NO_DROPOUT
        )
        torch.manual_seed(1)
        adapters = LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False)
        wrapped = get_peft_model(model, adapters).train()
        loss = wrapped(**language_head.batch(2, 40)).loss
        loss.backward()
        found.append((loss, gradients(wrapped)))
    (expected_loss, expected), (loss, actual) = found
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert all(gradient.any() for gradient in actual.values())
    assert_close_gradients(actual, expected)


def test_a_batch_without_labels_has_loss_zero_under_adapters_on_the_head() -> None:
    head = HEAD_OF["masked_lm"]
    model = head.build(tie_word_embeddings=False, chunk_size_lm_head=7)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=2)).train()
    batch = head.batch(2, 20)
    batch["labels"].fill_(-100)
    loss = wrapped(**batch).loss
    loss.backward()
    assert loss.item() == 0.0


EMBEDDING = {
    "new-tokens": {"target_modules": ["value"], "trainable_token_indices": [7, 8]},
    "lora": {"target_modules": ["value", "word_embeddings"], "init_lora_weights": False},
    "saved-embedding": {"target_modules": ["value"], "modules_to_save": ["word_embeddings"]},
    "saved-head": {"target_modules": ["value"], "modules_to_save": ["lm_head"]},
    "lora-positions": {"target_modules": ["value", "position_embeddings"], "r": 2},
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", EMBEDDING)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning")
def test_adapters_on_embeddings_and_heads_train_and_merge(
    language_head: Head, kind: str, tied: bool
) -> None:
    found = []
    for chunk_size in (0, 7):
        base = language_head.build(
            tie_word_embeddings=tied,
            chunk_size_lm_head=chunk_size,
            axial_pos_embds=kind != "lora-positions",
            hash_seed=1,
            **NO_DROPOUT,
        )
        torch.manual_seed(1)
        model = get_peft_model(base, LoraConfig(**EMBEDDING[kind])).train()
        loss = model(**language_head.batch(2, 40)).loss
        loss.backward()
        found.append((loss, gradients(model)))
    (expected_loss, expected), (loss, actual) = found
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_close_gradients(actual, expected)
    step(language_head, model)
    inputs = language_head.inputs(2, 40)
    model.eval()
    with torch.no_grad():
        adapted_scores = language_head.scores(model(**inputs))
        merged = model.merge_and_unload()
        assert type(merged) is language_head.model_class
        difference = (language_head.scores(merged(**inputs)) - adapted_scores).abs()
    if not (kind == "lora" and tied):
        # There PEFT adds to the matrix of both what it had added to that of the embedding.
        assert difference.median() <= 1e-5
    merged.resize_token_embeddings(80)
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            inputs[name][0, 0] = 79
    with torch.no_grad():
        assert merged(**inputs).logits.shape[-1] == 80


def test_a_wrapped_table_of_positions_is_not_resized() -> None:
    base = HEAD_OF["causal_lm"].build(axial_pos_embds=False)
    get_peft_model(base, LoraConfig(target_modules=["position_embeddings"], r=2))
    with pytest.raises(ValueError, match=r"`position_embeddings` must be .*: resize before"):
        base.resize_position_embeddings(8192)
    assert base.config.max_position_embeddings == 4096
