"""Trajectory tracking between calibrated views: where in the neighbouring views is the surface that a pixel shows?

MIRROR's TTM (design.md section 5, references.md 5.1). Positions are pixels of the grid the views are compared on
(latents), centres at +0.5. Exact perspective reprojection by default, the paper's Eq. 4 and relatives for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .cameras import ANGLE_TOLERANCE_DEG, Cameras
from .checks import check_view_count
from .correspondence_paper import move

MODES = ("perspective", "paper", "orthographic", "identity")
# Samples of a depth map whose distances differ by more than this many pixel footprints are different surfaces.
JUMP = 4.0
# tan of the steepest surface slope that the occlusion test makes room for (about 83 degrees).
STEEPEST = 8.0
# Tolerance of the occlusion test in footprints: at no tilt, and more per tan of the tilt. The best of a small search
# on demo objects (precision and recall 0.98 with 128-pixel depth and a 64-cell grid).
BASE, TILT = 0.5, 0.5


@dataclass(frozen=True)
class Correspondence:
    """Matches of N views with K neighbours each, on a grid of H x W cells.

    neighbours: (N,K) int64, index of each neighbour view, -1 where there is none (end of an open orbit).
    uv: (N,K,H,W,2) float32, position in the neighbour in pixels of the grid; the cell's own centre where meaningless.
    confidence: (N,K,H,W) float32 in [0,1]; 0 = no match (nothing there, hidden, outside the picture, background).
    foreground: (N,H,W) float32 in [0,1], share of each cell that the object covers.
    """

    neighbours: Tensor
    uv: Tensor
    confidence: Tensor
    foreground: Tensor

    @property
    def valid(self) -> Tensor:
        """(N,K,H,W) bool."""
        return self.confidence > 0

    def to(self, device) -> Correspondence:
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def neighbour_table(cameras: Cameras, offsets: Sequence[int] = (-1, 1)) -> Tensor:
    """(N,K) index of the view `offset` steps along the orbit from each view, -1 where there is none.

    Steps follow the azimuths, not the order of the batch; equal azimuths follow the batch, so ComfyUI's SV3D table,
    whose last view repeats the first, has one step of 0 degrees. An open orbit is cut at its widest gap. No view is
    its own neighbour or the same neighbour twice.
    """
    offsets = [int(o) for o in offsets]
    if not offsets or 0 in offsets or len(set(offsets)) != len(offsets):
        raise ValueError(
            f"Neighbour offsets must be distinct whole numbers other than 0, such as -1 and 1, got {offsets}."
        )
    n = len(cameras)
    azimuths = cameras.azimuths().cpu()
    azimuths = torch.round(azimuths / ANGLE_TOLERANCE_DEG).long()
    order = torch.argsort(azimuths, stable=True)
    if not cameras.closed:
        turn = round(360.0 / ANGLE_TOLERANCE_DEG)
        gaps = torch.diff(azimuths[order], append=azimuths[order[:1]] + turn)
        order = torch.roll(order, -int(gaps.argmax()) - 1)
    table = torch.full((n, len(offsets)), -1)
    for place, view in enumerate(order.tolist()):
        taken = {view}
        # Nearest steps first, so that on a short closed orbit a view counts as the nearer of its two offsets.
        for k in sorted(range(len(offsets)), key=lambda k: abs(offsets[k])):
            at = place + offsets[k]
            if not cameras.closed and not 0 <= at < n:
                continue
            other = int(order[at % n])
            if other not in taken:
                table[view, k] = other
                taken.add(other)
    return table


def track(
    cameras: Cameras,
    size: tuple[int, int],
    depth: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    offsets: Sequence[int] = (-1, 1),
    mode: str = "perspective",
    occlusion: bool = True,
    depth_error: float = 0.0,
) -> Correspondence:
    """Match every cell of every view with its neighbours along the orbit.

    size: (H,W) of the grid. depth: (N,h,w) camera z in world units at any resolution, 0 = nothing there.
    masks: (N,h2,w2) in [0,1], 1 = object, any resolution; None = wherever there is depth.
    offsets: neighbours, in steps along the orbit.
    mode: perspective (exact), paper (Eq. 4; without depth every point counts as on the axis), orthographic (Eq. 4's
        geometry with the elevation taken into account), identity (same pixel).
    occlusion: drop points that the neighbour cannot see. Whether it can is always decided by the exact geometry,
        whatever formula gives the position; without depth it cannot be decided and nothing is dropped.
    depth_error: relative error of the depth to make room for in the occlusion test; 0.02 is fair for estimated depth.
    Returns a Correspondence on depth's device (else the masks', else the cameras').
    """
    height, width = (int(s) for s in size)
    _check(cameras, (height, width), depth, masks, mode, depth_error)
    table = neighbour_table(cameras, offsets)
    n, k = table.shape
    source = depth if depth is not None else masks
    device = cameras.c2w.device if source is None else source.device
    depth = None if depth is None else depth.float()
    if depth is not None and masks is not None:
        inside = interpolate(masks[:, None].float().to(device), size=depth.shape[1:], mode="bilinear")[:, 0] > 0.5
        depth = torch.where(inside, depth, torch.zeros_like(depth))
    cells = cell_centres(height, width, device)
    grid = None
    if depth is not None:
        grid, where = resample_depth(depth, (height, width), footprints(cameras, depth))
    foreground = _coverage(depth, masks, (n, height, width), device)

    # P pairs of a view and a neighbour.
    view, step = (table >= 0).nonzero().unbind(1)
    other = table[view, step]
    seen = foreground[view] > 0 if grid is None else grid[view] > 0
    if grid is not None and (mode == "perspective" or occlusion):
        exact, z, plane, tilt = reproject(grid, cells, tangent_planes(depth, cameras, where), cameras, view, other)
        seen = seen & (z > 0)
        if occlusion:
            at = exact / exact.new_tensor([width, height])
            # Only what is left of the object, as pictures of one cell each: often a tenth of all cells.
            left = (seen & (tilt >= 0)).nonzero(as_tuple=True)
            at, z, plane, tilt = (t[left][:, None, None] for t in (at, z, plane, tilt))
            visible = _unoccluded(depth, cameras, other[left[0].cpu()], at, z, plane, tilt, depth_error)
            seen = torch.zeros_like(seen)
            seen[left] = visible[:, 0, 0]
    if mode == "perspective":
        uv = exact
    elif mode == "identity":
        uv = cells.expand(len(view), -1, -1, -1)
    else:
        uv = move(cells, None if grid is None else grid[view], cameras, view, other, mode == "orthographic")
    frame = uv.new_tensor([width, height])
    seen = seen & ((uv >= 0) & (uv <= frame)).all(-1)
    uv = torch.where(seen[..., None], uv, cells)
    weight = foreground[view] * _look_up(foreground, other, uv)
    all_uv = cells.expand(n, k, -1, -1, -1).clone()
    confidence = torch.zeros(n, k, height, width, device=device)
    all_uv[view, step] = uv
    confidence[view, step] = torch.where(seen, weight, torch.zeros_like(weight))
    return Correspondence(table.to(device), all_uv, confidence, foreground)


def cell_centres(height: int, width: int, device=None) -> Tensor:
    """(H,W,2) pixel centres (u,v)."""
    v, u = torch.meshgrid(
        torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
    )
    return torch.stack([u, v], dim=-1)


def footprints(cameras: Cameras, depth: Tensor) -> Tensor:
    """(N,) width in world units, at distance 1, of a pixel of the depth maps (N,h,w): the larger of its two sides."""
    fx, fy = cameras.intrinsics[:, 0] * depth.shape[2], cameras.intrinsics[:, 1] * depth.shape[1]
    return (1.0 / torch.minimum(fx, fy)).to(depth)


def resample_depth(depth: Tensor, size: tuple[int, int], footprint: Tensor) -> tuple[Tensor, Tensor]:
    """(N,h,w) -> (N,H,W) depth at the cell centres, 0 = nothing, never a mean over different surfaces.

    Inverse depth is interpolated between the four samples around the centre (exact on planes), of those on the same
    surface as the one that counts most. A centre with less than half its weight on the object is background.
    footprint: (N,) from footprints(). Also returns the flat index (N,H,W) of the sample that counts most.
    """
    n = len(depth)
    at = cell_centres(*size, depth.device) / depth.new_tensor([size[1], size[0]])
    samples, weights, where = _four(depth, torch.arange(n, device=depth.device), at.expand(n, -1, -1, -1))
    weights = weights * (samples > 0)
    best = weights.argmax(-1, keepdim=True)
    main = samples.gather(-1, best)
    same = (samples - main).abs() <= JUMP * footprint.view(-1, 1, 1, 1) * main
    share = weights * same
    inverse = (share / samples.clamp_min(1e-12)).sum(-1) / share.sum(-1).clamp_min(1e-12)
    resampled = torch.where(weights.sum(-1) >= 0.5, 1.0 / inverse.clamp_min(1e-12), torch.zeros_like(inverse))
    return resampled, where.gather(-1, best)[..., 0]


def tangent_planes(depth: Tensor, cameras: Cameras, where: Tensor) -> Tensor:
    """(N,H,W,3) vectors n with n . p = 1 on the tangent plane at samples `where` (flat index into depth, (N,H,W)).

    In each view's own axes. Inverse depth is linear on planes, 1/z = n . (x/z, y/z, 1), so its slopes give n; they are
    means over the neighbouring samples on either side that belong to the same surface. View by view, for memory.
    """
    _, h, w = depth.shape
    rays = cell_centres(h, w, depth.device) / depth.new_tensor([w, h])
    planes = []
    for z, (fx, fy, cx, cy), place in zip(depth, cameras.intrinsics.tolist(), where, strict=True):
        inverse = torch.where(z > 0, 1.0 / z.clamp_min(1e-9), torch.zeros_like(z))
        slope = [_slope(z, inverse, axis, scale) for axis, scale in ((1, fx * w), (0, fy * h))]
        x, y = (rays[..., 0] - cx) / fx, (rays[..., 1] - cy) / fy
        plane = torch.stack([*slope, inverse - x * slope[0] - y * slope[1]], dim=-1)
        planes.append(plane.reshape(-1, 3)[place])
    return torch.stack(planes)


def _slope(z: Tensor, inverse: Tensor, axis: int, scale: float) -> Tensor:
    size = z.shape[axis]
    near, far = z.narrow(axis, 0, size - 1), z.narrow(axis, 1, size - 1)
    same = ((near > 0) & (far > 0) & ((far - near).abs() <= 2 * JUMP / scale * near)).to(z)
    step = torch.diff(inverse, dim=axis) * scale * same
    pad = torch.zeros_like(z.narrow(axis, 0, 1))
    count = torch.cat([same, pad], axis) + torch.cat([pad, same], axis)
    return (torch.cat([step, pad], axis) + torch.cat([pad, step], axis)) / count.clamp_min(1)


def reproject(
    grid: Tensor, cells: Tensor, normal: Tensor, cameras: Cameras, view: Tensor, other: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Exact perspective: the surface at the cells of `view` (P,), seen from `other` (P,).

    grid: (N,H,W) depth at the cells, 0 = nothing (those cells give numbers without meaning, but finite).
    normal: (N,H,W,3) from tangent_planes.
    Returns uv (P,H,W,2) pixels of the grid, z (P,H,W) camera depth, plane (P,H,W,2) slope of 1/z along x/z and y/z on
    the tangent plane, tilt (P,H,W) = tan of the angle between surface normal and line of sight, -1 where the surface
    is turned away: all in the other view.
    """
    height, width = grid.shape[1:]
    fx, fy, cx, cy = (c[:, None, None] for c in cameras.intrinsics.to(grid).unbind(1))
    z = torch.where(grid > 0, grid, cameras.radii().to(grid)[:, None, None].expand_as(grid))
    point = torch.stack([(cells[..., 0] / width - cx) / fx * z, (cells[..., 1] / height - cy) / fy * z, z], dim=-1)
    c2w = cameras.c2w.double().cpu()
    relative = torch.linalg.inv(c2w)[other.cpu()] @ c2w[view.cpu()]
    back = torch.linalg.inv(relative)[:, :3, 3].to(grid)
    relative = relative.to(grid)
    there = torch.einsum("pij,phwj->phwi", relative[:, :3, :3], point[view]) + relative[:, None, None, :3, 3]
    depth = there[..., 2]
    safe = torch.where(depth.abs() < 1e-9, torch.full_like(depth, 1e-9), depth)
    u = (there[..., 0] / safe * fx[other] + cx[other]) * width
    v = (there[..., 1] / safe * fy[other] + cy[other]) * height
    # normal . p = 1 on the tangent plane, so the sign of 1 - normal . c says on which side of it the camera c is.
    side = 1.0 - torch.einsum("phwi,pi->phw", normal[view], back)
    cos = side / (normal[view].norm(dim=-1) * there.norm(dim=-1)).clamp_min(1e-12)
    tilt = ((1 - cos.square()).clamp_min(0).sqrt() / cos.clamp_min(1e-6)).clamp_max(STEEPEST)
    tilt = torch.where(side > 0, tilt, torch.full_like(tilt, -1.0))
    turned = torch.einsum("pij,phwj->phwi", relative[:, :2, :3], normal[view])
    return torch.stack([u, v], dim=-1), depth, turned / side.clamp_min(1e-6)[..., None], tilt


