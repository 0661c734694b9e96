"""The weight files of a checkpoint: safetensors only, whole, and where their index says.

transformers reads pickles too, and passes on what its readers say about a broken file without the
file's name. Here a folder is looked through before it is read (headers only), and a checkpoint from
the Hub when reading it has failed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers.utils import has_file

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HOW_TO_CONVERT = (
    "only safetensors are read, since opening a pickle can run code. If you trust it, convert it "
    "once: weights = torch.load(file, map_location='cpu', weights_only=True); "
    "{model}.from_pretrained(None, config={config}.from_pretrained({name!r}), state_dict=weights)"
    ".save_pretrained(new_folder). For checkpoints of transformers' own Reformer, "
    "scripts/convert_checkpoint.py does that"
)
_GIT_LFS = b"version https://git-lfs"


class CheckpointFiles:
    """The weight files that a call of `from_pretrained` is about to read.

    Args:
        name: folder, file or Hub id; `None` with weights in `state_dict`.
        options: what `from_pretrained` was given by name.
        model, config: names of our classes, to say how pickles are converted.

    Attributes:
        options: what to give `from_pretrained`, so that it reads no pickles.

    Raises:
        ValueError: pickles were asked for.
    """

    def __init__(
        self, name: str | os.PathLike[str] | None, options: dict[str, Any], model: str, config: str
    ) -> None:
        if options.get("use_safetensors") is False:
            raise ValueError(
                "`use_safetensors` must be True or None: only safetensors are read, got False"
            )
        given = ("state_dict", "gguf_file")
        self._name = None if any(options.get(key) is not None for key in given) else name
        self._refusal = _HOW_TO_CONVERT.format(model=model, config=config, name=str(name))
        self._variant = options.get("variant")
        self._subfolder = options.get("subfolder") or ""
        self.options = options if self._name is None else {**options, "use_safetensors": True}

    def check(self) -> None:
        """Look through what lies on this machine.

        Raises:
            ValueError: weights are pickled, or a file is truncated, damaged, missing or not what
                its index says; with the file's name.
        """
        path = None if self._name is None else Path(self._name)
        if path is None or not path.exists():
            return
        if path.is_dir():
            self._check_folder(path / self._subfolder)
        elif path.suffix == ".safetensors":
            _names_of_tensors(path)
        else:
            raise ValueError(f"weights must be in *.safetensors, got {path}: {self._refusal}")

    def explain(self, error: Exception) -> None:
        """Say what is wrong with the files of a checkpoint from the Hub, if `error` is about them.

        Raises:
            ValueError: as in :meth:`check`.
        """
        if self._name is None or Path(self._name).exists():
            return
        if isinstance(error, OSError):
            self._look_for_pickles(error)
            return
        for file in (_WHOLE, _INDEX):
            wanted = self._in_repository(file)
            cache, revision = self.options.get("cache_dir"), self.options.get("revision")
            found = try_to_load_from_cache(str(self._name), wanted, cache, revision or "main")
            if isinstance(found, str):
                self._check_folder(Path(found).parent, partial=True)

    def _with_variant(self, file: str) -> str:
        """`model.safetensors` -> `model.fp16.safetensors`, and an index likewise."""
        stem, _, suffix = file.rpartition(".")
        return file if self._variant is None else f"{stem}.{self._variant}.{suffix}"

    def _in_repository(self, file: str) -> str:
        return "/".join(filter(None, (self._subfolder, self._with_variant(file))))

    def _check_folder(self, folder: Path, partial: bool = False) -> None:
        """`partial`: shards may be missing, as in a cache whose download broke off."""
        whole, index = (folder / self._with_variant(file) for file in (_WHOLE, _INDEX))
        pickles = sorted(folder.glob("pytorch_model*.bin*"))
        if whole.is_file():
            _names_of_tensors(whole)
        elif index.is_file():
            for shard, names in _shards(index).items():
                if partial and not (folder / shard).exists():
                    continue
                lost = sorted(names - _names_of_tensors(folder / shard))
                if lost:
                    raise ValueError(
                        f"{index} says that {shard} holds {lost[0]!r}, and it does not"
                    )
        elif pickles and not any(folder.glob("*.safetensors")):
            raise ValueError(f"weights must be in *.safetensors, got {pickles[0]}: {self._refusal}")

    def _look_for_pickles(self, error: OSError) -> None:
        revision, local = self.options.get("revision"), self.options.get("local_files_only", False)
        where = {key: self.options.get(key) for key in ("token", "cache_dir")}
        for file in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
            wanted = self._in_repository(file)
            try:
                pickled = has_file(self._name, wanted, revision, local_files_only=local, **where)
            except OSError:  # no such repository, or no connection, as `error` says
                return
            if pickled:
                raise ValueError(
                    f"weights must be in *.safetensors, got {wanted} in {self._name}: "
                    f"{self._refusal}"
                ) from error


def _shards(index: Path) -> dict[str, set[str]]:
    """Shard -> names of its tensors, as an index has it."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{index} must be JSON, and is truncated or damaged: {error}") from error
    tensors = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not isinstance(content.get("metadata"), dict):
        raise ValueError(
            f"{index} must hold the objects `metadata` and `weight_map` (tensor -> file), got "
            f"{sorted(content) if isinstance(content, dict) else type(content).__name__}"
        )
    shards: dict[str, set[str]] = {}
    for tensor, shard in tensors.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard:
            raise ValueError(
                f"{index} must name *.safetensors files next to it, got {shard!r} for {tensor!r}"
            )
        shards.setdefault(shard, set()).add(tensor)
    return shards


def _names_of_tensors(file: Path) -> set[str]:
    """Names of the tensors in a file, whose header must fit its size."""
    if not file.is_file():
        raise ValueError(f"{file} belongs to the checkpoint, and is missing")
    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    except SafetensorError as error:
        with file.open("rb") as content:
            pointer = content.read(len(_GIT_LFS)) == _GIT_LFS
        reason = "it is a pointer of Git LFS, `git lfs pull` gets the weights" if pointer else error
        raise ValueError(
            f"{file} is not a whole safetensors file, get it again: {reason}"
        ) from error
