"""The pieces that demo objects are made of: closed-form solids, painted decals, and rear caps unseen from the front.

Part-local frame: centre of the part at 0, metric, axes turned by the part's rotation. Unit frame: local divided by
the half extents, where an ellipsoid is the unit sphere, a box is [-1,1]^3 and a frustum stands along y (top at -1).
World frame as everywhere (x right, y down, z forward); the front of an object faces -z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KINDS = ("ellipsoid", "box", "frustum")
DECALS = ("ellipse", "rect", "smile", "star", "heart")
PATTERNS = ("plain", "stripes", "dots", "rings", "bars", "checks", "star", "heart")

# The range of front views that must not see a rear cap or hidden geometry, with one degree to spare on either side.
FRONT_ELEVATIONS = tuple(float(e) for e in np.linspace(-6.0, 36.0, 8))
FRONT_RADII = (1.4, 2.5, 1e3)
CAP_HALF_ANGLE = 65.0
CAP_MARGIN = 1.5


@dataclass(frozen=True)
class Decal:
    """A flat shape painted on the front (side -1) or back (+1) of a part by projection along the part's z axis.

    x, y: centre, a, b: half sizes, all in part-local metric units; angle: turn in degrees; color: rgb in [0,1].
    """

    shape: str
    x: float
    y: float
    a: float
    b: float
    color: tuple[float, float, float]
    angle: float = 0.0
    side: int = -1


@dataclass(frozen=True)
class Cap:
    """A painted area around a direction of the unit frame.

    axis: (3,) unit vector; cos_half: cosine of its half angle; color, color2, pattern: its paint;
    faces: six flags (-x +x -y +y -z +z), the faces of a box that may be painted (other kinds ignore them).
    """

    axis: tuple[float, float, float]
    cos_half: float
    color: tuple[float, float, float]
    color2: tuple[float, float, float]
    pattern: str = "plain"
    faces: tuple[bool, ...] = (True,) * 6


@dataclass(frozen=True)
class Part:
    """One convex solid. center, half: (3,) world units; rotation: 3x3 local-to-world; taper: top / bottom radius.

    role names which of a variant's colours its rear cap takes ("" = never painted); cap is set by the variant.
    """

    kind: str
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    color: tuple[float, float, float]
    rotation: tuple[tuple[float, float, float], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    taper: float = 1.0
    role: str = ""
    decals: tuple[Decal, ...] = ()
    cap: Cap | None = None


def rotation(rx: float = 0.0, ry: float = 0.0, rz: float = 0.0) -> tuple[tuple[float, float, float], ...]:
    """Rotation matrix Rz Ry Rx from degrees about the world axes."""
    ax, ay, az = (math.radians(a) for a in (rx, ry, rz))
    mx = np.array([[1, 0, 0], [0, math.cos(ax), -math.sin(ax)], [0, math.sin(ax), math.cos(ax)]])
    my = np.array([[math.cos(ay), 0, math.sin(ay)], [0, 1, 0], [-math.sin(ay), 0, math.cos(ay)]])
    mz = np.array([[math.cos(az), -math.sin(az), 0], [math.sin(az), math.cos(az), 0], [0, 0, 1]])
    return tuple(tuple(float(v) for v in row) for row in mz @ my @ mx)


def to_unit(part: Part) -> np.ndarray:
    """(3,3) float64 matrix that takes world offsets from the part's centre to its unit frame."""
    return np.asarray(part.rotation, dtype=np.float64).T / np.asarray(part.half, dtype=np.float64)[:, None]


def intersect(kind: str, taper: float, o: tuple, d: tuple) -> Tensor:
    """Distance along rays o + t d to the first entry into a unit-frame solid, inf where there is none ahead.

    o, d: three broadcastable tensors each. Rays that start inside the solid miss it: cameras stay outside.
    """
    if kind == "ellipsoid":
        return _sphere(o, d)
    if kind == "box":
        return _box(o, d)
    if kind == "frustum":
        return _frustum(taper, o, d)
    raise ValueError(f"Unknown part kind '{kind}'; use one of {', '.join(KINDS)}.")


def _sphere(o: tuple, d: tuple) -> Tensor:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - 1.0
    disc = b * b - a * c
    t = (-b - disc.clamp_min(0).sqrt()) / a
    return torch.where((disc > 0) & (t > 0), t, torch.inf)


def _box(o: tuple, d: tuple) -> Tensor:
    near, far = None, None
    for axis in range(3):
        step = torch.where(d[axis].abs() < 1e-12, torch.full_like(d[axis], 1e-12), d[axis]).reciprocal()
        first, second = (-1.0 - o[axis]) * step, (1.0 - o[axis]) * step
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        near = low if near is None else torch.maximum(near, low)
        far = high if far is None else torch.minimum(far, high)
    return torch.where((near < far) & (near > 0), near, torch.inf)


