"""A model as a file for a runtime: ONNX, OpenVINO or torch.export, with its labels and the preprocessing of its images.

A file is written only after the runtime has computed the model's own logits from it.
"""

import copy
import importlib.util
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import nn

from .fold_batch_norm import optimize
from .whole_file import give_usual_permissions

INPUT, OUTPUT = 'images', 'logits'
TOLERANCE = 1e-3  # of the largest logit: folded batch norms and other kernels round otherwise


class ExportError(ValueError):
    """A model that cannot be exported in this way; the message is for the user."""


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: Ending of its name.
        packages: What writing and checking it imports, besides this package's requirements.
        write: Writes a model, for images of the size of an example, with its facts, to a path.
        run: Computes the logits of images from the file.
        companions: Endings of further files, in place of ``suffix``.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, torch.Tensor, dict, Path], None]
    run: Callable[[Path, torch.Tensor], torch.Tensor]
    companions: tuple[str, ...] = ()


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What a service needs to know of a classifier.

    Args:
        model: Model of timm.

    Returns:
        ``architecture``, ``num_classes``, ``label_names`` where they are known, and the preprocessing of the images:
        ``input_size``, ``interpolation``, ``crop_pct``, ``crop_mode``, ``mean`` and ``std``.
    """
    cfg = model.pretrained_cfg
    facts = dict(architecture=cfg['architecture'], num_classes=model.num_classes)
    if cfg.get('label_names'):
        facts['label_names'] = list(cfg['label_names'])
    return facts | image_config(model)


def image_config(model: nn.Module, args: dict | None = None) -> dict[str, Any]:
    """Timm's preprocessing of a model's images, for the number of channels that the model takes.

    Args:
        model: Model of timm.
        args: Options of timm's scripts, which have priority.
    """
    config = resolve_data_config(args, model=model)
    channels = _image_channels(model, config['input_size'])
    config['input_size'] = (channels, *config['input_size'][1:])
    for key in ('mean', 'std'):  # as timm does where weights for RGB are adapted
        if len(config[key]) != channels:
            config[key] = (statistics.fmean(config[key]),) * channels
    return config


def _image_channels(model: nn.Module, declared: tuple[int, int, int]) -> int:
    """Channels of a model's images: those of its first convolution, unless something else comes before it."""
    first = model.pretrained_cfg.get('first_conv')
    conv = dict(model.named_modules()).get(first) if isinstance(first, str) else None
    if not isinstance(conv, nn.Conv2d) or conv.in_channels == declared[0]:
        return declared[0]
    tensors = [*model.parameters(), *model.buffers()]
    probe = copy.deepcopy(model, {id(t): torch.empty_like(t, device='meta') for t in tensors}).eval()
    try:  # on the meta device, where nothing is computed
        with torch.no_grad():
            probe(torch.empty(1, conv.in_channels, *declared[1:], dtype=conv.weight.dtype, device='meta'))
    except Exception:  # whatever a model raises for images that it cannot take
        return declared[0]
    return conv.in_channels


def export_file(model: nn.Module, path: str | Path, format: str) -> None:
    """Write a model as a file for a runtime. It takes any number of images, of the model's input size.

    The batch norms are folded, the weights stay float32. ``describe_model`` gives what the file holds besides: of each
    fact a JSON text, in ONNX in ``metadata_props``, in OpenVINO in ``rt_info`` under ``timm``; with ``torch-export``,
    all in the extra file ``config.json``.

    Args:
        model: Classifier of timm in evaluation mode, in float32 and on the CPU. It is not changed.
        path: File to write, which must not exist, with the ending of its format. OpenVINO writes a ``.bin`` beside it.
        format: One of ``FORMATS``.

    Raises:
        ExportError: If a package is missing, the name is taken or of another ending, or the file does not give the
            logits of the model; then nothing is written.
    """
    path, kind = Path(path), FORMATS[format]
    check_target(path, format)
    size = image_config(model)['input_size']
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, *size, generator=generator)
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix='.export-') as folder:
        part = Path(folder, path.name)
        try:
            kind.write(optimize(model, portable=True), images[:2], describe_model(model), part)
            pairs = [(kind.run(part, batch), model(batch)) for batch in (images, images[:1])]
        except Exception as e:  # of several libraries, whose errors have no common base
            raise ExportError(f'this model cannot be written as {format}: {type(e).__name__}: {e}') from e
        for got, expected in pairs:
            _compare(got, expected, format)
        for suffix in (*kind.companions, kind.suffix):  # the file that names the others comes last
            give_usual_permissions(part.with_suffix(suffix))
            os.replace(part.with_suffix(suffix), path.with_suffix(suffix))


def check_target(path: Path, format: str) -> None:
    """Check, before work begins, that a file can be written.

    Raises:
        ExportError: If a package is missing, or the name is taken or has another ending.
    """
    kind = FORMATS[format]
    if path.suffix != kind.suffix:
        raise ExportError(f'{path}: the name of a file for {format} must end in {kind.suffix}')
    for file in (path, *map(path.with_suffix, kind.companions)):
        if file.exists():
            raise ExportError(f'{file} exists: name another file')
    if not path.absolute().parent.is_dir():
        raise ExportError(f'{path}: {path.parent} is not a directory')
    missing = [name for name in kind.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f'{format} needs {", ".join(missing)}: pip install {" ".join(kind.packages)}')


def _compare(got: torch.Tensor, expected: torch.Tensor, format: str) -> None:
    difference = (got - expected).abs().max().item() if got.shape == expected.shape else float('nan')
    if not difference <= TOLERANCE * expected.abs().max().item():  # also where it is not a number
        raise ExportError(
            f'the {format} file gives other logits than the model, by up to {difference:.1e}; nothing was written'
        )


def _program(model: nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim('batch', min=1, max=2**16)
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))


def _write_program(model: nn.Module, images: torch.Tensor, facts: dict, path: Path) -> None:
    torch.export.save(_program(model, images), path, extra_files={'config.json': json.dumps(facts, indent=2)})


def _run_program(path: Path, images: torch.Tensor) -> torch.Tensor:
    return torch.export.load(path).module()(images)


def _write_onnx(model: nn.Module, images: torch.Tensor, facts: dict, path: Path) -> None:
    batch = torch.export.Dim('batch', min=1, max=2**16)
    program = torch.onnx.export(
        model, (images,), dynamo=True, dynamic_shapes=({0: batch},), input_names=[INPUT], output_names=[OUTPUT],
        verbose=False,
    )  # fmt: skip
    program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    program.save(str(path), external_data=False)


def _run_onnx(path: Path, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_openvino(model: nn.Module, images: torch.Tensor, facts: dict, path: Path) -> None:
    import openvino

    converted = openvino.convert_model(_program(model, images))
    converted.reshape([-1, *images.shape[1:]])
    converted.input(0).get_tensor().set_names({INPUT})
    converted.output(0).get_tensor().set_names({OUTPUT})
    for key, value in facts.items():
        converted.set_rt_info(json.dumps(value), ['timm', key])
    openvino.save_model(converted, path, compress_to_fp16=False)


def _run_openvino(path: Path, images: torch.Tensor) -> torch.Tensor:
    import openvino

    # some processors would compute in bfloat16
    compiled = openvino.compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return torch.from_numpy(compiled(images.numpy())[OUTPUT])


FORMATS = {
    'onnx': Format('.onnx', ('onnx', 'onnxscript', 'onnxruntime'), _write_onnx, _run_onnx),
    'openvino': Format('.xml', ('openvino',), _write_openvino, _run_openvino, companions=('.bin',)),
    'torch-export': Format('.pt2', (), _write_program, _run_program),
}
