"""Where a fit starts: Gaussians at the centre (IM-3D), in a sphere, on the visual hull of the masks, or on depth maps.

All in the world frame of cameras.py; lengths in world units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..depth import DepthMaps
from .gaussians import SH_C0, Gaussians
from .views import Views

METHODS = ("hull", "sphere", "center", "depth")
HULL_CELLS = 64
INSIDE = 0.3  # a point with less mask than this in some view that sees it is carved away
LENIENT = (1.0, 0.85, 0.7)  # share of the views that must keep a point; lowered where views contradict each other
FEWEST_CELLS = 50
TRUSTED = 0.5  # confidence from which a depth is used


def scene_sphere(cameras: Cameras) -> tuple[Tensor, float]:
    """Centre (3,) and radius of the sphere the cameras look at.

    The centre is nearest (least squares) to all optical axes; the radius is that of the largest sphere that the median
    camera sees whole. Cameras that look the same way meet nowhere: their centre is taken one camera radius ahead.
    """
    center = cameras.focus()
    half = torch.atan(0.5 / cameras.intrinsics[:, :2].double().amax(1))
    radius = ((center - cameras.centers().double()).norm(dim=1) * torch.sin(half)).median()
    return center.float(), max(float(radius), 1e-6)


def initial_gaussians(
    method: str,
    points: int,
    views: Views,
    cameras: Cameras,
    generator: torch.Generator,
    hull_seen: float = 0.5,
    depth: DepthMaps | None = None,
    hull_cells: int = HULL_CELLS,
) -> Gaussians:
    """`points` Gaussians (about as many for "hull") with colours, on the device of the views.

    center: a ball of a quarter of the scene's radius around its centre, as IM-3D begins. sphere: uniform in the scene's
    sphere. hull: on the surface of the visual hull, coloured by the views that see it; falls back to sphere where
    the masks have no common inside. generator: CPU. hull_seen: share of the views that must have a point of the hull
    in their picture; below 1, few views of a large object leave lumps that only some of them see.
    hull_cells: cells along the longest side of the hull's grid.
    depth: where the views' pixels of the object lie in space; at most `points` of them. ValueError where "depth" has
    no map of the object.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown start {method!r}; choose one of {', '.join(METHODS)}.")
    device = views.images.device
    if method == "depth":
        return _round_gaussians(*_depth_points(views, cameras, depth, points, generator), 0.7)
    center, radius = scene_sphere(cameras)
    found = _hull_surface(views, cameras, points, generator, hull_seen, hull_cells) if method == "hull" else None
    if found is not None:
        return _round_gaussians(*found, 0.7)
    ball = radius * (0.25 if method == "center" else 0.8)
    directions = F.normalize(torch.randn(points, 3, generator=generator), dim=1)
    means = center.cpu() + directions * ball * torch.rand(points, 1, generator=generator) ** (1 / 3)
    inside = views.masks > 0.5
    color = views.images[inside].mean(0)
    # Side of the cube that each of them would have for itself.
    spacing = ball * (4.19 / points) ** (1 / 3)
    return _round_gaussians(means.to(device), color.expand(points, 3), spacing, 0.1)


def _round_gaussians(means: Tensor, colors: Tensor, sigma: float | Tensor, opacity: float) -> Gaussians:
    """sigma: one for all, or (P,)."""
    count = len(means)
    sigma = torch.as_tensor(sigma, dtype=means.dtype, device=means.device)
    quats = means.new_zeros(count, 4)
    quats[:, 0] = 1
    return Gaussians(
        means=means,
        scales=sigma.expand(count)[:, None].repeat(1, 3),
        quats=quats,
        opacities=means.new_full((count,), opacity),
        sh=((colors - 0.5) / SH_C0)[:, None, :].clone(),
    )


