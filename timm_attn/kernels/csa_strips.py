"""CSA's product of the contiguity matrix and a vector on a CPU, strip by strip.

The matrix (C, C) of one image follows from its Gram matrix, which serves distances and cosines, and it is symmetric:
one half is computed, in strips that are small enough to stay in the processor's cache while they go through the
formula. No strip outlives the image (a few images where C is small). The rare image whose distances float32 cannot tell
is computed again in float64.
"""

import math

import torch

from .csa_plain import ROUNDING, largest_magnitude

# Elements of a strip and rows of a strip: two strips of float32 (products, distances) fit into the level 2 caches of
# two current CPU cores. A GPU, where Triton is missing, needs large pieces.
_STRIP = {'cpu': (2**19, 128)}
_STRIP_ELSEWHERE = (2**24, 2**13)

# Where float32 is as accurate as the means of the channels allow: the largest norm of a channel, and the mean distance
# as a share of the mean norm (a common offset of some ten times the spread has a tenth).
_RANGE = (1e-12, 1e12)
_SPREAD = 0.1


def images_at_once(device: torch.device, channels: int) -> int:
    """Images whose whole matrices fit into the space of a strip; at least one."""
    return max(1, _STRIP.get(device.type, _STRIP_ELSEWHERE)[0] // channels**2)


class _Strip:
    """Rows ``start`` to ``stop`` of the matrices of a few images, from column ``start`` on, and their vectors.

    The rest of these rows is the mirror image of earlier strips. All are views of shared buffers, made only once.

    Args:
        start: First row.
        stop: Row after the last.
        products, distances: Buffers for the strip's elements.
        square: Squared norms of the channels (images, C).
        z: The vector to multiply with (images, C).
        sums: The product to add to (images, C).
    """

    def __init__(self, start, stop, products, distances, square, z, sums):
        images, channels = z.shape
        self.rows, self.columns = slice(start, stop), slice(start, None)
        shape = (images, stop - start, channels - start)
        self.products, self.distances = products.view(shape), distances.view(shape)
        self.block = self.distances[:, :, : stop - start]  # on the diagonal; the rest also represents its mirror image
        self.rest = self.distances[:, :, stop - start :] if stop < channels else None
        self.diagonal = self.distances.diagonal(dim1=1, dim2=2)
        self.row_square, self.column_square = square[:, start:stop, None], square[:, None, start:]
        self.row_z, self.column_z = z[:, None, start:stop], z[:, None, start:]
        self.row_sums, self.rest_sums = sums[:, None, start:stop], sums[:, None, stop:]

    def measure(self, f, mode):
        """Fill the strip with the distances, and the products of channels if they were needed for that."""
        if mode == 'l1':
            self.distances.copy_(torch.cdist(f[:, self.rows], f[:, self.columns], p=1.0))
        else:
            torch.bmm(f[:, self.rows], f[:, self.columns].transpose(1, 2), out=self.products)
            torch.add(self.column_square, self.products, alpha=-2, out=self.distances)
            self.distances.add_(self.row_square).clamp_min_(0.0).sqrt_()
            self.diagonal.zero_()

    def total(self):
        """Sum of the distances (images,), mirror image included."""
        return self.distances.flatten(1).sum(1).mul_(2).sub_(self.block.sum(dim=(1, 2)))

    def multiply(self, inv_mean, mode):
        """Turn the distances into weights and add their products with z to the sums."""
        weights = self.distances.mul_(inv_mean).exp2_()  # in torch, three times as fast as exp
        if mode == 'hybrid':
            weights.mul_(self.products.clamp_min_(0.0))
        self.diagonal.zero_()
        # a row times the matrix: of several images, the matrix times a column would take several times as long
        self.row_sums.baddbmm_(self.column_z, weights.mT)
        if self.rest is not None:
            self.rest_sums.baddbmm_(self.row_z, self.rest)


def neighbours(
    x: torch.Tensor, z: torch.Tensor, mode: str, mean_dist: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the other channels' z, weighted with their contiguity, and the mean distance between channels.

    Args:
        x: Flattened feature map (B, C, N), any floating type.
        z: Value of each channel (B, C), float32 or float64, contiguous.
        mode: ``hybrid``, ``l2`` or ``l1``.
        mean_dist: The mean distance (B,) if it is known already.

    Returns:
        The sums (B, C) and the mean distance (B,), both of z's type.
    """
    sums, means, norms = _neighbours(x, z, mode, mean_dist)
    if z.dtype == torch.float32 and x.device.type == 'cpu':
        for i in _out_of_range(x, norms, means):
            image, known = slice(i, i + 1), None if mean_dist is None else mean_dist[i : i + 1].double()
            sums[image], means[image], _ = _neighbours(x[image].double(), z[image].double(), mode, known)
    return sums, means


def _out_of_range(x: torch.Tensor, norms: torch.Tensor, means: torch.Tensor) -> list[int]:
    """Images (B, C, N) whose distances float32 cannot tell, from their norms (B, C) and mean distance (B,).

    Squares of very small and very large numbers leave its range. The distances of channels that share an offset far
    above their spread are small differences of large products.
    """
    low, high = _RANGE
    largest = norms.amax(dim=1) if norms.numel() else means
    within = (largest > low) & (largest < high) & (means > _SPREAD * norms.mean(dim=1))
    if bool(within.all()):
        return []
    # a network may start with maps of zeros, which are no reason to compute anything again
    return [i for i, ok in enumerate(within.tolist()) if not ok and bool(x[i].any())]


def _norm(f: torch.Tensor) -> torch.Tensor:
    """Norms (B, C) of the channels of flattened maps (B, C, N)."""
    if f.stride(1) == 1:  # channels_last, in which vector_norm takes several times as long
        return torch.linalg.vecdot(f, f, dim=2).sqrt_()
    return torch.linalg.vector_norm(f, dim=2)


def _neighbours(
    x: torch.Tensor, z: torch.Tensor, mode: str, mean_dist: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`neighbours` in the type of z, and the norms of the channels (B, C)."""
    B, C, _ = x.shape
    elements, rows = _STRIP.get(x.device.type, _STRIP_ELSEWHERE)
    rows = min(max(rows, C // 8), C)  # of many narrow strips, the calls would cost more than the half that they save
    images = max(1, min(B, elements // (rows * C)))
    spans = [(i, min(i + rows, C)) for i in range(0, C, rows)]
    sizes = [(j - i) * (C - i) for i, j in spans]
    one_pass = mean_dist is not None  # else all strips are kept until the mean distance is known
    space = z.new_empty(2, images * (max(sizes) if one_pass else sum(sizes)))
    square, scaled_z, partial = z.new_empty(3, images, C)
    sums, norms = torch.empty_like(z), torch.empty_like(z)
    means = z.new_zeros(B) if mean_dist is None else mean_dist.clone()
    strips: list[_Strip] = []
    for first in range(0, B, images):
        chunk = slice(first, first + images)
        f = x[chunk].to(z.dtype)
        n = f.shape[0]
        largest = z.new_ones(n, 1, 1)
        # float32 on a CPU is computed again where it must be; elsewhere asking for the range would wait for the device
        if f.numel() and (z.dtype == torch.float64 or x.device.type != 'cpu'):
            largest = largest_magnitude(f)
            f = f / largest
        if not strips or n < images:
            flat = space[:, : n * max(sizes)] if one_pass else space[:, : n * sum(sizes)]
            parts = [flat[:, : n * s] for s in sizes] if one_pass else flat.split([n * s for s in sizes], dim=1)
            strips = [
                _Strip(i, j, part[0], part[1], square[:n], scaled_z[:n], partial[:n])
                for (i, j), part in zip(spans, parts, strict=True)
            ]
        norm = norms[chunk] = _norm(f)
        square[:n] = norm.square() * (1 - ROUNDING * torch.finfo(z.dtype).eps)
        # The norms of the cosine are outside of the sum: only the products of channels are needed in it.
        inv_norm = torch.where(norm > 0, norm, 1.0).reciprocal() if mode == 'hybrid' else torch.ones_like(norm)
        torch.mul(z[chunk], inv_norm, out=scaled_z[:n])
        if not one_pass:
            total = z.new_zeros(n)
            for strip in strips:
                strip.measure(f, mode)
                total += strip.total()  # while it is in the cache
            means[chunk] = total / C**2 * largest.view(n)
        mean = means[chunk] / largest.view(n)
        inv_mean = -mean.clamp_min(torch.finfo(z.dtype).tiny).reciprocal().view(n, 1, 1) / math.log(2)
        partial.zero_()
        for strip in strips:
            if one_pass:
                strip.measure(f, mode)
            strip.multiply(inv_mean, mode)
        torch.mul(partial[:n], inv_norm, out=sums[chunk])
    return sums, means, norms
