"""What transformers expects of every model, beyond what tests/models says of ours in particular.

The ideas are those of the tests that transformers runs over all its own models.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.models.builders import (
    ALL_DROPOUTS,
    HEAD_OF,
    NO_DROPOUT,
    Head,
    assert_equal_gradients,
    train_step,
)
from tests.models.test_gradient_checkpointing import switch

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("loaded_as", DTYPES, ids=str)
@pytest.mark.parametrize("saved_as", [torch.bfloat16, torch.float32], ids=str)
def test_any_dtype_loads_into_any_other(
    saved_as: torch.dtype, loaded_as: torch.dtype, head: Head, tmp_path: Path
) -> None:
    saved = head.build().to(saved_as)
    saved.save_pretrained(tmp_path)
    loaded = head.model_class.from_pretrained(tmp_path, dtype=loaded_as).eval()
    assert {p.dtype for p in loaded.parameters()} == {loaded_as}
    expected = saved.state_dict()
    assert all(torch.equal(w, expected[n].to(loaded_as)) for n, w in loaded.state_dict().items())
    with torch.no_grad():
        scores = head.scores(loaded(**head.inputs(2, 20)))
    assert scores.dtype == loaded_as
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_weights_may_stay_on_the_cpu_or_on_disk(head: Head, place: str, tmp_path: Path) -> None:
    """As `device_map="auto"` arranges it where the device is too small for the model."""
    model = head.build().eval()
    model.save_pretrained(tmp_path / "saved")
    parts = {
        name: "cpu"
        for name, module in model.named_modules()
        if not list(module.children()) and list(module.parameters())
    }
    away = [name for name in parts if "attention" in name or "feed_forward" in name]
    device_map = {**parts, **dict.fromkeys(away, place)}
    loaded = head.model_class.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    on_meta = {n for n, p in loaded.named_parameters() if p.device.type == "meta"}
    assert bool(on_meta) is (place == "disk")
    inputs = head.inputs(2, 40)
    with torch.no_grad():
        assert torch.equal(head.scores(loaded(**inputs)), head.scores(model(**inputs)))


def test_a_small_device_gets_what_fits_and_the_rest_goes_to_disk(
    head: Head, tmp_path: Path
) -> None:
    model = head.build(attn_layers=["local", "lsh", "full"]).eval()
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    loaded = head.model_class.from_pretrained(
        tmp_path / "saved",
        device_map="auto",
        max_memory={"cpu": size // 2},
        offload_folder=tmp_path / "offload",
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    for name in loaded.hf_device_map:
        split = {type(loaded.get_submodule(parent)).__name__ for parent in _parents(name)}
        assert not split & set(model._no_split_modules)
    inputs = head.inputs(2, 40)
    with torch.no_grad():
        assert torch.equal(head.scores(loaded(**inputs)), head.scores(model(**inputs)))


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def test_first_hidden_states_and_attentions_carry_gradients(head: Head) -> None:
    """`retain_grad` on what is returned, for those who look at saliency."""
    model = head.build()
    output = model(**head.batch(2, 20), output_hidden_states=True, output_attentions=True)
    if head.seq2seq:
        first = [
            *(output.encoder_hidden_states[0], output.decoder_hidden_states[0]),
            *(output.encoder_attentions[0], output.decoder_attentions[0]),
            output.cross_attentions[0],
        ]
    else:
        first = [output.hidden_states[0], output.attentions[0]]
    for tensor in first:
        tensor.retain_grad()
    head.scores(output).flatten()[5].backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in first)


def test_first_hidden_state_carries_a_gradient_on_the_reversible_path() -> None:
    head = HEAD_OF["causal_lm"]
    states = {}
    for reversible in (True, False):
        model = head.build(reversible=reversible, **NO_DROPOUT).eval()
        output = model(**head.batch(2, 20), output_hidden_states=True)
        output.hidden_states[0].retain_grad()
        output.loss.backward()
        states[reversible] = output.hidden_states[0].grad
    assert states[True].any()
    assert torch.allclose(states[True], states[False], atol=1e-7)


def test_checkpointing_has_something_to_do_in_every_model(head: Head) -> None:
    model = head.build(**ALL_DROPOUTS)
    assert model.config.reversible
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert layers
    batch = head.batch(2, 20)
    _, expected = train_step(head, model, batch)
    drawn: list[int] = []
    layers[0].dropout.register_forward_hook(lambda *_: drawn.append(1))
    train_step(head, model, batch)
    once = len(drawn)
    switch(model, on=True)
    drawn.clear()
    _, found = train_step(head, model, batch)
    # Drawn again, up to the last tensor that the backward pass asks for.
    assert len(drawn) > once
    assert_equal_gradients(found, expected)


def test_targets_may_be_shifted_beforehand() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build().eval()
    batch = head.batch(2, 20)
    labels = batch.pop("labels")
    shifted = torch.full_like(labels, -100)
    shifted[:, :-1] = labels[:, 1:]
    expected = model(**batch, labels=labels)
    assert torch.equal(model(**batch, shift_labels=shifted).loss, expected.loss)
    # They count alone where both are given.
    other = torch.full_like(labels, 3)
    assert torch.equal(model(**batch, labels=other, shift_labels=shifted).loss, expected.loss)


def test_a_copy_computes_the_same_and_shares_nothing(head: Head) -> None:
    model = head.build().eval()
    copied = copy.deepcopy(model)
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in copied.parameters()}
    inputs = head.inputs(2, 30)
    with torch.no_grad():
        expected = head.scores(model(**inputs))
        assert torch.equal(head.scores(copied(**inputs)), expected)
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(head.scores(model(**inputs)), expected)


def test_forward_takes_inputs_first_and_names_every_label(head: Head) -> None:
    names = list(inspect.signature(head.model_class.forward).parameters)
    assert names[:3] == ["self", "input_ids", "attention_mask"]
    assert set(head.batch(1, 5)) <= set(names)
    assert names[-1] == "kwargs"


def test_models_are_found_ready_by_the_loader(head: Head) -> None:
    """`post_init` ran, and everything that transformers reads of a class is there."""
    model = head.build()
    assert isinstance(model, PreTrainedModel)
    assert model.base_model_prefix in ("reformer", "model")
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size
    tied = model.all_tied_weights_keys
    assert isinstance(tied, dict)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert set(tied) | set(tied.values()) <= names
    found = {type(module).__name__ for module in model.modules()}
    # Names that are not there would stop accelerate.
    assert set(model._no_split_modules)
    assert found >= set(model._no_split_modules)
