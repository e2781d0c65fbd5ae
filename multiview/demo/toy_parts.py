"""Building blocks of the demo toys: solids with short names, mirrored pairs, eyes, bows and hats."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace

import numpy as np

from .shapes import Decal, Part, rotation

WHITE, BLACK = (0.97, 0.97, 0.96), (0.10, 0.09, 0.12)
PINK, ORANGE = (0.97, 0.60, 0.64), (0.98, 0.62, 0.16)
STRAIGHT = rotation()


def hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """rgb in [0,1]; hue wraps at 1."""
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))


def ball(center, half, color, role="", rot=STRAIGHT, decals=()) -> Part:
    half = (half, half, half) if isinstance(half, float) else half
    return Part("ellipsoid", tuple(center), tuple(half), color, rot, 1.0, role, tuple(decals))


def box(center, half, color, role="", rot=STRAIGHT, decals=()) -> Part:
    return Part("box", tuple(center), tuple(half), color, rot, 1.0, role, tuple(decals))


def tube(center, half, color, role="", rot=STRAIGHT, taper=1.0, decals=()) -> Part:
    """A cylinder (taper 1), frustum or cone (taper 0) with its axis along local y, the tapered end up."""
    return Part("frustum", tuple(center), tuple(half), color, rot, taper, role, tuple(decals))


def pair(part: Part) -> tuple[Part, Part]:
    """A part and its mirror image in x = 0."""
    x, y, z = part.center
    (a, b, c), (d, e, f), (g, h, i) = part.rotation
    turned = ((a, -b, -c), (-d, e, f), (-g, h, i))
    decals = tuple(replace(m, x=-m.x, angle=-m.angle) for m in part.decals)
    return part, replace(part, center=(-x, y, z), rotation=turned, decals=decals)


def in_front(center, half, x: float, y: float, out: float = 0.0) -> tuple[float, float, float]:
    """The point of an upright ellipsoid's front surface at offset (x, y) from its centre, moved out along -z."""
    depth = math.sqrt(max(1.0 - (x / half[0]) ** 2 - (y / half[1]) ** 2, 0.0))
    return center[0] + x, center[1] + y, center[2] - half[2] * depth - out


def eyes(center, half, x: float, y: float, size: float, color=BLACK) -> tuple[Part, ...]:
    shine = (Decal("ellipse", -0.3 * size, -0.35 * size, 0.34 * size, 0.34 * size, WHITE),)
    spots = (in_front(center, half, side * x, y, -0.25 * size) for side in (-1, 1))
    return tuple(ball(spot, (size, 1.15 * size, 0.7 * size), color, decals=shine) for spot in spots)


def extra(rng: np.random.Generator, neck, top) -> list[Part]:
    """A bow at the neck, a party hat or a flower on the head, or nothing."""
    color = hsv(rng.random(), 0.75, 0.9)
    kind = int(rng.integers(4))
    if kind == 0:
        x, y, z = neck
        return [
            *pair(ball((x + 0.05, y, z), (0.052, 0.036, 0.025), color, rot=rotation(0, 0, -14))),
            ball((x, y, z - 0.012), 0.02, color),
        ]
    if kind == 1:
        x, y, z = top
        dots = (Decal("ellipse", -0.01, 0.04, 0.016, 0.016, WHITE), Decal("ellipse", 0.03, 0.02, 0.014, 0.014, WHITE))
        return [
            tube((x, y - 0.055, z), (0.065, 0.075, 0.065), color, taper=0.05, decals=dots),
            ball((x, y - 0.135, z), 0.024, WHITE),
        ]
    if kind == 2:
        x, y, z = top
        x, y, z = x + 0.09, y + 0.035, z - 0.1
        petals = [
            ball((x + 0.033 * math.cos(a), y + 0.033 * math.sin(a), z), 0.023, color)
            for a in np.arange(5) * 0.4 * math.pi
        ]
        return [*petals, ball((x, y, z - 0.015), 0.02, (0.99, 0.83, 0.25))]
    return []
