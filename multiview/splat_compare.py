"""Two splats as shapes: Chamfer distance of points on them, and intersection over union of their volumes.

World frame and units throughout (objects are about 1 across).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .splats.gaussians import Gaussians
from .splats.projection import rotation_matrices

POINTS = 30000
CELLS = 64
# A cell is solid where the Gaussians over its centre let less than half of the light through.
SOLID = 0.5
REACH = 2.5  # standard deviations
# Standard deviation, in cells, that is added to every Gaussian so that none falls between the centres of cells. A face
# of a cell is never further than half a cell from the surface it crosses.
WIDENING = 0.35
PAIRS_AT_ONCE = 1 << 22


def sample_points(gaussians: Gaussians, count: int = POINTS, seed: int = 0) -> Tensor:
    """(count,3) points drawn from the Gaussians, each chosen as often as its opacity times its area says.

    Area: of the ellipse of its two larger axes, what a flat Gaussian shows. Points follow the Gaussian itself, at most
    two standard deviations away along each axis. Same splat, seed and count: same points.
    """
    g = _cpu(gaussians)
    generator = torch.Generator().manual_seed(seed)
    larger = g.scales.sort(dim=1).values[:, 1:]
    weights = (g.opacities * larger.prod(1)).double()
    if float(weights.sum()) <= 0:
        raise ValueError("The splat is fully transparent, so it has no surface to compare.")
    ladder = weights.cumsum(0)
    chosen = torch.searchsorted(ladder, torch.rand(count, generator=generator, dtype=torch.float64) * ladder[-1])
    chosen = chosen.clamp_max(g.num - 1)
    offset = torch.randn(count, 3, generator=generator).clamp(-2, 2) * g.scales[chosen]
    return g.means[chosen] + torch.einsum("pij,pj->pi", rotation_matrices(g.quats[chosen]), offset)


def chamfer(first: Tensor, second: Tensor) -> float:
    """Symmetric Chamfer distance of point sets (P,3) and (Q,3) in world units.

    The mean over both directions of the mean distance to the nearest point of the other set (not squared). Two
    independent samples of one surface of area A are about half of sqrt(A/P) apart: that is its floor.
    """
    from scipy.spatial import cKDTree

    a, b = first.double().numpy(), second.double().numpy()
    return float(0.5 * (cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()))


def splat_chamfer(first: Gaussians, second: Gaussians, count: int = POINTS, seed: int = 0) -> float:
    """chamfer of sample_points of both, in world units; 0 for the same splat."""
    return chamfer(sample_points(first, count, seed), sample_points(second, count, seed))


def volume_iou(first: Gaussians, second: Gaussians, cells: int = CELLS) -> float:
    """Intersection over union of the two solids on a common grid, `cells` along the longest side of both together.

    Solid: where the splat's density is high (solid()), with what it encloses filled in, as fitted splats are shells.
    0 if one of them is solid nowhere.
    """
    low, high = _box([_cpu(first), _cpu(second)])
    a, b = (solid(g, low, high, cells) for g in (first, second))
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 0.0


def solid(gaussians: Gaussians, low: Tensor, high: Tensor, cells: int = CELLS) -> Tensor:
    """(X,Y,Z) bool: cells of the box low (3,) to high (3,) that are inside the splat; cubes, `cells` on the longest
    side.

    Density is 1 - product of (1 - opacity exp(-m^2/2)) over the slightly widened Gaussians; inside means SOLID or more,
    or enclosed by such cells. The outside of a shell comes out up to a cell too large.
    """
    from scipy.ndimage import binary_fill_holes

    g = _cpu(gaussians)
    side = float((high - low).max()) / cells
    shape = ((high - low) / side).round().long().clamp_min(1)
    # log of what passes: sums instead of products.
    passed = torch.zeros(int(shape.prod()))
    rotation = rotation_matrices(g.quats)
    variance = g.scales.square() + (WIDENING * side) ** 2
    covariance = torch.einsum("pij,pj,pkj->pik", rotation, variance, rotation)
    reach = REACH * covariance.diagonal(dim1=1, dim2=2).sqrt()
    first = ((g.means - reach - low) / side).floor().long().clamp_min(0)
    size = (torch.minimum(((g.means + reach - low) / side).ceil().long(), shape) - first).clamp_min(0)
    counts = size.prod(1)
    inverse = torch.linalg.inv(covariance).flatten(1)[:, [0, 4, 8, 1, 2, 5]] * covariance.new_tensor([1, 1, 1, 2, 2, 2])
    for part in _parts(counts, PAIRS_AT_ONCE):
        which = torch.repeat_interleave(part, counts[part])
        nth = torch.arange(len(which)) - torch.repeat_interleave(counts[part].cumsum(0) - counts[part], counts[part])
        wide, tall, deep = size[which].unbind(1)
        cell = first[which] + torch.stack([nth // (tall * deep), nth // deep % tall, nth % deep], dim=1)
        x, y, z = (low + (cell + 0.5) * side - g.means[which]).unbind(1)
        squared = (torch.stack([x * x, y * y, z * z, x * y, x * z, y * z], dim=1) * inverse[which]).sum(1)
        alpha = (g.opacities[which] * torch.exp(-0.5 * squared)).clamp_max(0.999)
        index = (cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]
        passed.index_add_(0, index, torch.log1p(-alpha))
    full = (passed <= math.log(1 - SOLID)).view(*shape.tolist())
    return torch.from_numpy(binary_fill_holes(full.numpy()))


def _box(splats: list[Gaussians]) -> tuple[Tensor, Tensor]:
    """Corners (3,), (3,) of a box around everything that is not nearly transparent."""
    ends = []
    for g in splats:
        shown = g.opacities > 0.05
        if not bool(shown.any()):
            raise ValueError("The splat is nearly transparent everywhere, so it has no volume to compare.")
        reach = 2 * g.scales[shown].amax(1, keepdim=True)
        ends.append(((g.means[shown] - reach).amin(0), (g.means[shown] + reach).amax(0)))
    return torch.stack([e[0] for e in ends]).amin(0), torch.stack([e[1] for e in ends]).amax(0)


def _parts(counts: Tensor, most: int) -> list[Tensor]:
    """Indices in groups whose counts sum to about `most`."""
    group = counts.cumsum(0) // most
    indices = torch.arange(len(counts))
    return [indices[(group == k) & (counts > 0)] for k in group.unique().tolist()]


def _cpu(gaussians: Gaussians) -> Gaussians:
    return gaussians.validate().detach().to("cpu").to(torch.float32)