def _frustum(taper: float, o: tuple, d: tuple) -> Tensor:
    # Radius r0 + s y: the side is the cone x^2 + z^2 = (r0 + s y)^2 between the flat ends y = -1 and y = +1.
    r0, s = 0.5 * (1.0 + taper), 0.5 * (1.0 - taper)
    ro = r0 + s * o[1]
    a = d[0] * d[0] + d[2] * d[2] - s * s * d[1] * d[1]
    a = torch.where(a.abs() < 1e-12, torch.full_like(a, 1e-12), a)
    b = o[0] * d[0] + o[2] * d[2] - s * d[1] * ro
    c = o[0] * o[0] + o[2] * o[2] - ro * ro
    disc = b * b - a * c
    root = disc.clamp_min(0).sqrt()
    best = None
    for sign in (-1.0, 1.0):
        t = (-b + sign * root) / a
        inside = (disc > 0) & (t > 0) & ((o[1] + t * d[1]).abs() <= 1.0)
        t = torch.where(inside, t, torch.inf)
        best = t if best is None else torch.minimum(best, t)
    dy = torch.where(d[1].abs() < 1e-12, torch.full_like(d[1], 1e-12), d[1])
    for end in (-1.0, 1.0):
        t = (end - o[1]) / dy
        x, z = o[0] + t * d[0], o[2] + t * d[2]
        t = torch.where((x * x + z * z <= (r0 + s * end) ** 2) & (t > 0), t, torch.inf)
        best = torch.minimum(best, t)
    return best


def unit_normal(part: Part, p: Tensor) -> Tensor:
    """(M,3) outward normals in the unit frame (not normalised) at surface points p (M,3) of the unit frame."""
    if part.kind == "ellipsoid":
        return p
    if part.kind == "box":
        axis = p.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(p).scatter(1, axis, p.gather(1, axis).sign())
    r0, s = 0.5 * (1.0 + part.taper), 0.5 * (1.0 - part.taper)
    radius = torch.hypot(p[:, 0], p[:, 2])
    # On the side the slope of the radius tilts the normal. A point is on an end if it is nearer to it than to the side.
    on_end = (p[:, 1].abs() - 1.0).abs() < (radius - (r0 + s * p[:, 1])).abs()
    side = torch.stack([p[:, 0], -s * radius, p[:, 2]], dim=1)
    flat = torch.stack(
        [torch.zeros_like(radius), p[:, 1].sign() * radius.clamp_min(1e-3), torch.zeros_like(radius)], dim=1
    )
    return torch.where(on_end[:, None], flat, side)


def paint(part: Part, p: Tensor) -> Tensor:
    """(M,3) surface colours before lighting at unit-frame surface points p (M,3)."""
    color = torch.tensor(part.color, dtype=p.dtype, device=p.device).repeat(p.shape[0], 1)
    half = torch.tensor(part.half, dtype=p.dtype, device=p.device)
    q = p * half
    for decal in part.decals:
        tone = torch.tensor(decal.color, dtype=p.dtype, device=p.device)
        color = torch.where(_decal_mask(decal, q)[:, None], tone, color)
    if part.cap is not None:
        inside, mark = _cap_masks(part, p)
        tones = [torch.tensor(c, dtype=p.dtype, device=p.device) for c in (part.cap.color, part.cap.color2)]
        color = torch.where(inside[:, None], torch.where(mark[:, None], tones[1], tones[0]), color)
    return color


def _decal_mask(decal: Decal, q: Tensor) -> Tensor:
    turn = math.radians(decal.angle)
    x, y = q[:, 0] - decal.x, q[:, 1] - decal.y
    u = (x * math.cos(turn) + y * math.sin(turn)) / decal.a
    v = (y * math.cos(turn) - x * math.sin(turn)) / decal.b
    return flat_shape(decal.shape, u, v) & (q[:, 2] * decal.side > 0)


