"""The benchmark suite: runs end to end, times nothing that failed its check, keeps its limits."""

from __future__ import annotations

import copy
import json
import multiprocessing
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark import coordinator, plot, report, run
from benchmark.case import SUITES, Case
from benchmark.contender import import_contender
from benchmark.contenders import DEFAULT_CONTENDERS, OURS, REGISTRY, find_contender
from benchmark.coordinator import Limits, run_suite, without_paths
from benchmark.results_file import check_document, read_results

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("--hidden-size", "32", "--num-heads", "2", "--head-size", "16"),
    *("--feed-forward-size", "64", "--threads", "1", "--warmup", "1", "--steps", "2"),
]

# Contenders that import nothing but torch, so that their processes start fast.
_FAKES = """
import time
from pathlib import Path

import torch

from benchmark.contender import Contender, Finding, Workload

TRACES = Path(__file__).parent


class Steps(Workload):
    def __init__(self, name, act):
        self.name, self.act = name, act

    def step(self):
        with (TRACES / f"{self.name}.steps").open("a") as file:
            file.write("x")
        with (TRACES / "order").open("a") as file:
            file.write(self.name[0])
        self.act()

    def findings(self):
        return [Finding("result", self.name != "wrong_later", "looked at")]

    def parameters(self):
        return ()


class Fake(Contender):
    label = "fake"

    def check(self, case):
        return [Finding("property", self.name != "wrong", "looked at")]

    def act(self):
        torch.ones(8).sum()

    def build(self, case):
        # The small step before measuring is not one of the case.
        return Steps(self.name if case.length > 512 else "small", self.act)


class Good(Fake):
    name = "good"


class Happy(Fake):
    name = "happy"


class Wrong(Fake):
    name = "wrong"


class WrongLater(Fake):
    name = "wrong_later"


class Slow(Fake):
    name = "slow"

    def build(self, case):
        act = (lambda: time.sleep(120)) if case.length > 512 else self.act
        return Steps(self.name if case.length > 512 else "small", act)


class Hungry(Fake):
    name = "hungry"

    def build(self, case):
        def act():
            self.held = torch.ones(case.length * 2**18)
            time.sleep(120)

        return Steps(self.name, act if case.length > 512 else self.act)


class Raising(Fake):
    name = "raising"

    def build(self, case):
        raise RuntimeError("no such file: /home/somebody/weights.bin")


class Absent(Fake):
    name = "absent"
    package = "no-such-package==1.0"


class Picky(Fake):
    name = "picky"

    def unavailable(self, case):
        return "takes up to 1,024 tokens" if case.length > 1024 else None
"""


@pytest.fixture
def fast_processes(monkeypatch):
    """Processes start from one that has imported the large packages, and not from nothing."""
    monkeypatch.setattr(coordinator, "START_METHOD", "forkserver")
    multiprocessing.set_forkserver_preload(["reformer_hf"])


@pytest.fixture
def fakes(tmp_path, monkeypatch, fast_processes):
    """The folder in which the fake contenders leave a trace of every step."""
    (tmp_path / "fake_contenders.py").write_text(_FAKES, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run_fakes(kinds: list[str], lengths: list[int], **limits) -> tuple[dict, dict]:
    """Checks by class, and cells by class and length."""
    names = [f"fake_contenders:{kind}" for kind in kinds]
    cases = [Case(length=length) for length in lengths]
    checks, cells = run_suite("model", names, cases, Limits(**limits), progress=lambda _: None)

    def kind_of(name: str) -> str:
        return name.partition(":")[2]

    return (
        {kind_of(name): cell for name, cell in checks.items()},
        {(kind_of(cell.contender), cell.case.length): cell for cell in cells},
    )


def steps_taken(folder: Path, name: str) -> int:
    trace = folder / f"{name}.steps"
    return len(trace.read_text()) if trace.exists() else 0


# ---- end to end ----


def check_results(stem: Path, suite: str, names: list[str]) -> str:
    """Look at all files of a run at 200 tokens; the report."""
    document = read_results(stem.with_name("tiny-v1.2.json"))
    assert document["suite"] == suite
    assert [cell["contender"] for cell in document["checks"]] == names
    assert all(finding["passed"] for cell in document["checks"] for finding in cell["findings"])
    assert [(cell["contender"], cell["length"]) for cell in document["cells"]] == [
        (name, 200) for name in names
    ]
    for cell in document["cells"]:
        assert cell["status"] == "ok", cell["reason"]
        assert len(cell["seconds"]) == len(cell["cpu_seconds"]) == 2
        assert 0 < cell["fastest_s"] <= cell["median_s"] <= cell["slowest_s"]
        assert cell["extra_peak_bytes"] > 0
        assert cell["cuda_extra_peak_bytes"] is None
        assert cell["gradient_bytes"] == cell["parameter_bytes"]
    assert {"date", "commit", "machine", "versions"} <= set(document["environment"])

    text = stem.with_name("tiny-v1.2.json").read_text()
    private = (str(ROOT), str(stem.parent), str(Path.home()), platform.node())
    assert not [word for word in private if len(word) > 3 and word in text]
    for ending in ("-time.png", "-memory.png"):
        image = stem.with_name(f"tiny-v1.2{ending}")
        assert image.read_bytes().startswith(b"\x89PNG")
    table = stem.with_name("tiny-v1.2.md").read_text()
    assert table == report.render(document)
    return table


def test_the_command_measures_and_writes_all_files(tmp_path):
    stem, names = tmp_path / "results" / "tiny-v1.2", ["reformer_hf", "sdpa"]
    arguments = ["--lengths", "200", "--depths", "1", "--contenders", *names, *TINY]
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "benchmark" / "run.py")),
            *("--suite", "model", "--output", str(stem), *arguments),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    assert check_results(stem, "model", names) in result.stdout


