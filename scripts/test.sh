#!/usr/bin/env bash
# Lint, format, types and tests, in an environment of their own.
#
#   bash scripts/test.sh                       everything but the tests marked slow
#   bash scripts/test.sh -m slow               further arguments go to pytest
#   bash scripts/test.sh tests/ops -k hashing
#
# REFORMER_PYTHON=python uses that interpreter as it is, with what is installed there, instead of
# making `.venv` (the CI matrix does so). PYTEST_WORKERS=1 runs the tests in one process.
#
# Every step runs even where an earlier one fails. The exit code is 0 only when all pass, and the
# last line is pytest's.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root" || exit 1

if [ -n "${REFORMER_PYTHON:-}" ]; then
    python="$REFORMER_PYTHON"
else
    bash scripts/setup_venv.sh train dev || exit 1
    python="$root/.venv/bin/python"
fi

# One thread for each worker: two workers on two cores outrun two threads, and sums come out in the
# same order every time.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TOKENIZERS_PARALLELISM=false

failed=()
step() {
    local name="$1"
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}
step "ruff check" "$python" -m ruff check .
step "ruff format" "$python" -m ruff format --check .
step "mypy" "$python" -m mypy

if [ "${#failed[@]}" -gt 0 ]; then
    printf '== FAILED: %s\n' "${failed[@]}"
fi
workers="${PYTEST_WORKERS:-2}"
echo "== pytest"
if [ "$workers" -gt 1 ]; then
    "$python" -m pytest --numprocesses "$workers" --dist worksteal "$@"
else
    "$python" -m pytest "$@"
fi
status=$?
if [ "$status" -eq 0 ] && [ "${#failed[@]}" -gt 0 ]; then
    status=1
fi
exit "$status"
