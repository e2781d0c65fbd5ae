"""Generator of demo objects: families of toys that share one front and differ behind.

make_object(seed, variant): the seed fixes everything that a camera at azimuth 0, elevation -5..35 degrees and a radius
of at least 1.4 can see; the variant changes only the rest (colour and pattern of rear caps, a tail, a backpack...). So
the front picture says which family an object is from and nothing about its back, as a picture of a real thing does.
Held out: seeds >= HELD_OUT_SEED are never used for training anything; measure on them.
The fronts are in creatures.py and things.py, the solids in shapes.py.
GENERATOR_VERSION changes whenever a picture changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from .creatures import gnome, monster, owl, penguin, plush, snowman
from .shapes import PATTERNS, Part, front_cameras, hidden_cap, intersect, rotation, surface_points, to_unit
from .things import cottage, lantern, mug, mushroom, robot
from .toy_parts import ball, box, hsv, tube

KINDS = {
    **{kind: partial(plush, kind=kind) for kind in ("bear", "cat", "bunny", "mouse", "dog", "pig")},
    "robot": robot,
    "gnome": gnome,
    "owl": owl,
    "penguin": penguin,
    "cottage": cottage,
    "lantern": lantern,
    "mug": mug,
    "snowman": snowman,
    "mushroom": mushroom,
    "monster": monster,
}
GENERATOR_VERSION = 1
HELD_OUT_SEED = 1_000_000
MAX_VARIANTS = 16
BOUND = 0.5
FRONT_BOUND = 0.475


@dataclass(frozen=True)
class ObjectSpec:
    """One object: parts in world units inside the sphere of radius 0.5, the last `hidden` of them the variant's own."""

    name: str
    seed: int
    variant: int
    variants: int
    parts: tuple[Part, ...]
    hidden: int = 0


def make_object(seed: int, variant: int = 0, variants: int = 6) -> ObjectSpec:
    """Object `variant` (0..variants-1) of family `seed`.

    seed: >= 0, the same seed gives the same front; variants: how many backs the family has, 1..16 (hues are spread
    over that many). ValueError for anything outside these ranges. Deterministic.
    """
    if seed < 0:
        raise ValueError(f"The family seed must be 0 or more, got {seed}.")
    if not 1 <= variants <= MAX_VARIANTS:
        raise ValueError(f"A family has 1 to {MAX_VARIANTS} variants, got {variants}.")
    if not 0 <= variant < variants:
        raise ValueError(f"Variant {variant} does not exist: this family has variants 0 to {variants - 1}.")
    name, parts = _front(seed)
    rng = np.random.default_rng([seed, 1])
    look = _look(rng, variant, variants)
    painted = tuple(_with_cap(part, look) for part in parts)
    hidden = _hidden_geometry(rng, parts, look, variant)
    return ObjectSpec(name, seed, variant, variants, painted + hidden, len(hidden))


def _front(seed: int) -> tuple[str, tuple[Part, ...]]:
    """The family's parts without any paint behind, centred and scaled into the sphere of radius FRONT_BOUND."""
    rng = np.random.default_rng([seed, 0])
    name = list(KINDS)[int(rng.integers(len(KINDS)))]
    parts = KINDS[name](rng)
    wide, tall = rng.uniform(0.88, 1.12, 2)
    parts = [_stretched(part, wide, tall) for part in parts]
    points = np.concatenate([surface_points(part) for part in parts])
    middle = np.array([0.0, 0.5 * (points[:, 1].min() + points[:, 1].max()), 0.0])
    scale = FRONT_BOUND / np.linalg.norm(points - middle, axis=1).max()
    return name, tuple(_moved(part, scale, -scale * middle) for part in parts)


def _stretched(part: Part, wide: float, tall: float) -> Part:
    """A wider or taller toy. Turned parts keep their proportions: a stretched turned box would be no box."""
    center = np.asarray(part.center) * (wide, tall, wide)
    even = math.sqrt(wide * tall)
    x, y, z = (wide, tall, wide) if np.allclose(part.rotation, np.eye(3)) else (even, even, even)
    half = tuple(np.multiply(part.half, (x, y, z)).tolist())
    decals = tuple(
        replace(d, x=float(d.x * x), a=float(d.a * x), y=float(d.y * y), b=float(d.b * y)) for d in part.decals
    )
    return replace(part, center=tuple(center.tolist()), half=half, decals=decals)


def _moved(part: Part, scale: float, offset: np.ndarray) -> Part:
    center = scale * np.asarray(part.center) + offset
    scale = float(scale)
    decals = tuple(replace(d, **{k: float(scale * getattr(d, k)) for k in ("x", "y", "a", "b")}) for d in part.decals)
    return replace(part, center=tuple(center.tolist()), half=tuple(float(scale * h) for h in part.half), decals=decals)


@dataclass(frozen=True)
class _Look:
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    mark: tuple[float, float, float]
    pattern: str