def test_the_attention_suite_measures_and_writes_all_files(tmp_path, fast_processes, capsys):
    stem, names = tmp_path / "tiny-v1.2", ["reformer_hf", "sdpa"]
    arguments = ["--suite", "attention", "--lengths", "200", "--output", str(stem), *TINY]
    run.main([*arguments, "--contenders", *names])
    assert check_results(stem, "attention", names) in capsys.readouterr().out


def test_the_command_refuses_what_it_does_not_know(tmp_path):
    arguments = ["--suite", "model", "--output", str(tmp_path / "x")]
    with pytest.raises(ValueError, match="must be one of"):
        run.main([*arguments, "--contenders", "nobody"])
    with pytest.raises(ValueError, match="`length` must be positive, got 0"):
        run.main([*arguments, "--lengths", "0"])
    assert not [*tmp_path.iterdir()]


# ---- what is not timed, and why ----


def test_a_contender_whose_check_fails_is_reported_and_never_stepped(fakes):
    checks, cells = run_fakes(["Good", "Wrong"], [1024], warmup=1, steps=3)
    assert checks["Wrong"].status == "failed_check"
    wrong, good = cells["Wrong", 1024], cells["Good", 1024]
    assert (wrong.status, wrong.reason) == ("failed_check", "property: looked at")
    assert wrong.seconds == []
    assert steps_taken(fakes, "wrong") == 0
    assert good.status == "ok"
    assert len(good.seconds) == 3
    assert steps_taken(fakes, "good") == 4


def test_a_contender_whose_first_step_is_wrong_takes_no_second(fakes):
    checks, cells = run_fakes(["WrongLater"], [1024])
    assert checks["WrongLater"].status == "ok"
    assert cells["WrongLater", 1024].status == "failed_check"
    assert cells["WrongLater", 1024].seconds == []
    assert steps_taken(fakes, "wrong_later") == 1


def test_limits_end_a_process_and_spare_the_larger_sizes(fakes):
    _, cells = run_fakes(["Slow", "Good"], [1024, 2048], warmup=1, steps=1, time_limit=3.0)
    assert cells["Slow", 1024].status == "timed_out"
    assert cells["Slow", 1024].reason == "took more than 3 s"
    assert cells["Slow", 2048].status == "skipped"
    assert cells["Slow", 2048].reason == "timed out at 1024 tokens, 6 layers"
    assert [cells["Good", length].status for length in (1024, 2048)] == ["ok", "ok"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to see memory")
def test_a_process_that_takes_too_much_memory_is_ended(fakes):
    _, cells = run_fakes(["Hungry"], [1024], memory_limit=900 * 2**20)
    assert cells["Hungry", 1024].status == "out_of_memory"
    assert cells["Hungry", 1024].reason == "took more than 0.9 GiB"


def test_reasons_are_kept_without_paths(fakes):
    _, cells = run_fakes(["Raising", "Absent", "Picky"], [1024, 2048], warmup=1, steps=1)
    assert cells["Raising", 1024].status == "error"
    assert cells["Raising", 1024].reason == "RuntimeError: no such file: weights.bin"
    assert cells["Absent", 1024].status == "unavailable"
    assert cells["Absent", 1024].reason == "needs `pip install no-such-package==1.0`"
    assert cells["Picky", 1024].status == "ok"
    assert cells["Picky", 2048].status == "unavailable"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no /home/a/b.py, line 3", "no b.py, line 3"),
        ("'/tmp/x/y'", "'y'"),
        ("1/2 of scripts/run.py", "1/2 of scripts/run.py"),
        ("2.5 s/step", "2.5 s/step"),
    ],
)
def test_absolute_paths_are_cut(text, expected):
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    ("turn", "expected"), [(1, "gphgphgphgph"), (2, "gphggpphhgph"), (9, "gphgggppphhh")]
)
def test_contenders_step_in_turn(turn, expected, fakes):
    run_fakes(["Good", "Picky", "Happy"], [1024], warmup=1, steps=3, turn=turn)
    taken = (fakes / "order").read_text().replace("s", "")
    assert taken == expected


