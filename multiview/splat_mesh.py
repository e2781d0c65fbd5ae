"""A splat as a closed, coloured triangle mesh: depth fusion from all around, then marching cubes.

The splat is drawn by many cameras around it, above and below included. Every voxel of a grid collects, from the views
that see it, how far it lies before (+) or behind (-) the drawn surface (a truncated signed distance, Curless and Levoy
1996); where a view sees nothing the voxel is outside, what hardly any view sees is inside. Marching cubes of
scikit-image (Lewiner's variant) then gives the surface, and the views that see a vertex give its colour.

All in the world frame of cameras.py (x right, y down, z forward); mesh_files.py turns it for files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .cameras import Cameras, orbit
from .splats.gaussians import Gaussians
from .splats.render import render_gaussians
from .splats.sh import eval_sh

# (elevation, number of views): the whole sphere about evenly, poles included.
RINGS = ((90.0, 1), (60.0, 6), (30.0, 10), (0.0, 12), (-30.0, 10), (-60.0, 6), (-90.0, 1))
DISTANCE = 3.0  # of the cameras, in radii of the box
OPAQUE = 0.1  # Gaussians fainter than this do not count for the box
COVERED = 0.5  # coverage above which a pixel shows the surface
# How far before and behind the surface a view has a say: in voxels, and at least as a share of the box, because
# the depth of a splat is noisy on the scale of its Gaussians, however fine the voxels.
TRUNCATION, TRUNCATION_SHARE = 3.0, 0.07
# A voxel that fewer of the views see is inside: a few views that look through a gap must not dig tunnels.
SEEN_SHARE = 0.2
SMOOTH = 0.7  # voxels: below that the noise of the depths makes pits and handles
# The depth of a splat is that of its Gaussians' centres, which lie below the surface they paint. As a share of the
# truncation; docs/mesh.md has the measurement.
SKIN = 0.1
SOLID = 3  # each Gaussian is drawn as opaque as this many on top of each other, so that less shines through
VOXELS_AT_ONCE = 1 << 20
BYTES_PER_VOXEL = 40  # measured peak of fusion, labelling and marching cubes
SMALLEST, LARGEST = 16, 512


@dataclass(frozen=True)
class Mesh:
    """vertices (V,3) float32 in world units and frame; faces (F,3) int64, counter-clockwise seen from outside;
    colors (V,3) float32 in [0,1] as pictures have them (sRGB)."""

    vertices: Tensor
    faces: Tensor
    colors: Tensor


@dataclass(frozen=True)
class _Look:
    """What one camera sees. depth (H,W): camera z, 0 where there is nothing; color (H,W,3)."""

    camera: Cameras
    depth: Tensor
    color: Tensor


@dataclass(frozen=True)
class _Grid:
    """A box of points: low + voxel * index."""

    low: Tensor
    voxel: float
    shape: tuple[int, int, int]

    def axis(self, i: int) -> Tensor:
        return self.low[i] + self.voxel * torch.arange(self.shape[i], device=self.low.device)


def splat_to_mesh(
    gaussians: Gaussians,
    resolution: int = 128,
    *,
    cameras: Cameras | None = None,
    masks: Tensor | None = None,
    largest_only: bool = True,
    memory_bytes: int | None = None,
    on_step: Callable[[int, int, Tensor | None], None] = lambda done, total, picture: None,
) -> Mesh:
    """The surface of a splat, without holes and without inner walls.

    resolution: voxels along the longest side of the splat's box (16..512). cameras: look from these too, e.g. those of
    the views the splat was fitted to. masks (N,H,W), 1 = object, one for each camera: what lies outside any of them is
    cut away. largest_only: drop pieces that are not joined to the largest one. memory_bytes: refuse to need more.
    on_step(done, total, picture (H,W,3) or None) is called after each view. Works on the Gaussians' device; the mesh
    is on the CPU. ValueError: nothing opaque, masks without cameras or of another number or that leave nothing, a
    resolution out of range, beyond the memory or too low for what there is.
    """
    if not SMALLEST <= resolution <= LARGEST:
        raise ValueError(f"The resolution must lie between {SMALLEST} and {LARGEST} voxels, got {resolution}.")
    _check_masks(masks, cameras)
    low, high = _bounds(gaussians)
    grid = _make_grid(low, high, resolution)
    _check_memory(grid, memory_bytes)
    around = _all_around((low + high) / 2, float((high - low).norm()) / 2)
    solid = replace(gaussians, opacities=1 - (1 - gaussians.opacities) ** SOLID)
    looks = []
    total = len(around) + (0 if cameras is None else len(cameras))
    for group in [around] if cameras is None else [around, cameras]:
        for i in range(len(group)):
            looks.append(_look(solid, group.subset([i]), resolution))
            on_step(len(looks), total, looks[-1].color)
    volume = _fuse(grid, looks)
    if masks is not None:
        _cut(volume, grid, masks, cameras)
    vertices, faces = _surface(_closed(volume.cpu().numpy(), largest_only), grid)
    colors = _paint(vertices, faces, looks, grid.voxel, gaussians)
    return Mesh(vertices.cpu(), faces.cpu(), colors.clamp(0, 1).cpu())


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """(V,3) unit outward normals, averaged over the faces around a vertex by their area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    across = torch.linalg.cross(b - a, c - a)
    summed = torch.zeros_like(vertices)
    for i in range(3):
        summed.index_add_(0, faces[:, i], across)
    return torch.nn.functional.normalize(summed, dim=1)


