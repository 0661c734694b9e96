"""Rotary positions in models: which layers have them, and what they depend on."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import (
    ReformerCache,
    ReformerConfig,
    ReformerForCausalLM,
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
)
from tests.models.builders import NO_DROPOUT, TINY, random_ids

ROTARY = ("local", "full", "hybrid")


def model(kind: str, **fields: Any) -> ReformerForMaskedLM:
    """One layer without a table of positions: rotary positions are all it has."""
    torch.manual_seed(0)
    config = ReformerConfig(**TINY | NO_DROPOUT | {"attn_layers": [kind], **fields})
    made = ReformerForMaskedLM(config).eval()
    with torch.no_grad():
        for weight in made.reformer.embeddings.parameters():
            weight.zero_()
    return made


@torch.no_grad()
def logits(made: ReformerForMaskedLM, ids: Tensor, **inputs: Any) -> Tensor:
    return made(ids, **inputs).logits


@pytest.mark.parametrize("kind", ROTARY)
def test_only_distances_count(kind: str) -> None:
    made, ids = model(kind), random_ids(2, 12, seed=1)
    places = torch.arange(12).unsqueeze(0)
    found = logits(made, ids, position_ids=places)
    torch.testing.assert_close(
        logits(made, ids, position_ids=places + 3000), found, atol=1e-3, rtol=0
    )
    apart = logits(made, ids, position_ids=5 * places)
    assert (apart - found).abs().max() > 1e-2


@pytest.mark.parametrize("theta", [None, 10_000.0])
def test_full_attention_knows_the_order_of_tokens_by_rotary_positions(theta: float | None) -> None:
    made, ids = model("full", rope_theta=theta), random_ids(1, 12, seed=1)
    backwards = logits(made, ids.flip(1)).flip(1)
    difference = (logits(made, ids) - backwards).abs().max()
    assert difference < 1e-5 if theta is None else difference > 1e-2


def test_lsh_layers_have_none() -> None:
    ids = random_ids(2, 50, seed=1)
    with_theta, without = (model("lsh", rope_theta=theta) for theta in (10_000.0, None))
    assert torch.equal(logits(with_theta, ids), logits(without, ids))


def test_padding_on_the_left_shifts_nothing() -> None:
    made, ids = model("local"), random_ids(1, 20, seed=1)
    padded = torch.cat((torch.zeros_like(ids[:, :7]), ids), dim=1)
    real = (padded != 0).long()
    found = logits(made, padded, attention_mask=real)[:, 7:]
    torch.testing.assert_close(found, logits(made, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ROTARY)
def test_angles_are_as_exact_as_the_layers(kind: str) -> None:
    made, ids = model(kind), random_ids(2, 20, seed=1)
    far = {"position_ids": 3000 + torch.arange(20).unsqueeze(0)}
    with torch.no_grad():
        vectors = made.get_input_embeddings()(ids).bfloat16()
        narrow = made(inputs_embeds=vectors, **far).logits
        wide = made(inputs_embeds=vectors.float(), **far).logits
    torch.testing.assert_close(narrow, wide, atol=1e-5, rtol=1e-5)
    double = made.double()
    with torch.autocast("cpu", torch.bfloat16):  # which leaves fp64 as it is
        found = logits(double, ids, **far)
    assert torch.equal(found, logits(double, ids, **far))


def test_a_configuration_that_was_stored_without_the_field_has_none(tmp_path: Path) -> None:
    stored = ReformerConfig().to_dict()
    for file in (tmp_path / "a.json", tmp_path / "b.json"):
        file.write_text(json.dumps(stored))
        expected = stored.get("rope_theta")
        assert ReformerConfig.from_json_file(str(file)).rope_theta == expected
        assert ReformerConfig(**stored).rope_theta == expected
        assert ReformerConfig.from_dict(stored).rope_theta == expected
        stored.pop("rope_theta", None)  # as it was before the field was there
    assert ReformerConfig().rope_theta == copy.deepcopy(ReformerConfig()).rope_theta == 10_000.0


def test_a_configuration_pickled_without_the_field_has_none() -> None:
    config = ReformerConfig()
    del config.__dict__["rope_theta"]
    assert pickle.loads(pickle.dumps(config)).rope_theta is None
    assert pickle.loads(pickle.dumps(ReformerConfig())).rope_theta == 10_000.0


def test_heads_of_odd_size_are_for_layers_that_turn_nothing() -> None:
    assert ReformerConfig(attn_layers=["lsh"], attention_head_size=7).attention_head_size == 7
    assert ReformerConfig(attention_head_size=7, rope_theta=None).attention_head_size == 7
    with pytest.raises(ValueError, match="`attention_head_size` must be even"):
        ReformerConfig(attn_layers=["lsh", "local"], attention_head_size=7)


def test_a_cache_of_turned_keys_is_for_models_that_turn_alike() -> None:
    config = ReformerConfig(**TINY)
    cache = ReformerCache(config)
    other = ReformerForCausalLM(ReformerConfig(**TINY, rope_theta=None)).eval()
    with pytest.raises(ValueError, match="rope_theta"):
        other(random_ids(1, 5, seed=1), past_key_values=cache)


def test_a_checkpoint_that_does_not_say_has_none(tmp_path: Path) -> None:
    made, ids = model("local", rope_theta=None), random_ids(1, 20, seed=1)
    made.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    assert fields.pop("rope_theta", 0) is None
    file.write_text(json.dumps(fields))
    old = ReformerForMaskedLM.from_pretrained(tmp_path)
    assert old.config.rope_theta is None
    assert torch.equal(logits(old, ids), logits(made, ids))


def test_a_checkpoint_keeps_its_base(tmp_path: Path) -> None:
    for theta in (10_000.0, 500.0):  # the default is written too
        model("local", rope_theta=theta).save_pretrained(tmp_path)
        assert ReformerForQuestionAnswering.from_pretrained(tmp_path).config.rope_theta == theta
        assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == theta
