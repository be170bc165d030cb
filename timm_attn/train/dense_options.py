"""Options of ``timm-attn train-detection`` and ``timm-attn train-segmentation``."""

import argparse
from collections.abc import Callable

from . import options
from .argument_types import (
    ParseKwargs,
    image_size,
    integer,
    not_negative,
    positive,
    positive_int,
    positive_share,
    text,
)
from .options import (
    RunError,
    add_averaging,
    add_decay,
    add_length,
    add_loading,
    add_machine,
    add_output,
    add_run,
    adder,
    flag,
)

DETECTORS = ('ssdlite320', 'fasterrcnn', 'maskrcnn', 'retinanet')
SEGMENTERS = ('deeplabv3',)
DETECTION_METRICS = ('AP', 'AP50', 'AP75', 'mAP_voc07', 'mask_AP')
SEGMENTATION_METRICS = ('mIoU', 'pixel_accuracy')
FILES = ('train_annotations', 'train_images', 'val_annotations', 'val_images')


def add_detection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train-detection``."""
    add_run(parser, 'folder in the layout of Pascal VOC or COCO')
    add = _add_data(parser, batch_size=8)
    add('--train-annotations', type=text, metavar='FILE', help='JSON of COCO, instead of DIR')
    add('--train-images', type=text, metavar='DIR', help='the images that it names')
    add('--val-annotations', type=text, metavar='FILE', help='JSON of COCO for validation')
    add('--val-images', type=text, metavar='DIR', help='the images that it names')
    add('--group-aspect-ratio', action=flag,
        help='batches of upright images and batches of wide ones (default: where images keep their shape)')  # fmt: skip
    add = adder(parser, 'model')
    add('--detector', choices=DETECTORS, default='ssdlite320', help='kind of detector')
    _add_model(add, 'mbv2_ca', 'variant=voc')
    _add_training(parser, lr_base=0.01, weight_decay=1e-4, metrics=DETECTION_METRICS)
    add_output(parser, 'output/detection')


def add_segmentation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train-segmentation``."""
    add_run(parser, 'DIR/train/images, DIR/train/masks, DIR/val/...; or a folder of Pascal VOC or Cityscapes')
    add = _add_data(parser, batch_size=8)
    add('--classes', nargs='+', type=text, metavar='NAME', help='names of the classes 0, 1, ..., or a file of them')
    add('--ignore-index', type=integer(2**31 - 1), default=255, metavar='N', help='value of pixels that do not count')
    add('--img-size', type=image_size, default=512, metavar='N', help='side of the crops to train on, in pixels')
    add = adder(parser, 'model')
    add('--segmenter', choices=SEGMENTERS, default='deeplabv3', help='kind of segmenter')
    _add_model(add, 'mbv2_ca', 'output_stride=8')
    _add_training(parser, lr_base=0.02, weight_decay=4e-5, metrics=SEGMENTATION_METRICS)
    add_output(parser, 'output/segmentation')


def _add_data(parser: argparse.ArgumentParser, batch_size: int) -> Callable[..., None]:
    add = adder(parser, 'data')
    add('--train-split', type=text, metavar='NAME', help='images to train on (default: train, or train2017)')
    add('--val-split', type=text, metavar='NAME', help='images to validate on (default: val, or val2017)')
    add('--check', choices=('full', 'quick', 'none'), default='full',
        help='before training, open all images, read only their headers, or do not check them')  # fmt: skip
    add('--skip-invalid', action=flag, default=False, help='leave out images and objects that have a defect')
    add('--limit', type=positive_int, metavar='N', help='take the first N images of each split, for a trial')
    add_loading(add, batch_size)
    return add


def _add_model(add: Callable[..., None], backbone: str, example: str) -> None:
    add('--backbone', type=text, default=backbone, help='any model of timm or of this package')
    add('--pretrained', action=flag, default=True, help='start from the pretrained weights of the backbone')
    add('--pretrained-path', type=text, metavar='FILE',
        help='start from the weights of the backbone in this file (default: download them)')  # fmt: skip
    add('--initial-checkpoint', type=text, metavar='RUN',
        help='start from a whole trained model, as far as its tensors fit')  # fmt: skip
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
        help=f'arguments of the builder in timm_attn.dense, such as {example} (default: none)')  # fmt: skip
    add('--backbone-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
        help='arguments of the backbone, such as csa_blocks=all (default: none)')  # fmt: skip
    add('--sync-bn', action=flag, default=False, help='batch norm over the images of all processes')
    add_averaging(add)


