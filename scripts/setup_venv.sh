#!/usr/bin/env bash
# Makes `.venv` in the repository and installs the package into it, with pinned versions.
#
#   bash scripts/setup_venv.sh train        what the training scripts need
#   bash scripts/setup_venv.sh train dev    also lint, types and tests
#
# scripts/demo.sh and scripts/test.sh call this first. A second run with nothing changed takes a
# fraction of a second: a stamp per extra records what was installed from what. The environment
# variable PYTHON names the interpreter to build on; otherwise the first of the usual names that is
# Python 3.10 or newer is taken.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
constraints="$root/scripts/constraints.txt"

if [ "$#" -eq 0 ]; then
    echo "usage: bash scripts/setup_venv.sh EXTRA..., for example: train dev" >&2
    exit 2
fi

say() { echo "[setup] $*" >&2; }

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python python3.13 python3.12 python3.11 python3.10; do
        # Run it rather than look it up: a shim may stand in the path for a Python that is missing.
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' \
            2>/dev/null; then
            echo "$name"
            return
        fi
        if [ "$name" = "${PYTHON:-}" ]; then
            say "PYTHON=$PYTHON is not a Python 3.10 or newer with the modules venv and ensurepip"
            return 1
        fi
    done
    say "no Python 3.10 or newer with the modules venv and ensurepip was found;" \
        "install one (on Debian and Ubuntu also python3-venv), or name one: PYTHON=/path/to/python"
    return 1
}

# What an installation depends on: the two files, the interpreter, and where the checkout lies (the
# package is installed as a link to it).
fingerprint() {
    "$venv/bin/python" - "$root" "$root/pyproject.toml" "$constraints" <<'PY'
import hashlib, pathlib, sys

digest = hashlib.sha256(f"{sys.version} {sys.argv[1]}".encode())
for path in sys.argv[2:]:
    digest.update(pathlib.Path(path).read_bytes())
print(digest.hexdigest())
PY
}

if ! "$venv/bin/python" -c '' 2>/dev/null; then
    python="$(find_python)"
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
elif ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    "$venv/bin/python" -m ensurepip >&2
fi

wanted="$(fingerprint)"
missing=()
for extra in "$@"; do
    if [ "$(cat "$venv/.installed-$extra" 2>/dev/null)" != "$wanted" ]; then
        missing+=("$extra")
    fi
done
if [ "${#missing[@]}" -eq 0 ]; then
    exit 0
fi

extras="$(IFS=,; echo "$*")"
say "installing reformer_hf[$extras]; the first time takes a few minutes"
pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2; }
pip_install --upgrade pip
# PyTorch first and by itself: everything after finds it installed, in the build that the pin chose.
pip_install --constraint "$constraints" torch
pip_install --constraint "$constraints" --editable "$root[$extras]"
for extra in "$@"; do
    echo "$wanted" >"$venv/.installed-$extra"
done
say "done"
