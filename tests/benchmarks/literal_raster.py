"""Competitor for bench_raster.py: the 2D stage of Gaussian rasterisation in literal torch, with autograd's gradients.

One row for each pair of a Gaussian and a pixel of its box, sorted by pixel and depth; transmittance by a cumulative sum
of logarithms. Same semantics as multiview/splats/raster_torch.py (alpha clamp, skip below 1/255, stop at 1e-4). A
dense table of all Gaussians and pixels would need 13 GB for 5,000 Gaussians at 256 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALPHA_MIN, ALPHA_MAX, T_MIN = 1 / 255, 0.999, 1e-4


def composite(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    features: Tensor,
    depths: Tensor,
    radii: Tensor,
    width: int,
    height: int,
) -> Tensor:
    """Arguments and result as raster_torch.composite."""
    views = zip(means2d, conics, opacities, features, depths, radii, strict=True)
    return torch.stack([_one(*view, width, height) for view in views])


def _one(means2d, conics, opacities, features, depths, radii, width, height):
    gaussian, pixel = _pairs(means2d.detach(), depths, radii, width, height)
    x = (pixel % width + 0.5) - means2d[gaussian, 0]
    y = (pixel // width + 0.5) - means2d[gaussian, 1]
    a, b, c = conics[gaussian].unbind(1)
    sigma = 0.5 * (a * x * x + c * y * y) + b * x * y
    alpha = (opacities[gaussian] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    drawn = alpha.detach() >= ALPHA_MIN
    gaussian, pixel, alpha = gaussian[drawn], pixel[drawn], alpha[drawn]
    through = torch.log1p(-alpha.double())
    total = torch.cumsum(through, 0)
    first = torch.ones_like(pixel, dtype=torch.bool)
    first[1:] = pixel[1:] != pixel[:-1]
    start = torch.cumsum(first, 0) - 1
    before = total - through
    before = before - before[first][start]
    seen = (before + through).detach().exp() > T_MIN
    weight = (alpha * before.exp().float())[seen, None]
    out = features.new_zeros(width * height, features.shape[-1])
    return out.index_add(0, pixel[seen], weight * features[gaussian[seen]]).view(height, width, -1)


def _pairs(means2d, depths, radii, width, height):
    """Gaussian and pixel of every pair, by pixel and, within it, from near to far."""
    shown = (radii > 0).all(1).nonzero().flatten()
    shown = shown[depths[shown].argsort(stable=True)]
    size = torch.tensor([width, height])
    low = (means2d[shown] - radii[shown]).floor().long().clamp_min(0).minimum(size)
    high = (means2d[shown] + radii[shown]).ceil().long().clamp_min(0).minimum(size)
    wide, tall = (high - low).unbind(1)
    counts = wide * tall
    row = torch.repeat_interleave(torch.arange(len(shown)), counts)
    inside = torch.arange(len(row)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    pixel = (low[row, 1] + inside // wide[row]) * width + low[row, 0] + inside % wide[row]
    order = pixel.argsort(stable=True)
    return shown[row[order]], pixel[order]