def _add_training(
    parser: argparse.ArgumentParser, lr_base: float, weight_decay: float, metrics: tuple[str, ...]
) -> None:
    add_machine(parser)
    add = adder(parser, 'optimizer')
    add_length(add, epochs=30, metric='result')
    add('--opt', type=text, default='momentum', metavar='NAME', help='any optimizer of timm; momentum is plain SGD')
    add('--momentum', type=not_negative, default=0.9, help='its momentum')
    add('--lr', type=positive, help='learning rate (default: from --lr-base)')
    add('--lr-base', type=positive, default=lr_base, metavar='LR',
        help='learning rate of a batch of --lr-base-size images; it grows with the batch of a step')  # fmt: skip
    add('--lr-base-size', type=positive_int, default=16, metavar='N', help='images of that batch')
    add('--grad-accum-steps', type=positive_int, default=1, metavar='N', help='batches in a step of the optimizer')
    add_decay(add, weight_decay)
    add('--sched', choices=('cosine', 'multistep', 'poly'), default='cosine', help='schedule of the learning rate')
    add('--decay-milestones', nargs='+', type=positive_int, default=[16, 22], metavar='EPOCH',
        help='when multistep decays it')  # fmt: skip
    add('--decay-rate', type=positive_share, metavar='FACTOR',
        help='by how much; of poly its power (default: 0.1; of poly 0.9)')  # fmt: skip
    add('--warmup-epochs', type=not_negative, default=1.0, metavar='N',
        help='epochs of linear warm-up, also a part of one; at most half of all epochs')  # fmt: skip
    add('--warmup-lr', type=not_negative, default=1e-5, metavar='LR', help='learning rate that it begins with')
    add = adder(parser, 'evaluation')
    add('--eval-metric', choices=metrics, default=metrics[0], help='what decides which epoch is the best')
    add('--eval-only', action=flag, default=False,
        help='evaluate --initial-checkpoint RUN on the images for validation, and end')  # fmt: skip


CONSTANT = dict(sched_on_updates=True, min_lr=0.0, checkpoint_hist=1, layer_decay=None)
"""Options of timm's train.py that are not options here."""

_KEPT = (
    'detector', 'segmenter', 'backbone', 'model_kwargs', 'backbone_kwargs', 'sync_bn', 'opt', 'momentum', 'lr',
    'lr_base', 'lr_base_size', 'grad_accum_steps', 'weight_decay', 'train_split', 'val_split', 'limit', 'classes',
    'ignore_index', 'img_size', 'eval_metric', *FILES,
)  # fmt: skip
"""Options that a resumed run keeps."""


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Options from the run to resume, from ``--config`` and, with priority over both, from the command line.

    Args:
        parser: A parser with the options of one of the commands.
        argv: The command line.

    Raises:
        RunError: If a file cannot be read or has other options, a run cannot be resumed with these options, or options
            contradict each other.
    """
    args = options.parse(parser, argv, _KEPT, CONSTANT)
    files = [name for name in FILES if getattr(args, name, None)]
    if files and args.data_dir:
        raise RunError(f'Name DIR or --{files[0].replace("_", "-")}, not both.')
    if files and len(files) < len(FILES):
        missing = [f'--{name.replace("_", "-")}' for name in FILES if name not in files]
        raise RunError(f'{", ".join(missing)} must be named, too.')
    if not files and not args.data_dir:
        raise RunError(f'Name the folder of the data set, before the options: {parser.prog} DIR.')
    if args.eval_metric == 'mask_AP' and args.detector != 'maskrcnn':
        raise RunError('--eval-metric mask_AP needs --detector maskrcnn.')
    if ':' in args.backbone or '/' in args.backbone:
        raise RunError(
            f'--backbone {args.backbone}: name a model, such as mbv2_ca, so that the result can be loaded anywhere. To '
            'start from weights of your own, add --pretrained-path FILE.'
        )
    if args.decay_rate is None:
        args.decay_rate = 0.9 if args.sched == 'poly' else 0.1
    if args.resume and any(word.partition('=')[0] == '--initial-checkpoint' for word in argv):
        raise RunError('--resume continues from the checkpoints of the run: leave out --initial-checkpoint.')
    if args.eval_only and args.resume:
        raise RunError('--eval-only evaluates a run that is named by --initial-checkpoint RUN, not by --resume.')
    if args.eval_only and not args.initial_checkpoint:
        raise RunError('--eval-only needs --initial-checkpoint RUN.')
    return args
