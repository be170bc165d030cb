#!/usr/bin/env bash
# Run the tests with the oldest versions that pyproject.toml admits, in an environment of its own (.venv-floors).
# Needs Python 3.10, named by PYTHON310 if it is not on the path as python3.10.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv-floors/bin/python ] || "${PYTHON310:-python3.10}" -m venv .venv-floors
bash scripts/floors.sh >.venv-floors/constraints.txt
.venv-floors/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-floors/constraints.txt \
    pytest pytest-timeout pycocotools --editable '.[dense,plot]'
exec .venv-floors/bin/python -m pytest "$@"
