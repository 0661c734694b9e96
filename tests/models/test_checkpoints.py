"""What was saved comes back: same logits, whatever the format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from reformer_hf import ReformerPreTrainedModel
from tests.models.builders import HEAD_OF, HEADS, Head, random_ids


def perturbed(model: ReformerPreTrainedModel) -> ReformerPreTrainedModel:
    """Weights as after training: no zeros and ones of the initialisation left."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def scores(head: Head, model: ReformerPreTrainedModel) -> Tensor:
    return head.scores(model.eval()(**head.inputs(2, 50)))


def assert_comes_back(
    head: Head, model: ReformerPreTrainedModel, path: Path, **saving: Any
) -> ReformerPreTrainedModel:
    """Saved, loaded, and it computes the same, bit for bit."""
    model.save_pretrained(path, **saving)
    loaded, info = head.model_class.from_pretrained(path, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(scores(head, loaded), scores(head, model))
    assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
    again: ReformerPreTrainedModel = loaded
    return again


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weights_come_back(head: Head, tied: bool, tmp_path: Path) -> None:
    model = perturbed(head.build(tie_word_embeddings=tied))
    loaded = assert_comes_back(head, model, tmp_path)
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    if hasattr(loaded, "lm_head"):
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied


def test_the_file_is_safetensors_and_holds_tied_weights_once(
    language_head: Head, tmp_path: Path
) -> None:
    language_head.build().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "lm_head.weight" not in names
    assert "lm_head.bias" in names
    assert not list(tmp_path.glob("*.bin"))


def test_shards_come_back(head: Head, tmp_path: Path) -> None:
    model = perturbed(head.build())
    assert_comes_back(head, model, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_comes_back(head: Head, dtype: torch.dtype, tmp_path: Path) -> None:
    model = perturbed(head.build()).to(dtype)
    loaded = assert_comes_back(head, model, tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_a_dtype_can_be_asked_for(tmp_path: Path) -> None:
    head = HEAD_OF["causal_lm"]
    head.build().save_pretrained(tmp_path)
    loaded = head.model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "options",
    [
        {"axial_pos_embds": False},
        {"axial_pos_shape": [16, 16, 16], "axial_pos_embds_dim": [8, 8, 16]},
        {"stream_merge": "concat", "tie_word_embeddings": False},
        {"head_merge": "average"},
        {"attn_layers": ["full", "lsh", "local"], "num_buckets": [4, 4]},
        {"attention_pattern": "chunk"},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()),
)
@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_every_option_comes_back(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    head = HEAD_OF[name]
    assert_comes_back(head, perturbed(head.build(**options)), tmp_path)


def test_auto_classes_open_what_was_saved(head: Head, tmp_path: Path) -> None:
    model = perturbed(head.build())
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, head.auto_class).from_pretrained(tmp_path)
    assert type(loaded) is head.model_class
    assert torch.equal(scores(head, loaded), scores(head, model))


@pytest.mark.parametrize("name", [h.name for h in HEADS if h.task is not None])
def test_the_body_of_a_model_opens_without_its_head(name: str, tmp_path: Path) -> None:
    head = HEAD_OF[name]
    body = HEAD_OF["seq2seq_model" if head.seq2seq else "model"]
    model = perturbed(head.build())
    model.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is body.model_class
    assert not info["missing_keys"]
    assert torch.equal(scores(body, loaded), scores(body, model.base_model))


def test_the_body_of_a_causal_model_stays_causal(tmp_path: Path) -> None:
    HEAD_OF["causal_lm"].build().save_pretrained(tmp_path)
    body = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert body.config.is_decoder is True
    ids = random_ids(1, 60, seed=1)
    other = ids.clone()
    other[:, 30:] = 5
    with torch.no_grad():
        change = (body(ids).last_hidden_state - body(other).last_hidden_state)[0, :30]
    assert change.abs().max() <= 1e-5


def test_every_head_opens_on_a_body_and_its_new_weights_are_set(head: Head, tmp_path: Path) -> None:
    body = perturbed(HEAD_OF["seq2seq_model" if head.seq2seq else "model"].build())
    body.save_pretrained(tmp_path)
    torch.use_deterministic_algorithms(True)  # uninitialised memory becomes NaN
    try:
        model = head.model_class.from_pretrained(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    expected = body.state_dict()
    weights = model.base_model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_loaded_model_has_gradients_in_evaluation_mode(head: Head, tmp_path: Path) -> None:
    head.build().save_pretrained(tmp_path)
    model = head.model_class.from_pretrained(tmp_path)
    assert not model.training
    head.objective(model(**head.batch(2, 40))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_second_save_of_a_loaded_model_writes_the_same_configuration(
    head: Head, tmp_path: Path
) -> None:
    head.build().save_pretrained(tmp_path / "first")
    head.model_class.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")
    )
    assert first == second


def test_number_of_labels_can_be_changed_while_loading(tmp_path: Path) -> None:
    head = HEAD_OF["sequence_classification"]
    perturbed(head.build()).save_pretrained(tmp_path)
    model = head.model_class.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert model(**head.inputs(2, 20)).logits.shape == (2, 7)


def test_a_checkpoint_of_another_model_type_is_refused_by_name(head: Head, tmp_path: Path) -> None:
    # With the default vocabulary of GPT-2 no field of its configuration is impossible for ours.
    config = transformers.GPT2Config(n_positions=64, n_embd=8, n_layer=1, n_head=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    own = head.config_class.model_type
    with pytest.raises(ValueError, match=rf"`model_type` must be '{own}'.*, got 'gpt2'"):
        head.model_class.from_pretrained(tmp_path)


def test_our_two_model_types_are_not_taken_for_each_other(tmp_path: Path) -> None:
    single, pair = HEAD_OF["causal_lm"], HEAD_OF["seq2seq_lm"]
    single.build().save_pretrained(tmp_path / "single")
    pair.build().save_pretrained(tmp_path / "pair")
    message = "`model_type` must be 'reformer_hf_seq2seq'.*, got 'reformer_hf'"
    with pytest.raises(ValueError, match=message):
        pair.model_class.from_pretrained(tmp_path / "single")
    message = "`model_type` must be 'reformer_hf' .*, got 'reformer_hf_seq2seq'"
    with pytest.raises(ValueError, match=message):
        single.model_class.from_pretrained(tmp_path / "pair")
