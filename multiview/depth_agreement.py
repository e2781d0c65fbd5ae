"""How well depth maps of calibrated views agree: one figure for all, and a confidence for every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras
from .correspondence import JUMP
from .depth_rig import Rig, bilinear, gradients, inside_frame, neighbours, shrunk, spread_pixels

# Views further apart than this share too little surface to compare.
WIDEST = 75.0
# Confidence is worked out on maps of at most this size and enlarged.
CONFIDENCE_SIDE = 160
# An error of this share of the object's radius makes a point doubtful (0.05 for the pack's objects of radius 0.5).
TOLERANCE = 0.1
UNCHECKED = 0.5  # confidence where no other view can tell


@dataclass(frozen=True)
class Disagreement:
    """Medians over points that both of two neighbouring views show.

    world: distance along the view axis between what the two views say, in world units.
    pixels: there and back: by this view's depth to the neighbour, by the neighbour's depth back again.
    outside: share of points that land more than a pixel outside the neighbour's silhouette.
    """

    world: float
    pixels: float
    outside: float

    def __str__(self) -> str:
        return f"{self.world:.4f} world units, {self.pixels:.2f} px, {100 * self.outside:.1f} % outside the silhouette"


def disagreement(depth: Tensor, cameras: Cameras, samples: int = 400) -> Disagreement | None:
    """Between each view and its two nearest neighbours. depth: (N,H,W), 0 = nothing. None where views share nothing."""
    maps = depth.double().cpu()
    solid = maps > 0
    rig = Rig.of(cameras, tuple(maps.shape[1:]))
    view, uv, other = _pairs(solid, cameras, samples, most=2)
    if len(view) == 0:
        return None
    rays = rig.rays(view, uv)
    there, z, _, _ = rig.move(view, other, rays, bilinear(maps, view, uv))
    shown = inside_frame(there, rig.size)
    sure = shown & (bilinear(shrunk(solid).double(), other, there) > 0.999)
    near = F.max_pool2d(solid.double()[:, None], 3, stride=1, padding=1)[:, 0]
    outside = shown & (bilinear(near, other, there) < 0.5)
    if not bool(sure.any()):
        return None
    found = bilinear(maps, other, there)
    back, _, _, _ = rig.move(other, view, rig.rays(other, there), found)
    error = (z - found).abs()[sure].median()
    pixels = (back - uv).norm(dim=1)[sure].median()
    return Disagreement(float(error), float(pixels), float(outside.sum() / shown.sum()))


def _pairs(solid: Tensor, cameras: Cameras, samples: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled pixels once for each neighbour of their view: view (P,), uv (P,2), other (P,)."""
    view, uv = spread_pixels(shrunk(solid), samples)
    table = neighbours(cameras, 0.5, WIDEST, most)
    rows, others = [], []
    for i, some in enumerate(table):
        mine = (view == i).nonzero()[:, 0]
        for j in some:
            rows.append(mine)
            others.append(torch.full_like(mine, j))
    if not rows:
        empty = torch.zeros(0, dtype=torch.long)
        return empty, torch.zeros(0, 2, dtype=torch.float64), empty
    chosen = torch.cat(rows)
    return view[chosen], uv[chosen], torch.cat(others)


def confidence(depth: Tensor, cameras: Cameras, radius: float) -> Tensor:
    """(N,H,W) in [0,1]: do the nearest views see the same surface there, and is it away from edges?

    exp(-(r / t)^2) with r the distance of the point to the neighbour's surface and t a tenth of the object's radius,
    averaged over up to four neighbours that can see it (0 for a neighbour that shows background there); 0.5 where
    none can. Halved at outlines and at depth jumps, where pixels mix two surfaces. 0 on background.
    depth: (N,H,W), 0 = nothing. radius: of the object, world units.
    """
    n, height, width = depth.shape
    step = max(1, -(-max(height, width) // CONFIDENCE_SIDE))
    maps = depth.double().cpu()
    rig = Rig.of(cameras, (height, width))
    solid = maps > 0
    filled = _filled(maps)
    reach = TOLERANCE * radius * _tilt(filled, rig)
    table = neighbours(cameras, 0.5, WIDEST, 4)
    # Every step-th pixel, never a mean: a mean over an edge is a surface that does not exist.
    coarse = solid[:, step // 2 :: step, step // 2 :: step]
    agreement = torch.zeros(coarse.shape, dtype=torch.float64)
    for i in range(n):
        row, column = coarse[i].nonzero().unbind(1)
        place = torch.stack([column, row], dim=1) * step + step // 2
        z, rays = maps[i][place[:, 1], place[:, 0]], rig.rays(i, place.double() + 0.5)
        total, count = torch.zeros_like(z), torch.zeros_like(z)
        for j in table[i]:
            there, expected, _, _ = rig.move(i, j, rays, z)
            cover = bilinear(solid.double(), j, there)
            gap = (bilinear(filled, j, there) - expected) / bilinear(reach, j, there)
            score = torch.exp(-gap.square()) * (cover > 0.25)
            # A nearer surface hides the point: this neighbour cannot tell.
            sees = inside_frame(there, rig.size) & ((gap > -2) | (cover <= 0.25))
            total, count = total + score * sees, count + sees
        agreement[i, row, column] = torch.where(count > 0, total / count.clamp_min(1), UNCHECKED)
    if step > 1:
        # Weighted by the coarse mask, so that background does not leak into outlines.
        both = torch.stack([agreement, coarse.double() + 1e-9], dim=1)
        both = F.interpolate(both, size=(height, width), mode="bilinear")
        agreement = both[:, 0] / both[:, 1]
    return (agreement * _edges(maps, rig) * solid).clamp(0, 1).float()


def _filled(maps: Tensor) -> Tensor:
    """Depth continued one pixel into the background, so that looking up at an outline mixes in no zeros."""
    weight = (maps > 0).double()
    total = F.avg_pool2d(maps[:, None], 3, stride=1, padding=1)[:, 0]
    share = F.avg_pool2d(weight[:, None], 3, stride=1, padding=1)[:, 0]
    return torch.where(maps > 0, maps, total / share.clamp_min(1e-9))


def _tilt(maps: Tensor, rig: Rig) -> Tensor:
    """(N,H,W) in [1,3]: 1 / cos of the surface's tilt: gap along the axis divided by distance to the surface."""
    scale = rig.focal[:, None, None, :] / maps[..., None].clamp_min(1e-6)
    return (1 + (gradients(maps) * scale).square().sum(-1)).sqrt().clamp(1.0, 3.0)


def _edges(maps: Tensor, rig: Rig) -> Tensor:
    """(N,H,W): 1 inside surfaces, 0.5 beside background or another surface."""
    footprint = (maps / rig.focal.amin(1)[:, None, None]) * JUMP
    far = F.max_pool2d(maps[:, None], 3, stride=1, padding=1)[:, 0]
    near = -F.max_pool2d(-torch.where(maps > 0, maps, -1e3)[:, None], 3, stride=1, padding=1)[:, 0]
    return torch.where((far - near) > footprint, 0.5, 1.0)
