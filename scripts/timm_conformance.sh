#!/usr/bin/env bash
# Run timm's own, unmodified tests/test_models.py over the models of this package.
#
#   bash scripts/timm_conformance.sh [FILTER]      FILTER: a wildcard of model names, all models without it
#
# The tests come with the source distribution of the installed timm, taken from the package index. Every test that
# timm generates from its list of models, for its ResNets and MobileNets among others, runs for every model here; no
# test and no model is excluded, but weights that would be downloaded are. Tests that name single models of timm are not
# generated and stay with those models.
set -euo pipefail
source "$(dirname "$0")/env.sh"
ensure_env demo,test
version="$("$PYTHON" -c 'import timm; print(timm.__version__)')"
tests=".venv/timm-$version-tests"
if [ ! -f "$tests/tests/test_models.py" ]; then
    "$PYTHON" -m pip download --quiet --no-deps --no-binary :all: --dest .venv "timm==$version"
    mkdir -p "$tests"
    # only the tests: beside its own source, they would test that instead of the installed timm
    tar -xzf ".venv/timm-$version.tar.gz" -C "$tests" --strip-components=1 "timm-$version/tests" \
        "timm-$version/pyproject.toml"
fi
export PYTHONPATH="$PWD/scripts" TORCH_BACKEND=timm_attn ZOO_FILTER="${1:-}" OMP_NUM_THREADS=1
cd "$tests"
exec ../bin/python -m pytest -q -n 2 --dist worksteal -p timm_conformance -W ignore tests/test_models.py