def edge_report(faces: Tensor) -> tuple[int, int, int]:
    """(edges, edges not shared by exactly two faces in opposite directions, Euler characteristic V - E + F)."""
    directed = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges, counts = torch.unique(directed.sort(dim=1).values, dim=0, return_counts=True)
    _, same_way = torch.unique(directed, dim=0, return_counts=True)
    open_edges = int((counts != 2).sum()) + int((same_way != 1).sum())
    return len(edges), open_edges, len(torch.unique(faces)) - len(edges) + len(faces)


# --- where to look --------------------------------------------------------------------------------------------------


def _check_masks(masks: Tensor | None, cameras: Cameras | None) -> None:
    if masks is None:
        return
    if cameras is None:
        raise ValueError("The masks need the cameras they belong to; connect the cameras or leave the masks open.")
    if masks.ndim != 3 or masks.shape[0] != len(cameras):
        raise ValueError(
            f"Got masks of shape {tuple(masks.shape)} for {len(cameras)} cameras; give one mask (H,W) for each camera."
        )


def _check_memory(grid: _Grid, memory_bytes: int | None) -> None:
    needed = math.prod(grid.shape) * BYTES_PER_VOXEL
    if memory_bytes is not None and needed > memory_bytes:
        raise ValueError(
            f"A mesh of this resolution needs about {needed / 2**30:.1f} GiB but only {memory_bytes / 2**30:.1f} GiB "
            "are free; lower the resolution."
        )


