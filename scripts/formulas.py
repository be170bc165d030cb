"""Reference implementations of the attentions: the formulas as their papers print them.

The benchmark measures each layer against its own. A layer's row in the registry names its function here; each takes the
layer, whose parameters it uses, and the feature map.
"""

import torch
import torch.nn.functional as F
from torch import nn

from timm_attn.layers import CSA, SCSA


def csa(layer: CSA, x: torch.Tensor) -> torch.Tensor:
    """CSA: local Moran's I is the diagonal of z z^T W, a product of C x C x C."""
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


def scsa(layer: SCSA, x: torch.Tensor) -> torch.Tensor:
    """SCSA: a convolution for each group and axis, self-attention at every position, then the mean."""
    B, C, H, W = x.shape
    rows, columns = x.mean(3).chunk(4, 1), x.mean(2).chunk(4, 1)
    gate_h = layer.norm_h(torch.cat([conv(g) for conv, g in zip(layer.dwc, rows, strict=True)], 1)).sigmoid()
    gate_w = layer.norm_w(torch.cat([conv(g) for conv, g in zip(layer.dwc, columns, strict=True)], 1)).sigmoid()
    x = x * gate_h.view(B, C, H, 1) * gate_w.view(B, C, 1, W)
    y = layer.norm(F.avg_pool2d(x, layer.window_size, layer.window_size))
    q, k, v = layer.q(y).flatten(2), layer.k(y).flatten(2), layer.v(y).flatten(2)  # (B, C, N), one head
    y = ((q @ k.transpose(1, 2)) * layer.scale).softmax(-1) @ v
    return x * y.mean(2).sigmoid().view(B, C, 1, 1)


def coord_attn(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Coordinate attention: average pooling along each axis, two convolutions, two gates."""
    H, W = x.shape[2:]
    pooled = torch.cat([F.adaptive_avg_pool2d(x, (H, 1)), F.adaptive_avg_pool2d(x, (1, W)).permute(0, 1, 3, 2)], 2)
    h, w = layer.act(layer.bn1(layer.conv1(pooled))).split([H, W], 2)
    return x * layer.conv_w(w.permute(0, 1, 3, 2)).sigmoid() * layer.conv_h(h).sigmoid()
