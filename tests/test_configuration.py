"""Configurations: defaults, derived values, JSON, and a refusal for everything impossible."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from reformer_hf import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.choices import ATTENTION_BACKENDS
from reformer_hf.configuration_checks import COARSEST_GRID
from reformer_hf.configuration_reformer import derive_axial_shape, split_features
from reformer_hf.ops import windowed_attention
from tests.models.builders import HEAD_OF, NO_DROPOUT

NAN, INFINITY = math.nan, math.inf

CLASSES = pytest.mark.parametrize(
    "config_class", [ReformerConfig, ReformerSeq2SeqConfig], ids=lambda c: c.model_type
)

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "attention_head_size",
    "feed_forward_size",
    "max_position_embeddings",
    "num_hashes",
    "lsh_attn_chunk_length",
    "local_attn_chunk_length",
    "lsh_num_chunks_before",
    "local_num_chunks_before",
)
COUNTS = ("chunk_size_feed_forward", "chunk_size_lm_head")
OPTIONAL_COUNTS = ("lsh_num_chunks_after", "local_num_chunks_after", "hash_seed")
PROBABILITIES = (
    "hidden_dropout_prob",
    "lsh_attention_probs_dropout_prob",
    "local_attention_probs_dropout_prob",
    "full_attention_probs_dropout_prob",
)
SCALES = ("initializer_range", "axial_norm_std")
POSITIVE = ("hash_bucket_width", "layer_norm_eps")
FLAGS = (
    "axial_pos_embds",
    "count_duplicates",
    "reversible",
    "exact_reversible",
    "is_decoder",
    "tie_word_embeddings",
    "use_cache",
)
OPTIONAL_FLAGS = ("return_dict", "output_hidden_states", "output_attentions")
CHOICES = (
    "hidden_act",
    "hash_family",
    "attention_pattern",
    "head_merge",
    "stream_merge",
    "classifier_pooling",
)
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")

# (field, impossible value)
IMPOSSIBLE: list[tuple[str, Any]] = [
    *((name, value) for name in SIZES for value in (0, -1, 2.5, True, None, "8")),
    *((name, value) for name in COUNTS for value in (-1, 0.5, None)),
    *((name, value) for name in OPTIONAL_COUNTS for value in (-1, 0.5)),
    *((name, value) for name in PROBABILITIES for value in (-0.1, 1.0, 2, NAN, None, "0.1")),
    *(("classifier_dropout", value) for value in (-0.1, 1.0, NAN)),
    *((name, value) for name in SCALES for value in (-0.02, NAN, INFINITY, None)),
    *((name, value) for name in POSITIVE for value in (0.0, -1.0, NAN, INFINITY)),
    *((name, value) for name in FLAGS for value in (None, 2, "yes")),
    *((name, value) for name in OPTIONAL_FLAGS for value in (2, "yes")),
    *((name, value) for name in CHOICES for value in ("other", None, 3)),
    *((name, value) for name in TOKENS for value in (-1, 320, 2.5)),
    ("eos_token_id", [1, 320]),
    ("eos_token_id", []),
    ("eos_token_id", [1, None]),
    ("pad_token_id", [0, 1]),  # only an end may be one of several tokens
    ("bos_token_id", [1]),
    ("problem_type", "classification"),
    *(("num_labels", value) for value in (0, -1, 2.5, True, None, "3")),
    ("id2label", ["a", "b"]),
    ("attn_layers", []),
    ("attn_layers", "lsh"),
    ("attn_layers", ["lsh", "sparse"]),
    ("attn_layers", None),
    ("num_buckets", 0),
    ("num_buckets", 7),
    ("num_buckets", -2),
    ("num_buckets", []),
    ("num_buckets", [2, 3]),
    ("num_buckets", [4, 0]),
    ("num_buckets", [2.0, 4]),
    ("axial_pos_shape", [2, 4]),  # fewer than max_position_embeddings
    ("axial_pos_shape", []),
    ("axial_pos_shape", [-256, -256]),
    ("axial_pos_shape", [256.0, 256]),
    ("axial_pos_embds_dim", [100, 100]),  # sum is not hidden_size
    ("axial_pos_embds_dim", [256]),  # one axis of two
    ("axial_pos_embds_dim", [0, 256]),
    ("attention_head_size", 63),  # halves of a head are turned together
    *(("rope_theta", value) for value in (0.0, 0.5, -10_000.0, NAN, INFINITY, "10000", True)),
    ("residual_grid", 0.0),
    ("residual_grid", 0.3),
    ("residual_grid", 4.0),
    ("residual_grid", 1.0),
    ("residual_grid", 2.0**-7),
    ("residual_grid", 2.0**-40),
    ("residual_grid", NAN),
    ("residual_grid", -0.5),
]
IMPOSSIBLE_SEQ2SEQ: list[tuple[str, Any]] = [
    *(("max_target_positions", value) for value in (0, -1, 2.5, None)),
    *(("decoder_feed_forward_size", value) for value in (0, -1, 2.5)),
    *(("cross_attention_probs_dropout_prob", value) for value in (-0.1, 1.0, NAN)),
    *(("decoder_start_token_id", value) for value in (-1, 320, None, [0])),
    ("decoder_attn_layers", []),
    ("decoder_attn_layers", ["full", "cross"]),
    ("decoder_axial_pos_shape", [2, 4]),
    ("decoder_axial_pos_shape", []),
    ("is_encoder_decoder", False),
]
COMBINATIONS: list[tuple[str, dict[str, Any]]] = [
    ("tie_word_embeddings", {"stream_merge": "concat", "tie_word_embeddings": True}),
    ("num_hidden_layers", {"num_hidden_layers": 5, "attn_layers": ["lsh"]}),
    ("hidden_size", {"hidden_size": 1}),
    ("axial_pos_embds_dim", {"axial_pos_shape": [100, 100, 100], "axial_pos_embds_dim": [6, 250]}),
    ("eos_token_id", {"vocab_size": 1}),
    ("num_labels", {"num_labels": 3, "id2label": {0: "no", 1: "yes"}}),
    ("dtype", {"dtype": "int32"}),
]


def named(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE, ids=named)
def test_impossible_values_are_refused_with_the_name_of_the_field(field: str, value: Any) -> None:
    for config_class in (ReformerConfig, ReformerSeq2SeqConfig):
        with pytest.raises(ValueError, match=rf"`{field}`") as refusal:
            config_class(**{field: value})
        shown = value[-1] if field == "attn_layers" and value == ["lsh", "sparse"] else value
        assert repr(shown) in str(refusal.value), "the refusal shows what was given"


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE_SEQ2SEQ, ids=named)
def test_impossible_values_of_the_decoder_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"`{field}`"):
        ReformerSeq2SeqConfig(**{field: value})


@pytest.mark.parametrize(("field", "values"), COMBINATIONS, ids=[c[0] for c in COMBINATIONS])
def test_fields_that_contradict_one_another_are_refused(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"`{field}`"):
        ReformerConfig(**values)


@pytest.mark.parametrize("name", ["lsh", "local"])
def test_only_the_chunk_pattern_may_look_nowhere_back(name: str) -> None:
    field = f"{name}_num_chunks_before"
    with pytest.raises(ValueError, match=f"`{field}` must be an integer of at least 1, got 0"):
        ReformerConfig(attention_pattern="window", **{field: 0})
    config = ReformerConfig(attention_pattern="chunk", **{field: 0})
    assert getattr(config, field) == 0


def test_a_field_changed_later_is_found_when_checked_again() -> None:
    config = ReformerConfig()
    config.num_hashes = 0
    with pytest.raises(ValueError, match="`num_hashes` must be an integer of at least 1, got 0"):
        config.check()
    config = ReformerConfig(problem_type="single_label_classification")
    config.num_labels = 1
    with pytest.raises(ValueError, match="`problem_type` must be 'regression' with num_labels=1"):
        config.check()


MISSPELT = {
    "num_hash": "num_hashes",
    "attn_layer": "attn_layers",
    "max_positions_embeddings": "max_position_embeddings",
    "reversable": "reversible",
    "problem_typ": "problem_type",
    "num_label": "num_labels",
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(name: str, tmp_path: Path) -> None:
    message = f"`{name}` is no field of the configuration, did you mean `{MISSPELT[name]}`"
    with pytest.raises(ValueError, match=message):
        ReformerConfig(**{name: 1})
    config = ReformerConfig()
    with pytest.raises(ValueError, match=message):
        setattr(config, name, 1)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        ReformerConfig.from_pretrained(tmp_path, **{name: 1})


def test_a_misspelt_field_of_the_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean `max_target_positions`"):
        ReformerSeq2SeqConfig(max_target_position=64)


@CLASSES
def test_fields_that_others_add_are_kept(config_class: type[ReformerConfig]) -> None:
    foreign = {
        "auto_map": {"AutoConfig": "configuration_reformer_hf.ReformerConfig"},
        "quantization_config": {"quant_method": "bitsandbytes"},
        "unsloth_version": "2025.1",
        "task_specific_params": {"summarization": {"num_beams": 4}},
        "custom_pipelines": {},
        "sep_token_id": 3,
        "_attn_implementation_autoset": True,
    }
    config = config_class.from_dict({**config_class().to_dict(), **foreign})
    assert {name: getattr(config, name) for name in foreign} == foreign


def test_the_coarsest_grid_keeps_the_direction_of_the_gradient() -> None:
    found = []
    for options in ({"exact_reversible": False}, {"residual_grid": COARSEST_GRID}):
        # Initial weights as they are by default: the grid is coarse beside what layers then add.
        model = HEAD_OF["causal_lm"].build(
            initializer_range=0.02, axial_norm_std=0.02, hash_seed=1, **NO_DROPOUT, **options
        )
        model(**HEAD_OF["causal_lm"].batch(2, 60)).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    exact, rounded = found
    assert (rounded - exact).norm() <= 0.15 * exact.norm()


@CLASSES
def test_defaults_are_valid_and_survive_json(config_class: type[ReformerConfig]) -> None:
    config = config_class()
    config.check()
    again = config_class.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()
    assert config_class.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()


UNUSUAL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "attn_layers": ["full", "lsh"],
    "axial_pos_shape": [8, 8, 8],
    "axial_pos_embds_dim": [32, 32, 32],
    "max_position_embeddings": 500,
    "num_buckets": [4, 8],
    "num_hashes": 3,
    "hash_family": "euclidean",
    "hash_bucket_width": 0.5,
    "hash_seed": 9,
    "attention_pattern": "chunk",
    "lsh_num_chunks_after": 1,
    "count_duplicates": False,
    "attention_backend": "reference",
    "head_merge": "average",
    "reversible": False,
    "exact_reversible": False,
    "residual_grid": 2.0**-10,
    "stream_merge": "concat",
    "tie_word_embeddings": False,
    "chunk_size_lm_head": 128,
    "classifier_dropout": 0.2,
    "classifier_pooling": "first",
    "eos_token_id": [1, 2],
    "num_labels": 4,
    "problem_type": "regression",
}


@CLASSES
def test_every_field_survives_a_file(config_class: type[ReformerConfig], tmp_path: Path) -> None:
    fields = dict(UNUSUAL)
    if config_class is ReformerSeq2SeqConfig:
        fields |= {
            "decoder_attn_layers": ["local", "full"],
            "decoder_axial_pos_shape": [9, 9],
            "max_target_positions": 80,
            "decoder_feed_forward_size": 64,
            "decoder_start_token_id": 3,
        }
    config = config_class(**fields)
    config.save_pretrained(tmp_path)
    for loaded in (config_class.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is config_class
        for name, value in fields.items():
            assert getattr(loaded, name) == value, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_pattern": "chunk"}, "`attention_pattern` must be 'window' with 'hybrid'"),
        ({"hash_family": "random"}, "`hash_family` must be 'angular' with 'hybrid'"),
        ({"lsh_num_chunks_after": 0}, "`lsh_num_chunks_after` must be None or 1"),
        ({"local_num_chunks_after": 2}, "`local_num_chunks_after` must be None or 1"),
        ({"sink_tokens": -1}, "`sink_tokens` must be an integer of at least 0, got -1"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_hybrid_layers_cannot_do_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReformerConfig(attn_layers=["local", "hybrid"], **fields)


@CLASSES
def test_tuples_and_lists_are_the_same_configuration(config_class: type[ReformerConfig]) -> None:
    tuples = config_class(attn_layers=("lsh", "local"), axial_pos_shape=(256, 256))
    lists = config_class(attn_layers=["lsh", "local"], axial_pos_shape=[256, 256])
    assert tuples.to_dict() == lists.to_dict()
    assert tuples.attn_layers == ["lsh", "local"]


def test_number_of_layers_is_that_of_the_list() -> None:
    config = ReformerConfig(attn_layers=["lsh"] * 5)
    assert config.num_hidden_layers == 5
    assert ReformerConfig(attn_layers=["lsh"] * 5, num_hidden_layers=5).num_hidden_layers == 5
    pair = ReformerSeq2SeqConfig(attn_layers=["lsh"] * 5, decoder_attn_layers=["full"] * 2)
    assert (pair.num_hidden_layers, pair.decoder_layers) == (5, 2)


@pytest.mark.parametrize(
    ("positions", "shape"),
    [
        (1, (1, 1)),
        (2, (1, 2)),
        (3, (2, 2)),
        (4, (2, 2)),
        (100, (7, 16)),
        (1000, (32, 32)),
        (65536, (256, 256)),
        (65537, (129, 512)),
        (1_000_000, (977, 1024)),
    ],
)
def test_derived_axial_shapes_are_nearly_square_and_large_enough(
    positions: int, shape: tuple[int, int]
) -> None:
    assert derive_axial_shape(positions) == shape
    assert positions <= math.prod(shape) < positions + shape[1]


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [4, 5, 64, 101, 768])
def test_features_are_shared_out_completely(axes: int, width: int) -> None:
    features = split_features(width, axes)
    assert len(features) == axes
    assert sum(features) == width
    assert min(features) >= 1
    assert max(features[1:], default=0) - min(features[1:], default=0) <= 1


def test_derived_values() -> None:
    config = ReformerConfig(max_position_embeddings=100, hidden_size=64)
    assert config.position_shape() == (7, 16)
    assert config.position_dims(2) == (16, 48)
    assert config.merged_size() == 64
    given = ReformerConfig(
        max_position_embeddings=100,
        hidden_size=64,
        axial_pos_shape=[10, 10],
        axial_pos_embds_dim=[32, 32],
        stream_merge="concat",
        tie_word_embeddings=False,
    )
    assert given.position_shape() == (10, 10)
    assert given.position_dims(2) == (32, 32)
    assert given.merged_size() == 128
    pair = ReformerSeq2SeqConfig(max_target_positions=100)
    assert pair.target_position_shape() == (7, 16)


def test_every_backend_can_be_chosen() -> None:
    assert ("auto", *windowed_attention.BACKENDS) == ATTENTION_BACKENDS


def test_fields_that_transformers_knows_keep_their_names() -> None:
    from transformers import ReformerConfig as BuiltIn

    # Ours describes these by other means.
    dropped = {"num_hidden_layers"}
    missing = set(BuiltIn().to_dict()) - set(ReformerConfig().to_dict()) - dropped
    assert missing <= {"_name_or_path", "model_type"}


def test_model_types_are_not_those_of_transformers() -> None:
    assert ReformerConfig.model_type == "reformer_hf"
    assert ReformerSeq2SeqConfig.model_type == "reformer_hf_seq2seq"
    assert ReformerSeq2SeqConfig().is_encoder_decoder is True
    assert ReformerConfig().is_encoder_decoder is False


@CLASSES
def test_fields_of_another_model_type_are_refused(config_class: type[ReformerConfig]) -> None:
    with pytest.raises(ValueError, match=rf"`model_type` must be '{config_class.model_type}'"):
        config_class.from_dict({"model_type": "longformer", "hidden_size": 32})


def test_auto_config_makes_our_configurations() -> None:
    assert type(AutoConfig.for_model("reformer_hf", hidden_size=64)) is ReformerConfig
    pair = AutoConfig.for_model("reformer_hf_seq2seq", max_target_positions=64)
    assert type(pair) is ReformerSeq2SeqConfig
    assert pair.max_target_positions == 64
