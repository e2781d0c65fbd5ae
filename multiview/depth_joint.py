"""Near and far depth of all views at once, so that the views agree on one surface.

Gauss-Newton with robust weights on two kinds of residual, in world units:
  surface     a point of view i, moved to a neighbour j, against j's own depth there, as a distance to j's surface
  silhouette  how far the point lies outside the outline of any view
Unknowns: 2 per view, linear in V (depth_calibrate.py). A few thousand points, all in float64, nothing random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Cameras
from .depth_rig import Rig, bilinear, gradients, inside_frame, neighbours, shrunk, spread_pixels

SAMPLES = 160  # points of each view
# Nearest views to compare with. Even a quarter turn apart they share some surface, and robust weights sort it out.
NEIGHBOURS, WIDEST = 6, 95.0
# Residuals beyond this, in object radii, count for little; it shrinks while the fit closes in.
SCALES = (0.5, 0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.15, 0.15, 0.1, 0.1, 0.08, 0.08, 0.06, 0.06)
SILHOUETTE_WEIGHT = 1.0
# How strongly the start is believed: as much as this many points that are off by one object radius.
PRIOR = 2.0
STEEPEST = 3.0


@dataclass(frozen=True)
class _Problem:
    """Sampled points, once for each other view. mine/other: views (P,). value (P,): V. near: may compare surfaces."""

    rig: Rig
    mine: Tensor
    other: Tensor
    rays: Tensor
    value: Tensor
    near: Tensor
    surface: Tensor
    outline: Tensor
    linear: bool


def fit_jointly(
    share: Tensor, inside: Tensor, cameras: Cameras, start: Tensor, linear: bool, radius: float
) -> tuple[Tensor, bool]:
    """(N,2) near and far that fit best, and whether that is better than the start.

    share: (N,H,W) float64, V (1 = near). inside: (N,H,W) bool. start: (N,2) world units. linear: Z linear in V, else
    1/Z. radius: of the object. Views without any neighbour keep what their start and the outlines say.
    """
    problem = _set_up(share, inside, cameras, linear)
    begin = _parameters(start, linear)
    scale_of = _spread(begin, start, linear, radius)
    values = begin.clone()
    for scale in SCALES:
        values = values + _step(problem, values, begin, scale_of, scale * radius, radius)
        values = _kept_sane(values, start, linear, radius)
    last = SCALES[-1] * radius
    better = _cost(problem, values, last) < _cost(problem, begin, last)
    return (_limits(values, linear), True) if better else (start, False)


def _parameters(limits: Tensor, linear: bool) -> Tensor:
    return limits.clone() if linear else 1.0 / limits


_limits = _parameters  # the map is its own inverse


def _spread(begin: Tensor, start: Tensor, linear: bool, radius: float) -> Tensor:
    """(N,2) by how much a parameter changes when its depth changes by one object radius."""
    return torch.full_like(begin, radius) if linear else radius / start**2


def _kept_sane(values: Tensor, start: Tensor, linear: bool, radius: float) -> Tensor:
    """Near stays before far by a tenth of the object's radius, and both within three radii of the start."""
    limits = _limits(values, linear)
    limits = limits.clamp_min(0.02 * radius)
    limits = torch.minimum(torch.maximum(limits, start - 3 * radius), start + 3 * radius).clamp_min(0.02 * radius)
    middle, half = limits.mean(1), ((limits[:, 1] - limits[:, 0]) / 2).clamp_min(0.05 * radius)
    half = torch.minimum(half, middle * 0.98)
    return _parameters(torch.stack([middle - half, middle + half], dim=1), linear)


def _set_up(share: Tensor, inside: Tensor, cameras: Cameras, linear: bool) -> _Problem:
    from scipy.ndimage import distance_transform_edt

    n, height, width = share.shape
    rig = Rig.of(cameras, (height, width))
    core = shrunk(inside)
    view, uv = spread_pixels(torch.where(core.flatten(1).any(1)[:, None, None], core, inside), SAMPLES)
    close = neighbours(cameras, 0.5, WIDEST, NEIGHBOURS)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    rows = [(view == i).nonzero()[:, 0] for i in range(n)]
    which = torch.cat([rows[i] for i, _ in pairs])
    other = torch.cat([torch.full_like(rows[i], j) for i, j in pairs])
    near = torch.cat([torch.full_like(rows[i], j in close[i], dtype=torch.bool) for i, j in pairs])
    # Outlines of opposite views say the same; a third of the far pairs is plenty.
    keep = near | (torch.arange(len(which)) % 3 == 0)
    which, other, near = which[keep], other[keep], near[keep]
    mine = view[which]
    rays, value = rig.rays(mine, uv[which]), bilinear(share, mine, uv[which])
    outside = torch.stack([torch.from_numpy(distance_transform_edt((~m).numpy())) for m in inside]).double()
    # Maps that are always looked up together: V, its slopes, whether V counts; distance to the outline, its slopes.
    surface = torch.cat([share[..., None], gradients(share), core.double()[..., None]], dim=-1)
    outline = torch.cat([outside[..., None], gradients(outside)], dim=-1)
    return _Problem(rig, mine, other, rays, value, near, surface, outline, linear)


