"""Fronts of the demo creatures: plush animals, gnomes, owls, penguins, snowmen and monsters, each with a face.

Every builder takes a numpy Generator and returns parts in a frame about one unit tall (y down, the front faces -z).
Parts with role "a" or "b" get a variant's first or second colour on their rear cap; see objects.py.
"""

from __future__ import annotations

import numpy as np

from .shapes import Decal, Part, rotation
from .toy_parts import BLACK, ORANGE, PINK, WHITE, ball, box, extra, eyes, hsv, in_front, pair, tube


def plush(rng: np.random.Generator, kind: str) -> list[Part]:
    hue = {"bear": 0.07, "cat": 0.09, "bunny": 0.92, "mouse": 0.6, "dog": 0.1, "pig": 0.96}[kind] + rng.uniform(
        -0.04, 0.04
    )
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
        ball(
            head,
            head_half,
            fur,
            "a",
            decals=(
                Decal("ellipse", -0.125, 0.06, 0.038, 0.026, PINK),
                Decal("ellipse", 0.125, 0.06, 0.038, 0.026, PINK),
            ),
        ),
        *pair(ball((0.185, 0.13, -0.06), (0.06, 0.125, 0.06), fur, "b", rotation(-25, 0, -32))),
        *pair(
            ball(
                (0.115, 0.33, -0.09),
                (0.08, 0.075, 0.1),
                fur,
                "b",
                decals=(Decal("ellipse", 0, 0, 0.045, 0.045, light),),
            )
        ),
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
        return list(
            pair(
                tube(
                    (0.135, -0.295, 0.0),
                    (0.075, 0.095, 0.045),
                    fur,
                    "b",
                    rotation(0, 0, 16),
                    0.05,
                    (Decal("ellipse", 0, 0.05, 0.03, 0.055, PINK),),
                )
            )
        )
    if kind == "bunny":
        long = (Decal("ellipse", 0, 0.0, 0.026, 0.11, PINK),)
        return list(pair(ball((0.09, -0.385, 0.0), (0.055, 0.17, 0.04), fur, "b", rotation(0, 0, 10), long)))
    if kind == "mouse":
        big = (Decal("ellipse", 0, 0.0, 0.085, 0.085, PINK),)
        return list(pair(ball((0.19, -0.29, 0.01), (0.125, 0.125, 0.035), fur, "b", decals=big)))
    if kind == "dog":
        return list(
            pair(ball((0.205, -0.12, -0.02), (0.055, 0.14, 0.08), hsv(0.07, 0.6, 0.5), "b", rotation(0, 0, -14)))
        )
    return list(pair(tube((0.13, -0.28, -0.03), (0.06, 0.065, 0.03), light, "b", rotation(0, 0, 24), 0.1)))


def gnome(rng: np.random.Generator) -> list[Part]:
    hat = hsv(rng.random(), rng.uniform(0.6, 0.85), rng.uniform(0.65, 0.95))
    coat = hsv(rng.random(), rng.uniform(0.4, 0.7), rng.uniform(0.5, 0.8))
    beard = hsv(0.1, rng.choice([0.03, 0.35, 0.6]), 0.95)
    skin = (0.97, 0.78, 0.65)
    head, head_half = (0, -0.09, -0.01), (0.13, 0.12, 0.12)
    belt = (Decal("rect", 0, 0.045, 0.3, 0.03, BLACK), Decal("rect", 0, 0.045, 0.04, 0.04, (0.98, 0.8, 0.25)))
    return [
        tube((0, 0.17, 0), (0.21, 0.2, 0.19), coat, "a", taper=0.55, decals=belt),
        ball(
            head,
            head_half,
            skin,
            decals=(
                Decal("ellipse", -0.075, 0.02, 0.03, 0.022, PINK),
                Decal("ellipse", 0.075, 0.02, 0.03, 0.022, PINK),
            ),
        ),
        tube((0, -0.3, 0), (0.165, 0.165, 0.16), hat, "b", taper=0.04),
        tube((0, -0.15, 0), (0.172, 0.025, 0.167), hsv(0.1, 0.05, 0.97), "b"),
        ball(
            (0, 0.03, -0.1),
            (0.12, 0.14, 0.075),
            beard,
            decals=(Decal("smile", 0, -0.085, 0.035, 0.03, (0.75, 0.3, 0.3)),),
        ),
        ball((0, -0.065, -0.15), 0.034, (0.95, 0.55, 0.45)),
        *eyes(head, head_half, 0.055, -0.015, 0.021),
        *pair(ball((0.19, 0.13, -0.06), (0.05, 0.12, 0.055), coat, "b", rotation(-30, 0, -30))),
        *pair(ball((0.215, 0.215, -0.13), 0.042, skin)),
        *pair(ball((0.09, 0.38, -0.07), (0.075, 0.055, 0.115), (0.36, 0.22, 0.15))),
    ]


