"""CSA's Triton kernel against the CPU path: emulated by Triton's interpreter, and on a GPU where there is one.

The functions check_* are the interpreter's: test_in_interpreter runs them in a process of its own, since Triton reads
TRITON_INTERPRET when it is imported and when a kernel is defined.
"""

import os
import subprocess
import sys

import pytest
import torch

from timm_attn.kernels import csa_strips, csa_triton
from timm_attn.layers import CSA

pytest.importorskip('triton')

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
SHAPES = [(2, 1, 1, 1), (3, 40, 1, 1), (1, 1, 7, 5), (2, 40, 7, 5), (2, 130, 3, 3), (1, 64, 8, 8)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def feature_map(shape, dtype=torch.float32, layout=torch.contiguous_format):
    x = torch.randn(shape) + torch.randn(shape[0], 1, *shape[2:])  # channels agree in part
    if shape[2:] == (1, 1):
        x = x.mul(8).round() / 8  # with exact products: differences of single values are lost in rounding else
    x[:, 3:4] = 0  # a channel without a norm
    return x.to(dtype).contiguous(memory_format=layout).flatten(2), torch.randn(shape[:2])


def assert_equal(actual, expected, tol):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=0, atol=tol * e.abs().max().item())


@pytest.mark.slow
def test_in_interpreter():
    options = ['-q', '-p', 'no:cacheprovider', '-o', 'python_functions=check_']
    process = subprocess.run(
        [sys.executable, '-m', 'pytest', *options, __file__],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_cpu_does_not_ask_for_triton():
    if csa_triton._INTERPRETED:
        pytest.skip('the interpreter takes tensors on the CPU')
    before = csa_triton._kernel.cache_info(), csa_triton._works.cache_info()
    assert not csa_triton.is_available(torch.ones(1, 2, 3))
    assert (csa_triton._kernel.cache_info(), csa_triton._works.cache_info()) == before


def check_is_available():
    assert all(csa_triton.is_available(torch.ones(1, 2, 3, dtype=dtype)) for dtype in DTYPES)
    assert not csa_triton.is_available(torch.ones(1, 2, 3, dtype=torch.float64))
    assert not csa_triton.is_available(torch.ones(1, 2, 3, dtype=torch.int32))


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('mode', csa_triton.MODES)
def check_equals_cpu_path(mode, shape, dtype, layout):
    x, z = feature_map(shape, dtype, layout)
    expected = csa_strips.neighbours(x, z, mode, None)
    actual = csa_triton.neighbours(x, z, mode, None)
    assert_equal(actual, expected, tol=1e-5)
    assert all(map(torch.equal, csa_triton.neighbours(x, z, mode, None), actual))  # the same in every run
    mean_dist = expected[1] * 0.7
    assert_equal(csa_triton.neighbours(x, z, mode, mean_dist), csa_strips.neighbours(x, z, mode, mean_dist), tol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def check_large_tiles(dtype):  # those of half precision; the last one holds 8 channels
    x, z = feature_map((1, 520, 2, 3), dtype)
    assert_equal(csa_triton.neighbours(x, z, 'hybrid', None), csa_strips.neighbours(x, z, 'hybrid', None), tol=1e-5)


@pytest.mark.parametrize('channels', [1, 64, 65, 129, 257])
def check_every_pair_of_channels_meets_once(channels):
    # Channels that are all far from each other, at the same distance: every weight is exp(-C / (C - 1)).
    x, z = torch.eye(channels)[None], torch.rand(1, channels)
    sums, mean_dist = csa_triton.neighbours(x, z, 'l2', None)
    if channels == 1:
        assert sums.item() == mean_dist.item() == 0
    else:
        torch.testing.assert_close(mean_dist.item(), 2**0.5 * (channels - 1) / channels, rtol=1e-6, atol=0)
        weight = torch.tensor(-channels / (channels - 1)).exp()
        torch.testing.assert_close(sums, weight * (z.sum() - z))


def check_any_strides():
    base, z = torch.randn(5, 3, 50), torch.randn(3, 50)
    for x in (base.permute(1, 2, 0), base.permute(1, 2, 0)[:, :, ::2], base[0, :, :, None].expand(3, 50, 4)):
        assert_equal(csa_triton.neighbours(x, z, 'l2', None), csa_strips.neighbours(x, z, 'l2', None), tol=1e-5)


@pytest.mark.parametrize('mode', csa_triton.MODES)
def check_empty_batch(mode):
    x, z = feature_map((0, 6, 2, 2))
    for mean_dist in (None, torch.empty(0)):
        sums, means = csa_triton.neighbours(x, z, mode, mean_dist)
        assert sums.shape == (0, 6)
        assert means.shape == (0,)


@pytest.mark.parametrize('mode', csa_triton.MODES)
@pytest.mark.parametrize('value', [0.0, 0.3, -1e4])
def check_constant_map(mode, value):
    for dtype in DTYPES:
        results = csa_triton.neighbours(torch.full((2, 70, 9), value, dtype=dtype), torch.randn(2, 70), mode, None)
        assert all(r.isfinite().all() for r in results)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('exponent', [-38, -30, -14, 14, 20, 37])
def check_any_magnitude(exponent, dtype):
    x, z = feature_map((1, 40, 7, 5))
    x = torch.cat([x, x * 10.0**exponent]).to(dtype)  # the scale of one image is not that of the next
    expected, _ = csa_strips.neighbours(x.double(), z.double().repeat(2, 1), 'hybrid', None)
    sums, mean_dist = csa_triton.neighbours(x, z.repeat(2, 1), 'hybrid', None)
    tolerance = 1e-4 if exponent > -38 else 1e-2  # below float32's smallest normal numbers digits are lost
    assert_equal([sums], [expected.float()], tol=tolerance)
    assert torch.equal(csa_triton.neighbours(x, z.repeat(2, 1), 'hybrid', mean_dist)[0], sums)


@pytest.mark.parametrize('mode', csa_triton.MODES)
def check_nan_is_not_lost(mode):
    x, z = feature_map((2, 6, 2, 2))
    x[0, 3, 1] = torch.nan
    for actual, expected in zip(
        csa_triton.neighbours(x, z, mode, None), csa_strips.neighbours(x, z, mode, None), strict=True
    ):
        torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('mode', csa_triton.MODES)
def check_layer(monkeypatch, mode, layout):
    layer = CSA(70, mode=mode)
    image = torch.randn(2, 70, 5, 4).contiguous(memory_format=layout)
    calls = []
    neighbours = csa_triton.neighbours
    monkeypatch.setattr(csa_triton, 'neighbours', lambda *args: calls.append(args) or neighbours(*args))

    def run():
        x = image.clone().requires_grad_()
        y = layer(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        return y.detach(), x.grad

    actual = run()
    assert len(calls) == 2  # forward and backward
    monkeypatch.setattr(csa_triton, 'is_available', lambda x: False)
    assert_equal(actual, run(), tol=1e-5)
    assert len(calls) == 2


@needs_cuda
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('mode', csa_triton.MODES)
def test_on_gpu(mode, dtype):
    for shape in [*SHAPES, (2, 64, 56, 56), (3, 256, 28, 28), (2, 1000, 7, 7), (4, 2048, 7, 7)]:
        for layout in LAYOUTS:
            x, z = feature_map(shape, dtype, layout)
            x_gpu, z_gpu = x.cuda(), z.cuda()
            if not csa_triton.is_available(x_gpu):
                pytest.skip('the kernel does not serve this GPU or its software')
            expected = csa_strips.neighbours(x.float(), z, mode, None)
            actual = csa_triton.neighbours(x_gpu, z_gpu, mode, None)
            assert_equal(actual, expected, tol=1e-4)  # tensor cores round towards zero
            assert all(map(torch.equal, csa_triton.neighbours(x_gpu, z_gpu, mode, None), actual))
            again = csa_triton.neighbours(x_gpu, z_gpu, mode, expected[1].cuda())
            assert_equal(again, expected, tol=1e-4)


@needs_cuda
@pytest.mark.parametrize('mode', csa_triton.MODES)
def test_layer_on_gpu(mode):
    layer = CSA(256, mode=mode)
    image = torch.randn(2, 256, 14, 14)

    def run(device):
        x = image.to(device).requires_grad_()
        y = layer.to(device)(x)
        y.square().sum().backward()
        return y.detach(), x.grad.cpu()

    assert_equal(run('cuda'), run('cpu'), tol=1e-3)