def _bounds(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
    """Corners of a box around the opaque Gaussians; lone ones far away do not stretch it."""
    opaque = gaussians.opacities >= OPAQUE
    if not bool(opaque.any()):
        raise ValueError("No Gaussian of this splat is opaque enough for a surface; fit it longer or to more views.")
    means, reach = gaussians.means[opaque], 2 * gaussians.scales[opaque].max(dim=1).values
    distance = (means - means.median(dim=0).values).norm(dim=1)
    near = distance <= 2 * distance.sort().values[int(0.98 * (len(distance) - 1))]
    means, reach = means[near], reach[near, None].clamp(max=float(distance[near].max()) + 1e-6)
    return (means - reach).min(dim=0).values, (means + reach).max(dim=0).values


def _make_grid(low: Tensor, high: Tensor, resolution: int) -> _Grid:
    voxel = float((high - low).max()) / (resolution - 1)
    shape = tuple(int(n) for n in torch.ceil((high - low) / voxel).long() + 1)
    return _Grid(low, voxel, shape)


def _all_around(center: Tensor, radius: float) -> Cameras:
    azimuths = [360.0 * i / n for _, n in RINGS for i in range(n)]
    elevations = [elevation for elevation, n in RINGS for _ in range(n)]
    field = 2 * math.degrees(math.asin(1 / DISTANCE))
    cameras = orbit(azimuths, elevations, DISTANCE * radius, field)
    poses = cameras.c2w.clone()
    poses[:, :3, 3] += center.to(poses)
    return replace(cameras, c2w=poses)


def _look(gaussians: Gaussians, camera: Cameras, resolution: int) -> _Look:
    side = min(max(round(1.6 * resolution), 96), 768)
    aspect = float(camera.intrinsics[0, 1] / camera.intrinsics[0, 0])
    drawn = render_gaussians(gaussians, camera, max(8, round(side * aspect)), side, None)
    alpha = drawn.alpha[0]
    depth = torch.where(alpha[..., 0] > COVERED, drawn.depth[0, ..., 0], 0.0)
    return _Look(camera, depth, (drawn.features[0] / alpha.clamp_min(1e-6)).clamp(0, 1))


def _pixels(camera: Cameras, width: int, height: int, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Camera z and the flat index of the pixel each point falls on, and whether it falls on one. x, y, z broadcast."""
    m = camera.w2c()[0].to(x)
    fx, fy, cx, cy = (camera.intrinsics[0].to(x) * torch.tensor([width, height, width, height]).to(x)).unbind()
    along = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    u = torch.floor(fx * (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / along + cx)
    v = torch.floor(fy * (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / along + cy)
    inside = (along > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return along, torch.where(inside, v * width + u, 0).long(), inside


# --- the volume -----------------------------------------------------------------------------------------------------


def _slabs(grid: _Grid):
    """The grid in pieces along x: (slice, x, y, z) that broadcast to the piece."""
    x, y, z = (grid.axis(i) for i in range(3))
    step = max(1, VOXELS_AT_ONCE // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], step):
        piece = slice(start, start + step)
        yield piece, x[piece, None, None], y[None, :, None], z[None, None, :]


def _fuse(grid: _Grid, looks: list[_Look]) -> Tensor:
    """(X,Y,Z) mean truncated signed distance: -1 deep inside .. 1 outside."""
    truncation = max(TRUNCATION * grid.voxel, TRUNCATION_SHARE * grid.voxel * max(grid.shape))
    enough = SEEN_SHARE * len(looks)
    volume = torch.empty(grid.shape, device=grid.low.device)
    for piece, x, y, z in _slabs(grid):
        summed, weight = torch.zeros_like(volume[piece]), torch.zeros_like(volume[piece])
        for look in looks:
            height, width = look.depth.shape
            along, pixel, inside = _pixels(look.camera, width, height, x, y, z)
            depth = look.depth.flatten()[pixel]
            # Where nothing was drawn the ray is empty from end to end.
            distance = torch.where(depth > 0, ((depth - along) / truncation).clamp(max=1), 1.0)
            seen = inside & (distance > -1)
            summed += torch.where(seen, distance, 0.0)
            weight += seen
        volume[piece] = torch.where(weight >= enough, summed / weight.clamp_min(1), -1.0)
    if not bool((volume < 0).any()):
        raise ValueError("The splat is transparent from every side; fit it longer, or with weight_mask above 0.")
    return volume


def _cut(volume: Tensor, grid: _Grid, masks: Tensor, cameras: Cameras) -> None:
    """Everything outside one of the masks becomes outside. Changes volume."""
    height, width = masks.shape[1:]
    for piece, x, y, z in _slabs(grid):
        for i in range(len(cameras)):
            _, pixel, inside = _pixels(cameras.subset([i]), width, height, x, y, z)
            outside = inside & (masks[i].flatten().to(volume)[pixel] < 0.5)
            volume[piece][outside] = volume[piece][outside].abs()
    if not bool((volume < 0).any()):
        raise ValueError("Nothing of the splat lies inside all masks; connect masks and cameras of the same views.")


def _closed(volume: np.ndarray, largest_only: bool) -> np.ndarray:
    """With a border that is outside, without cavities and, if wanted, without all pieces but the largest."""
    from scipy import ndimage

    volume = np.pad(ndimage.gaussian_filter(volume, SMOOTH) - SKIN, 1, constant_values=1.0)
    if not (volume < 0).any():
        raise ValueError("The splat is too thin for this resolution; raise the resolution.")
    volume[volume == 0] = 1e-6  # the surface on a grid point makes faces without area
    pieces, count = ndimage.label(volume < 0)
    if largest_only and count > 1:
        largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
        stray = (pieces > 0) & (pieces != largest)
        volume[stray] = -volume[stray]
    open_space, _ = ndimage.label(volume > 0)
    cavity = (open_space > 0) & (open_space != open_space[0, 0, 0])
    volume[cavity] = -volume[cavity]
    return volume


def _surface(volume: np.ndarray, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Vertices (V,3) in the world and faces (F,3) of the zero level of a padded volume."""
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise ValueError(
            "Making a mesh needs the package scikit-image, which is not installed in ComfyUI's Python; install this "
            "pack's requirements.txt."
        ) from error

    vertices, faces, _, _ = marching_cubes(volume, 0.0, gradient_direction="descent")
    placed = grid.low + grid.voxel * (torch.from_numpy(vertices.copy()).to(grid.low) - 1)
    return placed, torch.from_numpy(faces.astype(np.int64)).to(grid.low.device)


# --- colours --------------------------------------------------------------------------------------------------------


def _paint(vertices: Tensor, faces: Tensor, looks: list[_Look], voxel: float, gaussians: Gaussians) -> Tensor:
    """(V,3) mean colour of the views that see a vertex, the more the straighter they look at it."""
    normals = vertex_normals(vertices, faces)
    summed, weight = torch.zeros_like(vertices), torch.zeros_like(vertices[:, :1])
    for look in looks:
        height, width = look.depth.shape
        along, pixel, inside = _pixels(look.camera, width, height, *vertices.unbind(1))
        toward = torch.nn.functional.normalize(look.camera.centers().to(vertices) - vertices, dim=1)
        facing = (normals * toward).sum(1)
        visible = inside & (facing > 0) & ((look.depth.flatten()[pixel] - along).abs() < TRUNCATION * voxel)
        share = torch.where(visible, facing**2, 0.0)[:, None]
        summed += share * look.color.reshape(-1, 3)[pixel]
        weight += share
    hidden = weight[:, 0] <= 1e-3
    colors = summed / weight.clamp_min(1e-12)
    colors[hidden] = _nearest_colors(vertices[hidden], gaussians)
    return colors


def _nearest_colors(points: Tensor, gaussians: Gaussians) -> Tensor:
    """Colour of the opaque Gaussian nearest to each point, as it is on average from all sides (band 0)."""
    opaque = gaussians.opacities >= OPAQUE
    means = gaussians.means[opaque]
    base = eval_sh(gaussians.sh[opaque, :1], torch.ones_like(means)[None])[0]
    pieces = [base[torch.cdist(some, means).argmin(1)] for some in points.split(1024)]
    return torch.cat(pieces) if pieces else points
