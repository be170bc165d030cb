"""What ``predict`` and ``evaluate`` share: the options that name a classifier, loading it, and telling what it is."""

import argparse
import sys

from ..train.argument_types import positive_int
from .common import UsageError, check_model, printable

DEFAULT_MODEL = 'mbv2_ca'  # small, its attention trained by the authors, the 1000 classes of ImageNet
_IN_THE_PACKAGE = 'csa_resnet20_cifar'


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a classifier, and how to run it."""
    parser.add_argument(
        '--model',
        default=DEFAULT_MODEL,
        help="any model that timm knows: 'model', 'model.tag', 'hf-hub:...', 'local-dir:...' (default: %(default)s)",
    )
    parser.add_argument('--checkpoint', default='', metavar='PATH', help='load this file instead of pretrained weights')
    parser.add_argument('--num-classes', type=positive_int, metavar='N', help='number of classes of the checkpoint')
    parser.add_argument('-b', '--batch-size', type=positive_int, default=32, metavar='N', help='default: %(default)s')
    parser.add_argument('--device', default='cpu', help='torch device (default: %(default)s)')


def check_model_options(args: argparse.Namespace) -> None:
    """Check the options, before anything is loaded."""
    check_model(args.model)
    if args.num_classes and not args.checkpoint:
        raise UsageError('--num-classes belongs to --checkpoint: pretrained weights have their own classes')


def load_model(args: argparse.Namespace):
    """Load the classifier, and print on stderr in one line what it is.

    Returns:
        The model, and its name with the tag that the weights were found under.
    """
    from ..models.info import summarize
    from ..predict import load_classifier
    from ..weights import DownloadError

    try:
        model = load_classifier(args.model, args.checkpoint, args.num_classes).to(args.device)
    except DownloadError as e:
        if not e.offline:
            raise
        raise UsageError(f'{e} No network? --model {_IN_THE_PACKAGE} is in the package (10 classes).') from e
    name = args.model
    if ':' not in name and not args.checkpoint:
        name = '.'.join(filter(None, (model.pretrained_cfg['architecture'], model.pretrained_cfg.get('tag'))))
    print(printable(summarize(model, f'{name} {args.checkpoint}'.strip())), file=sys.stderr)
    return model, name


def plural(count: int, one: str, many: str | None = None) -> str:
    """Number with a noun, such as '2 images'."""
    return f'{count} {one if count == 1 else many or f"{one}s"}'
