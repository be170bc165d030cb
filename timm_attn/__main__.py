"""Command line: ``python -m timm_attn list | info | predict | finetune | run``."""

import argparse
import difflib
import json
import os
import runpy
import sys
from functools import partial

import timm
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from timm.models import load_state_dict

from .finetune import finetune
from .finetune_options import add_arguments, parse, positive_int
from .models import zoo_models
from .pretrained import ZooModel, checkpoint_filter_fn, explain_unreadable
from .summary import describe, find_weight
from .weights import weights


class UsageError(Exception):
    """Wrong input; the message is for the user."""


def _list(args: argparse.Namespace) -> None:
    names = zoo_models(args.filter) or zoo_models(f'*{args.filter}*')
    if not names:
        raise UsageError(f'no model matches {args.filter!r}; there are: {", ".join(zoo_models())}')
    rows = [('model', 'params (M)', 'GMACs', 'input', 'weights')]
    for name in names:
        weight = find_weight(name)
        size = 'x'.join(str(n) for n in weight.input_size)
        tags = ' '.join(w.tag for w in weights().values() if w.arch == name and w.kind != 'untrained') or '-'
        rows.append((name, f'{weight.params / 1e6:.2f}', f'{weight.gmacs:.3f}', size, tags))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [c.rjust(w) if i in (1, 2) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print('  '.join(cells).rstrip())


def _info(args: argparse.Namespace) -> None:
    name = _known_name(args.name)
    for key, value in describe(name).items():
        lines = value if key in ('quality', 'notes') else [value]
        for i, line in enumerate(lines):
            if isinstance(line, list | tuple):
                line = ', '.join(str(v) for v in line) or '-'
            print(f'{key if i == 0 else "":<15}{line}')


def _known_name(name: str, others: list[str] | None = None) -> str:
    """Check the name of a model, with or without a tag: one of this package, or of ``others``."""
    known = {*zoo_models(), *zoo_models(include_tags=True), *(others or [])}
    if name not in known:
        arch = name.partition('.')[0]
        if arch in known:
            tags = ', '.join(zoo_models(arch, include_tags=True))
            raise UsageError(f'{arch} has no tag {name.partition(".")[2]!r}; there are: {tags}')
        near = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else f'there are: {", ".join(zoo_models())}'
        raise UsageError(f'unknown model {name!r}; {hint}')
    return name


def _check_model(name: str) -> None:
    if ':' not in name and not timm.is_model(name.partition('.')[0]):
        _known_name(name, timm.list_models())  # raises, with the nearest names


def _predict(args: argparse.Namespace) -> None:
    _check_model(args.model)
    if args.num_classes and not args.checkpoint:
        raise UsageError('--num-classes belongs to --checkpoint: pretrained weights have their own classes')
    images = [_open_image(path) for path in args.images]
    model = _load_model(args).to(args.device).eval()
    transform = create_transform(**resolve_data_config(model=model))
    labels = _labels(model, bool(args.checkpoint))
    results = []
    with torch.inference_mode():
        for path, image in zip(args.images, images, strict=True):
            probs = model(transform(image).unsqueeze(0).to(args.device)).softmax(-1)[0]
            top = probs.topk(min(args.topk, len(probs)))
            classes = [
                dict(index=i, label=labels(i), probability=round(p, 6))
                for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ]
            results.append(dict(image=path, classes=classes))
    if args.json:
        name = args.model
        if ':' not in name and not args.checkpoint:  # the tag that the weights were found under
            name = '.'.join(filter(None, (model.pretrained_cfg['architecture'], model.pretrained_cfg.get('tag'))))
        print(json.dumps(dict(model=name, checkpoint=args.checkpoint or None, predictions=results), indent=2))
        return
    for result in results:
        print(result['image'])
        for c in result['classes']:
            print(f'{100 * c["probability"]:7.2f} %  {c["label"]}')


def _load_model(args: argparse.Namespace) -> torch.nn.Module:
    if not args.checkpoint:
        try:
            model = timm.create_model(args.model, pretrained=True)
        except (KeyError, TypeError) as e:
            if ':' not in args.model:
                raise
            raise UsageError(f'{args.model!r} has a config.json that timm cannot use: {e!r}') from e
    else:
        model_args = dict(num_classes=args.num_classes) if args.num_classes else {}
        try:
            model = timm.create_model(args.model, checkpoint_path=args.checkpoint, **model_args)
        except Exception:
            explain_unreadable(args.checkpoint)
            raise
        if isinstance(model, ZooModel) and not _has_head(model, args.checkpoint):  # its own head is random
            raise UsageError(f'{args.checkpoint!r} has no classifier for {model.num_classes} classes')
    if not model.num_classes:
        raise UsageError(f'{args.model} has no classifier')
    return model


def _has_head(model: ZooModel, checkpoint: str) -> bool:
    state_dict = checkpoint_filter_fn(load_state_dict(checkpoint), model, strict=False)
    head = state_dict.get(f'{model.pretrained_cfg["classifier"]}.weight')
    return head is not None and head.shape[0] == model.num_classes


def _open_image(path: str) -> Image.Image:
    if os.path.isdir(path):
        raise UsageError(f'{path!r} is a directory; name the image files in it')
    try:
        return Image.open(path).convert('RGB')
    except FileNotFoundError:
        raise UsageError(f'there is no image {path!r}') from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise UsageError(f'cannot read {path!r} as an image: {e}') from None


def _labels(model: torch.nn.Module, own_checkpoint: bool):
    """Function from class index to label: of the weights themselves, of ImageNet, or the bare number."""
    cfg = model.pretrained_cfg
    names = cfg.get('label_names')
    if names and len(names) == model.num_classes and not own_checkpoint:
        descriptions = cfg.get('label_descriptions') or {}
        return lambda i: descriptions.get(names[i], names[i])
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return lambda i: info.index_to_description(i)
    return lambda i: f'class {i}'


def _finetune(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    args = parse(parser, args.argv[1:])
    _check_model(args.model)
    finetune(args)


def _run(args: argparse.Namespace) -> None:
    if not os.path.isfile(args.script):
        raise UsageError(
            f'there is no script {args.script!r}; train.py, validate.py and others come with the timm repository'
        )
    sys.argv = [args.script, *args.args]
    sys.path[0] = os.path.dirname(os.path.abspath(args.script))  # as `python SCRIPT` would
    runpy.run_path(args.script, run_name='__main__')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m timm_attn', description='Attention-augmented CNNs inside timm.')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    p = commands.add_parser('list', help='list the models')
    p.add_argument('filter', nargs='?', default='', help="wildcard or part of a name, such as 'csa*'")
    p.set_defaults(func=_list)

    p = commands.add_parser('info', help='show all about one model')
    p.add_argument('name', metavar='NAME', help='model, with or without a tag')
    p.set_defaults(func=_info)

    p = commands.add_parser('predict', help='classify images')
    p.add_argument('images', nargs='+', metavar='IMAGE')
    p.add_argument('--model', required=True, help="any timm name: 'model', 'model.tag', 'hf-hub:...', 'local-dir:...'")
    p.add_argument('--checkpoint', default='', metavar='PATH', help='load this file instead of pretrained weights')
    p.add_argument('--num-classes', type=positive_int, metavar='N', help='number of classes of the checkpoint')
    p.add_argument('--topk', type=positive_int, default=5, metavar='K', help='classes to show (default: %(default)s)')
    p.add_argument('--device', default='cpu', help='torch device (default: %(default)s)')
    p.add_argument('--json', action='store_true', help='print JSON')
    p.set_defaults(func=_predict)

    p = commands.add_parser('finetune', help='train a model on a folder of images')
    add_arguments(p)
    p.set_defaults(func=partial(_finetune, p))

    p = commands.add_parser('run', help="run a timm script, such as validate.py, with this package's models")
    p.add_argument('script', metavar='SCRIPT')
    p.add_argument('args', nargs=argparse.REMAINDER, help='arguments of the script')
    p.set_defaults(func=_run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments, those of the process if None.

    Returns:
        Exit status: 0, or 2 where the input was wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    if args.func is _run:  # errors of a foreign script are its own
        expected: tuple = (UsageError,)
    else:
        expected = (UsageError, OSError, RuntimeError, ValueError, AssertionError, SafetensorError)
    try:
        args.func(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except expected as e:
        process = f'rank {os.environ["RANK"]}: ' if os.environ.get('RANK', '0') != '0' else ''
        print(f'{process}error: {e or type(e).__name__}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
