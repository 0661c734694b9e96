"""Every kernel compiles for compute capability 9.0 and keeps everything in registers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
if not sys.platform.startswith("linux"):
    pytest.skip("Triton brings its assembler on Linux alone", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
LSH: dict[str, Any] = {
    "dtype": "bfloat16",
    "size": 64,
    "rounds": 2,
    "own_keys": False,
    "pattern": "window",
    "before": 64,
    "after": 0,
    "causal": True,
    "exclude_self": True,
    "count_duplicates": True,
    "dropout": 0.0,
}
LOCAL = {**LSH, "rounds": 0, "own_keys": True, "exclude_self": False}
CHUNK = {**LSH, "pattern": "chunk", "before": 1}


def compile_all(variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.ops.compile_for_hopper"],
        input=json.dumps(variants),
        env={**os.environ, "TRITON_INTERPRET": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


WINDOWED = {"forward_kernel", "delta_kernel", "queries_kernel", "keys_kernel"}
HYBRID = {"forward_kernel", "queries_kernel", "keys_kernel"}


def assert_nothing_spills(
    variants: list[dict[str, Any]], kernels: set[str] = WINDOWED
) -> list[dict[str, Any]]:
    compiled = compile_all(variants)
    assert {x["kernel"] for x in compiled} == kernels
    assert [x for x in compiled if x["spilled"]] == []
    # What the shared memory of a multiprocessor holds.
    assert max(x["shared"] for x in compiled) <= 227 * 1024
    return compiled


def test_the_plain_case_uses_the_asynchronous_matrix_units_and_leaves_room_for_eight_warps():
    compiled = assert_nothing_spills([LSH])
    attention = [x for x in compiled if x["kernel"] != "delta_kernel"]
    assert {x["matrix_units"] for x in attention} == {"wgmma"}
    for x in attention:
        programs = 8 // x["warps"]
        assert programs * 32 * x["warps"] * x["registers"] <= 65536, x
        assert programs * x["shared"] <= 227 * 1024, x


@pytest.mark.parametrize(
    "variant",
    [
        LOCAL,
        CHUNK,
        {**LSH, "size": 128, "rounds": 1},
        {**LSH, "dtype": "float32", "rounds": 1},
        {**LSH, "dtype": "float16", "size": 32, "rounds": 1, "dropout": 0.1},
        {**CHUNK, "after": 1, "causal": False, "count_duplicates": False, "dropout": 0.1},
    ],
    ids=["local", "chunk", "size 128", "fp32", "fp16 with dropout", "chunk, all options"],
)
def test_nothing_spills(variant):
    assert_nothing_spills([variant])


@pytest.mark.parametrize(
    ("dtype", "size", "factors"),
    [("bfloat16", 64, [32, 32]), ("float32", 128, [16, 128]), ("float16", 32, [2])],
    ids=str,
)
def test_hash_and_residual_sums_do_not_spill(dtype, size, factors):
    compiled = compile_all([{"dtype": dtype, "size": size, "factors": factors}])
    assert [x["kernel"] for x in compiled] == ["angular_kernel"] + 2 * ["residual_kernel"]
    assert [x for x in compiled if x["spilled"]] == []


@pytest.mark.parametrize(
    ("num_buckets", "length", "passes"),
    [(1, 1000, 1), (512, 4096, 1), (300_000, 5000, 3)],
)
def test_the_sort_does_not_spill(num_buckets, length, passes):
    compiled = compile_all([{"num_buckets": num_buckets, "length": length}])
    assert [x["kernel"] for x in compiled] == passes * ["count_kernel", "place_kernel"]
    assert [x for x in compiled if x["spilled"]] == []


@pytest.mark.parametrize(
    ("dtype", "size", "causal", "dropout"),
    [("bfloat16", 64, True, 0.0), ("bfloat16", 128, False, 0.1), ("float32", 128, True, 0.0)],
    ids=str,
)
def test_hybrid_attention_does_not_spill(dtype, size, causal, dropout):
    variant = {"operation": "hybrid", "dtype": dtype, "size": size}
    compiled = assert_nothing_spills([{**variant, "causal": causal, "dropout": dropout}], HYBRID)
    # Local window and rounds each way, and the sinks' gradients.
    assert len(compiled) == 7
    if dtype == "bfloat16" and not dropout:
        assert {x["matrix_units"] for x in compiled} == {"wgmma"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_hybrid_attention_does_not_spill_in_any_variant(dtype, size):
    options = itertools.product((True, False), (0.0, 0.1))
    variant = {"operation": "hybrid", "dtype": dtype, "size": size}
    variants = [{**variant, "causal": causal, "dropout": dropout} for causal, dropout in options]
    assert_nothing_spills(variants, HYBRID)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_nothing_spills_in_any_variant(pattern, dtype, size):
    base = {**(LSH if pattern == "window" else CHUNK), "dtype": dtype, "size": size}
    variants = []
    for causal, own_keys, exclude_self, counted, dropout, rounds in itertools.product(
        (True, False), (True, False), (True, False), (True, False), (0.0, 0.1), (0, 2)
    ):
        after = 0 if causal else base["before"]
        variants.append(
            {
                **base,
                "causal": causal,
                "after": after,
                "own_keys": own_keys,
                "exclude_self": exclude_self,
                "count_duplicates": counted,
                "dropout": dropout,
                "rounds": rounds,
            }
        )
    assert_nothing_spills(variants)
