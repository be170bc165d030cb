#!/usr/bin/env bash
# Build the documentation, warnings as errors: bash scripts/docs.sh [OUT]     (default: build/docs)
set -euo pipefail
source "$(dirname "$0")/env.sh"
ensure_env docs
exec "$PYTHON" -m sphinx -W --keep-going -q -b html docs "${1:-build/docs}"
