#!/usr/bin/env bash
# Run timm's own, unmodified tests/test_models.py over the models of this package.
#
#   bash scripts/timm_conformance.sh [FILTER]      FILTER: a wildcard of model names, all models without it
#
# The tests come with the source distribution of the installed timm, taken from the package index. Nothing is
# excluded: every test that timm generates for its ResNets and MobileNets runs for every model here.
set -euo pipefail
source "$(dirname "$0")/env.sh"
ensure_env demo,test
version="$("$PYTHON" -c 'import timm; print(timm.__version__)')"
cache=".venv/timm-$version"
if [ ! -f "$cache/tests/test_models.py" ]; then
    "$PYTHON" -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation --dest .venv "timm==$version" \
        || "$PYTHON" -m pip download --quiet --no-deps --no-binary :all: --dest .venv "timm==$version"
    tar -xzf ".venv/timm-$version.tar.gz" -C .venv
fi
export PYTHONPATH="$PWD/scripts" TORCH_BACKEND=timm_attn ZOO_FILTER="${1:-}"
cd "$cache"
exec ../bin/python -m pytest -q -p timm_conformance_plugin -W ignore tests/test_models.py
