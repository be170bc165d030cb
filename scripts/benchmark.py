r"""Time and memory of the models against their plain backbones, and of the layers against the formulas as printed.

    python scripts/benchmark.py --quick                      # about two minutes: the main models, the largest layers
    python scripts/benchmark.py                              # all models and layers: float32, eager, contiguous
    python scripts/benchmark.py --dtype float32 bfloat16 --mode eager compile --layout contiguous channels_last
    python scripts/benchmark.py --device cuda --dtype bfloat16 --layout channels_last --mode compile --batch-size 128

Prints tables and writes ``--output`` (JSON), from which ``scripts/model_cards.py`` renders what the README says of
speed. All that is compared runs in turns within one process, A B C A B C: the ratio of a turn is to the reference's
time in the same turn, and the median and the range of these ratios are given. Weights are random, norms are calibrated
(without that values fade into denormal numbers, which are slow); a training step is forward, backward and an SGD step.
bfloat16 is autocast. Peak memory is that of the tensors that a pass allocates itself: activations, gradients,
temporaries.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeVar

import timm
import torch
import torch.nn.functional as F
from torch import nn

import timm_attn
from timm_attn.layers import CSA, SCSA, coord_attn
from timm_attn.layers.coord_attn import CoordAttn
from timm_attn.models import zoo_models

# Plain backbone of each model, and timm's variant of it with squeeze-and-excitation
REFERENCE = {
    **{f'{p}_resnet{d}': f'resnet{d}' for p in ('csa', 'scsa') for d in (18, 34, 50, 101)},
    **{f'mbv2_{a}': 'mobilenetv2_100' for a in ('ca', 'se', 'cbam', 'scsa')},
    'mbv2_ca_075': 'mobilenetv2_075',
    'mbv2_ca_050': 'mobilenetv2_050',
    **dict.fromkeys(('mobilenext', 'mobilenext_se', 'mobilenext_ca'), 'mobilenext'),
    **{f'{p}resnet20_cifar': 'resnet20_cifar' for p in ('', 'se_', 'cbam_', 'ca_', 'csa_', 'scsa_')},
}
AS_PRINTED = ' as printed'  # behind a model's name: with the formulas of the papers in place of this package's layers
OPTIMIZED = ', optimize()'  # behind a model's name: its inference form
SE_VARIANT = {f'resnet{d}': f'seresnet{d}' for d in (18, 34, 50, 101)}
Key = TypeVar('Key', str, int)
QUICK_MODELS = ('csa_resnet50', 'scsa_resnet50', 'mbv2_ca')


def take_turns(passes: dict[Key, Callable[[], object]], turns: int, device: torch.device) -> dict[Key, list[float]]:
    """Seconds of each pass in each turn.

    Args:
        passes: What to run, by name, in the order of a turn.
        turns: Number of turns, after one that warms up.
        device: Where they run.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in passes}
    for turn in range(turns + 1):
        for name, run in passes.items():
            _synchronize(device)
            start = time.perf_counter()
            run()
            _synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], reference: list[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios of each turn."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    return {key: round(f(ratios), 3) for key, f in (('ratio', statistics.median), ('least', min), ('most', max))}


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that a pass holds at once beyond what was there before."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine(device: torch.device) -> dict:
    """What the figures depend on."""
    return dict(
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor(),
        threads=torch.get_num_threads(),
        system=f'{platform.system()}, Python {platform.python_version()}',
        torch=torch.__version__.partition('+')[0],
        timm=timm.__version__,
        timm_attn=timm_attn.__version__,
        # the C library's memory settings change the times of large tensors on a CPU by a third
        allocator=' '.join(f'{k}={v}' for k, v in sorted(os.environ.items()) if k.startswith('MALLOC_')),
        date=datetime.date.today().isoformat(),
    )


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.machine())


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def build(name: str, images: torch.Tensor) -> nn.Module:
    """A model with random weights whose batch norms know the statistics of random images."""
    torch.manual_seed(0)
    model = timm.create_model(name.removesuffix(AS_PRINTED)).to(images.device).train()
    if name.endswith(AS_PRINTED):
        for module in model.modules():
            for layer, literal in LAYERS.values():
                if isinstance(module, layer):
                    module.forward = partial(literal, module)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)  # timm's zeros would switch the attention of a block off
        norm.momentum = 1.0
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def inference(model: nn.Module, images: torch.Tensor, autocast) -> Callable[[], object]:
    """A forward pass."""

    def run():
        with torch.inference_mode(), autocast():
            return model(images)

    return run


