"""Configurations of new models: presets and overrides."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

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
    assert config.initializer_range == pytest.approx(config.hidden_size**-0.5)
    arguments = ModelArguments(preset=name, config_overrides="initializer_range=0.02")
    assert new_config(arguments, tokenizer, 3000).initializer_range == 0.02


class EightThousandTokens:
    pad_token_id, eos_token_id, bos_token_id = 0, 1, 2

    def __len__(self):
        return 8192


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_readme_has_the_sizes_of_the_presets(name):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{name}`.*$", readme, re.MULTILINE)
    numbers = [float(text.replace(",", "")) for text in row.split(" | ")[1:-1]]
    arguments, preset = ModelArguments(preset=name), PRESETS[name]
    with torch.device("meta"):
        summarizer = AutoModelForSeq2SeqLM.from_config(
            new_config(arguments, EightThousandTokens(), 4096, target_length=128)
        )
        language_model = AutoModelForCausalLM.from_config(
            new_config(arguments, byte_tokenizer(), 1024)
        )
    assert numbers == [
        *(preset.hidden_size, preset.num_attention_heads),
        *(preset.num_layers, preset.num_decoder_layers),
        pytest.approx(summarizer.num_parameters() / 1e6, rel=0.03),
        pytest.approx(language_model.num_parameters() / 1e6, rel=0.03),
    ]


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="'base', 'demo', 'large', 'small', 'tiny'"):
        preset_named("huge")
