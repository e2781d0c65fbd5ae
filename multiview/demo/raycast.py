"""Analytic ray casting of demo objects: closed-form intersections, so depth and coordinates are exact.

Light comes from straight above plus ambient, without highlights or cast shadows: a surface point has the same colour in
every view, and turning an object about the vertical axis or mirroring it gives exactly the turned or mirrored pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from .objects import ObjectSpec
from .shapes import Part, intersect, paint, to_unit, unit_normal

SKY, GROUND = (1.0, 0.995, 0.97), (0.60, 0.575, 0.63)
RAYS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Rendered:
    """Pictures and geometry of one object in N views.

    rgb: (N,H,W,3) in [0,1] over the background, alpha: (N,H,W) in [0,1], both supersampled;
    depth: (N,H,W) camera z, coords: (N,H,W,3) world position, normals: (N,H,W,3) unit, world, outward:
    exact at the pixel centres, 0 where the centre's ray meets nothing.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    coords: Tensor
    normals: Tensor


def render_object(
    spec: ObjectSpec,
    cameras: Cameras,
    size: int | tuple[int, int],
    supersample: int = 2,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Rendered:
    """Cast rays through every pixel of every camera.

    size: side in pixels, or (width, height); supersample: rays per pixel and axis for rgb and alpha (1..8);
    background: rgb in [0,1]. Works on the device the cameras are on. Cameras must be outside every part (radius > 0.5).
    """
    width, height = (size, size) if isinstance(size, int) else size
    if width < 1 or height < 1:
        raise ValueError(f"The picture size must be at least 1 pixel, got {width} x {height}.")
    if not 1 <= supersample <= 8:
        raise ValueError(f"supersample must be 1 to 8 rays per pixel and axis, got {supersample}.")
    per_view = max(width * height * supersample**2, 1)
    step = max(1, RAYS_AT_ONCE // per_view)
    pieces = []
    for start in range(0, len(cameras), step):
        some = cameras.subset(list(range(start, min(start + step, len(cameras)))))
        pieces.append(_render(spec.parts, some, width, height, supersample, background))
    return Rendered(*(torch.cat(tensors) for tensors in zip(*pieces, strict=True)))


def _render(parts, cameras, width, height, supersample, background) -> tuple[Tensor, ...]:
    n = len(cameras)
    centre = _cast(parts, cameras, width, height)
    fine = centre if supersample == 1 else _cast(parts, cameras, width * supersample, height * supersample)
    depth = torch.where(centre.part >= 0, centre.depth, 0.0)
    color = torch.tensor(background, dtype=depth.dtype, device=depth.device).repeat(fine.part.numel(), 1)
    normal, coords = (torch.zeros(centre.part.numel(), 3, device=depth.device) for _ in range(2))
    for pixel, tone, _, _ in _shade(parts, cameras, fine):
        color[pixel] = tone
    for pixel, _, outward, position in _shade(parts, cameras, centre):
        normal[pixel], coords[pixel] = outward, position
    rgb = _block_mean(color.view(n, height * supersample, width * supersample, 3), supersample)
    alpha = _block_mean((fine.part >= 0).to(depth.dtype)[..., None], supersample)[..., 0]
    return rgb, alpha, depth, coords.view(n, height, width, 3), normal.view(n, height, width, 3)


def _block_mean(x: Tensor, block: int) -> Tensor:
    total = sum(x[:, i::block, j::block] for i in range(block) for j in range(block))
    return (total / block**2).clamp(0, 1)


@dataclass(frozen=True)
class _Hits:
    depth: Tensor  # (N,H,W) camera z of the nearest hit, inf where none
    part: Tensor  # (N,H,W) index of the part hit, -1 where none
    x: Tensor  # (N,W) camera-frame ray direction x at camera z 1
    y: Tensor  # (N,H) likewise y


def _cast(parts: tuple[Part, ...], cameras: Cameras, width: int, height: int) -> _Hits:
    n, device = len(cameras), cameras.c2w.device
    fx, fy, cx, cy = (cameras.intrinsics[:, i, None] for i in range(4))
    x = ((torch.arange(width, device=device) + 0.5) / width - cx) / fx
    y = ((torch.arange(height, device=device) + 0.5) / height - cy) / fy
    nearest = torch.full((n, height * width), torch.inf, device=device)
    index = torch.full((n, height * width), -1, dtype=torch.int16, device=device)
    for number, part in enumerate(parts):
        window = _window(part, cameras, width, height)
        if window is None:
            continue
        left, top, w, h = window
        columns = left[:, None] + torch.arange(w, device=device)
        rows = top[:, None] + torch.arange(h, device=device)
        o, m = _unit_rays(part, cameras)
        px, py = x.gather(1, columns)[:, None, :], y.gather(1, rows)[:, :, None]
        d = tuple(
            (m[:, i, 0, None, None] * px) + (m[:, i, 1, None, None] * py + m[:, i, 2, None, None]) for i in range(3)
        )
        t = intersect(part.kind, part.taper, tuple(o[:, i, None, None] for i in range(3)), d).flatten(1)
        where = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        before = nearest.gather(1, where)
        closer = t < before
        nearest.scatter_(1, where, torch.where(closer, t, before))
        index.scatter_(1, where, torch.where(closer, number, index.gather(1, where).int()).to(torch.int16))
    return _Hits(nearest.view(n, height, width), index.view(n, height, width), x, y)


def _unit_rays(part: Part, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Camera centres (N,3) and the map (N,3,3) from camera-frame directions, both in the part's unit frame."""
    device = cameras.c2w.device
    unit = torch.from_numpy(to_unit(part)).to(device, torch.float32)
    centre = torch.tensor(part.center, dtype=torch.float32, device=device)
    return (cameras.centers() - centre) @ unit.T, unit @ cameras.c2w[:, :3, :3]


def _window(part: Part, cameras: Cameras, width: int, height: int):
    """A rectangle per view around the part's bounding sphere: left (N,), top (N,), and one common width and height.

    None when the part is outside every picture. The whole picture when a camera is inside the sphere or behind it.
    """
    device = cameras.c2w.device
    half = torch.tensor(part.half)
    radius = float(half.max() if part.kind == "ellipsoid" else half.norm()) * 1.001
    centre = torch.tensor(part.center, dtype=torch.float32, device=device)
    at = ((centre - cameras.centers())[:, None, :] @ cameras.c2w[:, :3, :3])[:, 0]
    zero = torch.zeros(len(cameras), dtype=torch.long, device=device)
    if bool((at[:, 2] <= 1.5 * radius).any()):
        return zero, zero, width, height
    spans = []
    for axis, size in ((0, width), (1, height)):
        focal, middle = cameras.intrinsics[:, axis] * size, cameras.intrinsics[:, 2 + axis] * size
        # Tangent lines to a circle seen from the origin: direction of the centre plus or minus asin(radius / distance).
        angle = torch.atan2(at[:, axis], at[:, 2])
        spread = torch.asin((radius / torch.hypot(at[:, axis], at[:, 2])).clamp(max=0.999))
        low = (torch.tan((angle - spread).clamp(-1.55, 1.55)) * focal + middle).floor().clamp(-1, size + 1)
        high = (torch.tan((angle + spread).clamp(-1.55, 1.55)) * focal + middle).ceil().clamp(-1, size + 1)
        spans.append((low.long(), high.long(), size))
    if all(bool((high <= 0).all() or (low >= size).all()) for low, high, size in spans[:1]) or all(
        bool((high <= 0).all() or (low >= size).all()) for low, high, size in spans[1:]
    ):
        return None
    (left, right, _), (top, bottom, _) = spans
    w = min(int((right - left).max()) + 1, width)
    h = min(int((bottom - top).max()) + 1, height)
    return left.clamp(0, width - w), top.clamp(0, height - h), w, h


def _shade(parts: tuple[Part, ...], cameras: Cameras, hits: _Hits):
    """For every part that is seen: flat pixel indices (M,), lit colour, world normal and world position, each (M,3)."""
    _, height, width = hits.part.shape
    device = hits.depth.device
    filled = (hits.part.flatten() >= 0).nonzero()[:, 0]
    owner = hits.part.flatten()[filled]
    sky, ground = (torch.tensor(c, device=device) for c in (SKY, GROUND))
    for number in owner.unique().tolist():
        part = parts[number]
        pixel = filled[owner == number]
        view, rest = pixel // (height * width), pixel % (height * width)
        t = hits.depth.flatten()[pixel]
        x, y = hits.x.flatten()[view * width + rest % width], hits.y.flatten()[view * height + rest // width]
        offset = torch.stack([x * t, y * t, t], dim=1)[:, None, :]  # from the camera, in its own axes
        o, m = _unit_rays(part, cameras)
        p = o[view] + (offset @ m.transpose(1, 2)[view])[:, 0]
        turn = torch.tensor(part.rotation, dtype=torch.float32, device=device)
        half = torch.tensor(part.half, dtype=torch.float32, device=device)
        outward = torch.nn.functional.normalize((unit_normal(part, p) / half) @ turn.T, dim=1)
        color = paint(part, p) * (ground + (sky - ground) * (0.5 - 0.5 * outward[:, 1:2]))
        position = (p * half) @ turn.T + torch.tensor(part.center, dtype=torch.float32, device=device)
        yield pixel, color, outward, position
