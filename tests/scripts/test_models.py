"""Configurations of new models: presets and overrides."""

import pytest

from reformer_hf.tokenization import byte_tokenizer
from training.arguments import ModelArguments
from training.models import PRESETS, new_config, parse_overrides, preset_named


def test_configuration_overrides():
    assert parse_overrides('{"attn_layers": ["full"]}') == {"attn_layers": ["full"]}
    overrides = "num_hashes=4,hidden_dropout_prob=0.5,reversible=False,attention_pattern=chunk"
    assert parse_overrides(overrides) == {
        "num_hashes": 4,
        "hidden_dropout_prob": 0.5,
        "reversible": False,
        "attention_pattern": "chunk",
    }
    assert parse_overrides(None) == {}
    for bad in ("{oops", "a", "a=1,,b=2"):
        with pytest.raises(ValueError, match="config_overrides"):
            parse_overrides(bad)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_make_configurations_for_the_lengths_asked(name):
    tokenizer = byte_tokenizer()
    config = new_config(ModelArguments(preset=name), tokenizer, 3000, target_length=300)
    assert config.max_position_embeddings >= 3000
    assert config.max_target_positions >= 300
    assert config.vocab_size == len(tokenizer)


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="'base', 'demo', 'large', 'small', 'tiny'"):
        preset_named("huge")
