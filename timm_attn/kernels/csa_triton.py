"""CSA's product of the contiguity matrix and a vector on a GPU: no piece of the matrix leaves the chip.

The matrix is symmetric, so a tile also represents its mirror image: there is one program for each unordered pair of
channel blocks and each image. One kernel serves both passes, which sum the distances, and multiply the weights with
the vector. Every program writes to places of its own, added up afterwards, so the result is the same in every run.

Triton is imported when the first tensor on a GPU comes.
"""

import functools
import importlib.util
import os
import warnings
from typing import Any

import torch

from .csa_plain import ROUNDING, plain_neighbours

MODES = ('hybrid', 'l2')  # these need only products of channels
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
tl: Any = None  # triton.language, once it is imported
_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'  # Triton emulates the kernels, on the CPU too


def is_available(x: torch.Tensor) -> bool:
    """Whether :func:`neighbours` can take x; the environment variable ``TIMM_ATTN_TRITON=0`` forbids it."""
    if x.dtype not in _DTYPES or os.environ.get('TIMM_ATTN_TRITON') == '0':
        return False
    if _INTERPRETED:
        return importlib.util.find_spec('triton') is not None
    return x.is_cuda and _works(x.get_device())


def neighbours(
    x: torch.Tensor, z: torch.Tensor, mode: str, mean_dist: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the other channels' z, weighted with their contiguity, and the mean distance between channels.

    Args:
        x: Flattened feature map (B, C, N) with any strides, float32, float16 or bfloat16.
        z: Value of each channel (B, C), float32, contiguous.
        mode: One of ``MODES``.
        mean_dist: The mean distance (B,) if it is known already.

    Returns:
        The sums (B, C) and the mean distance (B,), both float32. Where an image's norms leave the range in which
        float32 holds their squares, the image is scaled by a power of two, and the distance is that of the scaled one.
    """
    B, C, N = x.shape
    if z.numel() == 0:
        return torch.zeros_like(z), z.new_zeros(B)
    if _INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()  # the interpreter would multiply the bits as integers
    half = x.dtype != torch.float32
    # Large tiles read the map less often. But few channels in large tiles are too few programs for a GPU, and float32,
    # which is multiplied in three parts, leaves no registers for them.
    block, warps = (128, 8) if half and C >= 512 else (64, 4)
    tiles = -(-C // block)
    pairs = tiles * (tiles + 1) // 2
    kernel = _kernel()

    def launch(mean, out, multiply):
        kernel[(B * pairs,)](  # the first axis of a grid is the only one without a limit of 65535
            *(x, scale, norm, z, mean, out, C, N, *x.stride()),
            MULTIPLY=multiply,
            HYBRID=mode == 'hybrid',
            SCALED=x.dtype != torch.float16,  # whose range is small enough
            BLOCK=block,
            BLOCK_N=32,  # wider pieces spill registers where they cannot be copied to shared memory directly
            SHRINK=1 - ROUNDING * torch.finfo(torch.float32).eps,
            num_warps=warps,
            enable_fp_fusion=True,  # the default; unless it is named, Triton 3.9 warns that it will change
        )
        return out

    with torch.cuda.device_of(x):
        exact = torch.linalg.vector_norm(x, dim=2, dtype=torch.float64)
        largest = exact.amax(dim=1)
        fits = (largest == 0) | ((largest > 1e-12) & (largest < 1e12))
        scale = torch.where(fits, 1.0, torch.ldexp(largest.new_ones(B), -largest.frexp().exponent.clamp(-127, 126)))
        norm = (exact * scale[:, None]).float().contiguous()
        scale = scale.float()
        if mean_dist is None:
            total = z.new_empty(B, pairs)
            mean_dist = launch(total, total, False).sum(1) / C**2  # the first pass reads no mean
        return launch(mean_dist.contiguous(), z.new_empty(B, tiles, C), True).sum(1), mean_dist


@functools.cache
def _works(device: int) -> bool:
    """Whether Triton is there and works: it needs a C compiler and Python's headers, unlike PyTorch itself."""
    # Older GPUs have no tensor cores for bfloat16 and for float32 in three parts.
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        with torch.cuda.device(device):
            _try_out()
    except ImportError:
        return False
    except Exception as e:  # whatever Triton, a compiler or the driver may raise
        warnings.warn(f'CSA runs without its Triton kernel, which fails here: {e}', RuntimeWarning, stacklevel=2)
        return False
    return True


def _try_out() -> None:
    """Compare the kernel with the plain formula on this device."""
    # fixed numbers: the caller's random state is not touched
    x = torch.linspace(0, 300, 2 * 70 * 40, device='cuda').sin().view(2, 70, 40) + 0.5
    z = x.mean(2)
    for dtype in (torch.float32, torch.float16):
        rounded = x.to(dtype)
        for mode in MODES:
            sums, expected = neighbours(rounded, z, mode, None)[0], plain_neighbours(rounded.double(), z.double(), mode)
            if not torch.allclose(sums.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
                raise RuntimeError(f'wrong results in {dtype}')


@functools.cache
def _kernel():
    """The tile kernel."""
    global tl  # Triton looks names up in the module only
    import triton
    import triton.language as tl

    @triton.jit
    def tile(
        x_ptr,
        scale_ptr,
        norm_ptr,
        z_ptr,
        mean_ptr,
        out_ptr,
        C,
        N,
        stride_b,
        stride_c,
        stride_n,
        MULTIPLY: tl.constexpr,
        HYBRID: tl.constexpr,
        SCALED: tl.constexpr,
        BLOCK: tl.constexpr,
        BLOCK_N: tl.constexpr,
        SHRINK: tl.constexpr,
    ):
        pid = tl.program_id(0)
        tiles = (C + BLOCK - 1) // BLOCK
        pairs = tiles * (tiles + 1) // 2
        image = (pid // pairs).to(tl.int64)  # offsets may pass 2**31
        pair = pid % pairs
        # Blocks in a ring: pairs at distance 0, then 1, up to half way round, meet every unordered pair once.
        i_tile = pair % tiles
        j_tile = (i_tile + pair // tiles) % tiles
        i = i_tile * BLOCK + tl.arange(0, BLOCK)
        j = j_tile * BLOCK + tl.arange(0, BLOCK)

        scale = tl.load(scale_ptr + image).to(x_ptr.dtype.element_ty)  # a power of two: the products are exact
        n = tl.arange(0, BLOCK_N)
        x_ptr += image * stride_b
        i_ptr = x_ptr + i.to(tl.int64)[:, None] * stride_c + n.to(tl.int64)[None, :] * stride_n
        j_ptr = x_ptr + j.to(tl.int64)[None, :] * stride_c + n.to(tl.int64)[:, None] * stride_n
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, N, BLOCK_N):
            f_i = tl.load(i_ptr, mask=(i < C)[:, None] & (n < N - start)[None, :], other=0.0)
            f_j = tl.load(j_ptr, mask=(j < C)[None, :] & (n < N - start)[:, None], other=0.0)
            if SCALED:
                f_i *= scale
                f_j *= scale
            # Distances are small differences of products: the 10 bits of plain TF32 would not do.
            product = tl.dot(f_i, f_j, product, input_precision='tf32x3')
            i_ptr += BLOCK_N * stride_n
            j_ptr += BLOCK_N * stride_n

        norm_ptr += image * C
        i_norm = tl.load(norm_ptr + i, mask=i < C, other=0.0)
        j_norm = tl.load(norm_ptr + j, mask=j < C, other=0.0)
        square = ((i_norm * i_norm)[:, None] + (j_norm * j_norm)[None, :]) * SHRINK - 2.0 * product
        distance = tl.sqrt(tl.where(square < 0.0, 0.0, square))  # tl.maximum would lose NaN
        counts = (i < C)[:, None] & (j < C)[None, :] & (i[:, None] != j[None, :])

        if MULTIPLY:
            mean = tl.load(mean_ptr + image)
            weight = tl.exp(-distance * (1.0 / tl.where(mean < 1e-30, 1e-30, mean)))
            i_z = tl.load(z_ptr + image * C + i, mask=i < C, other=0.0)
            j_z = tl.load(z_ptr + image * C + j, mask=j < C, other=0.0)
            if HYBRID:  # the cosine, its norms outside of the sum
                weight *= tl.maximum(product, 0.0)
                i_inv_norm = 1.0 / tl.where(i_norm > 0.0, i_norm, 1.0)
                j_inv_norm = 1.0 / tl.where(j_norm > 0.0, j_norm, 1.0)
                i_z *= i_inv_norm
                j_z *= j_inv_norm
            weight = tl.where(counts, weight, 0.0)
            i_sum = tl.sum(weight * j_z[None, :], axis=1)
            j_sum = tl.sum(weight * i_z[:, None], axis=0)
            if HYBRID:
                i_sum *= i_inv_norm
                j_sum *= j_inv_norm
            out_ptr += image * tiles * C
            tl.store(out_ptr + j_tile * C + i, i_sum, mask=i < C)
            if i_tile != j_tile:
                tl.store(out_ptr + i_tile * C + j, j_sum, mask=j < C)
        else:
            total = tl.sum(tl.sum(tl.where(counts, distance, 0.0), axis=1), axis=0)
            tl.store(out_ptr + pid, tl.where(i_tile == j_tile, 1.0, 2.0) * total)

    return tile
