#!/usr/bin/env bash
# Classify a real photograph, the cat that scikit-image ships, with csa_resnet20_cifar: a small network for the ten classes
# of CIFAR-10 and images of 32x32 pixels, whose weights are in this package.
set -euo pipefail
source "$(dirname "$0")/env.sh"
ensure_env demo
cat="$("$PYTHON" -c 'import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / "data" / "chelsea.png")')"
exec "$PYTHON" -m timm_attn predict "$cat" --model csa_resnet20_cifar
