"""Put a training checkpoint into the package.

    python scripts/bundle_weight.py last.pth.tar csa_resnet20_cifar.cifar10

The checkpoint is one of timm's train.py; its tensors are loaded strictly and written without the training state.
"""

import argparse
import os

import timm
from safetensors.torch import save_file

import timm_attn  # noqa: F401  registers the models
from timm_attn.weights import bundled


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Put a training checkpoint into the package.')
    parser.add_argument('checkpoint', help='checkpoint of a training run, such as last.pth.tar')
    parser.add_argument('name', help='architecture.tag of the weight')
    args = parser.parse_args()
    model = timm.create_model(args.name.partition('.')[0], checkpoint_path=args.checkpoint)
    path = bundled(f'{args.name}.safetensors')
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f'{path}.part', metadata={'format': 'pt'})
    os.replace(f'{path}.part', path)
    print(f'{path}: {os.path.getsize(path)} bytes')


if __name__ == '__main__':
    main()
