"""Reading the golden vectors of tests/data: numbers computed once with the authors' own code, float32 on CPU."""

import json
import math
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from timm_attn.layers import get_attention

DATA = Path(__file__).parent / 'data'
MODULE_CASES = sorted(p.stem for p in (DATA / 'modules').glob('*.safetensors'))
MODEL_CASES = sorted(p.stem for p in (DATA / 'models').glob('*.json'))


def load_module_case(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Constructor arguments of the authors' module, and its tensors."""
    with safe_open(DATA / 'modules' / f'{name}.safetensors', 'pt') as f:
        args = {key: json.loads(value) for key, value in f.metadata().items()}
        return args, {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118


def load_model_case(name: str) -> dict:
    return json.loads((DATA / 'models' / f'{name}.json').read_text())


def model_arguments(case: dict) -> dict:
    """Arguments of our model; ``layer`` in the case names another form of its attention."""
    arguments = dict(case['arguments'])
    if 'layer' in case:
        row = get_attention(case['layer']['attention'])
        arguments['block_args'] = dict(attn_layer=partial(row.layer, **case['layer']['arguments']))
    return arguments


def _uniform(n: int, seed: int) -> np.ndarray:
    """Reproducible float64 numbers in [-1, 1); arithmetic modulo 2**64."""
    k = np.arange(n, dtype=np.uint64) + np.uint64(seed * 2654435761 % 2**64)
    z = (k + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2**53 * 2 - 1


def rule_image(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(1.5 * _uniform(math.prod(shape), 12345).reshape(shape)).float()


def rule_weight(key: str, shape: list[int]) -> torch.Tensor:
    if key.endswith('num_batches_tracked'):
        return torch.zeros(shape, dtype=torch.int64)
    r = _uniform(math.prod(shape), zlib.crc32(key.encode())).reshape(shape)
    if key.endswith('running_mean'):
        r = 0.1 * r
    elif key.endswith('running_var'):
        r = 1 + 0.3 * r
    elif len(shape) >= 2:
        r = r * math.sqrt(3) * math.sqrt(1.6 / math.prod(shape[1:]))
    elif key.endswith('.weight'):
        r = 1 + 0.2 * r
    else:
        r = 0.1 * r
    return torch.from_numpy(np.asarray(r)).float()


def authors_state_dict(case: dict) -> dict[str, torch.Tensor]:
    return {key: rule_weight(key, shape) for key, shape in case['keys']}
