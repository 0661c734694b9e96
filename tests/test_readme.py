"""The README is true: its Python runs, in order, as one session of a user.

What opens a model through an Auto class is what a user copies into a program of its own, so that it
runs in a process of its own, where nothing was imported before.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_python_snippets_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) >= 4
    session: dict[str, Any] = {"__name__": "readme"}
    fresh = 0
    for number, snippet in enumerate(snippets):
        if re.search(r"\bAuto[A-Z]\w+\.from_", snippet):
            run_in_a_fresh_process(snippet, tmp_path)
            fresh += 1
        else:
            exec(compile(snippet, f"README.md snippet {number}", "exec"), session)
    assert fresh


def run_in_a_fresh_process(code: str, folder: Path) -> None:
    paths = [str(README.parent), os.environ.get("PYTHONPATH")]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, f"{code}\n{result.stderr}"


def test_the_readme_claims_no_installation_from_an_index_that_does_not_have_the_package() -> None:
    commands = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert [line for text in commands for line in text.splitlines() if "install ref" in line] == []


def test_scripts_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"scripts/[\w/]+\.(?:py|sh)", README.read_text(encoding="utf-8")))
    assert named
    assert [name for name in sorted(named) if not (README.parent / name).is_file()] == []