def flat_shape(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Inside test of a flat shape that fills about [-1,1]^2, v down."""
    if shape == "ellipse":
        return u * u + v * v <= 1
    if shape == "rect":
        return (u.abs() <= 1) & (v.abs() <= 1)
    if shape == "smile":
        r = u * u + v * v
        return (r <= 1) & (r >= 0.42) & (v > 0.1)
    if shape == "star":
        angle = torch.atan2(u, -v)
        wedge = (angle + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5
        # Edge of a five-pointed star between a tip at radius 1 and a notch at 0.45.
        return torch.hypot(u, v) <= 1.0 - 0.55 * wedge.abs() / (math.pi / 5)
    if shape == "heart":
        x, y = 1.2 * u, 0.15 - 1.2 * v
        return (x * x + y * y - 1) ** 3 - x * x * y**3 <= 0
    raise ValueError(f"Unknown decal shape '{shape}'; use one of {', '.join(DECALS)}.")


def _cap_masks(part: Part, p: Tensor) -> tuple[Tensor, Tensor]:
    cap = part.cap
    axis = torch.tensor(cap.axis, dtype=p.dtype, device=p.device)
    if part.kind == "frustum":
        flat = p * torch.tensor([1.0, 0.0, 1.0], dtype=p.dtype, device=p.device)
        cosine = (flat @ axis) / flat.norm(dim=1).clamp_min(1e-9)
        allowed = unit_normal(part, p)[:, [0, 2]].norm(dim=1) > 0
    else:
        cosine = (p @ axis) / p.norm(dim=1).clamp_min(1e-9)
        allowed = torch.ones_like(cosine, dtype=torch.bool)
        if part.kind == "box":
            face = p.abs().argmax(dim=1)
            sign = p.gather(1, face[:, None])[:, 0] > 0
            allowed = torch.tensor(cap.faces, device=p.device)[2 * face + sign.long()]
    return (cosine > cap.cos_half) & allowed, pattern_mask(cap.pattern, p, cosine)


def pattern_mask(pattern: str, p: Tensor, cosine: Tensor) -> Tensor:
    """Where a rear cap shows its second colour. p (M,3) unit frame, cosine (M,) of the angle to the cap's axis."""
    if pattern == "plain":
        return torch.zeros_like(cosine, dtype=torch.bool)
    if pattern == "stripes":
        return torch.sin(9.0 * p[:, 1] + 0.6) > 0.1
    if pattern == "bars":
        return torch.cos(9.0 * p[:, 0]) > 0.1
    if pattern == "checks":
        return torch.sin(6.5 * p[:, 0]) * torch.sin(6.5 * p[:, 1]) > 0
    if pattern == "rings":
        return torch.cos(8.5 * torch.acos(cosine.clamp(-1, 1))) > 0
    if pattern == "dots":
        row = torch.floor(p[:, 1] / 0.4)
        x = (p[:, 0] / 0.44 + 0.5 * (row % 2)) % 1 - 0.5
        y = p[:, 1] / 0.4 - row - 0.5
        return x * x + y * y < 0.1
    if pattern in ("star", "heart"):
        return flat_shape(pattern, p[:, 0] / 0.66, p[:, 1] / 0.66)
    raise ValueError(f"Unknown pattern '{pattern}'; use one of {', '.join(PATTERNS)}.")


def front_cameras() -> np.ndarray:
    """(M,3) float64 camera positions from which nothing of a variant may be seen, all at azimuth 0."""
    angles = np.radians(FRONT_ELEVATIONS)
    unit = np.stack([np.zeros_like(angles), -np.sin(angles), -np.cos(angles)], axis=1)
    return np.concatenate([radius * unit for radius in FRONT_RADII])


def hidden_cap(part: Part, color, color2, pattern: str) -> Cap | None:
    """The largest cap (half angle at most 65 degrees) of a part that faces away from every front camera; None if tiny.

    Works in the unit frame, where it needs one inequality per camera: a point of a convex solid is invisible when the
    camera lies below its tangent plane. For a sphere that is angle(point, camera) > acos(1 / |camera|).
    """
    cams = (front_cameras() - np.asarray(part.center)) @ to_unit(part).T
    if part.kind == "frustum":
        r0, s = 0.5 * (1 + part.taper), 0.5 * (1 - part.taper)
        flat = cams * np.array([1.0, 0.0, 1.0])
        limit = (r0 + s * cams[:, 1]) / np.linalg.norm(flat, axis=1)
        direction = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    else:
        limit = 1.0 / np.linalg.norm(cams, axis=1)
        direction = cams * limit[:, None]
    axis = -direction.mean(axis=0)
    axis /= np.linalg.norm(axis)
    faces = (True,) * 6
    half = CAP_HALF_ANGLE
    if part.kind == "box":
        faces = tuple(bool((sign * cams[:, i] < 0.999).all()) for i in range(3) for sign in (-1, 1))
    else:
        away = np.degrees(np.arccos(np.clip(direction @ axis, -1, 1)) - np.arccos(np.clip(limit, -1, 1)))
        half = min(half, float(away.min()) - CAP_MARGIN)
    if half < 5.0:
        return None
    return Cap(tuple(axis.tolist()), math.cos(math.radians(half)), color, color2, pattern, faces)


def surface_points(part: Part, count: int = 160, inflate: float = 1.0) -> np.ndarray:
    """(P,3) float64 world points spread over the surface of a part (over its bounding solid for frustums)."""
    i = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - 2 * i / count), math.pi * (1 + 5**0.5) * i
    unit = np.stack([np.sin(polar) * np.cos(turn), np.cos(polar), np.sin(polar) * np.sin(turn)], axis=1)
    if part.kind == "box":
        unit = unit / np.abs(unit).max(axis=1, keepdims=True)
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
        unit = np.concatenate([unit, corners])
    elif part.kind == "frustum":
        around = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        rims = [
            np.stack([r * np.cos(around), np.full_like(around, y), r * np.sin(around)], axis=1)
            for y, r in ((-1.0, part.taper), (0.0, 0.5 * (1 + part.taper)), (1.0, 1.0))
        ]
        unit = np.concatenate(rims)
    local = unit * np.asarray(part.half) * inflate
    return local @ np.asarray(part.rotation, dtype=np.float64).T + np.asarray(part.center)
