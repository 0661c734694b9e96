"""Weights are read from whole safetensors only; anything else is refused with the file's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import reformer_hf
from reformer_hf import ReformerConfig, ReformerForCausalLM
from tests.models.builders import HEAD_OF, Head

Spoil = Callable[[Path], object]


def pickle_weights(folder: Path) -> Path:
    """The same weights as before safetensors, and nothing else."""
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    return folder / "pytorch_model.bin"


def cut(name: str, keep: int) -> Spoil:
    """Keeps the first bytes of the first file of that name, or drops the last ones."""

    def spoil(folder: Path) -> None:
        file = sorted(folder.glob(name))[0]
        file.write_bytes(file.read_bytes()[:keep])

    return spoil


def written(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def index_with(**changed: Any) -> Spoil:
    """Changes the index; `None` removes an entry."""

    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors.index.json"
        index = {**json.loads(file.read_text()), **changed}
        file.write_text(json.dumps({k: v for k, v in index.items() if v is not None}))

    return spoil


def first_shard_without_a_tensor(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file, metadata={"format": "pt"})


def shard_removed(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def test_pickled_weights_are_refused_in_every_class(head: Head, tmp_path: Path) -> None:
    head.build().save_pretrained(tmp_path)
    pickle_weights(tmp_path)
    for opener in (head.model_class, getattr(transformers, head.auto_class)):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin: only safetensors are read"):
            opener.from_pretrained(tmp_path)


def test_the_refusal_says_how_to_convert_and_that_works(head: Head, tmp_path: Path) -> None:
    model = head.build()
    model.save_pretrained(tmp_path / "old")
    file = pickle_weights(tmp_path / "old")
    with pytest.raises(ValueError, match="convert it once: ") as refusal:
        head.model_class.from_pretrained(tmp_path / "old")
    advice = str(refusal.value).split("convert it once: ")[1].split(". For checkpoints")[0]
    names = {**vars(reformer_hf), "torch": torch, "file": file, "new_folder": tmp_path / "new"}
    exec(advice.replace("; ", "\n"), names)
    converted = head.model_class.from_pretrained(tmp_path / "new").state_dict()
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], weight) for name, weight in expected.items())


def test_pickles_of_the_original_are_refused_too(tmp_path: Path) -> None:
    config = transformers.ReformerConfig(
        attn_layers=["local"], axial_pos_shape=[8, 8], feed_forward_size=8, is_decoder=True
    )
    transformers.ReformerModelWithLMHead(config).save_pretrained(tmp_path)
    pickle_weights(tmp_path)
    with pytest.raises(ValueError, match=r"scripts/convert_checkpoint\.py does that"):
        ReformerForCausalLM.from_pretrained(tmp_path)


def test_a_pickle_next_to_safetensors_is_left_alone(tmp_path: Path) -> None:
    model = HEAD_OF["causal_lm"].build()
    model.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    loaded = ReformerForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_pickle_cannot_be_asked_for(tmp_path: Path) -> None:
    HEAD_OF["causal_lm"].build().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`use_safetensors` must be True or None"):
        ReformerForCausalLM.from_pretrained(tmp_path, use_safetensors=False)
    file, config = pickle_weights(tmp_path), ReformerConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be in \*\.safetensors, got .*pytorch_model\.bin"):
        ReformerForCausalLM.from_pretrained(file, config=config)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("subfolder", ["", "inner"])
@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_variants_subfolders_and_shards_open(
    variant: str | None, subfolder: str, shards: str, tmp_path: Path
) -> None:
    model = HEAD_OF["causal_lm"].build()
    model.save_pretrained(tmp_path / subfolder, variant=variant, max_shard_size=shards)
    loaded = ReformerForCausalLM.from_pretrained(tmp_path, variant=variant, subfolder=subfolder)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut("model.safetensors", -1), "incomplete"),
        (cut("model.safetensors", 50), "header"),
        (cut("model.safetensors", 0), "header"),
        (written("model.safetensors", "<html>Not Found</html>"), "header"),
        (
            written("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid x\n"),
            "git lfs pull",
        ),
    ],
    ids=["last-byte-missing", "half-a-header", "empty", "a-web-page", "a-git-lfs-pointer"],
)
def test_a_broken_weight_file_is_named(
    head: Head, spoil: Spoil, reason: str, tmp_path: Path
) -> None:
    head.build(attn_layers=["local"]).save_pretrained(tmp_path)
    spoil(tmp_path)
    message = rf"{tmp_path}/model\.safetensors is not a whole safetensors file.*{reason}"
    with pytest.raises(ValueError, match=message):
        head.model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut("model-*", -1), r"model-00001-of-\d+\.safetensors is not a whole"),
        (shard_removed, r"model-00001-of-\d+\.safetensors belongs to the .* is missing"),
        (first_shard_without_a_tensor, r"index\.json says that model-00001-.* and it does not"),
        (cut("*.index.json", -3), r"index\.json must be JSON, and is truncated"),
        (cut("*.index.json", 0), r"index\.json must be JSON, and is truncated"),
        (written("model.safetensors.index.json", "[]"), "must hold the objects .* got list"),
        (index_with(weight_map=None), r"must hold the objects .* got \['metadata'\]"),
        (index_with(metadata=None), r"must hold the objects .* got \['weight_map'\]"),
        (index_with(weight_map={"a": "../x.safetensors"}), "next to it, got '../x.safetensors'"),
        (index_with(weight_map={"a": "pytorch_model.bin"}), "next to it, got 'pytorch_model.bin'"),
        (index_with(weight_map={"a": 1}), "next to it, got 1 for 'a'"),
    ],
    ids=[
        *("shard-cut", "shard-missing", "tensor-missing", "index-cut", "index-empty", "index-list"),
        *("no-map", "no-metadata", "another-folder", "a-pickle", "a-number"),
    ],
)
def test_broken_shards_and_indices_are_named(spoil: Spoil, message: str, tmp_path: Path) -> None:
    HEAD_OF["causal_lm"].build().save_pretrained(tmp_path, max_shard_size="20KB")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        ReformerForCausalLM.from_pretrained(tmp_path)


def test_a_broken_file_of_the_original_is_named(tmp_path: Path) -> None:
    config = transformers.ReformerConfig(
        attn_layers=["local"], axial_pos_shape=[8, 8], feed_forward_size=8, is_decoder=True
    )
    transformers.ReformerModelWithLMHead(config).save_pretrained(tmp_path)
    cut("model.safetensors", -1)(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        ReformerForCausalLM.from_pretrained(tmp_path)


NO_CONFIG = "`config.json` of .* must be there and hold a JSON object with a `model_type`"


def config_with(**changed: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        fields = {**json.loads(file.read_text()), **changed}
        file.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (cut("config.json", -5), OSError, r"config\.json' is not a valid JSON file"),
        (written("config.json", "[1]"), ValueError, NO_CONFIG),
        (written("config.json", "3"), ValueError, NO_CONFIG),
        (written("config.json", "{}"), ValueError, NO_CONFIG),
        (lambda folder: (folder / "config.json").unlink(), ValueError, NO_CONFIG),
        (config_with(model_type=None), ValueError, NO_CONFIG),
        (config_with(hidden_size="32"), ValueError, "`hidden_size` must be an integer"),
        (config_with(dtype="float99"), ValueError, "`dtype` must name a dtype of torch"),
        (config_with(feed_forward_size=50), RuntimeError, "ignore_mismatched_sizes"),
    ],
    ids=["cut", "list", "number", "empty", "gone", "untyped", "text", "dtype", "other-size"],
)
def test_a_broken_configuration_is_refused(
    head: Head, spoil: Spoil, error: type[Exception], message: str, tmp_path: Path
) -> None:
    head.build(attn_layers=["local"]).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        head.model_class.from_pretrained(tmp_path)
