"""`torch.export` of a forward pass: a program without our Python in it, and it says the same."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from tests.models.builders import HEAD_OF, Batch, Head

# One of every kind of layer; in a decoder the layers of `TINY_SEQ2SEQ`.
LAYERS = {"attn_layers": ["local", "lsh", "full"]}
ROWS, LENGTH = 2, 40


class Scores(nn.Module):
    """A model as a function from tensors to its scores."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        self.model = head.build(use_cache=False, **LAYERS).eval()

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.head.scores(self.model(**inputs))


def inputs_of(head: Head, seed: int, padding: int) -> Batch:
    """Inputs with a mask, and so much padding at the end of the second row."""
    inputs = head.inputs(ROWS, LENGTH, seed=seed)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[1, LENGTH - padding :] = 0
    return {**inputs, "attention_mask": mask}


@torch.no_grad()
def exported(model: nn.Module, inputs: Batch) -> torch.export.ExportedProgram:
    return torch.export.export(model, (), kwargs=inputs)


@pytest.mark.parametrize("name", ["causal_lm", "sequence_classification", "seq2seq_lm"])
def test_an_exported_program_says_what_the_model_says_of_any_input(name: str) -> None:
    """Again and again: nothing in it draws random numbers or remembers the first input."""
    head = HEAD_OF[name]
    model = Scores(head)
    file = io.BytesIO()
    torch.export.save(exported(model, inputs_of(head, seed=1, padding=0)), file)
    file.seek(0)
    program = torch.export.load(file).module()
    for seed, padding in ((1, 0), (5, 0), (5, 12), (1, 0)):
        inputs = inputs_of(head, seed, padding)
        with torch.no_grad():
            assert torch.allclose(program(**inputs), model(**inputs), atol=1e-5)


def test_windowed_attention_is_one_operator_of_the_program() -> None:
    head = HEAD_OF["causal_lm"]
    program = exported(Scores(head), inputs_of(head, seed=1, padding=0))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("reformer_hf.windowed_attention" in name for name in called) == 2
    assert not [name for name in called if name.startswith(("aten.rand", "aten.item"))]
