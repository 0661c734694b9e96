"""What a user, a packager and the continuous integration rely on outside the package's code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCardData
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import reformer_hf

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {
    "pyproject.toml", "README.md", "LICENSE", "reformer_hf", "tests", "scripts", "model_cards",
    ".github", ".ci", ".gitignore",
}  # fmt: skip
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"

# The name to import, where it is not the name to install.
IMPORT_NAME = {"pyyaml": "yaml"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def third_party_imports(folder: Path, own: set[str], skip: str = "") -> dict[str, str]:
    """Top-level name of each import that is neither the standard library nor `own` -> a file.

    Files under a folder named `skip` are left out.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        if skip in path.relative_to(folder).parts[:-1]:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in own:
                    found.setdefault(top, str(path.relative_to(ROOT)))
    return found


def import_names(requirements: list[str]) -> set[str]:
    names = (canonicalize_name(Requirement(line).name) for line in requirements)
    return {IMPORT_NAME.get(name, name.replace("-", "_")) for name in names}


# ---- the commands ----


def test_readme_names_the_two_commands_and_bash_can_run_them():
    named = set(
        re.findall(r"\bbash (scripts/\w+\.sh)", (ROOT / "README.md").read_text(encoding="utf-8"))
    )
    assert {"scripts/demo.sh", "scripts/test.sh"} <= named
    for script in sorted(named | {"scripts/setup_venv.sh", ".ci/run"}):
        if script == ".ci/run" and not (ROOT / script).exists():
            continue  # a source archive has no .ci
        result = subprocess.run(
            ["bash", "-n", script], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, f"{script}: {result.stderr}"


def test_ci_runs_the_test_command():
    run = ROOT / ".ci" / "run"
    if not run.exists():
        pytest.skip("a source archive has no .ci")
    assert run.stat().st_mode & 0o111, ".ci/run is not executable"
    assert "scripts/test.sh" in run.read_text(encoding="utf-8")


def test_setup_without_extras_says_how_to_call_it():
    result = subprocess.run(
        ["bash", "scripts/setup_venv.sh"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert "usage: bash scripts/setup_venv.sh" in result.stderr


def test_setup_refuses_an_interpreter_that_is_not_there(tmp_path):
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "setup_venv.sh"
    script.write_text((ROOT / "scripts" / "setup_venv.sh").read_text(encoding="utf-8"))
    result = subprocess.run(
        ["bash", str(script), "train"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "no-python")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "no-python is not a Python 3.10 or newer" in result.stderr
    assert not (tmp_path / ".venv").exists()


# ---- versions and dependencies ----


def test_the_two_versions_agree(project):
    assert project["version"] == reformer_hf.__version__


def test_dependencies_are_what_the_package_imports(project):
    imported = third_party_imports(ROOT / "reformer_hf", own={"reformer_hf"})
    triton_file = imported.pop("triton", None)
    assert set(imported) == import_names(project["dependencies"]), imported
    if triton_file is not None:
        assert import_names(project["optional-dependencies"]["triton"]) == {"triton"}


def test_extras_hold_what_scripts_and_tests_import(project):
    extras = project["optional-dependencies"]
    allowed = import_names(project["dependencies"]) | import_names(extras["train"])
    own = {"reformer_hf", "scripts", "tests"} | {path.stem for path in ROOT.glob("scripts/*")}
    # Benchmarks compare with other implementations, and say themselves what to install for that.
    scripts = third_party_imports(ROOT / "scripts", own, skip="benchmark")
    assert set(scripts) <= allowed, scripts
    tests = third_party_imports(ROOT / "tests", own)
    tests.pop("triton", None)  # tests of the kernels skip themselves without it
    assert set(tests) <= allowed | import_names(extras["dev"]), tests


def test_constraints_pin_all_direct_requirements_within_their_ranges(project):
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)  # an index address or an option would not parse
        (only,) = pin.specifier
        assert only.operator == "==", line
        assert Version(only.version).local is None, f"{line}: builds differ between platforms"
        assert pin.url is None, line
        assert not re.match("nvidia|cuda|triton", pin.name), f"{line}: not for every platform"
        pins.setdefault(canonicalize_name(pin.name), []).append(pin)

    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["train"], *extras["dev"]]:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if name == "triton":
            continue  # builds of torch for CUDA bring the very version that fits them
        assert name in pins, f"{name} is not pinned"
        for pin in pins[name]:
            (only,) = pin.specifier
            assert only.version in wanted.specifier, f"{pin} is outside {wanted}"


def test_the_workflow_tests_the_oldest_versions_that_are_promised(project):
    if not WORKFLOW.exists():
        pytest.skip("a source archive has no .github")
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    oldest, newest = jobs["test"]["strategy"]["matrix"]["include"]
    assert f">={oldest['python']}" == project["requires-python"]
    assert oldest["resolution"] == "lowest-direct"
    assert Version(newest["python"]) > Version(oldest["python"])
    assert f"Programming Language :: Python :: {newest['python']}" in project["classifiers"]


# ---- the repository ----


def test_the_top_level_holds_only_what_belongs_there():
    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
        )

    try:
        top = git("rev-parse", "--show-toplevel")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if top.returncode != 0 or Path(top.stdout.strip()).resolve() != ROOT:
        pytest.skip("not a git checkout")
    tracked = {path.split("/")[0] for path in git("ls-files", "-z").stdout.split("\0") if path}
    assert tracked <= TOP_LEVEL


def test_py_typed_ships_with_the_package():
    (folder,) = import_module("reformer_hf").__path__
    assert (Path(folder) / "py.typed").exists()


@pytest.mark.parametrize(
    "card", sorted((ROOT / "model_cards").glob("*.md")), ids=lambda card: card.name
)
def test_model_cards_carry_valid_metadata(card):
    text = card.read_text(encoding="utf-8")
    if card.name == "README.md":
        assert not text.startswith("---"), "the folder's own page is not a card"
        return
    match = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    assert match, f"{card.name} does not start with a block of YAML between two lines of ---"
    metadata = yaml.safe_load(match.group(1))
    assert metadata["library_name"] == "transformers"
    assert {"license", "tags", "pipeline_tag"} <= set(metadata)
    assert "reformer_hf" in metadata["tags"]


def test_the_template_shows_results_in_the_form_that_the_hub_reads():
    template = (ROOT / "model_cards" / "TEMPLATE.md").read_text(encoding="utf-8")
    _, head, _ = template.split("---\n", 2)
    start = head.index("# model-index:")
    shown = "".join(line.removeprefix("# ") for line in head[start:].splitlines(keepends=True))
    data = ModelCardData(**yaml.safe_load(head[:start] + shown))
    (result,) = data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == (
        "summarization", "rouge", 0.0,
    )  # fmt: skip
    assert data.license == "apache-2.0"
