"""The ways in which a model runs on a CPU, for ``scripts/benchmark.py --deploy``."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from timm_attn import optimize
from timm_attn.export_formats import FORMATS, export_file
from timm_attn.timing import inference

EAGER = 'eager'


def ways(model: nn.Module, images: torch.Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    """Forward passes of a model, by the way in which they run; all compute in float32.

    Args:
        model: Model in evaluation mode.
        images: (B, C, H, W), of the model's own size.
        folder: Where files for other runtimes are written to.

    Returns:
        Eager; with folded batch norms, and that also in channels_last; compiled; and, where they are installed,
        onnxruntime and OpenVINO. ONNX and OpenVINO have the portable form of the attention.
    """
    folded, last = optimize(model), images.contiguous(memory_format=torch.channels_last)
    folded_last = optimize(model).to(memory_format=torch.channels_last)
    found = {
        EAGER: inference(model, images),
        'optimize()': inference(folded, images),
        'optimize(), channels_last': inference(folded_last, last),
        'optimize(), compile': inference(torch.compile(folded), images),
        'optimize(), channels_last, compile': inference(torch.compile(folded_last), last),
    }
    for name, make in (('onnx', _onnxruntime), ('openvino', _openvino)):
        kind = FORMATS[name]
        if all(importlib.util.find_spec(package) for package in kind.packages):
            file = folder / f'{len(list(folder.iterdir()))}{kind.suffix}'
            export_file(model, file, name)
            found |= make(file, images)
    return found


def _onnxruntime(file: Path, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # its threads spin by default, beside those of the other ways, which would be measured as slower
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    array = images.numpy()
    return {'onnxruntime': lambda: session.run(None, {'images': array})}


def _openvino(file: Path, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    import openvino

    # some processors would compute in bfloat16
    hints = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    compiled = openvino.compile_model(file, 'CPU', hints)
    array = images.numpy()
    return {'OpenVINO': lambda: compiled(array)}
