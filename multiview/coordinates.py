"""Canonical coordinate maps: every pixel holds where in the world the surface it shows is, as a colour.

They tell a view model which pixels of different views are the same point (Ouroboros3D, section 3.3 and appendix A.2).
Two definitions. `canonical` is what the paper describes. `released` is what Ouroboros3D's public weights were trained
with (references.md 3.4a): there a position is mostly the pixel's own number times its depth, so the two are not alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cameras import Cameras
from .ouroboros import ray_frame
from .splats.gaussians import Gaussians
from .splats.render import render_gaussians

CUBE = 1.0
DEFINITIONS = ("canonical", "released")
NOTHING = 0.5
# The released code's scale, from its own units to colours.
RELEASED_SCALE = 0.001


def canonical_map(depth: Tensor, coverage: Tensor, cameras: Cameras, cube: float = CUBE) -> Tensor:
    """depth (N,H,W) camera z of the surface, coverage (N,H,W) -> (N,H,W,3) in [0,1].

    World position / cube + 0.5, so that a cube of that side around the origin fills the colours; what is outside is
    clipped. Grey (0.5) where nothing is, blended by coverage in between.
    """
    if not cube > 0:
        raise ValueError(f"The canonical cube must have a positive side, got {cube}.")
    height, width = depth.shape[1:]
    origins, directions = cameras.rays(width, height)
    points = origins.to(depth)[:, None, None] + depth[..., None] * directions.to(depth)
    return NOTHING + coverage[..., None] * (points / cube).clamp(-0.5, 0.5)


def released_map(depth: Tensor, coverage: Tensor, cameras: Cameras) -> Tensor:
    """The same inputs -> (N,H,W,3) in [0,1], as Ouroboros3D's public weights know it; they were trained at 512 x 512.

    Depth is summed by weight and not divided by coverage; pixel numbers (from 0, not their centres) are multiplied by
    it and divided by the focal length of a picture one unit wide; the result is placed in the weights' world (relative
    to the first camera: ray_frame) and multiplied by 0.001.
    """
    frame = ray_frame(cameras)
    height, width = depth.shape[1:]
    fx, fy, cx, cy = cameras.intrinsics.to(depth)[:, :, None, None].unbind(1)
    summed = depth * coverage * frame.scale
    v, u = torch.meshgrid(torch.arange(height).to(depth), torch.arange(width).to(depth), indexing="ij")
    camera = torch.stack([(u - cx) * summed / fx, (v - cy) * summed / fy, summed], dim=-1)
    pose = frame.c2w.to(depth)
    world = torch.einsum("nij,nhwj->nhwi", pose[:, :3, :3], camera) + pose[:, None, None, :3, 3]
    return (world * (summed > 0)[..., None] * RELEASED_SCALE + NOTHING).clamp(0, 1)


def coordinate_map(
    depth: Tensor, coverage: Tensor, cameras: Cameras, definition: str = "canonical", cube: float = CUBE
) -> Tensor:
    """canonical_map or released_map by name. ValueError for another name."""
    if definition not in DEFINITIONS:
        raise ValueError(f"definition is '{definition}'; choose {' or '.join(DEFINITIONS)}.")
    if definition == "released":
        return released_map(depth, coverage, cameras)
    return canonical_map(depth, coverage, cameras, cube)


def feedback_maps(
    gaussians: Gaussians, cameras: Cameras, width: int, height: int, definition: str = "canonical", cube: float = CUBE
) -> tuple[Tensor, Tensor, Tensor]:
    """What a splat gives back to a view model: colour on white (N,H,W,3), coordinates (N,H,W,3), coverage (N,H,W)."""
    drawn = render_gaussians(gaussians, cameras, width, height)
    coverage = drawn.alpha[..., 0]
    coordinates = coordinate_map(drawn.depth[..., 0], coverage, cameras, definition, cube)
    return drawn.features.clamp(0, 1), coordinates, coverage