def _look(rng: np.random.Generator, variant: int, variants: int) -> _Look:
    """Colours of one back: hues evenly round the circle; beyond eight variants, light and dark ones take turns."""
    start = rng.random()
    patterns = rng.permutation(len(PATTERNS))
    levels = 1 if variants <= 8 else 2
    hue = start + (variant // levels) / -(-variants // levels)
    dark = levels == 2 and variant % 2 == 1
    first = hsv(hue, 0.95, 0.42) if dark else hsv(hue, 0.78, 0.92)
    second = hsv(hue + 0.06, 0.8, 0.28) if dark else hsv(hue + 0.06, 0.85, 0.62)
    mark = hsv(hue + 0.1, 0.35, 0.75) if dark else hsv(hue + 0.1, 0.22, 1.0)
    return _Look(first, second, mark, PATTERNS[patterns[variant % len(PATTERNS)]])


def _with_cap(part: Part, look: _Look) -> Part:
    if part.role == "a":
        return replace(part, cap=hidden_cap(part, look.first, look.mark, look.pattern))
    if part.role == "b":
        return replace(part, cap=hidden_cap(part, look.second, look.mark, "plain"))
    return part


def _tail(rng, color, mark) -> list[Part]:
    return [ball((0, 0.1, 0.2), 0.16, mark), ball((0, 0.1, 0.12), 0.12, color)]


def _long_tail(rng, color, mark) -> list[Part]:
    return [
        ball((0, 0.12, 0.15), (0.09, 0.09, 0.22), color, rot=rotation(20)),
        ball((0, 0.02, 0.36), (0.11, 0.11, 0.12), mark),
    ]


def _backpack(rng, color, mark) -> list[Part]:
    return [
        box((0, 0, 0.12), (0.3, 0.34, 0.16), color),
        box((0, 0.12, 0.3), (0.2, 0.15, 0.06), mark),
        tube((0, -0.36, 0.12), (0.15, 0.24, 0.15), mark, rot=rotation(0, 0, 90)),
    ]


def _shell(rng, color, mark) -> list[Part]:
    return [ball((0, 0, 0.05), (0.42, 0.46, 0.26), color), ball((0, 0, 0.14), (0.26, 0.3, 0.22), mark)]


def _fin(rng, color, mark) -> list[Part]:
    return [
        ball((0, y, 0.1), (0.045, size, size), color if i % 2 else mark)
        for i, (y, size) in enumerate(((-0.32, 0.17), (0.0, 0.22), (0.32, 0.17)))
    ]


def _wings(rng, color, mark) -> list[Part]:
    return [
        ball(
            (side * 0.2, 0.0, 0.14),
            (0.17, 0.4, 0.05),
            color if side > 0 else mark,
            rot=rotation(0, side * 28, side * 12),
        )
        for side in (-1, 1)
    ]


def _jets(rng, color, mark) -> list[Part]:
    tanks = [tube((side * 0.17, 0.0, 0.14), (0.14, 0.3, 0.14), color, taper=0.7) for side in (-1, 1)]
    return tanks + [tube((side * 0.17, 0.38, 0.14), (0.1, 0.08, 0.1), mark, taper=0.5) for side in (-1, 1)]


def _key(rng, color, mark) -> list[Part]:
    return [
        tube((0, 0, 0.14), (0.05, 0.2, 0.05), mark, rot=rotation(90)),
        *(tube((side * 0.15, 0, 0.36), (0.15, 0.045, 0.15), color, rot=rotation(90)) for side in (-1, 1)),
    ]


_BEHIND = (_tail, _backpack, _wings, _shell, _long_tail, _jets, _fin, _key)


def _hidden_geometry(rng: np.random.Generator, parts: tuple[Part, ...], look: _Look, variant: int) -> tuple[Part, ...]:
    """One thing on the back, as large as the shadow of the front parts allows; nothing if a small one would show."""
    order = rng.permutation(len(_BEHIND))
    body = max((p for p in parts if p.role == "a"), key=lambda p: p.center[1])
    accent = hsv(float(rng.random()) + 0.17 * variant, 0.9, 0.85)
    group = _BEHIND[order[variant % len(_BEHIND)]](rng, accent, look.mark)
    anchor = np.asarray(body.center) + np.array([0.0, 0.0, 0.82 * body.half[2]])
    unit = 2.0 * min(body.half[0], body.half[1])
    for size in (1.0, 0.85, 0.7, 0.58, 0.48, 0.38, 0.3):
        for drop in (0.0, 0.12, 0.25):
            offset = anchor + np.array([0.0, drop * body.half[1], 0.0])
            placed = tuple(_moved(part, size * unit, offset) for part in group)
            if _in_shadow(placed, parts):
                return placed
    return ()


def _in_shadow(hidden: tuple[Part, ...], front: tuple[Part, ...]) -> bool:
    """Whether no front camera sees `hidden`: all sampled, slightly inflated surface points lie behind a front part."""
    points = np.concatenate([surface_points(part, inflate=1.06) for part in hidden])
    if np.linalg.norm(points, axis=1).max() > BOUND - 0.002:
        return False
    occluders = sorted(front, key=lambda p: -np.prod(p.half))[:6]
    cams = torch.from_numpy(front_cameras())[:, None]
    target = torch.from_numpy(points)[None]
    limit = 1.0 - 0.003 / cams.norm(dim=-1)  # hidden behind at least 0.003 units before the point itself
    covered = torch.zeros(cams.shape[0], points.shape[0], dtype=torch.bool)
    for part in occluders:
        unit = torch.from_numpy(to_unit(part)).T
        o = ((cams - torch.tensor(part.center, dtype=torch.float64)) @ unit).unbind(-1)
        d = ((target - cams) @ unit).unbind(-1)
        covered |= intersect(part.kind, part.taper, o, d) < limit
    return bool(covered.all())
