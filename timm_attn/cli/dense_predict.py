"""``timm-attn detect`` and ``timm-attn segment``."""

import argparse
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..train.argument_types import share
from ..whole_file import write_json
from .common import MAX_LABEL, UsageError, add_command, check_output, printable

_MOST_CLASSES = 5  # of an image to print, the largest


def add_parsers(commands) -> None:
    """Add the subcommands."""
    p = add_command(commands, 'detect', 'find objects in images with a trained detector', detect)
    _add_options(p, 'detections', 'write everything found as results of COCO, whatever its score')
    p.add_argument(
        '--threshold',
        type=share,
        default=0.5,
        metavar='SCORE',
        help='lowest score in pictures and on the terminal (default: %(default)s)',
    )
    p = add_command(commands, 'segment', 'find the class of each pixel of images with a trained segmenter', segment)
    _add_options(p, 'segmentations', 'write the number of pixels of each class')
    p.add_argument('--masks', metavar='DIR', help='write PNGs whose values are the class ids')


def _add_options(parser: argparse.ArgumentParser, folder: str, json_help: str) -> None:
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='file, directory or wildcard')
    parser.add_argument(
        '--weights', required=True, metavar='RUN', help='folder of a training run, or a .safetensors file'
    )
    parser.add_argument(
        '-o', '--output', default=folder, metavar='DIR', help='folder for the pictures (default: %(default)s)'
    )
    parser.add_argument('--json', metavar='FILE.json', help=json_help)
    parser.add_argument('--device', default='cpu', help='torch device (default: %(default)s)')


def detect(args: argparse.Namespace) -> int:
    """Find objects; draw, print and write them."""
    images, pictures = _images_and_pictures(args, args.output)
    model = _load(args)

    from ..dense.draw import draw_detections, write_picture
    from ..dense.predict import class_names, coco_entries, detect_images

    classes = class_names(model)
    category_ids = model.category_ids or range(1, len(classes) + 1)
    ids = {path: i for i, path in enumerate(images, start=1)}
    results = []
    errors = _Errors(images)
    for path, image, found in detect_images(model, images, errors.add):
        if args.json:
            results += [{**entry, 'file_name': path} for entry in coco_entries(ids[path], found, category_ids)]
        _make_folder(args.output)
        write_picture(draw_detections(image, found, classes, args.threshold), pictures[path])
        labels = Counter(found['labels'][found['scores'] >= args.threshold].tolist())
        names = [f'{count} {printable(classes[label - 1], MAX_LABEL)}' for label, count in sorted(labels.items())]
        _print_line(path, ', '.join(names) or 'nothing', pictures[path])
    return _finish(args, results, errors)


def segment(args: argparse.Namespace) -> int:
    """Find the class of each pixel; draw, print and write them."""
    images, pictures = _images_and_pictures(args, args.output)
    masks = _pictures(images, '--masks', args.masks) if args.masks else {}
    if args.masks and Path(args.masks).resolve() == Path(args.output).resolve():
        raise UsageError(f'--masks and --output are both {args.masks}: name two folders')
    model = _load(args)

    from ..dense.draw import draw_class_map, write_picture
    from ..dense.predict import class_names, segment_images

    classes = class_names(model)
    if args.masks and len(classes) > 256:
        raise UsageError(f'--masks: a PNG of 8 bits cannot hold the ids of {len(classes)} classes')
    results = []
    errors = _Errors(images)
    for path, image, class_map in segment_images(model, images, errors.add):
        _make_folder(args.output)
        write_picture(draw_class_map(image, class_map, classes), pictures[path])
        if args.masks:
            _make_folder(args.masks)
            write_picture(class_map.byte()[None], masks[path])
        counts = class_map.flatten().bincount(minlength=len(classes)).tolist()
        height, width = class_map.shape
        pixels = dict(zip(classes, counts, strict=True))
        results.append(dict(file_name=path, height=height, width=width, pixels=pixels))
        _print_line(path, _shares(pixels), pictures[path])
    return _finish(args, results, errors)


class _Errors:
    """Images that are left out; of a single one it is an error."""

    def __init__(self, images: Sequence[str]) -> None:
        self.images = images
        self.paths: list[str] = []

    def add(self, path: str, reason: str) -> None:
        if len(self.images) == 1:
            raise UsageError(reason)
        self.paths.append(path)
        _write(printable(f'left out: {reason}'), sys.stderr)


def _images_and_pictures(args: argparse.Namespace, folder: str) -> tuple[list[str], dict[str, str]]:
    """Images, each once and sorted, and the picture of each."""
    check_output('--json', args.json, ('.json',))
    from ..image_files import find_images

    images = sorted(set(find_images(args.images)))
    return images, _pictures(images, '--output', folder)


def _pictures(images: Sequence[str], option: str, folder: str) -> dict[str, str]:
    """A file in a folder for each image, named as the image and with a number where several have the same name."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UsageError(f'{option} {folder} is a file; name a folder')
    pictures: dict[str, str] = {}
    taken = set()
    for image in images:
        name, number = Path(image).stem, 1
        while (key := unicodedata.normalize('NFC', name).casefold()) in taken:  # one file on some systems
            number += 1
            name = f'{Path(image).stem}-{number}'
        taken.add(key)
        pictures[image] = str(Path(folder, f'{name}.png'))
    originals = {Path(image).resolve() for image in images}
    for picture in pictures.values():
        if Path(picture).resolve() in originals:
            raise UsageError(f'{picture} is one of the images and would be replaced: name another folder by {option}')
    return pictures


def _load(args: argparse.Namespace):
    from ..dense import load

    return load(args.weights).to(args.device)


def _make_folder(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)


def _shares(pixels: dict[str, int]) -> str:
    total = sum(pixels.values())
    there = sorted((pair for pair in pixels.items() if pair[1]), key=lambda pair: -pair[1])
    texts = [f'{printable(name, MAX_LABEL)} {100 * count / total:.1f} %' for name, count in there[:_MOST_CLASSES]]
    more = [f'{len(there) - _MOST_CLASSES} more'] if len(there) > _MOST_CLASSES else []
    return ', '.join(texts + more)


def _print_line(path: str, found: str, picture: str) -> None:
    _write(f'{printable(path)}: {found} ({printable(picture)})', sys.stdout)


def _write(line: str, file) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=file)  # above the progress bar


def _finish(args: argparse.Namespace, results: list[dict], errors: _Errors) -> int:
    if len(errors.paths) == len(errors.images):
        raise UsageError('none of these files can be read as an image')
    if args.json:
        write_json(args.json, results)
    return 2 if set(errors.paths) & set(args.images) else 0
