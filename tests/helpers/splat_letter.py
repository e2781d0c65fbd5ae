"""A splat that no turn and no mirror maps onto itself: a solid letter F, its faces in different colours."""

from __future__ import annotations

import torch
from mvpack.multiview.splats.gaussians import SH_C0, Gaussians

# Boxes of the letter as (x, y, z) from and to; the world's y points down.
BARS = (
    ((-0.2, -0.35, -0.1), (-0.06, 0.35, 0.1)),
    ((-0.06, -0.35, -0.1), (0.25, -0.21, 0.1)),
    ((-0.06, -0.07, -0.1), (0.12, 0.07, 0.1)),
)
STEP = 0.035


def letter(centre=(0.0, 0.0, 0.0), size: float = 1.0) -> Gaussians:
    """Opaque balls on a grid. Red grows to the right, green downwards, blue to the back."""
    parts = []
    for low, high in BARS:
        axes = [torch.arange(a + STEP / 2, b, STEP) for a, b in zip(low, high, strict=True)]
        parts.append(torch.cartesian_prod(*axes))
    points = torch.cat(parts)
    low, high = points.amin(0), points.amax(0)
    colour = 0.1 + 0.8 * (points - low) / (high - low)
    count = len(points)
    return Gaussians(
        points * size + torch.tensor(centre),
        torch.full((count, 3), 0.5 * STEP * size),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
        torch.full((count,), 0.95),
        ((colour - 0.5) / SH_C0)[:, None],
    )