def _unoccluded(depth, cameras, other, at, z, plane, tilt, depth_error) -> Tensor:
    """Whether the neighbour's depth map (full resolution) shows the point itself at positions `at` in [0,1].

    One of the four samples around the position must lie on the point's tangent plane. Tolerance: half the width of a
    sample there, more on tilted surfaces, whose slope is known less well and curves away faster. Where the
    neighbour sees only background around a point at its outline, no sample matches and the point is dropped.
    """
    samples, _, _ = _four(depth, other, at)
    h, w = depth.shape[1:]
    fx, fy = (cameras.intrinsics[other, i].to(z).view(-1, 1, 1, 1) for i in (0, 1))
    x, y = at[..., 0] * w - 0.5, at[..., 1] * h - 0.5
    dx = (x.new_tensor([0, 1, 0, 1]) - (x - x.floor())[..., None]) / (fx * w)
    dy = (y.new_tensor([0, 0, 1, 1]) - (y - y.floor())[..., None]) / (fy * h)
    expected = 1.0 / z.clamp_min(1e-9)[..., None] + plane[..., :1] * dx + plane[..., 1:] * dy
    footprint = footprints(cameras, depth)[other].view(-1, 1, 1) * z
    limit = (STEEPEST * footprint)[..., None]
    expected = (1.0 / expected.clamp_min(1e-9)).clamp(z[..., None] - limit, z[..., None] + limit)
    tolerance = footprint * (BASE + TILT * tilt) + depth_error * z
    gap = torch.where((samples > 0), (samples - expected).abs(), torch.inf).amin(-1)
    return gap <= tolerance