def training(model: nn.Module, images: torch.Tensor, autocast) -> Callable[[], object]:
    """Forward, backward and optimiser step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with torch.no_grad():
        labels = torch.arange(len(images), device=images.device) % model(images[:2]).shape[1]

    def run():
        optimizer.zero_grad()
        with autocast():
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    return run


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
    for image_size, dtype, layout, mode, kind in product(sizes, args.dtype, args.layout, args.mode, args.kind):
        batch_size = 250 if own_size < 224 else max(1, args.batch_size * 224**2 // image_size**2)
        memory_format = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
        x = torch.randn(batch_size, 3, image_size, image_size, device=device).contiguous(memory_format=memory_format)
        autocast = partial(torch.autocast, device.type, torch.bfloat16) if dtype == 'bfloat16' else nullcontext
        models = {name: build(name, x).to(memory_format=memory_format) for name in names}
        if kind == 'inference' and mode == 'eager' and dtype == 'float32':
            here = [name for name in names if AS_PRINTED not in name]
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


def literal_csa(layer: CSA, x: torch.Tensor) -> torch.Tensor:
    """CSA as printed: local Moran's I is the diagonal of z z^T W, a product of C x C x C."""
    f = x.flatten(2)
    mean = f.mean(2)
    z = ((mean - mean.mean(1, keepdim=True)) / mean.std(1, keepdim=True)).unsqueeze(2)  # (B, C, 1)
    with torch.no_grad():  # the weights are constants for the gradient
        distance = torch.cdist(f, f)
        unit = F.normalize(f, dim=2)
        v = torch.exp(-distance / distance.mean((1, 2), keepdim=True)) * (unit @ unit.transpose(1, 2)).clamp(min=0)
        v = v - torch.diag_embed(v.diagonal(dim1=1, dim2=2))
        w = v / v.sum((1, 2), keepdim=True)
    moran = (z @ z.transpose(1, 2) @ w).diagonal(dim1=1, dim2=2)
    q = (moran - moran.mean(1, keepdim=True)) / moran.std(1, keepdim=True)
    return x * layer.fc2(layer.fc1(q).relu()).sigmoid()[:, :, None, None]


def literal_scsa(layer: SCSA, x: torch.Tensor) -> torch.Tensor:
    """SCSA as printed: a convolution for each group and axis, self-attention at every position, then the mean."""
    B, C, H, W = x.shape
    rows, columns = x.mean(3).chunk(4, 1), x.mean(2).chunk(4, 1)
    gate_h = layer.norm_h(torch.cat([conv(g) for conv, g in zip(layer.dwc, rows, strict=True)], 1)).sigmoid()
    gate_w = layer.norm_w(torch.cat([conv(g) for conv, g in zip(layer.dwc, columns, strict=True)], 1)).sigmoid()
    x = x * gate_h.view(B, C, H, 1) * gate_w.view(B, C, 1, W)
    y = layer.norm(F.avg_pool2d(x, layer.window_size, layer.window_size))
    q, k, v = layer.q(y).flatten(2), layer.k(y).flatten(2), layer.v(y).flatten(2)  # (B, C, N), one head
    y = ((q @ k.transpose(1, 2)) * layer.scale).softmax(-1) @ v
    return x * y.mean(2).sigmoid().view(B, C, 1, 1)


