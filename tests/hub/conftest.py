"""A Hub on localhost, and fresh interpreters that talk to it with the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.repositories import Storage
from tests.hub.server import HubServer

ROOT = Path(__file__).resolve().parents[2]
OWNER, OWNER_TOKEN = "ada", "hf_of_ada"
STRANGER, STRANGER_TOKEN = "eve", "hf_of_eve"
USERS = {OWNER_TOKEN: OWNER, STRANGER_TOKEN: STRANGER}

PROLOGUE = """
import json, sys, time
{hide}
sleep = time.sleep  # the client waits longer and longer between attempts
time.sleep = lambda seconds: sleep(min(seconds, 0.02))
def report(**values): print("REPORT " + json.dumps(values))
"""
HIDE = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "reformer_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


class Visit:
    """What a fresh interpreter did: its exit status, its stderr, and what it reported."""

    def __init__(self, result: subprocess.CompletedProcess[str]) -> None:
        self.failed, self.stderr = result.returncode != 0, result.stderr
        lines = [line for line in result.stdout.splitlines() if line.startswith("REPORT ")]
        self._reports = [json.loads(line.removeprefix("REPORT ")) for line in lines]

    def __getitem__(self, name: str) -> Any:
        """A value that was reported."""
        assert not self.failed, self.stderr
        return {key: value for report in self._reports for key, value in report.items()}[name]


Visitor = Callable[..., Visit]


@pytest.fixture(scope="module")
def storage() -> Storage:
    return Storage()


@pytest.fixture(scope="module")
def hub(storage: Storage) -> Iterator[HubServer]:
    with HubServer(storage, USERS) as server:
        yield server


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Visitor:
    """Runs code in a fresh interpreter: `visit(server, code, home=..., token=..., package=...)`.

    Visits with the same `home` share downloads, as on one machine; the code calls `report(...)`.
    """
    homes = tmp_path_factory.mktemp("homes")

    def run(
        server: HubServer, code: str, *, home: str, token: str | None = None, package: bool = True
    ) -> Visit:
        folder = homes / home
        folder.mkdir(exist_ok=True)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HF_") and not name.lower().endswith("_proxy")
        }
        environment |= {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT) if package else "",
            "TQDM_DISABLE": "1",
        }
        if token is not None:
            environment["HF_TOKEN"] = token
        result = subprocess.run(
            [sys.executable, "-c", PROLOGUE.format(hide="" if package else HIDE) + code],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            timeout=240,
        )
        return Visit(result)

    return run
