"""Rays, reprojection and look-ups that calibrating and judging depth share. Everything in float64, on the CPU.

Positions are pixels of the maps, centres at +0.5. Frames as in cameras.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Cameras


@dataclass(frozen=True)
class Rig:
    """Cameras with the size of their maps.

    focal, middle (N,2) in pixels. turn (N,N,3,3), shift (N,N,3): from the axes of the first view to the second's.
    """

    focal: Tensor
    middle: Tensor
    turn: Tensor
    shift: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, cameras: Cameras, size: tuple[int, int]) -> Rig:
        """size: (height, width) of the maps."""
        scale = torch.tensor([size[1], size[0]], dtype=torch.float64)
        intrinsics, pose = cameras.intrinsics.double().cpu(), cameras.c2w.double().cpu()
        rotation, centre = pose[:, :3, :3], pose[:, :3, 3]
        turn = rotation.transpose(1, 2)[None] @ rotation[:, None]
        shift = torch.einsum("jki,njk->nji", rotation, centre[:, None] - centre[None])
        return cls(intrinsics[:, :2] * scale, intrinsics[:, 2:] * scale, turn, shift, size)

    def rays(self, view: Tensor | int, uv: Tensor) -> Tensor:
        """(P,3) directions with z = 1 in the axes of view ((P,) or one for all) through pixels uv (P,2)."""
        plane = (uv - self.middle[view]) / self.focal[view]
        return torch.cat([plane, torch.ones_like(plane[:, :1])], dim=1)

    def move(
        self, view: Tensor | int, other: Tensor | int, rays: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points z (P,) along rays of `view`, seen from `other`: uv (P,2), depth (P,), and both by d/dz.

        Views: (P,) or one for all. Points behind the other camera get a depth of at least 1e-6; their positions are
        far outside any picture.
        """
        turn = self.turn[view, other]
        step = rays @ turn.T if turn.ndim == 2 else (turn @ rays[:, :, None])[:, :, 0]
        there = step * z[:, None] + self.shift[view, other]
        depth = there[:, 2].clamp_min(1e-6)
        plane = there[:, :2] / depth[:, None]
        focal = self.focal[other]
        slope = focal * (step[:, :2] - plane * step[:, 2:]) / depth[:, None]
        return focal * plane + self.middle[other], depth, slope, step[:, 2]


def bilinear(maps: Tensor, index: Tensor | int, uv: Tensor) -> Tensor:
    """(P,) or (P,C) values at pixels uv (P,2) of maps (N,H,W) or (N,H,W,C)[index]; the border is repeated.

    index: (P,), or one for all.
    """
    height, width = maps.shape[1:3]
    at = uv.clamp(-1e6, 1e6) - 0.5
    corner = at.floor()
    fraction = at - corner
    left, top = corner.long().unbind(1)
    total = 0
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (fraction[:, 0] if dx else 1 - fraction[:, 0]) * (fraction[:, 1] if dy else 1 - fraction[:, 1])
        value = maps[index, (top + dy).clamp(0, height - 1), (left + dx).clamp(0, width - 1)]
        total = total + (weight if value.ndim == 1 else weight[:, None]) * value
    return total


def inside_frame(uv: Tensor, size: tuple[int, int]) -> Tensor:
    """(P,) bool: whether pixels uv (P,2) lie in the picture."""
    return ((uv >= 0) & (uv <= uv.new_tensor([size[1], size[0]]))).all(-1)


def shrunk(inside: Tensor, steps: int = 1) -> Tensor:
    """(N,H,W) bool without its outermost pixels; the picture's frame does not count as an edge."""
    kept = inside.float()[:, None]
    for _ in range(steps):
        kept = -torch.nn.functional.max_pool2d(-kept, 3, stride=1, padding=1)
    return kept[:, 0] > 0.5


def spread_pixels(inside: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """About `count` pixels of each view, evenly over its mask (N,H,W): view (P,), uv (P,2) centres. No randomness.

    Multiples of the golden ratio spread over the list of pixels, which is in reading order, so no pattern of rows
    or columns is left out.
    """
    golden = 0.6180339887498949
    views, positions = [], []
    for i, mask in enumerate(inside):
        rows, columns = mask.nonzero().unbind(1)
        total = len(rows)
        if total > count:
            picked = ((torch.arange(count, dtype=torch.float64) * golden) % 1.0 * total).long()
            rows, columns = rows[picked], columns[picked]
        views.append(torch.full((len(rows),), i))
        positions.append(torch.stack([columns, rows], dim=1).double() + 0.5)
    return torch.cat(views), torch.cat(positions)


def gradients(maps: Tensor) -> Tensor:
    """(N,H,W,2) central differences of maps (N,H,W) along x and y; the border is repeated."""
    padded = torch.nn.functional.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return torch.stack([across, down], dim=-1) / 2


def neighbours(cameras: Cameras, low: float, high: float, most: int) -> list[list[int]]:
    """For each view the others whose direction differs by low to high degrees, nearest first, at most `most`."""
    forward = torch.nn.functional.normalize(cameras.c2w[:, :3, 2].double().cpu(), dim=1)
    angle = torch.rad2deg(torch.arccos((forward @ forward.T).clamp(-1, 1)))
    found = []
    for i, row in enumerate(angle):
        order = torch.argsort(row, stable=True).tolist()
        found.append([j for j in order if j != i and low <= float(row[j]) <= high][:most])
    return found
