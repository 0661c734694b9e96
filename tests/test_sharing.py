"""A shared checkpoint carries facades that open it with the package, or say what to install.

Each state runs in a fresh interpreter, since registration and dynamic modules are process-wide.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reformer_hf import (
    ReformerConfig,
    ReformerForCausalLM,
    ReformerForConditionalGeneration,
    ReformerSeq2SeqConfig,
)

ROOT = Path(__file__).resolve().parents[1]
FACADES = {"configuration_reformer_hf.py", "modeling_reformer_hf.py"}
AUTO_MAP = {
    "AutoConfig": "configuration_reformer_hf.ReformerConfig",
    "AutoModelForCausalLM": "modeling_reformer_hf.ReformerForCausalLM",
}
OPEN = "from transformers import AutoModelForCausalLM as A; m = A.from_pretrained(source{trust}); "
HIDE = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "reformer_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
REPORT = "print(type(m).__name__, float(m(torch.arange(5)[None]).logits.sum()))"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ReformerConfig(
        hidden_size=32, num_attention_heads=2, attention_head_size=16, attn_layers=["local", "lsh"]
    )
    folder = tmp_path_factory.mktemp("shared") / "model"
    ReformerForCausalLM(config).save_pretrained(folder)
    return folder


def _auto_map(folder: Path) -> dict[str, str]:
    auto_map: dict[str, str] = json.loads((folder / "config.json").read_text())["auto_map"]
    return auto_map


def _run(
    code: str, source: Path, cache: Path, *, package: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees the package, or only its dependencies."""
    hide = "" if package else HIDE
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT) if package else "",
        "HF_MODULES_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", f"import sys, torch\n{hide}\nsource = {str(source)!r}; {code}"],
        capture_output=True,
        text=True,
        cwd=cache,
        env=environment,
        timeout=240,
    )


def _expected_report(checkpoint: Path) -> str:
    model = ReformerForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        total = float(model(torch.arange(5)[None]).logits.sum())
    return f"ReformerForCausalLM {total}"


def test_a_saved_model_carries_both_facades_and_an_auto_map(checkpoint: Path) -> None:
    assert {p.name for p in checkpoint.iterdir()} >= FACADES
    assert _auto_map(checkpoint) == AUTO_MAP


def test_a_sequence_to_sequence_model_is_mapped_to_its_own_auto_class(tmp_path: Path) -> None:
    config = ReformerSeq2SeqConfig(
        hidden_size=32, num_attention_heads=2, attention_head_size=16, attn_layers=["lsh"]
    )
    ReformerForConditionalGeneration(config).save_pretrained(tmp_path)
    assert _auto_map(tmp_path) == {
        "AutoConfig": "configuration_reformer_hf.ReformerSeq2SeqConfig",
        "AutoModelForSeq2SeqLM": "modeling_reformer_hf.ReformerForConditionalGeneration",
    }


@pytest.mark.parametrize(
    ("first", "trust"),
    [
        ("import reformer_hf; ", ""),
        ("", ", trust_remote_code=True"),
        ("import reformer_hf; ", ", trust_remote_code=True"),
    ],
    ids=["imported", "trusted", "imported-and-trusted"],
)
def test_with_the_package_it_opens_and_a_second_save_writes_the_same_map(
    checkpoint: Path, tmp_path: Path, first: str, trust: str
) -> None:
    again = tmp_path / "again"
    code = f"{first}{OPEN.format(trust=trust)}{REPORT}; m.save_pretrained({str(again)!r})"
    result = _run(code, checkpoint, tmp_path)
    assert result.returncode == 0, result.stderr
    name, total = result.stdout.split()
    expected_name, expected_total = _expected_report(checkpoint).split()
    assert name == expected_name
    assert float(total) == pytest.approx(float(expected_total), abs=1e-4)
    assert _auto_map(again) == AUTO_MAP
    assert {p.name for p in again.iterdir()} >= FACADES


def test_without_the_package_the_error_says_what_to_install(
    checkpoint: Path, tmp_path: Path
) -> None:
    code = OPEN.format(trust=", trust_remote_code=True")
    result = _run(code, checkpoint, tmp_path, package=False)
    assert result.returncode != 0
    assert "pip install reformer_hf" in result.stderr


def test_the_configuration_alone_opens_too(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    ReformerConfig.from_pretrained(checkpoint).save_pretrained(folder)
    assert _auto_map(folder)["AutoConfig"] == AUTO_MAP["AutoConfig"]
    code = (
        "from transformers import AutoConfig; "
        "c = AutoConfig.from_pretrained(source, trust_remote_code=True); print(type(c).__name__)"
    )
    result = _run(code, folder, tmp_path)
    assert result.stdout.strip() == "ReformerConfig", result.stderr
