"""Fronts of the demo things: robots, cottages, lanterns, mugs and mushrooms, each with a face, a door or a badge.

The rules for builders are those of creatures.py.
"""

from __future__ import annotations

import numpy as np

from .shapes import Decal, Part, rotation
from .toy_parts import ORANGE, PINK, WHITE, ball, box, eyes, hsv, pair, tube


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
        Decal("smile", 0, 0.035, 0.06, 0.045, glow)
        if rng.random() < 0.6
        else Decal("rect", 0, 0.06, 0.055, 0.012, glow),
    )
    chest = (
        Decal("rect", 0, -0.02, 0.1, 0.085, WHITE),
        Decal(("heart", "star")[int(rng.integers(2))], 0, -0.03, 0.05, 0.05, (0.9, 0.25, 0.25)),
        Decal("ellipse", -0.05, 0.1, 0.018, 0.018, glow),
        Decal("ellipse", 0.0, 0.1, 0.018, 0.018, ORANGE),
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


def cottage(rng: np.random.Generator) -> list[Part]:
    wall, roof = hsv(rng.uniform(0.05, 0.16), rng.uniform(0.1, 0.35), 0.97), hsv(rng.random(), 0.65, 0.72)
    door, pane = hsv(rng.random(), 0.6, 0.55), hsv(0.55, 0.35, 0.95)
    front = [
        Decal("rect", 0, 0.1, 0.068, 0.13, door),
        Decal("ellipse", 0, -0.03, 0.068, 0.06, door),
        Decal("ellipse", 0.04, 0.09, 0.013, 0.013, (0.98, 0.8, 0.3)),
    ]
    for x in (-0.165, 0.165):
        front += [
            Decal("rect", x, 0.02, 0.057, 0.068, WHITE),
            Decal("rect", x, 0.02, 0.046, 0.057, pane),
            Decal("rect", x, 0.02, 0.006, 0.057, WHITE),
            Decal("rect", x, 0.02, 0.046, 0.006, WHITE),
        ]
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
    sign = (
        Decal("ellipse", 0, 0.0, 0.125, 0.125, WHITE),
        Decal("star" if rng.random() < 0.5 else "heart", 0, 0.0, 0.1, 0.1, badge),
    )
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
    face = (
        Decal("ellipse", -0.095, -0.03, 0.03, 0.042, ink),
        Decal("ellipse", 0.095, -0.03, 0.03, 0.042, ink),
        Decal("ellipse", -0.103, -0.045, 0.011, 0.013, WHITE),
        Decal("ellipse", 0.087, -0.045, 0.011, 0.013, WHITE),
        Decal("smile", 0, 0.01, 0.05, 0.055, ink),
        Decal("ellipse", -0.15, 0.04, 0.035, 0.024, PINK),
        Decal("ellipse", 0.15, 0.04, 0.035, 0.024, PINK),
    )
    side = 1 if rng.random() < 0.5 else -1
    handle = [
        tube((side * x, y, 0), (0.03, 0.065, 0.035), glaze, "b", rotation(0, 0, side * turn))
        for x, y, turn in ((0.285, -0.08, 105), (0.36, 0.03, 0), (0.285, 0.14, 75))
    ]
    return [
        tube((0, 0.05, 0), (0.235, 0.26, 0.22), glaze, "a", decals=face),
        tube((0, -0.205, 0), (0.25, 0.025, 0.235), WHITE, "b"),
        tube((0, -0.222, 0), (0.21, 0.012, 0.2), inside),
        tube((0, 0.315, 0), (0.2, 0.025, 0.19), WHITE),
        ball((0.05, -0.25, -0.02), (0.09, 0.035, 0.08), (0.99, 0.96, 0.9)),
        ball((-0.06, -0.25, 0.0), (0.08, 0.03, 0.08), (0.99, 0.96, 0.9)),
        ball((-0.01, -0.285, 0.0), (0.055, 0.035, 0.055), (0.99, 0.96, 0.9)),
        ball((0.0, -0.33, 0.0), 0.033, (0.88, 0.2, 0.25)),
        *handle,
    ]


def mushroom(rng: np.random.Generator) -> list[Part]:
    cap = hsv(rng.random(), rng.uniform(0.55, 0.8), rng.uniform(0.7, 0.92))
    stem = hsv(rng.uniform(0.05, 0.16), rng.uniform(0.05, 0.25), 0.98)
    center, half = (0, 0.16, 0), (0.18, 0.25, 0.165)
    dots = [
        Decal("ellipse", x, y, r, 0.8 * r, WHITE)
        for x, y, r in (
            (0, -0.11, 0.065),
            (-0.18, -0.02, 0.055),
            (0.19, -0.03, 0.055),
            (0.02, 0.05, 0.04),
            (-0.1, -0.17, 0.03),
            (0.12, -0.16, 0.03),
        )
    ]
    face = (
        Decal("smile", 0, 0.02, 0.05, 0.05, (0.6, 0.2, 0.2)),
        Decal("ellipse", -0.105, 0.035, 0.032, 0.022, PINK),
        Decal("ellipse", 0.105, 0.035, 0.032, 0.022, PINK),
    )
    dots = [dots[i] for i in rng.permutation(len(dots))[: int(rng.integers(3, 7))]]
    return [
        ball(center, half, stem, "a", decals=face),
        ball((0, -0.17, 0), (0.34, 0.22, 0.31), cap, "b", decals=dots),
        *eyes(center, half, 0.07, -0.015, 0.028),
        *pair(ball((0.175, 0.18, -0.06), (0.04, 0.085, 0.045), stem, "", rotation(-20, 0, -35))),
        *pair(ball((0.09, 0.39, -0.06), (0.07, 0.04, 0.09), hsv(0.08, 0.5, 0.55))),
    ]
