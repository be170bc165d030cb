"""``timm-attn train-detection`` and ``timm-attn train-segmentation``."""

import argparse
import sys
from functools import partial

from ..train.dense_options import add_detection_arguments, add_segmentation_arguments, parse
from .common import add_command, check_model
from .finetune import run_training


def add_parsers(commands) -> None:
    """Add both subcommands."""
    p = add_command(commands, 'train-detection', 'train a detector on a folder of images', train_detection)
    add_detection_arguments(p)
    p.set_defaults(func=partial(train_detection, p))
    p = add_command(commands, 'train-segmentation', 'train a segmenter on a folder of images', train_segmentation)
    add_segmentation_arguments(p)
    p.set_defaults(func=partial(train_segmentation, p))


def train_detection(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Train a detector."""
    return _train(parser, args, 'DetectionTask')


def train_segmentation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Train a segmenter."""
    return _train(parser, args, 'SegmentationTask')


def _train(parser: argparse.ArgumentParser, args: argparse.Namespace, task: str) -> int:
    args = parse(parser, args.argv[1:])
    check_model(args.backbone)

    from ..dense import tasks
    from ..dense.train import train

    try:
        return run_training(partial(train, args, getattr(tasks, task)))
    except ValueError as e:
        if '\n' not in str(e):
            raise
        print(f'error: {e}', file=sys.stderr)  # a list, of defects or of layouts, with an entry in each line
        return 2
