"""Weights: where each comes from, fetching them, and fitting foreign checkpoints into our models."""

from .convert import CheckpointError
from .download_error import DownloadError
from .manifest import Metric, Weight, bundled, imagenet_cfg, plain_backbone, pretrained_cfgs, weights
from .torch_version import check_torch

__all__ = [
    'CheckpointError',
    'DownloadError',
    'Metric',
    'Weight',
    'bundled',
    'imagenet_cfg',
    'plain_backbone',
    'pretrained_cfgs',
    'weights',
]

check_torch()
