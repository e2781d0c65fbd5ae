"""What the demo objects look like from the front: twelve kinds of toys, each with a face or a badge.

Every builder takes a numpy Generator and returns parts in a frame about one unit tall (y down, the front faces -z).
Parts with role "a" or "b" get a variant's first or second colour on their rear cap; see objects.py.
"""

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


def plush(rng: np.random.Generator, kind: str) -> list[Part]:
    hue = {"bear": 0.07, "cat": 0.09, "bunny": 0.92, "mouse": 0.6, "dog": 0.1, "pig": 0.96}[kind] + rng.uniform(-0.04, 0.04)
    if rng.random() < 0.35:
        hue = rng.random()
    fur = hsv(hue, rng.uniform(0.38, 0.62), rng.uniform(0.78, 0.95))
    light = hsv(hue, 0.14, 0.98)
    dark = hsv(hue, 0.65, 0.5)
    head_half = (0.205 + rng.uniform(0, 0.03), 0.175, 0.175)
    head = (0.0, -0.13, -0.02)
    body_half = (0.175 + rng.uniform(0, 0.03), 0.2, 0.165)
    tummy = Decal("ellipse", 0.0, 0.03, 0.65 * body_half[0], 0.14, light)
    badge = Decal(("heart", "star")[int(rng.integers(2))], 0.0, 0.02, 0.055, 0.055, hsv(hue + 0.5, 0.7, 0.85))
    parts = [
        ball((0, 0.17, 0), body_half, fur, "a", decals=(tummy, badge)),
        ball(head, head_half, fur, "a", decals=(
            Decal("ellipse", -0.125, 0.06, 0.038, 0.026, PINK), Decal("ellipse", 0.125, 0.06, 0.038, 0.026, PINK))),
        *pair(ball((0.185, 0.13, -0.06), (0.06, 0.125, 0.06), fur, "b", rotation(-25, 0, -32))),
        *pair(ball((0.115, 0.33, -0.09), (0.08, 0.075, 0.1), fur, "b", decals=(Decal("ellipse", 0, 0, 0.045, 0.045, light),))),
        *eyes(head, head_half, 0.085, -0.025, 0.03),
    ]
    if kind == "pig":
        snout = in_front(head, head_half, 0, 0.045)
        nostrils = [ball((x, snout[1], snout[2] - 0.05), (0.012, 0.02, 0.012), dark) for x in (-0.026, 0.026)]
        parts += [tube(snout, (0.07, 0.045, 0.055), PINK, rot=rotation(90, 0, 0)), *nostrils]
    else:
        spot = in_front(head, head_half, 0, 0.06, -0.025)
        smile = (Decal("smile", -0.028, 0.005, 0.03, 0.032, dark), Decal("smile", 0.028, 0.005, 0.03, 0.032, dark))
        parts.append(ball(spot, (0.085, 0.062, 0.065), light, decals=smile))
        parts.append(ball((0, spot[1] - 0.03, spot[2] - 0.055), (0.03, 0.022, 0.02), dark))
    neck = in_front((0, 0.17, 0), body_half, 0, -0.125)
    return parts + _ears(kind, fur, light) + extra(rng, neck, (0, -0.29, -0.02))


def _ears(kind: str, fur, light) -> list[Part]:
    inner = (Decal("ellipse", 0, 0.005, 0.04, 0.04, PINK),)
    if kind == "bear":
        return list(pair(ball((0.155, -0.285, 0.0), (0.075, 0.075, 0.045), fur, "b", decals=inner)))
    if kind == "cat":
        return list(pair(tube((0.135, -0.295, 0.0), (0.075, 0.095, 0.045), fur, "b", rotation(0, 0, 16), 0.05,
                              (Decal("ellipse", 0, 0.05, 0.03, 0.055, PINK),))))
    if kind == "bunny":
        long = (Decal("ellipse", 0, 0.0, 0.026, 0.11, PINK),)
        return list(pair(ball((0.09, -0.385, 0.0), (0.055, 0.17, 0.04), fur, "b", rotation(0, 0, 10), long)))
    if kind == "mouse":
        big = (Decal("ellipse", 0, 0.0, 0.085, 0.085, PINK),)
        return list(pair(ball((0.19, -0.29, 0.01), (0.125, 0.125, 0.035), fur, "b", decals=big)))
    if kind == "dog":
        return list(pair(ball((0.205, -0.12, -0.02), (0.055, 0.14, 0.08), hsv(0.07, 0.6, 0.5), "b", rotation(0, 0, -14))))
    return list(pair(tube((0.13, -0.28, -0.03), (0.06, 0.065, 0.03), light, "b", rotation(0, 0, 24), 0.1)))


