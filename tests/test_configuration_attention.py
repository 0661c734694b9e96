"""Settings of a pretrained model's attention: one place that checks them."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig

from reformer_hf.configuration_attention import ReformerAttentionSettings as Settings


def test_settings_survive_the_dictionary_that_config_json_holds() -> None:
    settings = Settings(local_window=100, full_layers=(3, 1), local_layers=[2], num_buckets=8)
    plain = json.loads(json.dumps(settings.to_dict()))
    assert Settings.from_dict(plain) == settings
    assert settings.full_layers == (1, 3)


def test_a_configuration_without_settings_has_the_defaults() -> None:
    assert Settings.of(LlamaConfig()) == Settings()
    assert Settings.of(None) == Settings()
    assert Settings.of(LlamaConfig(reformer_attention={"num_hashes": 8})).num_hashes == 8


def test_short_calls_are_those_of_a_local_window_unless_said() -> None:
    assert Settings(local_window=77).longest_dense == 77
    assert Settings(local_window=77, dense_below=0).longest_dense == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"local_window": 0}, "local_window` must be a whole number of at least 1, got 0"),
        ({"local_window": 2.5}, "local_window.*got 2.5"),
        ({"sink_tokens": -1}, "sink_tokens.*got -1"),
        ({"num_hashes": True}, "num_hashes.*got True"),
        ({"num_buckets": 7}, "num_buckets` must be 1 or even, got 7"),
        ({"dense_below": -1}, "dense_below.*got -1"),
        ({"full_layers": 3}, "full_layers` must be a list of layer indices.*got 3"),
        ({"full_layers": [1.5]}, "full_layers.*got"),
        ({"local_layers": [-1]}, "local_layers.*got"),
        ({"full_layers": [0, 1], "local_layers": [1]}, "both name"),
        ({"backend": "fast"}, "backend` must be one of.*'fast'"),
        ({"local": 3}, "knows the fields.*'local'"),
        ([3], "must be a dictionary"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_name(values: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.from_dict(values)  # type: ignore[arg-type]


def test_layers_that_a_model_lacks_are_refused() -> None:
    Settings(full_layers=[0, 5]).check_layers(6)
    with pytest.raises(ValueError, match=r"`reformer_attention.local_layers` .*0 to 5, got \[6\]"):
        Settings(local_layers=[6]).check_layers(6)
