"""Which backend serves a call, and what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from reformer_hf.ops import windowed_attention as package
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.sorting import identity_order, sort_by_bucket
from reformer_hf.ops.triton_support import installed
from reformer_hf.ops.windowed_attention import (
    BACKENDS,
    WindowedAttentionCall,
    choose_backend,
    triton_backend,
    windowed_attention,
)

WINDOW = AttentionWindow("window", 2, 0, 4, causal=True, exclude_self=True)


def call(length: int = 6) -> WindowedAttentionCall:
    x = torch.randn(1, 1, length, 2)
    return WindowedAttentionCall(x, None, x, None, None, WINDOW, 1.0)


# ---- choice ----


def test_auto_takes_a_fast_backend_and_never_the_reference():
    assert choose_backend(call()) != "reference"


def test_auto_says_once_what_it_took(caplog, monkeypatch):
    monkeypatch.setattr(package, "_announced", set())
    with caplog.at_level(logging.INFO, logger=package.__name__):
        name = choose_backend(call())
        choose_backend(call())
    assert [r.getMessage() for r in caplog.records if name in r.getMessage()] == [
        f"windowed attention runs on the {name!r} backend (automatic choice)"
    ]


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_a_named_backend_is_taken(name):
    assert choose_backend(call(), name) == name


def test_an_unknown_backend_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"backend.*auto.*reference.*torch.*'cuda'"):
        choose_backend(call(), "cuda")


def test_a_named_backend_that_cannot_serve_is_refused_with_reason_and_alternatives():
    with pytest.raises(ValueError, match=r"'reference' cannot.*4096 tokens, got 4097.*\['torch'"):
        choose_backend(call(4097), "reference")
    assert choose_backend(call(4096), "reference") == "reference"


def test_auto_passes_over_a_backend_that_cannot_serve(monkeypatch):
    unusable = replace(BACKENDS["reference"], unsupported=lambda call: "it needs a moon")
    monkeypatch.setitem(package.BACKENDS, "lunar", unusable)
    monkeypatch.setitem(package._AUTOMATIC, "cpu", ("lunar", "torch"))
    assert choose_backend(call()) == "torch"
    with pytest.raises(ValueError, match=r"'lunar' cannot serve this call: it needs a moon"):
        choose_backend(call(), "lunar")


# ---- the triton backend says why not ----


def refusal(monkeypatch: pytest.MonkeyPatch, size: int = 64, **changed: Any) -> str:
    """The error of an explicit choice, for tensors that would be served but for what is changed."""
    monkeypatch.setenv("TRITON_INTERPRET", changed.pop("interpret", "1"))
    x = torch.zeros(1, 1, 6, size, **changed)
    with pytest.raises(ValueError, match="'triton' cannot serve this call") as caught:
        choose_backend(WindowedAttentionCall(x, None, x, None, None, WINDOW, 1.0), "triton")
    assert "use one of ['reference', 'torch']" in str(caught.value)
    return str(caught.value)


def test_triton_refuses_other_devices(monkeypatch):
    assert "runs on cuda devices, got tensors on cpu" in refusal(monkeypatch, interpret="0")
    assert "runs on cuda devices, got tensors on meta" in refusal(monkeypatch, device="meta")


def test_triton_refuses_other_head_sizes(monkeypatch):
    assert "head sizes 32, 64, 128, got 48" in refusal(monkeypatch, size=48)


def test_triton_refuses_other_dtypes(monkeypatch):
    message = refusal(monkeypatch, dtype=torch.float64)
    assert "torch.bfloat16, torch.float32, got torch.float64" in message


def test_triton_refuses_where_its_package_is_missing(monkeypatch):
    monkeypatch.setattr(triton_backend, "installed", lambda: False)
    assert "needs the package triton, which is not installed" in refusal(monkeypatch)


@pytest.mark.skipif(not installed(), reason="Triton has no build for this platform")
def test_auto_on_a_cpu_takes_no_interpreted_kernels(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.zeros(1, 1, 6, 64)
    found = WindowedAttentionCall(x, None, x, None, None, WINDOW, 1.0)
    assert choose_backend(found, "triton") == "triton"
    assert choose_backend(found) == "torch"


def test_auto_prefers_triton_on_cuda():
    assert package._AUTOMATIC["cuda"] == ("triton", "torch")


def test_the_public_function_runs_the_named_backend(monkeypatch):
    ran = []
    for name, backend in list(BACKENDS.items()):
        spy = replace(backend, run=lambda c, n=name, b=backend: (ran.append(n), b.run(c))[1])
        monkeypatch.setitem(package.BACKENDS, name, spy)
    x = torch.randn(1, 1, 6, 2)
    windowed_attention(x, None, x, window=WINDOW, backend="reference")
    windowed_attention(x, None, x, window=WINDOW, backend="torch")
    assert ran == ["reference", "torch"]


# ---- what is refused ----

QUERY = torch.zeros(2, 3, 6, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": QUERY[0]}, r"`query` must be \[batch.*got \(3, 6, 4\)"),
        ({"query": QUERY[:, :, :0], "value": QUERY[:, :, :0]}, r"`query`.*got length 0"),
        ({"value": QUERY[:, :, :5]}, r"`value`.*\(2, 3, 6, 4\), got \(2, 3, 5, 4\)"),
        ({"key": QUERY[:1]}, r"`key`.*\(2, 3, 6, 4\), got \(1, 3, 6, 4\)"),
        ({"value": QUERY.double()}, r"`value`.*float32 on cpu, got torch.float64 on cpu"),
        ({"key": QUERY.to("meta")}, r"`key`.*float32 on cpu, got torch.float32 on meta"),
        ({"order": identity_order(5, QUERY.device)}, r"`order`.*rounds, 6\], got \(1, 1, 1, 5\)"),
        (
            {"order": sort_by_bucket(torch.zeros(2, 2, 1, 6, dtype=torch.int64))},
            r"`order`.*\[2 or 1, 3 or 1, rounds, 6\], got \(2, 2, 1, 6\)",
        ),
        (
            {"order": sort_by_bucket(torch.zeros(3, 3, 1, 6, dtype=torch.int64))},
            r"`order`.*got \(3, 3, 1, 6\)",
        ),
        ({"real": torch.ones(2, 5, dtype=torch.bool)}, r"`real` must be \[2, 6\], got \(2, 5\)"),
    ],
    ids=lambda x: " and ".join(x) if isinstance(x, dict) else "is",
)
def test_tensors_that_do_not_fit_are_refused_with_expected_and_actual(changed, message):
    arguments: dict[str, Any] = {"query": QUERY, "key": None, "value": QUERY, **changed}
    with pytest.raises(ValueError, match=message):
        windowed_attention(**arguments, window=WINDOW)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pattern": "diagonal"}, r"`pattern` must be one of.*window.*chunk.*'diagonal'"),
        ({"before": -1}, r"`before`.*-1"),
        ({"after": -2, "causal": False}, r"`after`.*-2"),
        ({"chunk_length": 0}, r"`chunk_length`.*0"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"`dropout`.*-0.1"),
        ({"after": 1}, r"causal.*`after` must be 0, got 1"),
    ],
    ids=lambda x: " and ".join(x) if isinstance(x, dict) else "is",
)
def test_impossible_windows_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(WINDOW, **changed)
