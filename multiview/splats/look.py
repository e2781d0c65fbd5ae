"""From where a viewer first looks at a splat, and cameras around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..cameras import Cameras, look_at_pose
from .gaussians import Gaussians

SEEN = 0.1  # Gaussians with less opacity say nothing about where the object is
MOST = 0.99  # share of the Gaussians that must be in the picture; the rest may be floaters
EDGE_SIGMAS = 2.0  # where a Gaussian ends, to the eye
MARGIN = 1.1
ELEVATION_DEG, FOV_DEG = 15.0, 40.0
NEARLY_VERTICAL = 0.9999


@dataclass(frozen=True)
class Sight:
    """A camera without roll that looks at a point, and the size of what is there.

    target: world point it looks at and turns around. azimuth, elevation: degrees, as in cameras.py. distance: from the
    target. focal: (fx / W, fy / H). radius: of the splat, in world units.
    """

    target: tuple[float, float, float]
    azimuth: float
    elevation: float
    distance: float
    focal: tuple[float, float]
    radius: float


def first_sight(g: Gaussians, cameras: Cameras | None = None) -> Sight:
    """Where to look from: the camera of the input view, else of the first; it turns around what the cameras look at.

    Without cameras: the front, from 15 degrees above, so far away that the splat is in the picture. Roll and an
    off-centre principal point of the camera are left out.
    """
    centre, radius = extent(g)
    if cameras is None:
        half = math.radians(FOV_DEG) / 2
        focal = 0.5 / math.tan(half)
        distance = MARGIN * radius / math.sin(half)
        return Sight(tuple(centre.tolist()), 0.0, ELEVATION_DEG, distance, (focal, focal), radius)
    index = cameras.input_view or 0
    pose = cameras.c2w[index].double().cpu()
    right, forward, place = pose[:3, 0], pose[:3, 2], pose[:3, 3]
    # Cameras that look past everything (or stand where they look) turn around a point one splat away.
    depths = [float((point.cpu() - place) @ forward) for point in (cameras.focus(), centre)]
    distance = next((depth for depth in depths if depth > 1e-6), radius)
    up_or_down = abs(float(forward[1])) > NEARLY_VERTICAL
    azimuth = math.atan2(right[2], right[0]) if up_or_down else math.atan2(-forward[0], forward[2])
    elevation = math.asin(min(1.0, max(-1.0, float(forward[1]))))
    focal = tuple(cameras.intrinsics[index, :2].tolist())
    target = tuple((place + distance * forward).tolist())
    return Sight(target, math.degrees(azimuth) % 360.0, math.degrees(elevation), distance, focal, radius)


def extent(g: Gaussians) -> tuple[torch.Tensor, float]:
    """Centre (3,) float64 and radius > 0 of a ball that holds nearly all Gaussians one can see."""
    seen = g.opacities >= SEEN
    keep = seen if seen.any() else torch.ones_like(seen)
    means, scales = (t[keep].detach().double().cpu() for t in (g.means, g.scales))
    centre = (_share(means, 1 - MOST) + _share(means, MOST)) / 2
    reach = (means - centre).norm(dim=1) + EDGE_SIGMAS * scales.amax(dim=1)
    return centre, max(float(_share(reach[:, None], MOST)), 1e-6)


def _share(values: torch.Tensor, share: float) -> torch.Tensor:
    """(N,K) -> (K,) what this share of each column does not exceed; torch.quantile stops at 16 million values."""
    return values.kthvalue(min(len(values), max(1, math.ceil(share * len(values)))), dim=0).values


def cameras_around(sight: Sight, views: int) -> Cameras:
    """Cameras of square pictures on a circle around the target; the first one is the sight itself."""
    poses = []
    for i in range(views):
        pose = look_at_pose(sight.azimuth + 360.0 * i / views, sight.elevation, sight.distance)
        pose[:3, 3] += torch.tensor(sight.target, dtype=torch.float64)
        poses.append(pose)
    focal = min(sight.focal)
    intrinsics = torch.tensor([[focal, focal, 0.5, 0.5]]).repeat(views, 1)
    return Cameras(torch.stack(poses).float(), intrinsics, closed=views > 2, input_view=0, name="around the splat")