def robot(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    metal, dark = hsv(hue, rng.uniform(0.3, 0.6), 0.86), hsv(hue, 0.5, 0.42)
    glow = hsv(hue + rng.uniform(0.35, 0.65), 0.75, 1.0)
    screen = hsv(hue, 0.6, 0.2)
    width = rng.uniform(0.17, 0.21)
    face = (
        Decal("rect", 0, 0.0, 0.82 * width, 0.1, screen),
        Decal("ellipse", -0.075, -0.025, 0.035, 0.042, glow),
        Decal("ellipse", 0.075, -0.025, 0.035, 0.042, glow),
        Decal("smile", 0, 0.035, 0.06, 0.045, glow) if rng.random() < 0.6 else Decal("rect", 0, 0.06, 0.055, 0.012, glow),
    )
    chest = (
        Decal("rect", 0, -0.02, 0.1, 0.085, WHITE),
        Decal(("heart", "star")[int(rng.integers(2))], 0, -0.03, 0.05, 0.05, (0.9, 0.25, 0.25)),
        Decal("ellipse", -0.05, 0.1, 0.018, 0.018, glow), Decal("ellipse", 0.0, 0.1, 0.018, 0.018, ORANGE),
        Decal("ellipse", 0.05, 0.1, 0.018, 0.018, (0.3, 0.75, 0.4)),
    )
    return [
        box((0, 0.13, 0), (0.165, 0.165, 0.13), metal, "a", decals=chest),
        box((0, -0.2, 0), (width, 0.135, 0.14), metal, "a", decals=face),
        tube((0, -0.05, 0), (0.07, 0.03, 0.07), dark),
        tube((0, -0.37, 0), (0.012, 0.05, 0.012), dark),
        ball((0, -0.43, 0), 0.038, glow),
        *pair(tube((width + 0.02, -0.2, 0), (0.05, 0.025, 0.05), dark, rot=rotation(0, 0, 90))),
        *pair(tube((0.205, 0.12, 0), (0.042, 0.12, 0.042), dark, "b", rotation(0, 0, -10))),
        *pair(ball((0.23, 0.25, 0), 0.055, metal, "b")),
        *pair(tube((0.085, 0.345, 0), (0.05, 0.06, 0.05), dark, "b")),
        *pair(box((0.085, 0.42, -0.03), (0.068, 0.03, 0.1), metal, "b")),
    ]


def gnome(rng: np.random.Generator) -> list[Part]:
    hat = hsv(rng.random(), rng.uniform(0.6, 0.85), rng.uniform(0.65, 0.95))
    coat = hsv(rng.random(), rng.uniform(0.4, 0.7), rng.uniform(0.5, 0.8))
    beard = hsv(0.1, rng.choice([0.03, 0.35, 0.6]), 0.95)
    skin = (0.97, 0.78, 0.65)
    head, head_half = (0, -0.09, -0.01), (0.13, 0.12, 0.12)
    belt = (Decal("rect", 0, 0.045, 0.3, 0.03, BLACK), Decal("rect", 0, 0.045, 0.04, 0.04, (0.98, 0.8, 0.25)))
    return [
        tube((0, 0.17, 0), (0.21, 0.2, 0.19), coat, "a", taper=0.55, decals=belt),
        ball(head, head_half, skin, decals=(Decal("ellipse", -0.075, 0.02, 0.03, 0.022, PINK), Decal("ellipse", 0.075, 0.02, 0.03, 0.022, PINK))),
        tube((0, -0.3, 0), (0.165, 0.165, 0.16), hat, "b", taper=0.04),
        tube((0, -0.15, 0), (0.172, 0.025, 0.167), hsv(0.1, 0.05, 0.97), "b"),
        ball((0, 0.03, -0.1), (0.12, 0.14, 0.075), beard, decals=(Decal("smile", 0, -0.085, 0.035, 0.03, (0.75, 0.3, 0.3)),)),
        ball((0, -0.065, -0.15), 0.034, (0.95, 0.55, 0.45)),
        *eyes(head, head_half, 0.055, -0.015, 0.021),
        *pair(ball((0.19, 0.13, -0.06), (0.05, 0.12, 0.055), coat, "b", rotation(-30, 0, -30))),
        *pair(ball((0.215, 0.215, -0.13), 0.042, skin)),
        *pair(ball((0.09, 0.38, -0.07), (0.075, 0.055, 0.115), (0.36, 0.22, 0.15))),
    ]


def owl(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    plume, light, dark = hsv(hue, rng.uniform(0.3, 0.65), rng.uniform(0.6, 0.85)), hsv(hue, 0.12, 0.97), hsv(hue, 0.6, 0.5)
    center, half = (0, 0.03, 0), (0.235, 0.34, 0.2)
    specks = [Decal("smile", x, y, 0.028, 0.028, dark) for x, y in ((-0.07, 0.06), (0.0, 0.06), (0.07, 0.06), (-0.035, 0.12), (0.035, 0.12), (0, 0.18))]
    parts = [ball(center, half, plume, "a", decals=(Decal("ellipse", 0, 0.11, 0.145, 0.17, light), *specks))]
    for side in (-1, 1):
        spot = in_front(center, half, side * 0.085, -0.15, -0.02)
        disc = (Decal("ellipse", 0, 0, 0.062, 0.062, (0.99, 0.83, 0.25)), Decal("ellipse", 0, 0, 0.038, 0.038, BLACK),
                Decal("ellipse", -0.013, -0.015, 0.013, 0.013, WHITE))
        parts.append(ball(spot, (0.09, 0.09, 0.035), light, rot=rotation(14, 14 * side, 0), decals=disc))
    beak = in_front(center, half, 0, -0.085, 0.02)
    return parts + extra(rng, in_front(center, half, 0, -0.02, 0.01), (0, -0.29, 0)) + [
        tube(beak, (0.03, 0.05, 0.03), ORANGE, rot=rotation(150, 0, 0), taper=0.0),
        *pair(ball((0.22, 0.08, 0.0), (0.05, 0.2, 0.13), dark, "b", rotation(0, 0, 8))),
        *pair(tube((0.12, -0.31, -0.02), (0.05, 0.09, 0.035), dark, "b", rotation(0, 0, 24), 0.02)),
        *pair(ball((0.085, 0.36, -0.09), (0.06, 0.03, 0.08), ORANGE)),
    ]


def penguin(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    coat, beak = hsv(hue, 0.6, rng.uniform(0.45, 0.85)), ORANGE
    center, half = (0, 0.03, 0), (0.225, 0.36, 0.195)
    bib = (Decal("ellipse", 0, 0.1, 0.155, 0.23, WHITE), Decal("ellipse", -0.07, -0.13, 0.085, 0.1, WHITE), Decal("ellipse", 0.07, -0.13, 0.085, 0.1, WHITE),
           Decal("ellipse", -0.115, -0.06, 0.028, 0.02, PINK), Decal("ellipse", 0.115, -0.06, 0.028, 0.02, PINK))
    scarf = hsv(hue + rng.uniform(0.25, 0.75), 0.75, 0.9)
    return extra(rng, in_front(center, half, 0, 0.07), (0, -0.31, 0)) + [
        ball(center, half, coat, "a", decals=bib),
        ball((0, 0.03, -0.01), (0.232, 0.045, 0.202), scarf, "b"),
        box((0.09, 0.115, -0.195), (0.035, 0.075, 0.018), scarf, rot=rotation(-8, 0, 8)),
        *eyes(center, half, 0.07, -0.15, 0.03),
        tube(in_front(center, half, 0, -0.075, 0.025), (0.05, 0.045, 0.025), beak, rot=rotation(90, 0, 0), taper=0.1),
        *pair(ball((0.23, 0.08, 0), (0.04, 0.18, 0.09), coat, "b", rotation(0, 0, -18))),
        *pair(ball((0.09, 0.375, -0.1), (0.075, 0.03, 0.1), beak)),
    ]


def cottage(rng: np.random.Generator) -> list[Part]:
    wall, roof = hsv(rng.uniform(0.05, 0.16), rng.uniform(0.1, 0.35), 0.97), hsv(rng.random(), 0.65, 0.72)
    door, pane = hsv(rng.random(), 0.6, 0.55), hsv(0.55, 0.35, 0.95)
    front = [Decal("rect", 0, 0.1, 0.068, 0.13, door), Decal("ellipse", 0, -0.03, 0.068, 0.06, door), Decal("ellipse", 0.04, 0.09, 0.013, 0.013, (0.98, 0.8, 0.3))]
    for x in (-0.165, 0.165):
        front += [Decal("rect", x, 0.02, 0.057, 0.068, WHITE), Decal("rect", x, 0.02, 0.046, 0.057, pane),
                  Decal("rect", x, 0.02, 0.006, 0.057, WHITE), Decal("rect", x, 0.02, 0.046, 0.006, WHITE)]
    gable = (Decal("ellipse", 0, 0.045, 0.05, 0.05, WHITE), Decal("heart", 0, 0.045, 0.034, 0.034, (0.88, 0.25, 0.3)))
    shape = box if rng.random() < 0.5 else tube
    return [
        shape((0, 0.17, 0), (0.25, 0.23, 0.2), wall, "a", decals=tuple(front)),
        tube((0, -0.2, 0), (0.36, 0.16, 0.31), roof, "b", taper=0.08, decals=gable),
        box((0.17, -0.25, -0.02), (0.042, 0.1, 0.042), hsv(0.03, 0.5, 0.6)),
        box((0, 0.4, -0.2), (0.1, 0.022, 0.07), (0.72, 0.7, 0.68)),
    ]


def lantern(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    metal, paper = hsv(hue, 0.55, 0.45), hsv(rng.uniform(0.08, 0.15), 0.45, 1.0)
    badge = hsv(hue, 0.7, 0.75)
    center, half = (0, 0.03, 0), (0.25, 0.25, 0.22)
    sign = (Decal("ellipse", 0, 0.0, 0.125, 0.125, WHITE), Decal("star" if rng.random() < 0.5 else "heart", 0, 0.0, 0.1, 0.1, badge))
    return [
        ball(center, half, paper, "a", decals=sign),
        tube((0, 0.27, 0), (0.17, 0.045, 0.16), metal, "b", taper=0.75),
        tube((0, -0.23, 0), (0.19, 0.06, 0.18), metal, "b", taper=0.55),
        tube((0, -0.32, 0), (0.07, 0.04, 0.07), metal, "b"),
        *pair(box((0.055, -0.4, 0), (0.012, 0.055, 0.02), metal, rot=rotation(0, 0, -20))),
        box((0, -0.45, 0), (0.05, 0.014, 0.022), metal),
        *pair(ball((0.13, 0.33, -0.08), (0.045, 0.035, 0.045), metal)),
        tube((0, 0.37, 0), (0.02, 0.07, 0.02), badge, taper=0.4),
    ]


def mug(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    glaze, inside = hsv(hue, rng.uniform(0.4, 0.7), 0.9), (0.36, 0.2, 0.12)
    ink = hsv(hue, 0.7, 0.25)
    face = (Decal("ellipse", -0.095, -0.03, 0.03, 0.042, ink), Decal("ellipse", 0.095, -0.03, 0.03, 0.042, ink),
            Decal("ellipse", -0.103, -0.045, 0.011, 0.013, WHITE), Decal("ellipse", 0.087, -0.045, 0.011, 0.013, WHITE),
            Decal("smile", 0, 0.01, 0.05, 0.055, ink), Decal("ellipse", -0.15, 0.04, 0.035, 0.024, PINK), Decal("ellipse", 0.15, 0.04, 0.035, 0.024, PINK))
    side = 1 if rng.random() < 0.5 else -1
    handle = [tube((side * x, y, 0), (0.03, 0.065, 0.035), glaze, "b", rotation(0, 0, side * turn))
              for x, y, turn in ((0.285, -0.08, 105), (0.36, 0.03, 0), (0.285, 0.14, 75))]
    return [
        tube((0, 0.05, 0), (0.235, 0.26, 0.22), glaze, "a", decals=face),
        tube((0, -0.205, 0), (0.25, 0.025, 0.235), WHITE, "b"),
        tube((0, -0.222, 0), (0.21, 0.012, 0.2), inside),
        tube((0, 0.315, 0), (0.2, 0.025, 0.19), WHITE),
        ball((0.05, -0.25, -0.02), (0.09, 0.035, 0.08), (0.99, 0.96, 0.9)), ball((-0.06, -0.25, 0.0), (0.08, 0.03, 0.08), (0.99, 0.96, 0.9)),
        ball((-0.01, -0.285, 0.0), (0.055, 0.035, 0.055), (0.99, 0.96, 0.9)), ball((0.0, -0.33, 0.0), 0.033, (0.88, 0.2, 0.25)),
        *handle,
    ]


def snowman(rng: np.random.Generator) -> list[Part]:
    snow, scarf, hat = hsv(rng.random(), rng.uniform(0.02, 0.2), 0.98), hsv(rng.random(), 0.75, 0.85), hsv(rng.random(), 0.5, 0.3)
    head, head_half = (0, -0.17, 0), (0.15, 0.14, 0.14)
    button = [ball(in_front((0, 0.17, 0), (0.235, 0.215, 0.21), 0, y, -0.005), 0.02, BLACK) for y in (-0.08, 0.0, 0.08)]
    smile = (Decal("smile", 0, 0.02, 0.07, 0.06, BLACK), Decal("ellipse", -0.085, 0.03, 0.025, 0.018, PINK), Decal("ellipse", 0.085, 0.03, 0.025, 0.018, PINK))
    return [
        ball((0, 0.17, 0), (0.235, 0.215, 0.21), snow, "a", decals=()),
        ball(head, head_half, snow, "a", decals=smile), *button,
        ball((0, -0.035, 0), (0.145, 0.042, 0.135), scarf, "b"),
        box((-0.07, 0.055, -0.17), (0.033, 0.09, 0.02), scarf, rot=rotation(-20, 0, -10)),
        *eyes(head, head_half, 0.055, -0.03, 0.02),
        tube(in_front(head, head_half, 0, 0.0, 0.05), (0.028, 0.065, 0.028), ORANGE, rot=rotation(90, 0, 0), taper=0.05),
        tube((0, -0.285, 0), (0.18, 0.016, 0.17), hat, "b"),
        tube((0, -0.36, 0), (0.115, 0.075, 0.11), hat, "b", taper=0.92),
        tube((0, -0.315, 0), (0.121, 0.022, 0.116), scarf, "b"),
        *pair(tube((0.26, 0.08, -0.02), (0.016, 0.11, 0.016), (0.42, 0.27, 0.16), rot=rotation(0, 0, 60), taper=0.6)),
    ]


def mushroom(rng: np.random.Generator) -> list[Part]:
    cap = hsv(rng.random(), rng.uniform(0.55, 0.8), rng.uniform(0.7, 0.92))
    stem = hsv(rng.uniform(0.05, 0.16), rng.uniform(0.05, 0.25), 0.98)
    center, half = (0, 0.16, 0), (0.18, 0.25, 0.165)
    dots = [Decal("ellipse", x, y, r, 0.8 * r, WHITE) for x, y, r in ((0, -0.11, 0.065), (-0.18, -0.02, 0.055), (0.19, -0.03, 0.055), (0.02, 0.05, 0.04), (-0.1, -0.17, 0.03), (0.12, -0.16, 0.03))]
    face = (Decal("smile", 0, 0.02, 0.05, 0.05, (0.6, 0.2, 0.2)), Decal("ellipse", -0.105, 0.035, 0.032, 0.022, PINK), Decal("ellipse", 0.105, 0.035, 0.032, 0.022, PINK))
    dots = [dots[i] for i in rng.permutation(len(dots))[: int(rng.integers(3, 7))]]
    return [
        ball(center, half, stem, "a", decals=face),
        ball((0, -0.17, 0), (0.34, 0.22, 0.31), cap, "b", decals=dots),
        *eyes(center, half, 0.07, -0.015, 0.028),
        *pair(ball((0.175, 0.18, -0.06), (0.04, 0.085, 0.045), stem, "", rotation(-20, 0, -35))),
        *pair(ball((0.09, 0.39, -0.06), (0.07, 0.04, 0.09), hsv(0.08, 0.5, 0.55))),
    ]


def monster(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    skin, dark, iris = hsv(hue, 0.6, 0.85), hsv(hue, 0.7, 0.5), hsv(hue + rng.uniform(0.35, 0.65), 0.8, 0.8)
    center, half = (0, 0.06, 0), (0.265, 0.28, 0.215)
    mouth = [Decal("ellipse", 0, 0.115, 0.13, 0.06, (0.3, 0.08, 0.14)), Decal("ellipse", 0, 0.15, 0.07, 0.026, (0.93, 0.4, 0.45))]
    mouth += [Decal("rect", x, 0.078, 0.02, 0.018, WHITE) for x in (-0.06, 0.0, 0.06)]
    spot = in_front(center, half, 0, -0.07, -0.055)
    ring = (Decal("ellipse", 0, 0, 0.075, 0.075, iris), Decal("ellipse", 0, 0, 0.04, 0.04, BLACK), Decal("ellipse", -0.02, -0.025, 0.018, 0.018, WHITE))
    return extra(rng, in_front(center, half, 0, 0.23), (0, -0.2, 0)) + [
        ball(center, half, skin, "a", decals=tuple(mouth)),
        ball(spot, (0.125, 0.125, 0.085), WHITE, decals=ring),
        *pair(tube((0.15, -0.28, 0), (0.045, 0.11, 0.045), hsv(0.12, 0.3, 0.95), "b", rotation(0, 0, 22), 0.02)),
        *pair(ball((0.28, 0.1, -0.03), (0.05, 0.13, 0.055), skin, "b", rotation(-15, 0, -30))),
        *pair(ball((0.12, 0.36, -0.05), (0.085, 0.055, 0.105), dark, "b")),
    ]


def extra(rng: np.random.Generator, neck, top) -> list[Part]:
    """A bow at the neck, a party hat or a flower on the head, or nothing."""
    color = hsv(rng.random(), 0.75, 0.9)
    kind = int(rng.integers(4))
    if kind == 0:
        x, y, z = neck
        return [*pair(ball((x + 0.05, y, z), (0.052, 0.036, 0.025), color, rot=rotation(0, 0, -14))), ball((x, y, z - 0.012), 0.02, color)]
    if kind == 1:
        x, y, z = top
        dots = (Decal("ellipse", -0.01, 0.04, 0.016, 0.016, WHITE), Decal("ellipse", 0.03, 0.02, 0.014, 0.014, WHITE))
        return [tube((x, y - 0.055, z), (0.065, 0.075, 0.065), color, taper=0.05, decals=dots), ball((x, y - 0.135, z), 0.024, WHITE)]
    if kind == 2:
        x, y, z = top
        x, y, z = x + 0.09, y + 0.035, z - 0.1
        petals = [ball((x + 0.033 * math.cos(a), y + 0.033 * math.sin(a), z), 0.023, color) for a in np.arange(5) * 0.4 * math.pi]
        return [*petals, ball((x, y, z - 0.015), 0.02, (0.99, 0.83, 0.25))]
    return []


BUILDERS = {
    **{kind: (lambda rng, kind=kind: plush(rng, kind)) for kind in ("bear", "cat", "bunny", "mouse", "dog", "pig")},
    "robot": robot, "gnome": gnome, "owl": owl, "penguin": penguin, "cottage": cottage, "lantern": lantern,
    "mug": mug, "snowman": snowman, "mushroom": mushroom, "monster": monster,
}