def _depth(problem: _Problem, values: Tensor, view: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z (P,), dz by (near, far) parameters (P,2), dz by V (P,)."""
    weights = torch.stack([share, 1 - share], dim=1)
    mixed = (weights * values[view]).sum(1)
    slope = values[view, 0] - values[view, 1]
    if problem.linear:
        return mixed, weights, slope
    mixed = mixed.clamp_min(1e-3)
    return 1 / mixed, -weights / mixed.square()[:, None], -slope / mixed.square()


def _residuals(problem: _Problem, values: Tensor):
    """Surface residual with its slopes by (mine, other) parameters, silhouette residual with its slope by mine."""
    rig, mine, other = problem.rig, problem.mine, problem.other
    z, dz, _ = _depth(problem, values, mine, problem.value)
    uv, there, duv, dthere = rig.move(mine, other, problem.rays, z)
    shown = inside_frame(uv, rig.size)
    surface = bilinear(problem.surface, other, uv)
    solid = problem.near & shown & (surface[:, 3] > 0.999)
    found, dfound, by_share = _depth(problem, values, other, surface[:, 0])
    gradient = surface[:, 1:3] * by_share[:, None]
    tilt = (gradient * rig.focal[other] / found.clamp_min(1e-6)[:, None]).square().sum(1)
    cosine = 1.0 / (1 + tilt).sqrt().clamp_max(STEEPEST)
    gap = (there - found) * cosine
    by_z = (dthere - (gradient * duv).sum(1)) * cosine
    distance, slope = bilinear(problem.outline, other, uv).split([1, 2], dim=1)
    distance = distance[:, 0]
    unit = there / rig.focal[other].mean(1)
    leak = torch.where(shown, (distance - 0.5).clamp_min(0) * unit, torch.zeros_like(distance))
    by_leak = (slope * duv).sum(1) * unit
    return (gap, by_z[:, None] * dz, -dfound * cosine[:, None], solid), (leak, by_leak[:, None] * dz, leak > 0)


def _robust(residual: Tensor, scale: float) -> Tensor:
    """Geman-McClure weight."""
    return 1.0 / (1.0 + (residual / scale).square()).square()


def _step(problem: _Problem, values: Tensor, begin: Tensor, spread: Tensor, scale: float, radius: float) -> Tensor:
    (gap, by_mine, by_other, solid), (leak, by_leak, out) = _residuals(problem, values)
    n = len(values)
    weight = _robust(gap, scale) * solid
    rows = torch.cat([by_mine, by_other], dim=1)
    index = torch.stack([2 * problem.mine, 2 * problem.mine + 1, 2 * problem.other, 2 * problem.other + 1], dim=1)
    system, right = torch.zeros(2 * n, 2 * n, dtype=torch.float64), torch.zeros(2 * n, dtype=torch.float64)
    _add(system, right, index, rows, gap, weight)
    _add(system, right, index[:, :2], by_leak, leak, SILHOUETTE_WEIGHT * _robust(leak, scale) * out)
    # Both in units of one object radius, so that the prior means the same for every world scale.
    pull = PRIOR * radius**2 / spread.flatten().square()
    system.diagonal().add_(pull)
    right += pull * (values - begin).flatten()
    return -torch.linalg.solve(system, right).view(n, 2)


def _add(system: Tensor, right: Tensor, index: Tensor, rows: Tensor, residual: Tensor, weight: Tensor) -> None:
    outer = (rows * weight[:, None])[:, :, None] * rows[:, None, :]
    where = index[:, :, None] * len(system) + index[:, None, :]
    system.view(-1).index_add_(0, where.reshape(-1), outer.reshape(-1))
    right.index_add_(0, index.reshape(-1), (rows * (weight * residual)[:, None]).reshape(-1))


def _cost(problem: _Problem, values: Tensor, scale: float) -> float:
    (gap, _, _, solid), (leak, _, _) = _residuals(problem, values)
    surface = (gap / scale).square()
    outline = (leak / scale).square()
    # A point that leaves the neighbour's surface altogether counts in full, or leaving would be a way to win.
    lost = problem.near & ~solid
    total = torch.where(solid, surface / (1 + surface), torch.where(lost, 0.5, 0.0)) + outline / (1 + outline)
    return float(total.sum())