def owl(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    plume, light, dark = (
        hsv(hue, rng.uniform(0.3, 0.65), rng.uniform(0.6, 0.85)),
        hsv(hue, 0.12, 0.97),
        hsv(hue, 0.6, 0.5),
    )
    center, half = (0, 0.03, 0), (0.235, 0.34, 0.2)
    specks = [
        Decal("smile", x, y, 0.028, 0.028, dark)
        for x, y in ((-0.07, 0.06), (0.0, 0.06), (0.07, 0.06), (-0.035, 0.12), (0.035, 0.12), (0, 0.18))
    ]
    parts = [ball(center, half, plume, "a", decals=(Decal("ellipse", 0, 0.11, 0.145, 0.17, light), *specks))]
    for side in (-1, 1):
        spot = in_front(center, half, side * 0.085, -0.15, -0.02)
        disc = (
            Decal("ellipse", 0, 0, 0.062, 0.062, (0.99, 0.83, 0.25)),
            Decal("ellipse", 0, 0, 0.038, 0.038, BLACK),
            Decal("ellipse", -0.013, -0.015, 0.013, 0.013, WHITE),
        )
        parts.append(ball(spot, (0.09, 0.09, 0.035), light, rot=rotation(14, 14 * side, 0), decals=disc))
    beak = in_front(center, half, 0, -0.085, 0.02)
    return (
        parts
        + extra(rng, in_front(center, half, 0, -0.02, 0.01), (0, -0.29, 0))
        + [
            tube(beak, (0.03, 0.05, 0.03), ORANGE, rot=rotation(150, 0, 0), taper=0.0),
            *pair(ball((0.22, 0.08, 0.0), (0.05, 0.2, 0.13), dark, "b", rotation(0, 0, 8))),
            *pair(tube((0.12, -0.31, -0.02), (0.05, 0.09, 0.035), dark, "b", rotation(0, 0, 24), 0.02)),
            *pair(ball((0.085, 0.36, -0.09), (0.06, 0.03, 0.08), ORANGE)),
        ]
    )


def penguin(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    coat, beak = hsv(hue, 0.6, rng.uniform(0.45, 0.85)), ORANGE
    center, half = (0, 0.03, 0), (0.225, 0.36, 0.195)
    bib = (
        Decal("ellipse", 0, 0.1, 0.155, 0.23, WHITE),
        Decal("ellipse", -0.07, -0.13, 0.085, 0.1, WHITE),
        Decal("ellipse", 0.07, -0.13, 0.085, 0.1, WHITE),
        Decal("ellipse", -0.115, -0.06, 0.028, 0.02, PINK),
        Decal("ellipse", 0.115, -0.06, 0.028, 0.02, PINK),
    )
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


def snowman(rng: np.random.Generator) -> list[Part]:
    snow, scarf, hat = (
        hsv(rng.random(), rng.uniform(0.02, 0.2), 0.98),
        hsv(rng.random(), 0.75, 0.85),
        hsv(rng.random(), 0.5, 0.3),
    )
    head, head_half = (0, -0.17, 0), (0.15, 0.14, 0.14)
    button = [ball(in_front((0, 0.17, 0), (0.235, 0.215, 0.21), 0, y, -0.005), 0.02, BLACK) for y in (-0.08, 0.0, 0.08)]
    smile = (
        Decal("smile", 0, 0.02, 0.07, 0.06, BLACK),
        Decal("ellipse", -0.085, 0.03, 0.025, 0.018, PINK),
        Decal("ellipse", 0.085, 0.03, 0.025, 0.018, PINK),
    )
    return [
        ball((0, 0.17, 0), (0.235, 0.215, 0.21), snow, "a", decals=()),
        ball(head, head_half, snow, "a", decals=smile),
        *button,
        ball((0, -0.035, 0), (0.145, 0.042, 0.135), scarf, "b"),
        box((-0.07, 0.055, -0.17), (0.033, 0.09, 0.02), scarf, rot=rotation(-20, 0, -10)),
        *eyes(head, head_half, 0.055, -0.03, 0.02),
        tube(
            in_front(head, head_half, 0, 0.0, 0.05), (0.028, 0.065, 0.028), ORANGE, rot=rotation(90, 0, 0), taper=0.05
        ),
        tube((0, -0.285, 0), (0.18, 0.016, 0.17), hat, "b"),
        tube((0, -0.36, 0), (0.115, 0.075, 0.11), hat, "b", taper=0.92),
        tube((0, -0.315, 0), (0.121, 0.022, 0.116), scarf, "b"),
        *pair(tube((0.26, 0.08, -0.02), (0.016, 0.11, 0.016), (0.42, 0.27, 0.16), rot=rotation(0, 0, 60), taper=0.6)),
    ]


def monster(rng: np.random.Generator) -> list[Part]:
    hue = rng.random()
    skin, dark, iris = hsv(hue, 0.6, 0.85), hsv(hue, 0.7, 0.5), hsv(hue + rng.uniform(0.35, 0.65), 0.8, 0.8)
    center, half = (0, 0.06, 0), (0.265, 0.28, 0.215)
    mouth = [
        Decal("ellipse", 0, 0.115, 0.13, 0.06, (0.3, 0.08, 0.14)),
        Decal("ellipse", 0, 0.15, 0.07, 0.026, (0.93, 0.4, 0.45)),
    ]
    mouth += [Decal("rect", x, 0.078, 0.02, 0.018, WHITE) for x in (-0.06, 0.0, 0.06)]
    spot = in_front(center, half, 0, -0.07, -0.055)
    ring = (
        Decal("ellipse", 0, 0, 0.075, 0.075, iris),
        Decal("ellipse", 0, 0, 0.04, 0.04, BLACK),
        Decal("ellipse", -0.02, -0.025, 0.018, 0.018, WHITE),
    )
    return extra(rng, in_front(center, half, 0, 0.23), (0, -0.2, 0)) + [
        ball(center, half, skin, "a", decals=tuple(mouth)),
        ball(spot, (0.125, 0.125, 0.085), WHITE, decals=ring),
        *pair(tube((0.15, -0.28, 0), (0.045, 0.11, 0.045), hsv(0.12, 0.3, 0.95), "b", rotation(0, 0, 22), 0.02)),
        *pair(ball((0.28, 0.1, -0.03), (0.05, 0.13, 0.055), skin, "b", rotation(-15, 0, -30))),
        *pair(ball((0.12, 0.36, -0.05), (0.085, 0.055, 0.105), dark, "b")),
    ]