def _depth_points(
    views: Views, cameras: Cameras, depth: DepthMaps | None, points: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """At most `points` random pixels of the object in space (P,3), their colours (P,3) and sizes (P,)."""
    if depth is None:
        raise ValueError("A start from depth needs depth maps of the views; connect depth or choose another start.")
    count, height, width = depth.depth.shape
    if count != len(cameras):
        raise ValueError(f"There are {count} depth maps but {len(cameras)} cameras; give one map for each view.")
    z = depth.depth.detach().to(views.images)
    masks, pictures = (
        F.interpolate(t, (height, width), mode="area") for t in (views.masks[:, None], views.images.movedim(-1, 1))
    )
    trusted = depth.confidence.detach().to(z) >= TRUSTED
    use = (z > 0) & torch.isfinite(z) & trusted & (masks[:, 0] > 0.5)
    if int(use.sum()) < FEWEST_CELLS:
        raise ValueError(
            f"The depth maps say where only {int(use.sum())} pixels of the object are; check that they belong to these "
            "views and masks, or choose another start."
        )
    origins, directions = cameras.to(z.device).rays(width, height)
    places = (origins[:, None, None] + z[..., None] * directions)[use]
    colors = pictures.movedim(1, -1)[use]
    # A pixel's width in the world. Fewer points than pixels stand further apart; each is seen by some of the views.
    size = (z / (cameras.intrinsics[:, 1].to(z)[:, None, None] * height))[use]
    chosen = torch.randperm(len(places), generator=generator)[:points].sort().values.to(places.device)
    apart = max(1.0, len(places) / (len(chosen) * max(1.0, count / 4))) ** 0.5
    return places[chosen], colors[chosen], 0.6 * apart * size[chosen]


def _hull_surface(
    views: Views, cameras: Cameras, points: int, generator, hull_seen: float, hull_cells: int
) -> tuple[Tensor, Tensor, float] | None:
    """Points on the visual hull (about `points`,3), their colours, and their spacing; None if there is no hull."""
    center, radius = scene_sphere(cameras)
    center = center.to(views.masks)
    low, high = center - 1.1 * radius, center + 1.1 * radius
    for _ in range(2):  # the second grid lies tightly around what the first one found
        cells, cell = _grid(low, high, hull_cells)
        kept = _carve(cells.reshape(-1, 3), views.masks, cameras, hull_seen)
        if kept is None:
            return None
        inside = cells.reshape(-1, 3)[kept]
        low, high = inside.amin(0) - cell, inside.amax(0) + cell
    surface = cells.reshape(-1, 3)[_shell(kept.view(cells.shape[:3])).flatten()]
    colors = _visible_colors(surface, views, cameras, cell)
    if len(surface) > points:
        chosen = torch.randperm(len(surface), generator=generator)[:points].sort().values.to(surface.device)
        spacing = cell * (len(surface) / points) ** 0.5
        surface, colors = surface[chosen], colors[chosen]
    else:
        spacing = cell
    jitter = (torch.rand(len(surface), 3, generator=generator) - 0.5).to(surface) * cell
    return surface + jitter, colors, 0.6 * float(spacing)


def _grid(low: Tensor, high: Tensor, along: int) -> tuple[Tensor, float]:
    """Cell centres (X,Y,Z,3) of a box in cubes, `along` of them along its longest side, and the cube's side."""
    cell = float((high - low).max()) / along
    counts = ((high - low) / cell).round().int().clamp_min(1).tolist()
    axes = [low[i] + cell * (torch.arange(counts[i], device=low.device) + 0.5) for i in range(3)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1), cell


def _carve(points: Tensor, masks: Tensor, cameras: Cameras, hull_seen: float) -> Tensor | None:
    """(P,) bool, inside the masks of the views that see the point; None if hardly anything is left."""
    inside = points.new_zeros(len(points))
    seen = points.new_zeros(len(points))
    for i in range(len(cameras)):
        values, visible = _look_up(points, masks[i, ..., None], cameras.subset([i]))
        seen += visible
        inside += visible & (values[:, 0] > INSIDE)
    for share in LENIENT:
        kept = (seen >= hull_seen * len(cameras)) & (inside >= share * seen)
        if int(kept.sum()) >= FEWEST_CELLS:
            return kept
    return None


def _look_up(points: Tensor, picture: Tensor, camera: Cameras) -> tuple[Tensor, Tensor]:
    """Bilinear values (P,D) of a picture (H,W,D) where the points (P,3) appear, and whether they do (P,)."""
    h, w = picture.shape[:2]
    uv, z = camera.project(points, w, h)
    uv, z = uv[0], z[0]
    size = uv.new_tensor([w, h])
    visible = (z > 0) & ((uv >= 0) & (uv <= size)).all(1)
    grid = (uv / size * 2 - 1)[None, None]  # align_corners=False puts -1 on the picture's edge: centres at +0.5
    values = F.grid_sample(picture.permute(2, 0, 1)[None], grid, align_corners=False, padding_mode="border")
    return values[0, :, 0].T, visible


def _shell(solid: Tensor) -> Tensor:
    """Cells (X,Y,Z bool) of a solid that touch the outside by a face."""
    padded = F.pad(solid[None, None].float(), (1,) * 6)
    x, y, z = (slice(1, -1),) * 3
    sides = [padded[..., :-2, y, z], padded[..., 2:, y, z], padded[..., x, :-2, z], padded[..., x, 2:, z]]
    sides += [padded[..., x, y, :-2], padded[..., x, y, 2:]]
    return solid & (torch.stack(sides).amin(0)[0, 0] < 0.5)


def _visible_colors(surface: Tensor, views: Views, cameras: Cameras, cell: float) -> Tensor:
    """(P,3) mean colour over the views in which no nearer surface cell hides the point."""
    total = surface.new_zeros(len(surface), 3)
    weight = surface.new_zeros(len(surface), 1)
    for i in range(len(cameras)):
        camera = cameras.subset([i])
        colors, inside = _look_up(surface, views.images[i], camera)
        uv, z = camera.project(surface, HULL_CELLS, HULL_CELLS)
        u, v = uv[0].long().clamp(0, HULL_CELLS - 1).unbind(1)
        pixel = v * HULL_CELLS + u
        nearest = z.new_full((HULL_CELLS**2,), torch.inf).scatter_reduce(0, pixel, z[0], "amin")
        # Hidden views still count a little, so that a point that no view sees gets a colour as well.
        seen = torch.where(inside & (z[0] <= nearest[pixel] + 3 * cell), 1.0, 1e-3)[:, None]
        total += seen * colors
        weight += seen
    return total / weight
