"""`torch.compile` sees one graph in inference, and the same numbers come out."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from reformer_hf import ReformerConfig, ReformerForCausalLM, ReformerForMaskedLM

CONFIG: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "attention_head_size": 8,
    "feed_forward_size": 16,
    "vocab_size": 30,
    "attn_layers": ["lsh", "local", "full"],
    "lsh_attn_chunk_length": 8,
    "local_attn_chunk_length": 8,
    "max_position_embeddings": 128,
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def build(head: type, **changes: Any) -> Any:
    return head(ReformerConfig(**{**CONFIG, **changes})).eval()


def inputs(padded: bool, length: int = 50) -> dict[str, torch.Tensor]:
    found = {"input_ids": torch.randint(0, 30, (2, length))}
    if padded:
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        found["attention_mask"][0, : length // 3] = 0
    return found


@pytest.mark.parametrize("pattern", ["window", "chunk"])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("head", [ReformerForCausalLM, ReformerForMaskedLM])
@torch.no_grad()
def test_inference_is_one_graph(head, padded, pattern):
    model = build(head, attention_pattern=pattern, num_hashes=2)
    given = inputs(padded)
    expected = model(**given).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**given).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_inference_is_one_graph_for_functional_backends():
    model = build(ReformerForCausalLM)
    given = inputs(padded=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(**given).logits, model(**given).logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")
@torch.no_grad()
def test_inference_is_one_graph_for_inductor():
    model = build(ReformerForCausalLM)
    given = inputs(padded=True)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(
        compiled(**given).logits, model(**given).logits, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_lengths_may_differ_from_call_to_call():
    model = build(ReformerForCausalLM)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for length in (12, 40, 50):
        given = inputs(padded=False, length=length)
        torch.testing.assert_close(
            compiled(**given).logits, model(**given).logits, rtol=1e-5, atol=1e-5
        )


# torch's own, where a graph ends and what lives on is looked at.
GRAPHS_END = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@GRAPHS_END
def test_training_breaks_only_in_the_engine_and_where_it_draws_its_seeds():
    model = build(ReformerForCausalLM, reversible=False, hidden_dropout_prob=0.0).train()
    given = inputs(padded=False)
    given["labels"] = given["input_ids"]
    torch.manual_seed(3)
    expected = model(**given).loss
    torch.manual_seed(3)
    explained = torch._dynamo.explain(model)(**given)
    places = {r.user_stack[-1].name for r in explained.break_reasons}
    assert places <= {"fresh_seed", "__init__", "add"}, places
    torch.manual_seed(3)
    compiled = torch.compile(model, backend="eager")
    loss = compiled(**given).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@GRAPHS_END
def test_reversible_training_compiles_and_gives_the_same_gradients():
    model = build(ReformerForCausalLM, hidden_dropout_prob=0.0).train()
    given = inputs(padded=False)
    given["labels"] = given["input_ids"]
    found = []
    for function in (model, torch.compile(model, backend="eager")):
        model.zero_grad()
        torch.manual_seed(3)
        function(**given).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)
