"""Where a pixel goes when the camera turns, by the MIRROR paper's Eq. 4 and by its form for raised cameras.

Weak perspective: every length is in pixels of the grid, and z (or d) is the signed offset of the surface point from
the rotation axis toward the camera, z = (f/R)(R - Z) for camera depth Z. That is what Eq. 4 needs; the paper's words
"distance from the camera centre" would shift everything by -R sin(alpha) (references.md 5.1).
Angles in radians; alpha = azimuth of the neighbour minus azimuth of this view, growing to the viewer's right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cameras import Cameras


def turn(x: Tensor, z: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 4 with x counted from the axis: (x, z) turned by alpha. The z' makes Lemma B.1 (composition) true."""
    sin, cos = torch.sin(alpha), torch.cos(alpha)
    return x * cos - z * sin, z * cos + x * sin


def turn_raised(x: Tensor, y_up: Tensor, d: Tensor, alpha: Tensor, elevation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same from an elevation (references.md 5.1): the height in the picture changes too. Returns x, y_up, d."""
    sin, cos = torch.sin(elevation), torch.cos(elevation)
    across, height = d * cos - y_up * sin, d * sin + y_up * cos
    x, across = turn(x, across, alpha)
    return x, height * cos - across * sin, across * cos + height * sin


def move(
    uv: Tensor,
    depth: Tensor | None,
    cameras: Cameras,
    view: Tensor,
    neighbour: Tensor,
    raised: bool,
) -> Tensor:
    """Positions (P,H,W,2) in the neighbours, of pixels uv (H,W,2) of the views, in pixels of the grid.

    depth: (P,H,W) camera z, 0 where there is nothing; None = every point on the axis (the paper's "without depth").
    view, neighbour: (P,) indices of the P pairs. raised: use the views' elevation (turn_raised) instead of Eq. 4.
    """
    height, width = uv.shape[:2]
    fx, fy, cx, cy = cameras.intrinsics[view].to(uv).unbind(1)
    shape = (-1, 1, 1)
    fx, cx = (fx * width).view(shape), (cx * width).view(shape)
    fy, cy = (fy * height).view(shape), (cy * height).view(shape)
    azimuths = torch.deg2rad(cameras.azimuths())
    alpha = (azimuths[neighbour] - azimuths[view]).to(uv).view(shape)
    radius = cameras.radii()[view].to(uv).view(shape)
    if depth is None:
        toward = torch.zeros(len(view), height, width, dtype=uv.dtype, device=uv.device)
    else:
        toward = torch.where(depth > 0, radius - depth, torch.zeros_like(depth))
    x, y_up = uv[..., 0] - cx, cy - uv[..., 1]
    if not raised:
        x_new, _ = turn(x, toward * (fx / radius), alpha)
        return torch.stack([x_new + cx, uv[..., 1].expand_as(x_new)], dim=-1)
    # In units of length at the axis, so that pixels need not be square.
    elevation = torch.deg2rad(cameras.elevations())[view].to(uv).view(shape)
    x_new, y_new, _ = turn_raised(x * radius / fx, y_up * radius / fy, toward, alpha, elevation)
    return torch.stack([x_new * fx / radius + cx, cy - y_new * fy / radius], dim=-1)
