#!/usr/bin/env bash
# Print the oldest versions that pyproject.toml admits, as constraints for pip:
#
#   bash scripts/floors.sh >floors.txt
#   PYTHON3=python3.10 CONSTRAINTS=$PWD/floors.txt .ci/run
set -euo pipefail
cd "$(dirname "$0")/.."
sed -n '/^dependencies = \[/,/^\]/s/.*"\(.*\)>=\(.*\)".*/\1==\2/p' pyproject.toml