def test_slow_contenders_get_fewer_steps():
    limits = Limits(steps=5, budget=10.0)
    assert [limits.timed_steps(seconds) for seconds in (0.001, 2.0, 4.0, 10.5)] == [5, 5, 2, 0]


def test_a_step_above_the_budget_is_the_measurement_itself(fakes):
    _, cells = run_fakes(["Good"], [1024], steps=5, budget=0.0)
    assert len(cells["Good", 1024].seconds) == 1
    assert not cells["Good", 1024].warm
    assert steps_taken(fakes, "good") == 1


# ---- the registry ----


@pytest.mark.parametrize("suite", SUITES)
def test_the_registry_is_sound(suite):
    contenders = {name: find_contender(suite, name) for name in REGISTRY[suite]}
    assert OURS in contenders
    assert set(DEFAULT_CONTENDERS[suite]) <= set(contenders)
    assert len({contender.label for contender in contenders.values()}) == len(contenders)
    assert all(contender.name == name for name, contender in contenders.items())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"must be one of .*'sdpa'.*, got 'sdp'"):
        find_contender("model", "sdp")
    with pytest.raises(ValueError, match=r"`suite` must be one of .*, got 'speed'"):
        find_contender("speed", "sdpa")
    with pytest.raises(ValueError, match="must be a name or module:Class, got 'nowhere:Model'"):
        import_contender("nowhere:Model")
    with pytest.raises(ValueError, match="must be a Contender"):
        import_contender("pathlib:Path")


def test_peers_say_which_lengths_they_take():
    built_in = find_contender("model", "transformers_reformer")
    assert built_in.unavailable(Case(length=100)) == "trains on multiples of 64 tokens only"
    assert built_in.unavailable(Case(length=192)) is None
    pytorch = find_contender("model", "reformer_pytorch")
    assert pytorch.unavailable(Case(length=192)) == "takes multiples of 128 tokens only"


@pytest.mark.parametrize(
    ("suite", "name"),
    [(suite, name) for suite in ("hybrid", "pretrained") for name in REGISTRY[suite]],
)
def test_attention_for_pretrained_models_passes_its_checks(suite, name):
    case = Case(length=256, depth=2, hidden_size=48, num_heads=3, head_size=16, vocab_size=64)
    contender = find_contender(suite, name)
    findings = contender.check(case)
    assert findings
    assert all(finding.passed for finding in findings), findings
    assert contender.unavailable(Case(length=256, num_heads=8)) is not None


@pytest.mark.parametrize("suite", ["model", "attention"])
@pytest.mark.parametrize("name", ["transformers_reformer", "reformer_pytorch", "sdpa", "products"])
def test_peers_pass_their_checks(suite, name):
    case = Case(length=256, depth=1, hidden_size=32, num_heads=2, head_size=16, vocab_size=64)
    contender = find_contender(suite, name)
    reason = contender.unavailable(case)
    if reason is not None:
        pytest.skip(reason)
    failed = [finding for finding in contender.check(case) if not finding.passed]
    assert not [finding for finding in failed if finding.required]


@pytest.mark.parametrize("rounds", [1, 2])
def test_memory_traffic_passes_its_check_and_steps(rounds):
    case = Case(length=300, num_heads=2, head_size=16, rounds=rounds)
    contender = find_contender("attention", "copies")
    assert all(finding.passed for finding in contender.check(case))
    contender.build(case).step()


@pytest.mark.parametrize("suite", ["prefill", "decoding"])
@pytest.mark.parametrize("name", ["reformer_hf", "transformers_reformer", "gpt2"])
def test_decoders_pass_their_checks_and_step(suite, name):
    sizes = {"depth": 1, "hidden_size": 32, "num_heads": 2, "head_size": 16, "vocab_size": 64}
    case = Case(length=300, **sizes)
    contender = find_contender(suite, name)
    assert all(finding.passed for finding in contender.check(case) if finding.required)
    workload = contender.build(case)
    workload.step()
    assert all(finding.passed for finding in workload.findings())
    assert workload.tokens(case) == (1 if suite == "decoding" else 300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "`length` must be positive, got 0"),
        ({"length": 8, "rounds": -1}, "`rounds` must be positive, got -1"),
        ({"length": 8, "dtype": "int8"}, "`dtype` must be one of .*, got 'int8'"),
    ],
    ids=["length", "rounds", "dtype"],
)
def test_impossible_cases_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Case(**changes)


