"""Position tables: axial coordinates, and what remains when a table is resized."""

from __future__ import annotations

import pytest
import torch

from reformer_hf import ReformerConfig
from reformer_hf.layers.embeddings import (
    AxialPositionEmbeddings,
    LearnedPositionEmbeddings,
    PositionedInputs,
)


def axial(*shape: int, dims: tuple[int, ...] | None = None) -> AxialPositionEmbeddings:
    table = AxialPositionEmbeddings(shape, dims or tuple(range(3, 3 + len(shape))))
    with torch.no_grad():
        for weight in table.weights:
            weight.normal_()
    return table


def test_position_p_has_the_coordinates_p_div_b_and_p_mod_b() -> None:
    table = axial(4, 5)
    vectors = table(torch.arange(20))
    for p in range(20):
        expected = torch.cat((table.axis_0[p // 5], table.axis_1[p % 5]))
        assert torch.equal(vectors[p], expected)


def test_three_axes_count_like_digits() -> None:
    table = axial(2, 3, 4)
    vectors = table(torch.arange(24))
    p = 0
    for i in range(2):
        for j in range(3):
            for k in range(4):
                expected = torch.cat((table.axis_0[i], table.axis_1[j], table.axis_2[k]))
                assert torch.equal(vectors[p], expected)
                p += 1


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 4)], ids=str)
def test_all_positions_differ(shape: tuple[int, ...]) -> None:
    table = axial(*shape)
    vectors = table(torch.arange(table.num_positions))
    assert len(torch.unique(vectors, dim=0)) == table.num_positions


def test_any_shape_of_positions_is_looked_up() -> None:
    table = axial(4, 5)
    positions = torch.tensor([[[3, 0], [19, 7]]])
    assert torch.equal(table(positions)[0, 1, 0], table(torch.tensor(19)))
    assert table(positions).shape == (1, 2, 2, 7)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("positions", [1, 13, 24, 25, 100])
def test_a_resized_table_keeps_the_positions_that_remain(
    shape: tuple[int, ...], positions: int
) -> None:
    table = axial(*shape)
    resized = table.resized(positions, std=1.0)
    assert resized.num_positions >= positions
    assert resized.shape[1:] == table.shape[1:]
    kept = torch.arange(min(table.num_positions, positions))
    assert torch.equal(resized(kept), table(kept))
    assert torch.isfinite(resized(torch.arange(positions))).all()
    assert all(weight.requires_grad for weight in resized.weights)


def test_a_resized_learned_table_keeps_the_positions_that_remain() -> None:
    table = LearnedPositionEmbeddings(10, 4)
    for positions in (3, 10, 30):
        resized = table.resized(positions, std=1.0)
        kept = min(10, positions)
        assert resized.num_positions == positions
        assert torch.equal(resized.weight[:kept], table.weight[:kept])


def test_a_resized_table_keeps_its_dtype() -> None:
    assert axial(4, 5).bfloat16().resized(100, std=1.0).axis_0.dtype == torch.bfloat16
    learned = LearnedPositionEmbeddings(10, 4).bfloat16()
    assert learned.resized(20, std=1.0).weight.dtype == torch.bfloat16


def test_inputs_are_the_sum_of_token_and_position_vectors() -> None:
    config = ReformerConfig(hidden_size=8, hidden_dropout_prob=0.5)
    inputs = PositionedInputs(config, (4, 5), 20)
    with torch.no_grad():
        for weight in inputs.position_embeddings.weights:
            weight.normal_()
    tokens, positions = torch.randn(2, 3, 8), torch.tensor([[2, 0, 9]])
    expected = tokens + inputs.position_embeddings(positions)
    assert torch.equal(inputs.eval()(tokens, positions), expected)
    assert not torch.equal(inputs.train()(tokens, positions), expected)


@pytest.mark.parametrize(
    ("axial", "kind"), [(True, AxialPositionEmbeddings), (False, LearnedPositionEmbeddings)]
)
def test_configuration_chooses_the_table(axial: bool, kind: type) -> None:
    config = ReformerConfig(hidden_size=8, axial_pos_embds=axial)
    inputs = PositionedInputs(config, (4, 5), 17)
    assert isinstance(inputs.position_embeddings, kind)
    assert inputs.position_embeddings.num_positions == (20 if axial else 17)
