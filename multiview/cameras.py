"""Calibrated cameras around an object: the one place where the pack's camera conventions live.

World frame: right-handed, x right, y down, z forward (3DGS / OpenCV, the frame of ComfyUI's SPLAT).
Camera frame: OpenCV, x right, y down, z along the view direction.
A camera at azimuth a, elevation e and radius R sits at (R cos e sin a, -R sin e, -R cos e cos a) and looks at the
origin: growing azimuth moves it to the viewer's right, growing elevation moves it up.
Image coordinates are pixels with centres at +0.5, so the picture spans [0, W] x [0, H].
Camera tables of published models: camera_presets.py. Other programs' cameras: camera_convert.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ANGLE_TOLERANCE_DEG = 1e-3


@dataclass(frozen=True)
class Cameras:
    """N calibrated pinhole cameras.

    c2w: (N,4,4) float32 OpenCV camera-to-world, rigid.
    intrinsics: (N,4) float32, [fx/W, fy/H, cx/W, cy/H] (independent of the picture's resolution).
    closed: whether the last view is also a neighbour of the first (the orbit goes all the way round).
    input_view: index of the view that shows the input picture, None if none of them does.
    name: where these cameras come from, for messages and pictures.
    """

    c2w: Tensor
    intrinsics: Tensor
    closed: bool = False
    input_view: int | None = None
    name: str = "cameras"

    def __post_init__(self):
        n = self.c2w.shape[0] if self.c2w.ndim == 3 else -1
        if n < 1 or self.c2w.shape[1:] != (4, 4):
            raise ValueError(f"Camera poses must be a (N,4,4) tensor with N >= 1, got {tuple(self.c2w.shape)}.")
        if self.intrinsics.shape != (n, 4):
            raise ValueError(
                f"Camera intrinsics must be ({n},4) for {n} poses, got {tuple(self.intrinsics.shape)}; "
                "give [fx/W, fy/H, cx/W, cy/H] for every view."
            )
        if not (torch.isfinite(self.c2w).all() and torch.isfinite(self.intrinsics).all()):
            raise ValueError("Camera poses or intrinsics contain NaN or infinity; check the node that made them.")
        rotation = self.c2w[:, :3, :3].double()
        off = (rotation @ rotation.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().amax()
        if off > 1e-3 or (torch.linalg.det(rotation) < 0).any():
            raise ValueError(
                "Camera poses must be rigid camera-to-world matrices without scale or mirroring; "
                f"the worst departure from a rotation is {float(off):.3g}."
            )
        if (self.intrinsics[:, :2] <= 0).any():
            raise ValueError("Focal lengths must be positive; check the field of view.")
        if self.input_view is not None and not 0 <= self.input_view < n:
            raise ValueError(f"input_view is {self.input_view} but there are {n} views (0 to {n - 1}).")

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def centers(self) -> Tensor:
        """(N,3) camera positions in the world."""
        return self.c2w[:, :3, 3]

    def w2c(self) -> Tensor:
        """(N,4,4) world-to-camera, by the closed-form inverse of a rigid motion."""
        rotation = self.c2w[:, :3, :3].double().transpose(1, 2)
        out = torch.eye(4, dtype=torch.float64).repeat(len(self), 1, 1)
        out[:, :3, :3] = rotation
        out[:, :3, 3:] = -rotation @ self.c2w[:, :3, 3:].double()
        return out.to(self.c2w.dtype)

    def radii(self) -> Tensor:
        """(N,) distance of each camera from the origin."""
        return self.centers().double().norm(dim=1)

    def azimuths(self) -> Tensor:
        """(N,) degrees in [0, 360), of the camera positions."""
        x, _, z = self.centers().double().unbind(1)
        degrees = torch.rad2deg(torch.atan2(x, -z)) % 360.0
        return torch.where(degrees > 360.0 - ANGLE_TOLERANCE_DEG, torch.zeros_like(degrees), degrees)

    def elevations(self) -> Tensor:
        """(N,) degrees in [-90, 90], of the camera positions; positive is above."""
        return torch.rad2deg(torch.asin((-self.centers().double()[:, 1] / self.radii().clamp_min(1e-12)).clamp(-1, 1)))

    def fov_y(self) -> Tensor:
        """(N,) vertical field of view in degrees."""
        return torch.rad2deg(2 * torch.atan(0.5 / self.intrinsics[:, 1].double()))

    def pixel_intrinsics(self, width: int, height: int) -> Tensor:
        """(N,3,3) intrinsics in pixels of a width x height picture."""
        fx, fy, cx, cy = self.intrinsics.unbind(1)
        k = torch.zeros(len(self), 3, 3, dtype=self.intrinsics.dtype)
        k[:, 0, 0], k[:, 0, 2] = fx * width, cx * width
        k[:, 1, 1], k[:, 1, 2] = fy * height, cy * height
        k[:, 2, 2] = 1
        return k

    def project(self, points: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
        """World points (P,3) -> pixel positions (N,P,2) and camera depth z (N,P).

        Positions of points with z <= 0 (behind the camera) have no meaning: test z.
        """
        w2c = self.w2c().to(points)
        camera = torch.einsum("nij,pj->npi", w2c[:, :3, :3], points) + w2c[:, None, :3, 3]
        z = camera[..., 2]
        fx, fy, cx, cy = (self.intrinsics.to(points)[:, i, None] for i in range(4))
        safe = torch.where(z.abs() < 1e-12, torch.full_like(z, 1e-12), z)
        u = (camera[..., 0] / safe * fx + cx) * width
        v = (camera[..., 1] / safe * fy + cy) * height
        return torch.stack([u, v], dim=-1), z

    def rays(self, width: int, height: int) -> tuple[Tensor, Tensor]:
        """Origins (N,3) and world directions (N,H,W,3) through the pixel centres.

        Directions have camera-z component 1, so that point = origin + depth * direction for a camera depth.
        """
        dtype, device = self.c2w.dtype, self.c2w.device
        u = (torch.arange(width, dtype=dtype, device=device) + 0.5) / width
        v = (torch.arange(height, dtype=dtype, device=device) + 0.5) / height
        fx, fy, cx, cy = (self.intrinsics[:, i, None, None] for i in range(4))
        x = ((u[None, None, :] - cx) / fx).expand(-1, height, -1)
        y = ((v[None, :, None] - cy) / fy).expand(-1, -1, width)
        camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)
        return self.centers(), torch.einsum("nij,nhwj->nhwi", self.c2w[:, :3, :3], camera)

    def focus(self) -> Tensor:
        """(3,) float64 point with the least squared distance to all view axes: what the cameras look at.

        Cameras that look (nearly) the same way meet nowhere: the mean of the points one camera radius ahead of them.
        """
        return axes_meet(self.centers().double(), self.c2w[:, :3, 2].double())

    def subset(self, indices: Sequence[int]) -> Cameras:
        """The cameras at these indices, in this order. The result counts as an open orbit unless it is everything."""
        picked = [int(i) for i in indices]
        bad = [i for i in picked if not 0 <= i < len(self)]
        if bad or not picked:
            raise ValueError(f"View indices must lie between 0 and {len(self) - 1}, got {picked}.")
        whole = picked == list(range(len(self)))
        return replace(
            self,
            c2w=self.c2w[picked],
            intrinsics=self.intrinsics[picked],
            closed=self.closed if whole else _closes(self.azimuths()[picked]),
            input_view=picked.index(self.input_view) if self.input_view in picked else None,
        )

    def to(self, device) -> Cameras:
        return replace(self, c2w=self.c2w.to(device), intrinsics=self.intrinsics.to(device))

    def describe(self) -> str:
        """One paragraph a person can check: count, azimuths with their direction, elevation, radius, field of view."""
        az = ", ".join(_short(a) for a in self.azimuths().tolist())
        el, radius, fov = self.elevations(), self.radii(), self.fov_y()
        seen = "no view shows the input picture" if self.input_view is None else f"view {self.input_view} is the input"
        return (
            f"{self.name}: {len(self)} views; azimuths {az} degrees (growing = camera moves to the viewer's right); "
            f"elevation {_span(el)} degrees (positive = above); radius {_span(radius)}; "
            f"vertical field of view {_span(fov)} degrees; {'closed' if self.closed else 'open'} orbit; {seen}."
        )


def look_at_pose(azimuth_deg: float, elevation_deg: float, radius: float) -> Tensor:
    """(4,4) float64 camera-to-world of an orbit camera without roll. Well defined at the poles too."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    sa, ca, se, ce = math.sin(a), math.cos(a), math.sin(e), math.cos(e)
    right = (ca, 0.0, sa)
    down = (se * sa, ce, -se * ca)
    forward = (-ce * sa, se, ce * ca)
    pose = torch.eye(4, dtype=torch.float64)
    for column, axis in enumerate((right, down, forward)):
        pose[:3, column] = torch.tensor(axis, dtype=torch.float64)
    pose[:3, 3] = -radius * pose[:3, 2]
    return pose


def orbit(
    azimuths_deg: Sequence[float],
    elevations_deg: float | Sequence[float],
    radius: float | Sequence[float],
    fov_y_deg: float,
    *,
    closed: bool | None = None,
    input_view: int | None = 0,
    name: str = "orbit",
    aspect: float = 1.0,
) -> Cameras:
    """Cameras on a sphere around the origin, looking at it, without roll.

    azimuths_deg: N angles. elevations_deg, radius: one number for all or N. fov_y_deg: vertical field of view.
    closed None: decided from the azimuths. aspect: width / height of the pictures.
    """
    azimuths = [float(a) for a in azimuths_deg]
    if not azimuths:
        raise ValueError("An orbit needs at least one azimuth, got none.")
    elevations = _per_view(elevations_deg, len(azimuths), "elevations")
    radii = _per_view(radius, len(azimuths), "radii")
    for label, values in (("azimuths", azimuths), ("elevations", elevations), ("radii", radii)):
        if not all(math.isfinite(v) for v in values):
            raise ValueError(f"The orbit's {label} must be finite numbers, got {values}.")
    if min(radii) <= 0:
        raise ValueError(f"The camera radius must be positive, got {min(radii)}.")
    if max(abs(e) for e in elevations) > 90:
        raise ValueError(f"Elevations must lie between -90 and 90 degrees, got {elevations}.")
    if not 0 < fov_y_deg < 180:
        raise ValueError(f"The field of view must lie between 0 and 180 degrees, got {fov_y_deg}.")
    if not aspect > 0:
        raise ValueError(f"The aspect ratio (width / height) must be positive, got {aspect}.")
    poses = [look_at_pose(a, e, r) for a, e, r in zip(azimuths, elevations, radii, strict=True)]
    fy = 0.5 / math.tan(math.radians(fov_y_deg) / 2)
    intrinsics = torch.tensor([[fy / aspect, fy, 0.5, 0.5]]).repeat(len(azimuths), 1)
    return Cameras(
        c2w=torch.stack(poses).float(),
        intrinsics=intrinsics.float(),
        closed=_closes(torch.tensor(azimuths)) if closed is None else closed,
        input_view=input_view,
        name=name,
    )


def axes_meet(origins: Tensor, directions: Tensor) -> Tensor:
    """(3,) point with the least squared distance to N lines through origins (N,3) along unit directions (N,3)."""
    across = torch.eye(3).to(directions) - directions[:, :, None] * directions[:, None, :]
    system = across.sum(0)
    if torch.linalg.eigvalsh(system)[0] <= 1e-3 * len(origins):
        return (origins + directions * origins.norm(dim=1, keepdim=True)).mean(0)
    return torch.linalg.solve(system, (across @ origins[:, :, None]).sum(0)[:, 0])


def even_azimuths(views: int, start_deg: float = 0.0, span_deg: float = 360.0) -> list[float]:
    """`views` azimuths, span/views apart: a full circle does not repeat its first view."""
    if views < 1:
        raise ValueError(f"The number of views must be at least 1, got {views}.")
    return [start_deg + i * span_deg / views for i in range(views)]


def _per_view(value: float | Sequence[float], views: int, label: str) -> list[float]:
    values = [float(value)] * views if isinstance(value, (int, float)) else [float(v) for v in value]
    if len(values) != views:
        raise ValueError(f"There are {views} azimuths but {len(values)} {label}; give one for all or one for each.")
    return values


def _closes(azimuths_deg: Tensor) -> bool:
    """Whether the step from the last view back to the first is no wider than the widest step before it.

    Steps are taken the short way round; fewer than three views never count as an orbit. The uneven table of
    Ouroboros3D (references.md 3.3) and ComfyUI's SV3D table, whose last view repeats the first, both close.
    """
    if len(azimuths_deg) < 3:
        return False
    steps = (torch.diff(azimuths_deg, append=azimuths_deg[:1]) + 180.0) % 360.0 - 180.0
    turn = steps.sum().abs()
    return bool(steps[-1].abs() <= steps[:-1].abs().max() + ANGLE_TOLERANCE_DEG and turn > 359.0)


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _span(values: Tensor) -> str:
    low, high = _short(float(values.min())), _short(float(values.max()))
    return low if low == high else f"{low} to {high}"
