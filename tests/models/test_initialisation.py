"""Initial weights: all of them set, reproducible, and the same by way of the meta device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.models.builders import HEAD_OF, LAYER_MIXES, Head, train_step


@pytest.fixture
def _nan_where_nothing_was_written() -> Iterator[None]:
    """`torch.empty` gives NaN, so that reading memory before writing it shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_nan_where_nothing_was_written")
@pytest.mark.parametrize("axial", [True, False], ids=["axial", "learned"])
def test_every_weight_is_initialised(head: Head, axial: bool) -> None:
    model = head.build(axial_pos_embds=axial, tie_word_embeddings=False)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.usefixtures("_nan_where_nothing_was_written")
@pytest.mark.parametrize("mix", LAYER_MIXES, ids=["+".join(m) for m in LAYER_MIXES])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_no_pass_reads_memory_that_it_did_not_write(mix: tuple[str, ...], pattern: str) -> None:
    head = HEAD_OF["seq2seq_lm"]
    if pattern == "chunk":  # which hybrid layers refuse
        mix = tuple(kind for kind in mix if kind != "hybrid")
    model = head.build(
        attn_layers=list(mix),
        decoder_attn_layers=list(mix),
        attention_pattern=pattern,
        chunk_size_lm_head=8,
        chunk_size_feed_forward=16,
    )
    batch = head.batch(2, 70)
    batch["attention_mask"] = torch.ones(2, 70)
    batch["attention_mask"][1, 20:] = 0
    loss, gradients = train_step(head, model, batch)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_equal_seeds_give_equal_weights_and_others_do_not(head: Head) -> None:
    first, again, other = (head.build(seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_scale_of_initial_weights_is_the_configured_one() -> None:
    model = HEAD_OF["model"].build(hidden_size=128, initializer_range=0.5, axial_norm_std=0.25)
    assert model.word_embeddings.weight.std().item() == pytest.approx(0.5, rel=0.1)
    linear = model.stack.layers[0].feed_forward.inner
    assert linear.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert not linear.bias.any()
    for weight in model.get_position_embeddings().weights:
        assert weight.std().item() == pytest.approx(0.25, rel=0.1)
    assert (model.stack.norm.weight == 1).all()
    assert not model.stack.norm.bias.any()


def test_a_model_made_on_the_meta_device_works_once_weights_are_put_in(head: Head) -> None:
    expected = head.build().eval()
    with torch.device("meta"):
        model = head.model_class(head.config()).eval()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model.load_state_dict(expected.state_dict(), assign=True)
    model.tie_weights()
    batch = head.batch(2, 40)
    with torch.no_grad():
        assert torch.equal(head.scores(model(**batch)), head.scores(expected(**batch)))
