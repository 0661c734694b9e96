"""Auto classes know our models, and transformers' own Reformer stays where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import reformer_hf
from reformer_hf.auto import AUTO_TABLE, CONFIGS, register
from tests.models.builders import HEADS, TINY, TINY_SEQ2SEQ, Head, random_ids

ENTRIES = pytest.mark.parametrize(
    ("auto_name", "config_class", "model_class"),
    AUTO_TABLE,
    ids=[f"{auto}-{model.__name__}" for auto, _, model in AUTO_TABLE],
)


def tiny_config(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    return config_class(**(TINY_SEQ2SEQ if config_class.model_type.endswith("seq2seq") else TINY))


@ENTRIES
def test_from_config_makes_our_model(
    auto_name: str, config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]
) -> None:
    model = getattr(transformers, auto_name).from_config(tiny_config(config_class))
    assert type(model) is model_class


@ENTRIES
def test_from_pretrained_opens_our_model(
    auto_name: str,
    config_class: type[PreTrainedConfig],
    model_class: type[PreTrainedModel],
    tmp_path: Path,
) -> None:
    saved = model_class(tiny_config(config_class))
    saved.save_pretrained(tmp_path)
    loaded = getattr(transformers, auto_name).from_pretrained(tmp_path)
    assert type(loaded) is model_class
    weights = saved.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


def test_the_table_holds_every_public_model() -> None:
    table = {model.__name__: auto for auto, _, model in AUTO_TABLE}
    assert table == {head.class_name: head.auto_class for head in HEADS}
    public = {name for name in reformer_hf.__all__ if isinstance(getattr(reformer_hf, name), type)}
    others = {"ReformerPreTrainedModel", "ReformerCache", "ReformerEncoderDecoderCache"}
    assert set(table) == public - others - {config.__name__ for config in CONFIGS}


def test_configurations_are_known_by_their_model_type() -> None:
    for config_class in CONFIGS:
        assert type(AutoConfig.for_model(config_class.model_type)) is config_class


@pytest.mark.parametrize("times", [1, 3])
def test_registering_again_changes_nothing(head: Head, times: int) -> None:
    for _ in range(times):
        register()
    model = getattr(transformers, head.auto_class).from_config(head.config())
    assert type(model) is head.model_class


@pytest.mark.parametrize(
    "name",
    [
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForMaskedLM",
        "AutoModelForSequenceClassification",
        "AutoModelForQuestionAnswering",
    ],
)
def test_checkpoints_of_the_built_in_reformer_open_as_before(name: str, tmp_path: Path) -> None:
    config = transformers.ReformerConfig(
        hidden_size=32,
        attention_head_size=16,
        num_attention_heads=2,
        feed_forward_size=32,
        axial_pos_embds_dim=[8, 24],
        axial_pos_shape=[4, 8],
        max_position_embeddings=32,
        attn_layers=["local", "lsh"],
        num_buckets=2,
        lsh_attn_chunk_length=8,
        local_attn_chunk_length=8,
        is_decoder=name == "AutoModelForCausalLM",
        # With classes for labels, so that the classifier has something to tell apart.
        num_labels=2,
    )
    auto = getattr(transformers, name)
    model = auto.from_config(config)
    assert type(model).__module__.startswith("transformers.models.reformer")
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert type(AutoConfig.from_pretrained(tmp_path)) is transformers.ReformerConfig
    assert torch.isfinite(loaded(random_ids(1, 32, seed=1))[0]).all()


def test_tables_of_class_names_hold_ours_beside_the_built_in_models() -> None:
    for auto_name, config_class, model_class in AUTO_TABLE:
        table = getattr(transformers, auto_name)._model_mapping._model_mapping
        assert table[config_class.model_type] == model_class.__name__
        assert len(table) > 10
