"""Imports run one way: configuration -> ops -> layers -> models -> auto.

`import_flow_violations` reads every module of a package with `ast`, so that imports inside
functions and under `TYPE_CHECKING` count too, and names each import that runs against the flow. The
tests first prove on small made-up packages that it can fail, then hold `reformer_hf` to it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE_DIR = Path(__file__).resolve().parents[1] / "reformer_hf"

# Group of a module (by the first part of its path in the package) -> groups it may import, besides
# its own. `exports` are the package's `__init__` and the facades copied to the Hub: they name
# what everything else defines, so they may import all of it and nothing may import them.
FLOW: dict[str, set[str]] = {
    "configuration": set(),
    "tokenization": {"configuration"},
    "ops": {"configuration"},
    "cache": {"configuration", "ops"},
    "layers": {"configuration", "ops", "cache"},
    "conversion": {"configuration", "ops", "layers"},
    "models": {"configuration", "ops", "cache", "layers", "conversion"},
    "auto": {
        "configuration", "tokenization", "ops", "cache", "layers", "conversion", "models",
    },
    "training_memory": {"configuration", "ops", "layers", "models"},
    "parallel": {"configuration", "ops", "models"},
    "pretrained": {"configuration", "ops"},
}  # fmt: skip
FLOW["exports"] = set(FLOW)

GROUP_OF_FILE = {
    "choices": "configuration",
    "configuration_attention": "configuration",
    "configuration_checks": "configuration",
    "configuration_reformer": "configuration",
    "tokenization": "tokenization",
    "ops": "ops",
    "cache": "cache",
    "layers": "layers",
    "checkpoint_conversion": "conversion",
    "models": "models",
    "training_memory": "training_memory",
    "parallel": "parallel",
    "pretrained": "pretrained",
    "diagnose": "exports",
    "auto": "auto",
    "": "exports",  # the package itself
    "configuration_reformer_hf": "exports",
    "modeling_reformer_hf": "exports",
}


def read_modules(package_dir: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    modules = {}
    for path in sorted(package_dir.rglob("*.py")):
        parts = list(path.relative_to(package_dir.parent).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        modules[".".join(parts)] = path
    return modules


def imported_modules(name: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every module that `path` imports, relative names made absolute.

    `from a import b` imports `a.b` where that is a module of the package, and `a` otherwise.
    `importlib.import_module("a.b")` with a literal name counts as an import.
    """
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                anchor = package[: len(package) - node.level + 1]
                source = ".".join([*anchor, *([source] if source else [])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield node.lineno, submodule if submodule in modules else source
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func)
            target = node.args[0]
            if (
                function in ("importlib.import_module", "import_module", "__import__")
                and isinstance(target, ast.Constant)
                and isinstance(target.value, str)
            ):
                yield node.lineno, target.value


def group_of(module: str) -> str | None:
    """The group of a module of the package, None where the table above has no place for it."""
    parts = module.split(".")
    return GROUP_OF_FILE.get(parts[1] if len(parts) > 1 else "")


def import_flow_violations(package_dir: Path) -> list[str]:
    """One line for every import of the package in `package_dir` that the rules forbid."""
    root = package_dir.name
    modules = read_modules(package_dir)
    violations = []
    inside: dict[str, set[str]] = {name: set() for name in modules}
    takes_transformers = set()

    for name, path in modules.items():
        group = group_of(name)
        where = path.relative_to(package_dir.parent).as_posix()
        if group is None:
            violations.append(f"{where}: has no place in the flow; give it one in GROUP_OF_FILE")
            continue
        may_hold_triton = group == "ops" and path.name.startswith("triton_")
        for line, target in imported_modules(name, path, modules):
            top = target.split(".")[0]
            here = f"{where}:{line}"
            if top == root:
                if target not in modules:
                    violations.append(f"{here}: imports {target}, which does not exist")
                    continue
                inside[name].add(target)
                target_group = group_of(target)
                if target_group not in (None, group) and target_group not in FLOW[group]:
                    violations.append(
                        f"{here}: {group} imports {target} ({target_group}), against the flow"
                    )
            elif top in ("scripts", "tests"):
                violations.append(f"{here}: the package imports {target}")
            elif top == "triton":
                if not may_hold_triton:
                    violations.append(f"{here}: triton outside ops/**/triton_*.py")
            elif group == "ops" and top != "torch" and top not in sys.stdlib_module_names:
                violations.append(f"{here}: ops imports {target}; only torch is allowed there")
            if top == "transformers":
                takes_transformers.add(name)

    # ops may read from the configuration, but not if that brings transformers along.
    for name, targets in inside.items():
        if group_of(name) == "ops":
            violations.extend(
                f"{name}: reaches transformers through {target}"
                for target in sorted(targets)
                if group_of(target) in FLOW["ops"]
                and takes_transformers & ({target} | _reachable(target, inside))
            )
    return violations


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in edges[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


# ---- the checker can fail ----


def make_package(folder: Path, files: dict[str, str]) -> Path:
    """A package `reformer_hf` in `folder` with the given files, and `__init__` where missing."""
    package = folder / "reformer_hf"
    sound = {
        "__init__.py": "from reformer_hf.auto import register\nfrom .models.lm import LM",
        "configuration_reformer.py": "import transformers",
        "ops/hashing.py": "import math\nimport torch\nfrom torch import Tensor",
        "ops/sorting.py": "from .hashing import buckets",
        "ops/triton_sort.py": "import triton\nimport triton.language as tl",
        "cache.py": "import transformers\nfrom reformer_hf.ops import hashing",
        "layers/attention.py": "from ..ops.sorting import order\nfrom .. import cache",
        "checkpoint_conversion.py": "from . import configuration_reformer",
        "models/lm.py": "from reformer_hf.layers.attention import Attention\nimport transformers",
        "tokenization.py": "import tokenizers",
        "auto.py": "def register():\n    from .models import lm\n    from . import tokenization",
        "modeling_reformer_hf.py": "from reformer_hf import LM",
    }
    for name, source in {**sound, **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        if not (path.parent / "__init__.py").exists():
            (path.parent / "__init__.py").touch()
    return package


def test_a_sound_package_passes(tmp_path):
    assert import_flow_violations(make_package(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        pytest.param(
            "ops/hashing.py",
            "from reformer_hf.layers.attention import Attention",
            "reformer_hf/ops/hashing.py:1: ops imports reformer_hf.layers.attention (layers)",
            id="ops-import-layers",
        ),
        pytest.param(
            "ops/hashing.py",
            "from ..models import lm",
            "ops imports reformer_hf.models.lm (models)",
            id="relative-import",
        ),
        pytest.param(
            "ops/deep/__init__.py",
            "from ...layers import attention",
            "ops imports reformer_hf.layers.attention (layers)",
            id="relative-import-in-a-nested-init",
        ),
        pytest.param(
            "layers/attention.py",
            """\
            def forward(x):
                from reformer_hf.models.lm import LM
            """,
            "attention.py:2: layers imports reformer_hf.models.lm (models)",
            id="import-inside-a-function",
        ),
        pytest.param(
            "layers/attention.py",
            """\
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                import reformer_hf.auto
            """,
            "attention.py:3: layers imports reformer_hf.auto (auto)",
            id="import-for-types",
        ),
        pytest.param(
            "models/lm.py",
            "import importlib\nlm = importlib.import_module('reformer_hf.auto')",
            "lm.py:2: models imports reformer_hf.auto (auto)",
            id="import-by-literal-name",
        ),
        pytest.param(
            "configuration_reformer.py",
            "from .ops.hashing import FAMILIES",
            "configuration imports reformer_hf.ops.hashing (ops)",
            id="configuration-imports-ops",
        ),
        pytest.param(
            "ops/sorting.py",
            "from reformer_hf.cache import Memory",
            "ops imports reformer_hf.cache (cache)",
            id="ops-import-cache",
        ),
        pytest.param(
            "cache.py",
            "from .layers import attention",
            "cache imports reformer_hf.layers.attention (layers)",
            id="cache-imports-layers",
        ),
        pytest.param(
            "layers/attention.py",
            "from .. import checkpoint_conversion",
            "layers imports reformer_hf.checkpoint_conversion (conversion)",
            id="layers-import-conversion",
        ),
        pytest.param(
            "models/lm.py",
            "from .. import __version__",
            "models imports reformer_hf (exports)",
            id="package-init-from-below",
        ),
        pytest.param(
            "auto.py",
            "import reformer_hf.modeling_reformer_hf",
            "auto imports reformer_hf.modeling_reformer_hf (exports)",
            id="facade-from-below",
        ),
        pytest.param(
            "ops/hashing.py",
            "from transformers.utils import logging",
            "ops imports transformers.utils; only torch",
            id="ops-import-transformers",
        ),
        pytest.param(
            "ops/hashing.py",
            "import numpy as np",
            "ops imports numpy; only torch",
            id="ops-import-another-library",
        ),
        pytest.param(
            "ops/hashing.py",
            "from .. import configuration_reformer",
            "ops.hashing: reaches transformers through reformer_hf.configuration_reformer",
            id="ops-reach-transformers",
        ),
        pytest.param(
            "ops/hashing.py",
            "import triton",
            "hashing.py:1: triton outside",
            id="triton-in-another-op",
        ),
        pytest.param(
            "layers/triton_attention.py",
            "def kernel():\n    import triton.language",
            "triton_attention.py:2: triton outside",
            id="triton-outside-ops",
        ),
        pytest.param(
            "models/lm.py",
            "from scripts.metrics import rouge",
            "the package imports scripts.metrics",
            id="package-imports-scripts",
        ),
        pytest.param(
            "ops/hashing.py",
            "import tests.helpers",
            "the package imports tests.helpers",
            id="package-imports-tests",
        ),
        pytest.param(
            "models/lm.py",
            "from reformer_hf.layer import attention",
            "imports reformer_hf.layer, which does not exist",
            id="missing-module",
        ),
        pytest.param(
            "helpers.py",
            "import torch",
            "reformer_hf/helpers.py: has no place in the flow",
            id="module-without-a-place",
        ),
    ],
)
def test_the_checker_names_the_import_against_the_flow(tmp_path, file, source, expected):
    violations = import_flow_violations(make_package(tmp_path, {file: source}))
    assert len(violations) == 1, violations
    assert expected in violations[0]


# ---- the package ----


def test_the_package_imports_along_the_flow():
    modules = read_modules(PACKAGE_DIR)
    assert "reformer_hf" in modules
    violations = import_flow_violations(PACKAGE_DIR)
    assert not violations, "\n" + "\n".join(violations)


def test_the_package_imports_without_triton():
    # Every finder looks past triton, as it would on a machine that has none: importing it fails,
    # and asking whether it is there says no.
    program = """
        import importlib.util, pkgutil, sys

        class WithoutTriton:
            def __init__(self, finder):
                self.finder = finder
            def __getattr__(self, name):
                return getattr(self.finder, name)
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "triton":
                    return None
                return self.finder.find_spec(name, path, target)

        sys.meta_path[:] = [WithoutTriton(finder) for finder in sys.meta_path]
        assert importlib.util.find_spec("triton") is None

        import reformer_hf

        def stop(name):
            raise
        for module in pkgutil.walk_packages(reformer_hf.__path__, "reformer_hf.", onerror=stop):
            if not module.name.rpartition(".")[2].startswith("triton_"):
                importlib.import_module(module.name)
        assert "triton" not in sys.modules
        print("imported", reformer_hf.__version__)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=PACKAGE_DIR.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("imported")