def literal_ca(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Coordinate attention as printed."""
    H, W = x.shape[2:]
    pooled = torch.cat([F.adaptive_avg_pool2d(x, (H, 1)), F.adaptive_avg_pool2d(x, (1, W)).permute(0, 1, 3, 2)], 2)
    h, w = layer.act(layer.bn1(layer.conv1(pooled))).split([H, W], 2)
    return x * layer.conv_w(w.permute(0, 1, 3, 2)).sigmoid() * layer.conv_h(h).sigmoid()


LAYERS = {'CSA': (CSA, literal_csa), 'SCSA': (SCSA, literal_scsa), 'CA': (CoordAttn, literal_ca)}


def measure_layer(name: str, shape: tuple[int, int, int, int], turns: int, device: torch.device) -> list[dict]:
    """Rows for a layer and its formula as printed, in inference and with the backward pass.

    Args:
        name: One of ``LAYERS``.
        shape: (B, C, H, W).
        turns: Number of turns.
        device: Where to run.
    """
    kind, literal = LAYERS[name]
    torch.manual_seed(0)
    layer = (coord_attn if kind is CoordAttn else kind)(shape[1]).to(device).eval()
    x = torch.randn(shape, device=device) + torch.randn(*shape[:2], 1, 1, device=device)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), literal(layer, x), rtol=1e-3, atol=1e-3)

    def forward(f):
        with torch.inference_mode():
            f(x)

    def both_ways(f):
        f(x.detach().requires_grad_()).sum().backward()

    rows = []
    for kind, run in (('inference', forward), ('training', both_ways)):
        passes = {'here': partial(run, layer), 'literal': partial(run, partial(literal, layer))}
        seconds = take_turns(passes, turns, device)
        memory = {key: peak_memory(f, device) for key, f in passes.items()}
        rows.append(
            dict(
                layer=name, kind=kind, shape=list(shape),
                milliseconds=round(1e3 * statistics.median(seconds['here']), 3),
                literal_milliseconds=round(1e3 * statistics.median(seconds['literal']), 3),
                peak_mb=round(memory['here'] / 1e6, 2),
                literal_peak_mb=round(memory['literal'] / 1e6, 2),
                **{f'speedup_{k}': v for k, v in ratio(seconds['literal'], seconds['here']).items()},
            )
        )  # fmt: skip
        row = rows[-1]
        print(
            f'{name:5} {"x".join(map(str, shape)):15} {kind:9} {row["milliseconds"]:9.3f} ms, as printed '
            f'{row["literal_milliseconds"]:9.3f} ms: {row["speedup_ratio"]:.2f} times as fast '
            f'({row["speedup_least"]:.2f} to {row["speedup_most"]:.2f}); {row["peak_mb"]:.1f} MB, as printed '
            f'{row["literal_peak_mb"]:.1f} MB',
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


def groups(names: list[str]) -> list[list[str]]:
    """The models behind their plain backbone and timm's SE variant of it; the main ones also as printed."""
    by_reference: dict[str, list[str]] = {}
    for name in names:
        by_reference.setdefault(REFERENCE[name], []).append(name)
    found = []
    for ref, models in by_reference.items():
        printed = [n + AS_PRINTED for n in models if n in QUICK_MODELS]
        found.append(
            [ref, *([SE_VARIANT[ref]] if ref in SE_VARIANT else []), *(n for n in models if n != ref), *printed]
        )
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Measure time and memory of the models and layers.')
    parser.add_argument('--quick', action='store_true', help='a few models and layers, about two minutes on a CPU')
    parser.add_argument('--models', default='', metavar='FILTER', help='wildcard of models, such as "csa_*"')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--kind', nargs='+', default=['inference', 'training'], choices=['inference', 'training'])
    parser.add_argument('--mode', nargs='+', default=['eager'], choices=['eager', 'compile'])
    parser.add_argument('--dtype', nargs='+', default=['float32'], choices=['float32', 'bfloat16'])
    parser.add_argument('--layout', nargs='+', default=['contiguous'], choices=['contiguous', 'channels_last'])
    parser.add_argument('--batch-size', type=int, default=8, help='at 224 px; larger images get fewer, small ones 250')
    parser.add_argument('--size', type=int, nargs='+', default=[224], metavar='PX', help='image sizes')
    parser.add_argument('--turns', type=int, help='turns of each measurement (default: 11, with --quick 2)')
    parser.add_argument('--no-layers', action='store_true', help='models only')
    parser.add_argument('--no-models', action='store_true', help='layers only')
    parser.add_argument('--output', metavar='FILE', default='output/benchmark.json', help='JSON with a list of runs')
    parser.add_argument(
        '--append', action='store_true', help='keep what the output holds already, unless measured again'
    )
    args = parser.parse_args()
    if args.turns is None:
        args.turns = 2 if args.quick else 11
    if args.turns < 1 or args.batch_size < 1 or min(args.size) < 32:
        parser.error('--turns and --batch-size must be 1 or more, --size 32 or more')
    names = zoo_models(args.models)
    if args.quick and not args.models:
        names = [n for n in names if n in QUICK_MODELS]
    if not names:
        parser.error(f'no model of this package matches {args.models!r}; see python -m timm_attn list')
    device = torch.device(args.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        parser.error('this PyTorch finds no CUDA device')
    torch.backends.cudnn.benchmark = True
    output = Path(args.output)
    runs = _read(output) if args.append and output.exists() else []
    if output.is_dir() or runs is None:
        parser.error(f'--output {output} is no file that this script has written; name another one')
    output.parent.mkdir(parents=True, exist_ok=True)
    result: dict = dict(machine=machine(device), turns=args.turns, models=[], layers=[])
    runs.append(result)
    work = [] if args.no_models else [partial(measure_models, group, args, device) for group in groups(names)]
    for measure in work:
        result['models'] += measure()
        _drop_measured_again(runs)
        _write(output, runs)
    for shape in () if args.no_layers else layer_shapes(args.quick):
        for layer in LAYERS:
            result['layers'] += measure_layer(layer, shape, args.turns, device)
            _write(output, runs)
    print(f'{result["machine"]}\n{output}')


def _read(path: Path) -> list[dict] | None:
    """Runs in a file of :func:`_write`; None if it is something else."""
    try:
        runs = json.loads(path.read_text())
        return runs if all({'machine', 'models', 'layers'} <= run.keys() for run in runs) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _drop_measured_again(runs: list[dict]) -> None:
    """Remove from all runs but the last what the last one has measured on the same machine in the same setting."""
    settings = ('model', 'reference', 'kind', 'mode', 'dtype', 'layout', 'image_size', 'batch_size')

    def key(run, row):
        return tuple(run['machine'][k] for k in ('device', 'threads', 'allocator')) + tuple(row[s] for s in settings)

    *others, last = runs
    measured = {key(last, row) for row in last['models']}
    for run in others:
        run['models'] = [row for row in run['models'] if key(run, row) not in measured]


def _write(path: Path, runs: list[dict]) -> None:
    part = path.with_suffix('.part')
    part.write_text(json.dumps(runs, indent=1) + '\n')
    os.replace(part, path)


if __name__ == '__main__':
    main()
