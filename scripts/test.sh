#!/usr/bin/env bash
# Run the tests: bash scripts/test.sh [--all] [pytest arguments]. --all adds the heavier checks.
set -euo pipefail
source "$(dirname "$0")/env.sh"
ensure_env demo,test
if [ "${1:-}" = --all ]; then
    shift
    set -- -m 'slow or not slow' "$@"
fi
exec "$PYTHON" -m pytest "$@"
