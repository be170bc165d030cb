r"""Time and memory of the models against their plain backbones, and of the layers against reference implementations.

    python scripts/benchmark.py --quick                      # about two minutes: the main models, the largest layers
    python scripts/benchmark.py                              # all models and layers: float32, eager, contiguous
    python scripts/benchmark.py --dtype float32 bfloat16 --mode eager compile --layout contiguous channels_last
    python scripts/benchmark.py --main --device cuda --dtype bfloat16 --layout channels_last --mode compile \
        --batch-size 128
    python scripts/benchmark.py --deploy --batch-size 8 1    # ways to run the main models on a CPU

Prints tables and writes ``--output`` (JSON), from which ``scripts/render.py`` renders what the documentation says about
speed. All that is compared takes turns within one process, A B C A B C: the ratio of a turn is to the reference's time
in the same turn, and the median and the range of these ratios are given. Weights are random, norms are calibrated
(without that, values fade into denormal numbers, which are slow); a training step is forward, backward and an SGD step.
bfloat16 is autocast. Peak memory is that of the tensors that a pass allocates itself: activations, gradients,
temporaries.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path

import deploy_ways
import formulas
import timm
import torch
from common import write_text
from torch import nn

import timm_attn
from timm_attn.layers import attention_of, get_attention, list_attentions
from timm_attn.models import zoo_models
from timm_attn.timing import calibrate_norms, inference, machine, peak_memory, ratio, take_turns, training
from timm_attn.weights import plain_backbone

REFERENCE_LAYERS = ', reference'  # after a model's name: with the reference implementations of its layers
OPTIMIZED = ', optimize()'  # after a model's name: its form for inference
SE_VARIANT = {f'resnet{d}': f'seresnet{d}' for d in (18, 34, 50, 101)}  # timm's
QUICK_MODELS = ('csa_resnet50', 'scsa_resnet50', 'mbv2_ca')
MAIN_MODELS = (*QUICK_MODELS, 'mbv2_scsa')


def layers_with_formula() -> list[str]:
    """Attentions that have a reference implementation."""
    return [name for name in list_attentions() if get_attention(name).formula]


def formula(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Reference implementation of a layer, with its parameters; None if it has none."""
    row = attention_of(layer)
    return partial(getattr(formulas, row.formula), layer) if row and row.formula else None


def build(name: str, images: torch.Tensor) -> nn.Module:
    """A model with random weights whose batch norms know the statistics of random images."""
    torch.manual_seed(0)
    model = timm.create_model(name.removesuffix(REFERENCE_LAYERS)).to(images.device)
    if name.endswith(REFERENCE_LAYERS):
        for module in model.modules():
            if reference := formula(module):
                module.forward = reference
    return require_signal(calibrate_norms(model, images), images)


