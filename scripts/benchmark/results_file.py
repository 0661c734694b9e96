"""The results file: one JSON document per run, checked when it is written and when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCHEMA = 1

_Kinds = type | tuple[type, ...]
_OPTIONAL: _Kinds = (int, float, type(None))

# Bytes: of weights and gradients; resident when the model is built; above that, what the first step
# had in use at its peak (freed blocks returned at once), what later steps had resident (with what
# the C library keeps), and what was estimated; allocated on the GPU when built, and above that.
MEMORY_FIELDS = (
    "parameter_bytes",
    "gradient_bytes",
    "before_bytes",
    "extra_peak_bytes",
    "resident_extra_peak_bytes",
    "estimated_bytes",
    "cuda_before_bytes",
    "cuda_extra_peak_bytes",
)

_DOCUMENT: dict[str, _Kinds] = {
    "schema": int,
    "suite": str,
    "environment": dict,
    "settings": dict,
    "labels": dict,
    "checks": list,
    "cells": list,
}
_CELL: dict[str, _Kinds] = {
    "contender": str,
    "length": int,
    "batch": int,
    "depth": int,
    "status": str,
    "reason": str,
    "median_s": _OPTIONAL,
    "fastest_s": _OPTIONAL,
    "slowest_s": _OPTIONAL,
    "tokens_per_s": _OPTIONAL,
    "seconds": list,
    "cpu_seconds": list,
    "warm": bool,
    **dict.fromkeys(MEMORY_FIELDS, _OPTIONAL),
    "findings": list,
}
_FINDING: dict[str, _Kinds] = {"name": str, "passed": bool, "detail": str, "required": bool}


def check_document(document: Any) -> dict[str, Any]:
    """The document, if it has the fields of a results file.

    Raises:
        ValueError: a field that is missing, unknown, or of another type; or a cell that has times
            although its checks failed.
    """
    _check_fields(document, _DOCUMENT, "the results file")
    if document["schema"] != SCHEMA:
        raise ValueError(f"`schema` must be {SCHEMA}, got {document['schema']}")
    for cell in [*document["checks"], *document["cells"]]:
        _check_fields(cell, _CELL, "a cell")
        for finding in cell["findings"]:
            _check_fields(finding, _FINDING, "a finding")
        failed = any(f["required"] and not f["passed"] for f in cell["findings"])
        if cell["seconds"] and (failed or cell["status"] != "ok"):
            raise ValueError(
                f"a cell with `status` {cell['status']!r} and failed checks has no times, "
                f"got {len(cell['seconds'])} for {cell['contender']!r}"
            )
    return dict(document)


def _check_fields(value: Any, fields: dict[str, _Kinds], where: str) -> None:
    if not isinstance(value, dict) or set(value) != set(fields):
        got = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{where} must have the fields {sorted(fields)}, got {got}")
    for name, kinds in fields.items():
        if not isinstance(value[name], kinds):
            raise ValueError(f"`{name}` of {where} cannot be {value[name]!r}")


def write_results(path: Path, document: dict[str, Any]) -> None:
    """Write a results file, through a neighbour, so that an interrupted run leaves the old one."""
    check_document(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        ValueError: it is not one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} must be a JSON document: {error}") from error
    return check_document(document)


def extra_peak(cell: dict[str, Any]) -> int | None:
    """Bytes in use above the built model at the peak: on the GPU where there is one."""
    cuda: int | None = cell["cuda_extra_peak_bytes"]
    host: int | None = cell["extra_peak_bytes"]
    return host if cuda is None else cuda


def sizes_of(document: dict[str, Any]) -> list[tuple[int, int]]:
    """The (length, depth) pairs of a document, in ascending order."""
    return sorted({(cell["length"], cell["depth"]) for cell in document["cells"]})


def contenders_of(cells: Iterable[dict[str, Any]]) -> list[str]:
    """Names of contenders in order of appearance."""
    return [*dict.fromkeys(cell["contender"] for cell in cells)]
