"""LoRA adapters (PEFT) train on the reversible path, with the gradients of the plain one."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.models.builders import (
    ALL_DROPOUTS,
    HEAD_OF,
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