def _four(maps: Tensor, index: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The four samples (P,H,W,4) of maps (N,h,w)[index (P,)] around positions at (P,H,W,2) in [0,1].

    Also their bilinear weights and their flat indices within their map.
    """
    h, w = maps.shape[1:]
    x, y = at[..., 0] * w - 0.5, at[..., 1] * h - 0.5
    left, top = x.clamp(-1e6, 1e6).floor(), y.clamp(-1e6, 1e6).floor()
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    dx, dy = x.new_tensor([0, 1, 0, 1]), x.new_tensor([0, 0, 1, 1])
    columns = (left[..., None] + dx).clamp(0, w - 1).long()
    where = (top[..., None] + dy).clamp(0, h - 1).long() * w + columns
    weights = torch.where(dx > 0, fx, 1 - fx) * torch.where(dy > 0, fy, 1 - fy)
    return maps.reshape(-1)[index.to(maps.device).view(-1, 1, 1, 1) * (h * w) + where], weights, where


def _look_up(maps: Tensor, index: Tensor, uv: Tensor) -> Tensor:
    """maps (N,H,W)[index] at the cell that positions uv (P,H,W,2), in its pixels, fall into: (P,H,W)."""
    h, w = maps.shape[1:]
    columns, rows = uv[..., 0].long().clamp(0, w - 1), uv[..., 1].long().clamp(0, h - 1)
    return maps.reshape(-1)[(index.to(maps.device).view(-1, 1, 1) * h + rows) * w + columns]


def _coverage(depth: Tensor | None, masks: Tensor | None, shape: tuple[int, int, int], device) -> Tensor:
    """(N,H,W) share of each cell that is object: by the depth (already masked) where there is one, else the masks."""
    if depth is None and masks is None:
        return torch.ones(shape, device=device)
    source = masks.float().to(device) if depth is None else (depth > 0).float()
    shrink = source.shape[1] >= shape[1] and source.shape[2] >= shape[2]
    return interpolate(source[:, None], size=shape[1:], mode="area" if shrink else "bilinear")[:, 0].clamp(0, 1)


def _check(cameras, size, depth, masks, mode, depth_error) -> None:
    if min(size) < 1:
        raise ValueError(f"The grid must be at least 1 x 1 cell, got {size[0]} x {size[1]}.")
    if mode not in MODES:
        raise ValueError(f"There is no correspondence mode '{mode}'; choose one of: {', '.join(MODES)}.")
    if not depth_error >= 0:
        raise ValueError(f"depth_error is a relative error of 0 or more, got {depth_error}.")
    for label, maps in (("depth maps", depth), ("masks", masks)):
        if maps is None:
            continue
        if maps.ndim != 3:
            raise ValueError(f"The {label} must be (views, height, width), got {tuple(maps.shape)}.")
        check_view_count(maps.shape[0], cameras, label)
        if not torch.isfinite(maps).all():
            raise ValueError(f"The {label} contain NaN or infinity; write 0 where there is nothing.")
    if depth is not None and bool((depth < 0).any()):
        raise ValueError(
            "Depth must be the distance along the view axis, 0 where there is nothing; it has negative values."
        )
    if depth is None and mode in ("perspective", "orthographic"):
        raise ValueError(f"Correspondence mode '{mode}' needs depth; connect a depth map or choose paper or identity.")
    if depth is not None and not bool((depth > 0).any()):
        raise ValueError("The depth is 0 everywhere, so there is no surface to follow; check the depth and the mask.")
    if masks is not None and not bool((masks > 0.5).any()):
        raise ValueError("The masks show no object in any view; invert them or leave them unconnected.")
