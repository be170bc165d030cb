#!/usr/bin/env bash
# Run the tests: bash scripts/test.sh [--all] [pytest arguments]. --all adds the heavier checks. Two processes share the
# tests; -n 8 takes more of them, -n 0 no other process than pytest itself, as --pdb needs it.
set -euo pipefail
source "$(dirname "$0")/env.sh"
ensure_env demo,test
if [ "${1:-}" = --all ]; then
    shift
    set -- -m 'not exhaustive' "$@"
fi
exec "$PYTHON" -m pytest -n 2 --dist worksteal "$@"
