"""Renoise-restart (IM-3D, section 3.4): noise on finished views, and the part of the schedule that takes it off again.

Noise levels sigma are the host's: x = x0 + sigma * noise for eps, v and EDM models (which scale x by
1 / sqrt(1 + sigma^2) themselves: the paper's sqrt(1 - s^2) J + s noise), x = (1 - sigma) x0 + sigma * noise for flow
models. The paper does not give the level at which it restarts (references.md 8.4); docs/im3d.md measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

# How a restart is said: share of the schedule's steps that are still to come, or noise level.
RESTARTS = ("fraction", "sigma")
# Levels closer than this, relatively, are one: what a user types stands for the schedule's level beside it.
SAME = 1e-4


def remaining(schedule: Sequence[float], restart: str, value: float) -> tuple[float, ...]:
    """Falling noise levels from the restart to the schedule's end; empty where nothing is left to do.

    schedule: falling levels >= 0. restart "fraction": `value` in [0,1] of the steps, rounded up to a whole step (1 =
    all of them). "sigma": from the level `value`, which is put before the schedule's lower ones if it lies between two.
    Value 0 gives an empty tuple. ValueError in one sentence for a schedule that does not fall and a restart outside it.
    """
    if restart not in RESTARTS:
        raise ValueError(f"The restart must be one of {', '.join(RESTARTS)}, got {restart!r}.")
    levels = _checked(schedule)
    if restart == "fraction":
        if not 0 <= value <= 1:
            raise ValueError(
                f"A restart given as a fraction of the schedule must lie between 0 and 1, got {value:g}; for a noise "
                "level, set restart to 'sigma'."
            )
        steps = len(levels) - 1
        left = math.ceil(value * steps - 1e-6)
        return tuple(levels[steps - left :]) if left else ()
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"The restart's noise level must be a number of 0 or more, got {value:g}.")
    if value == 0:
        return ()
    value = next((level for level in levels if math.isclose(level, value, rel_tol=SAME)), value)
    if not levels[-1] < value <= levels[0]:
        raise ValueError(
            f"The restart at sigma {value:.4g} lies outside the schedule, which goes from {levels[0]:.4g} to "
            f"{levels[-1]:.4g}; choose a level inside it or connect another schedule."
        )
    return (value, *(level for level in levels if level < value))


def round_values(text: str, rounds: int) -> tuple[float, ...]:
    """The restart of each of `rounds` rounds from a list such as "0.4, 0.25"; the last one counts for all that follow.

    ValueError for text that holds no numbers and for fewer than one round. Whether a number is possible depends on the
    schedule: see `remaining`.
    """
    if rounds < 1:
        raise ValueError(f"The number of rounds must be at least 1, got {rounds}.")
    parts = [part for part in text.replace(";", ",").replace(",", " ").split() if part]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"The restart values must be numbers with commas between them, as 0.4, 0.25; got {text!r}.")
    return tuple(values[min(i, len(values) - 1)] for i in range(rounds))


def noised(clean: Tensor, noise: Tensor, sigma: float, flow: bool = False) -> Tensor:
    """Clean data with unit noise of the same shape at level sigma, as samplers expect it (see the module)."""
    return (1.0 - sigma) * clean + sigma * noise if flow else clean + sigma * noise


def _checked(schedule: Sequence[float]) -> list[float]:
    levels = [float(level) for level in schedule]
    shown = [round(level, 4) for level in levels][:6]
    if len(levels) < 2 or not all(math.isfinite(level) and level >= 0 for level in levels):
        raise ValueError(f"The sigmas must be at least two finite numbers of 0 or more, got {shown}.")
    if any(high <= low for high, low in pairwise(levels)):
        raise ValueError(f"Sigmas must fall from each to the next, as samplers use them, got {shown}; reverse them.")
    return levels
