#!/usr/bin/env bash
# What only an NVIDIA GPU shows: CSA's Triton kernel against the CPU path, and what the attentions cost there, eager and
# compiled. Run `bash scripts/gpu.sh`; the figures go to output/benchmark-gpu.json.
set -euo pipefail
source "$(dirname "$0")/env.sh"
ensure_env demo,test
"$PYTHON" -c "import sys, torch; torch.cuda.is_available() or sys.exit('This PyTorch finds no CUDA device.'); \
print(torch.cuda.get_device_name())"
"$PYTHON" -m pytest -q tests/test_csa_triton.py
"$PYTHON" scripts/benchmark.py --device cuda --dtype bfloat16 --layout channels_last --mode eager compile \
    --batch-size 128 --main --no-layers --output output/benchmark-gpu.json
