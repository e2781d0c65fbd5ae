"""Pictures of a splat as the nodes want them: colour, and world coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cameras import Cameras
from .gaussians import Gaussians
from .raster import Render, rasterize
from .sh import eval_sh


def render_gaussians(
    gaussians: Gaussians,
    cameras: Cameras,
    width: int,
    height: int,
    background: Tensor | tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    *,
    antialiased: bool = False,
    backend: str = "auto",
) -> Render:
    """Colour, alpha and depth of a splat from every camera; Render.features is RGB (N,H,W,3), not limited to 1.

    background: 3 numbers, or None for black (premultiplied colour). Runs on the device of the Gaussians.
    """
    means = gaussians.means
    directions = means[None] - cameras.centers().to(means)[:, None]
    if background is not None:
        background = torch.as_tensor(background, dtype=means.dtype, device=means.device)
    return rasterize(
        means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        eval_sh(gaussians.sh, directions),
        cameras.w2c(),
        cameras.pixel_intrinsics(width, height),
        width,
        height,
        background=background,
        antialiased=antialiased,
        backend=backend,
    )


def render_coordinates(
    gaussians: Gaussians, cameras: Cameras, width: int, height: int, *, backend: str = "auto"
) -> Render:
    """World coordinates of the visible surface: Render.features (N,H,W,3) in world units, 0 where alpha is 0.

    Each pixel is the mean of the centres of the Gaussians it shows, by weight. Multiply by alpha for a soft edge.
    """
    out = rasterize(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.means,
        cameras.w2c(),
        cameras.pixel_intrinsics(width, height),
        width,
        height,
        backend=backend,
    )
    out.features = out.features / out.alpha.clamp_min(1e-10)
    return out
