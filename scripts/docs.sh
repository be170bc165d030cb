#!/usr/bin/env bash
# Build the documentation, warnings as errors, and the page of the zoo: bash scripts/docs.sh [OUT]  (default: build/docs)
set -euo pipefail
source "$(dirname "$0")/env.sh"
ensure_env docs
out="${1:-build/docs}"
"$PYTHON" -m sphinx -W --keep-going -q -b html docs "$out"
"$PYTHON" scripts/zoo_page.py "$out"