def require_signal(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Refuse a model whose norms or attentions compute on maps that are zero or fade: their times are others.

    Args:
        model: The model, in eval mode.
        images: What it is measured on.

    Returns:
        The model.
    """

    def check(module, args, output, name):
        for x in (*args, output):
            largest = x.abs().amax().item() if isinstance(x, torch.Tensor) and x.numel() else 1.0
            assert largest > 1e-12, f'{name} computes on values of {largest:g}: nothing can be measured with that'

    norms = nn.BatchNorm2d | nn.GroupNorm
    hooks = [
        module.register_forward_hook(partial(check, name=name))
        for name, module in model.named_modules()
        if isinstance(module, norms) or attention_of(module)
    ]
    try:
        with torch.no_grad():
            model(images[:2])
    finally:
        for hook in hooks:
            hook.remove()
    return model


def measure_models(names: list[str], args: argparse.Namespace, device: torch.device) -> list[dict]:
    """Rows for a reference and what is compared with it, in every setting that was asked for.

    Args:
        names: Models; the first one is the reference.
        args: The command line.
        device: Where to run.
    """
    own_size = timm.get_pretrained_cfg(names[0]).input_size[-1]
    sizes = [own_size] if own_size < 224 else args.size
    rows = []
    batches = [250] if own_size < 224 else args.batch_size
    settings = product(batches, sizes, args.dtype, args.layout, args.mode, args.kind)
    for batch_size, image_size, dtype, layout, mode, kind in settings:
        if own_size >= 224:
            batch_size = max(1, batch_size * 224**2 // image_size**2)
        memory_format = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
        x = torch.randn(batch_size, 3, image_size, image_size, device=device).contiguous(memory_format=memory_format)
        autocast = partial(torch.autocast, device.type, torch.bfloat16) if dtype == 'bfloat16' else nullcontext
        models = {name: build(name, x).to(memory_format=memory_format) for name in names}
        if kind == 'inference' and mode == 'eager' and dtype == 'float32':
            here = [name for name in names if REFERENCE_LAYERS not in name]
            models |= {name + OPTIMIZED: timm_attn.optimize(models[name], x.shape[1:]) for name in here}
        prepare = {'inference': inference, 'training': training}[kind]
        passes = {  # the compiler's own first pass falls into the turn that warms up
            name: prepare(torch.compile(model) if mode == 'compile' else model, x, autocast)
            for name, model in models.items()
        }
        seconds = take_turns(passes, args.turns, device)
        for name, run in passes.items():
            rows.append(
                dict(
                    model=name, reference=names[0], kind=kind, mode=mode, dtype=dtype, layout=layout,
                    image_size=image_size, batch_size=batch_size,
                    milliseconds=round(1e3 * statistics.median(seconds[name]), 2),
                    images_per_second=round(batch_size / statistics.median(seconds[name]), 1),
                    peak_mb=round(peak_memory(run, device) / 1e6, 1),
                    **ratio(seconds[name], seconds[names[0]]),
                )
            )  # fmt: skip
            _print_row(rows[-1])
        torch.compiler.reset()
    return rows


def _print_row(row: dict) -> None:
    print(
        f'{row["model"]:22} {row["kind"]:9} {row["mode"]:7} {row["dtype"]:8} {row["layout"]:13} '
        f'{row["image_size"]:4} px x {row["batch_size"]:<4} {row["milliseconds"]:9.2f} ms '
        f'{row["images_per_second"]:9.1f} images/s {row["peak_mb"]:8.1f} MB   x {row["ratio"]:.3f} '
        f'({row["least"]:.3f} to {row["most"]:.3f})',
        flush=True,
    )


def measure_ways(names: list[str], batch_size: int, turns: int) -> list[dict]:
    """Rows for the ways in which a reference and what is compared with it run on a CPU.

    Args:
        names: Models; the first one is the reference.
        batch_size: Images in a batch.
        turns: Number of turns.
    """
    cpu = torch.device('cpu')
    size = timm.get_pretrained_cfg(names[0]).input_size
    images = torch.randn(batch_size, *size)
    with tempfile.TemporaryDirectory() as folder:
        passes = {}
        for name in names:
            found = deploy_ways.ways(build(name, images), images, Path(folder))
            passes |= {f'{name}/{way}': run for way, run in found.items()}
        seconds = take_turns(passes, turns, cpu)
    rows = []
    for key, times in seconds.items():
        name, _, way = key.partition('/')
        eager = ratio(times, seconds[f'{name}/{deploy_ways.EAGER}'])
        rows.append(
            dict(
                model=name, reference=names[0], way=way, batch_size=batch_size, image_size=size[-1],
                milliseconds=round(1e3 * statistics.median(times), 2),
                **ratio(times, seconds[f'{names[0]}/{way}']),
                **{f'eager_{k}': v for k, v in eager.items()},
            )
        )  # fmt: skip
        print(
            f'{name:22} {way:35} {size[-1]:4} px x {batch_size:<3} {rows[-1]["milliseconds"]:9.2f} ms   x '
            f'{rows[-1]["ratio"]:.3f} ({rows[-1]["least"]:.3f} to {rows[-1]["most"]:.3f}) the plain backbone, x '
            f'{eager["ratio"]:.3f} ({eager["least"]:.3f} to {eager["most"]:.3f}) eager',
            flush=True,
        )
    torch.compiler.reset()
    return rows


def measure_layer(name: str, shape: tuple[int, int, int, int], turns: int, device: torch.device) -> list[dict]:
    """Rows for a layer and its reference implementation, in inference and with the backward pass.

    Args:
        name: Attention with a reference implementation.
        shape: (B, C, H, W).
        turns: Number of turns.
        device: Where to run.
    """
    torch.manual_seed(0)
    layer = get_attention(name).layer(shape[1]).to(device).eval()
    reference = formula(layer)
    x = torch.randn(shape, device=device) + torch.randn(*shape[:2], 1, 1, device=device)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), reference(x), rtol=1e-3, atol=1e-3)

    def forward(f):
        with torch.inference_mode():
            f(x)

    def both_ways(f):
        f(x.detach().requires_grad_()).sum().backward()

    rows = []
    for kind, run in (('inference', forward), ('training', both_ways)):
        passes = {'here': partial(run, layer), 'reference': partial(run, reference)}
        seconds = take_turns(passes, turns, device)
        memory = {key: peak_memory(f, device) for key, f in passes.items()}
        rows.append(
            dict(
                layer=name, kind=kind, shape=list(shape),
                milliseconds=round(1e3 * statistics.median(seconds['here']), 3),
                reference_milliseconds=round(1e3 * statistics.median(seconds['reference']), 3),
                peak_mb=round(memory['here'] / 1e6, 2),
                reference_peak_mb=round(memory['reference'] / 1e6, 2),
                **{f'speedup_{k}': v for k, v in ratio(seconds['reference'], seconds['here']).items()},
            )
        )  # fmt: skip
        row = rows[-1]
        print(
            f'{name:5} {"x".join(map(str, shape)):15} {kind:9} {row["milliseconds"]:9.3f} ms, reference '
            f'{row["reference_milliseconds"]:9.3f} ms: {row["speedup_ratio"]:.2f} times as fast '
            f'({row["speedup_least"]:.2f} to {row["speedup_most"]:.2f}); {row["peak_mb"]:.1f} MB, reference '
            f'{row["reference_peak_mb"]:.1f} MB',
            flush=True,
        )
    return rows


def layer_shapes(quick: bool) -> list[tuple[int, int, int, int]]:
    """Three sweeps through one point: channels, map size, batch."""
    if quick:
        return [(8, 2048, 7, 7), (8, 64, 56, 56)]
    shapes = [(8, c, 7, 7) for c in (64, 128, 256, 512, 1024, 2048)]
    shapes += [(8, 256, s, s) for s in (7, 14, 28, 56, 112)]
    shapes += [(b, 256, 14, 14) for b in (1, 4, 16, 64)]
    return list(dict.fromkeys(shapes))


def plain_and_own(names: list[str]) -> list[list[str]]:
    """The models after their plain backbone."""
    by_reference: dict[str, list[str]] = {}
    for name in names:
        by_reference.setdefault(plain_backbone(name), []).append(name)
    return [[ref, *(name for name in models if name != ref)] for ref, models in by_reference.items()]


def groups(names: list[str], references: bool) -> list[list[str]]:
    """The models after their plain backbone and timm's SE variant of it.

    Args:
        names: Models of this package.
        references: Whether to add some of them with reference layers.
    """
    found = []
    for ref, *models in plain_and_own(names):
        reference_models = [n + REFERENCE_LAYERS for n in models if references and n in QUICK_MODELS]
        found.append(
            [
                ref,
                *([SE_VARIANT[ref]] if ref in SE_VARIANT else []),
                *models,
                *reference_models,
            ]
        )
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Measure time and memory of the models and layers.')
    parser.add_argument('--quick', action='store_true', help='a few models and layers, about two minutes on a CPU')
    parser.add_argument('--main', action='store_true', help=f'only {", ".join(MAIN_MODELS)}')
    parser.add_argument('--models', default='', metavar='FILTER', help='wildcard of models, such as "csa_*"')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--kind', nargs='+', default=['inference', 'training'], choices=['inference', 'training'])
    parser.add_argument('--mode', nargs='+', default=['eager'], choices=['eager', 'compile'])
    parser.add_argument('--dtype', nargs='+', default=['float32'], choices=['float32', 'bfloat16'])
    parser.add_argument('--layout', nargs='+', default=['contiguous'], choices=['contiguous', 'channels_last'])
    parser.add_argument('--batch-size', type=int, nargs='+', default=[8], metavar='N',
        help='at 224 px; larger images get fewer, small ones 250')  # fmt: skip
    parser.add_argument('--size', type=int, nargs='+', default=[224], metavar='PX', help='image sizes')
    parser.add_argument('--turns', type=int, help='turns of each measurement (default: 11, with --quick 2)')
    parser.add_argument('--deploy', action='store_true', help='ways to run models on a CPU, instead of all else')
    parser.add_argument('--no-references', action='store_true', help='no models with reference layers, which are slow')
    parser.add_argument('--no-layers', action='store_true', help='models only')
    parser.add_argument('--no-models', action='store_true', help='layers only')
    parser.add_argument('--output', metavar='FILE', default='output/benchmark.json', help='JSON with a list of runs')
    parser.add_argument(
        '--append', action='store_true', help='keep what the output holds already, unless measured again'
    )
    args = parser.parse_args()
    if args.turns is None:
        args.turns = 2 if args.quick else 11
    if args.turns < 1 or min(args.batch_size) < 1 or min(args.size) < 32:
        parser.error('--turns and --batch-size must be 1 or more, --size 32 or more')
    names = zoo_models(args.models)
    if (args.quick or args.main or args.deploy) and not args.models:
        names = [n for n in names if n in (QUICK_MODELS if args.quick else MAIN_MODELS)]
    if not names:
        parser.error(f'no model of this package matches {args.models!r}; see timm-attn list')
    device = torch.device(args.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        parser.error('this PyTorch finds no CUDA device')
    if args.deploy and device.type != 'cpu':
        parser.error('--deploy compares ways to run a model on a CPU: leave --device out')
    torch.backends.cudnn.benchmark = True
    output = Path(args.output)
    runs = _read(output) if args.append and output.exists() else []
    if output.is_dir() or runs is None:
        parser.error(f'--output {output} was not written by this script; name another file')
    output.parent.mkdir(parents=True, exist_ok=True)
    result: dict = dict(machine=machine(device), turns=args.turns, models=[], layers=[], deploy=[])
    runs.append(result)
    work: list[tuple[str, Callable[[], list[dict]]]] = []
    if args.deploy:
        by_backbone = product(plain_and_own(names), args.batch_size)
        work = [('deploy', partial(measure_ways, group, batch, args.turns)) for group, batch in by_backbone]
    elif not args.no_models:
        own = groups(names, not args.no_references)
        work = [('models', partial(measure_models, group, args, device)) for group in own]
    for what, measure in work:
        result[what] += measure()
        _drop_measured_again(runs)
        _write(output, runs)
    for shape in () if args.no_layers or args.deploy else layer_shapes(args.quick):
        for layer in layers_with_formula():
            result['layers'] += measure_layer(layer, shape, args.turns, device)
            _drop_measured_again(runs)
            _write(output, runs)
    print(f'{result["machine"]}\n{output}')


def _read(path: Path) -> list[dict] | None:
    """Runs in a file of :func:`_write`; None if it is something else."""
    try:
        runs = json.loads(path.read_text())
        known = all({'machine', 'models', 'layers'} <= run.keys() for run in runs)
        return [dict(deploy=[]) | run for run in runs] if known else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _drop_measured_again(runs: list[dict]) -> None:
    """Remove from all runs but the last what the last one has measured on the same machine in the same setting."""
    settings = dict(
        models=('model', 'reference', 'kind', 'mode', 'dtype', 'layout', 'image_size', 'batch_size'),
        layers=('layer', 'kind', 'shape'),
        deploy=('model', 'reference', 'way', 'image_size', 'batch_size'),
    )

    def key(run, row, names):
        return [run['machine'][k] for k in ('device', 'threads', 'allocator')] + [row[name] for name in names]

    *others, last = runs
    for what, names in settings.items():
        measured = [key(last, row, names) for row in last[what]]
        for run in others:
            kept = [row for row in run[what] if key(run, row, names) not in measured]
            # a reference stays as long as another row of its run is relative to it
            needed = {row.get('reference') for row in kept}
            run[what] = [row for row in run[what] if row in kept or row.get('model', '') in needed]
    runs[:] = [run for run in others if any(run[what] for what in settings)] + [last]


def _write(path: Path, runs: list[dict]) -> None:
    write_text(path, json.dumps(runs, indent=1) + '\n')


if __name__ == '__main__':
    main()