def test_all_lengths_can_hold_the_same_number_of_tokens():
    arguments = ["--suite", "attention", "--output", "x", "--lengths", "4096", "1024"]
    cases = run.make_cases(run.parse_arguments([*arguments, "--total-tokens", "4096"]))
    assert [(case.length, case.batch) for case in cases] == [(1024, 4), (4096, 1)]


# ---- from the numbers alone ----


def make_cell(contender: str, length: int, seconds: list[float], **changes) -> dict[str, Any]:
    times = sorted(seconds)
    median = times[len(times) // 2] if times else None
    return {
        "contender": contender,
        "length": length,
        "batch": 1,
        "depth": 6,
        "status": "ok",
        "reason": "",
        "median_s": median,
        "fastest_s": times[0] if times else None,
        "slowest_s": times[-1] if times else None,
        "tokens_per_s": length / median if median else None,
        "seconds": seconds,
        "cpu_seconds": seconds,
        "warm": True,
        "parameter_bytes": 2**20,
        "gradient_bytes": 2**20,
        "before_bytes": 2**28,
        "extra_peak_bytes": None,
        "resident_extra_peak_bytes": None,
        "estimated_bytes": None,
        "cuda_before_bytes": None,
        "cuda_extra_peak_bytes": None,
        "findings": [],
        **changes,
    }


@pytest.fixture
def document() -> dict[str, Any]:
    case = Case(length=1)
    finding = {"name": "strictly causal", "passed": False, "detail": "seen", "required": False}
    return {
        "schema": 1,
        "suite": "model",
        "environment": {
            "date": "2026-01-01T00:00:00+00:00",
            "commit": "0123456789abcdef",
            "uncommitted_changes": False,
            "machine": {
                "cpu": "a CPU",
                "cores": 2,
                "threads": 2,
                "memory_bytes": 2**34,
                "malloc": {},
                "load_average_at_start": 0.1,
                "gpu": None,
            },
            "versions": {"torch": "2.0"},
        },
        "settings": {
            "case": case.settings(),
            "warmup": 2,
            "steps": 5,
            "budget_s": 120.0,
            "turn": 1,
            "time_limit_s": 1800.0,
        },
        "labels": {"reformer_hf": "reformer_hf", "peer": "a peer"},
        "checks": [make_cell("peer", 512, [], findings=[finding])],
        "cells": [
            make_cell("reformer_hf", 1024, [1.0, 2.0, 3.0], extra_peak_bytes=50 * 2**20),
            make_cell("peer", 1024, [8.0, 4.0, 9.0], extra_peak_bytes=100 * 2**20),
            make_cell("reformer_hf", 2048, [4.0], extra_peak_bytes=100 * 2**20),
            make_cell("peer", 2048, [], status="timed_out", reason="took more than 5 s"),
        ],
    }


def test_the_report_gives_times_ratios_and_reasons(document):
    text = report.render(check_document(document))
    for line in (
        "| 1,024 | 2 | 8 |",
        "| 2,048 | 4 | – |",
        "| 1,024 | 0.25 |",
        "| 1,024 | 50 | 100 |",
        "| 1,024 | 0.50 |",
        "| peer | strictly causal | no | seen |",
        "- peer, tokens 2,048: timed out: took more than 5 s",
        "- versions: torch 2.0; commit 0123456789ab",
    ):
        assert line in text.splitlines()


def test_report_and_figures_come_from_the_file(document, tmp_path, capsys):
    path = tmp_path / "v1.2.json"
    path.write_text(json.dumps(document))
    report.main(["--write", str(path)])
    assert path.with_name("v1.2.md").read_text() == report.render(document)
    plot.main([str(path)])
    assert {p.name for p in tmp_path.glob("*.png")} == {"v1.2-time.png", "v1.2-memory.png"}
    document["suite"] = "depth"
    path.write_text(json.dumps(document))
    report.main([str(path)])
    assert "6 layers" in capsys.readouterr().out


def test_a_file_that_times_what_failed_is_refused(document):
    failing = copy.deepcopy(document)
    failing["cells"][0]["findings"] = [
        {"name": "loss", "passed": False, "detail": "", "required": True}
    ]
    with pytest.raises(ValueError, match="failed checks has no times, got 3 for 'reformer_hf'"):
        check_document(failing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("labels"), "the results file must have the fields"),
        (lambda d: d.update(schema=2), "`schema` must be 1, got 2"),
        (lambda d: d["cells"][0].update(median_s="fast"), "`median_s` of a cell cannot be 'fast'"),
        (lambda d: d["cells"][0].pop("warm"), "a cell must have the fields"),
    ],
    ids=["missing", "schema", "type", "cell"],
)
def test_a_file_of_another_form_is_refused(document, change, message):
    change(document)
    with pytest.raises(ValueError, match=message):
        check_document(document)
