"""Which noise levels an inversion goes through, from the levels of the schedule that will sample again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Levels closer than this, relatively, are one: what a user types stands for the schedule's level beside it.
SAME = 1e-4


@dataclass(frozen=True)
class Levels:
    """rising: from where the latent stands to where the inversion stops. falling: from there to 0, to sample with.

    step: which step of the schedule starts at the top level; None if it lies between two of its levels.
    """

    rising: tuple[float, ...]
    falling: tuple[float, ...]
    step: int | None


def plan(schedule: Sequence[float], start: float = 0.0, stop_step: int = 0, stop_sigma: float = 0.0) -> Levels:
    """schedule: falling levels, with or without the 0 at its end.

    start: the level at which the latent stands; put between the others where the schedule lacks it.
    stop_step: leave out that many of the noisiest steps. stop_sigma: if above 0, stop at this level instead.
    ValueError in one sentence for levels that do not fall, and for a stop that is not above the start.
    """
    levels = [float(s) for s in schedule]
    shown = [round(s, 4) for s in levels][:6]
    if not levels or not all(math.isfinite(s) and s >= 0 for s in levels) or not any(levels):
        raise ValueError(f"Sigmas must be finite numbers of 0 or more with one above 0 among them, got {shown}.")
    if any(high <= low for high, low in pairwise(levels)):
        raise ValueError(f"Sigmas must fall from each to the next, as samplers use them, got {shown}; reverse them.")
    if levels[-1] > 0:
        levels.append(0.0)
    top, step = _top(levels, stop_step, stop_sigma)
    start = next((s for s in levels if _same(s, start)), start)
    if not 0 <= start < top:
        raise ValueError(
            f"The latent stands at sigma {start:.4g}, which is not between 0 and the level {top:.4g} at which the "
            "inversion stops; lower the start or stop later."
        )
    falling = sorted({top, start, *(s for s in levels if s < top)}, reverse=True)
    rising = tuple(s for s in reversed(falling) if s >= start)
    return Levels(rising, tuple(falling), step)


def _top(levels: list[float], stop_step: int, stop_sigma: float) -> tuple[float, int | None]:
    if stop_sigma <= 0:
        if not 0 <= stop_step < len(levels) - 1:
            raise ValueError(
                f"The schedule has {len(levels) - 1} steps, so the inversion cannot stop at step {stop_step}; lower it."
            )
        return levels[stop_step], stop_step
    for i, level in enumerate(levels[:-1]):
        if _same(level, stop_sigma):
            return level, i
    if stop_sigma > levels[0]:
        raise ValueError(
            f"The inversion cannot stop at sigma {stop_sigma:.4g}, as the schedule begins at {levels[0]:.4g}; lower it."
        )
    return stop_sigma, None


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME)
