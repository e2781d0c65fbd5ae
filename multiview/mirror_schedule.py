"""How hard MIRROR pulls at each moment of sampling: eta, the fraction of the way toward the neighbours.

eta = 2 s(t) S^2 turns the paper's rectification scale into a blend (references.md 5.3); S is the noise-to-signal
ratio, sigma for eps, v and EDM models and sigma / (1 - sigma) for flow models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# s(t) of Eq. 31 (SyncDreamer, MVD-Fusion) and Eq. 32 (VideoMV): value on (from, to], t = steps left of 50.
TABLES = {
    "eq31": ((0, 10, 0.001), (10, 20, 0.003), (20, 30, 0.005), (30, 40, 0.008), (40, 45, 0.002)),
    "eq32": ((0, 10, 0.003), (10, 20, 0.008), (20, 30, 0.015), (30, 40, 0.024), (40, 45, 0.005)),
}
PAPER_STEPS = 50


def noise_ratio(sigma: float, flow: bool = False) -> float:
    """S = noise / signal: sigma itself, or sigma / (1 - sigma) for flow models (infinite at 1)."""
    if not sigma >= 0 or (flow and sigma > 1):
        raise ValueError(f"sigma must be 0 or more{' and at most 1 for flow models' if flow else ''}, got {sigma}.")
    if not flow:
        return float(sigma)
    return math.inf if sigma >= 1 else sigma / (1.0 - sigma)


def paper_scale(t: float, table: str) -> float:
    """s(t) of Eq. 31 or 32 for t in (0, 50]: t = 50 is the first sampling step, t = 1 the last; 0 above 45."""
    if table not in TABLES:
        raise ValueError(f"There is no schedule '{table}'; choose one of: {', '.join(TABLES)}.")
    return next((value for low, high, value in TABLES[table] if low < t <= high), 0.0)


def paper_eta(step: int, steps: int, ratio: float, table: str = "eq31") -> float:
    """eta of the paper's schedule at sampling step `step` (0 = first) of `steps`, at noise ratio S.

    Other numbers of steps than the paper's 50 are read proportionally. Clamped to [0,1] (Eq. 32 overshoots at t = 40).
    """
    if not 0 <= step < steps:
        raise ValueError(f"The step must lie between 0 and {steps - 1}, got {step}.")
    scale = paper_scale(PAPER_STEPS * (steps - step) / steps, table)
    return 0.0 if scale == 0 else min(1.0, 2.0 * scale * ratio * ratio)


def progress_eta(progress: float, peak: float, start: float = 0.0, end: float = 1.0) -> float:
    """The peak between two fractions of the sampling steps, 0 outside."""
    return peak if start <= progress <= end else 0.0


def window_eta(ratio: float, peak: float, start: float, end: float, softness: float = 1.0) -> float:
    """The peak while the noise ratio falls from `start` to `end`, with smooth edges, 0 far from there.

    softness: width of the raised-cosine edges in natural log units of the ratio, centred on start and end; 0 = sharp.
    Depends on the noise level only, so it acts the same whatever the steps are. end 0 = to the last step.
    """
    if not (start > end >= 0):
        raise ValueError(f"The window must start at more noise than it ends, got start {start} and end {end}.")
    if ratio <= 0:
        return peak if end == 0 else 0.0
    return peak * _rise(math.log(start) - _log(ratio), softness) * _rise(_log(ratio) - _log(end), softness)


def decision_window(ratios: Sequence[float], changes: Sequence[float], keep: float = 0.9) -> tuple[float, float]:
    """The noise ratios (start, end) between which a model decides what to draw.

    ratios: falling S of the sampling steps; changes: how much the clean prediction changed (any additive measure, such
    as the mean squared difference) from each step to the next. Cuts equal shares of what is not kept off both ends.
    """
    if len(changes) != len(ratios) - 1 or not len(changes):
        raise ValueError(
            f"There are {len(ratios)} noise levels but {len(changes)} changes between them; one fewer fits."
        )
    total = sum(changes)
    if not (math.isfinite(total) and total > 0) or min(changes) < 0:
        raise ValueError("The changes must be 0 or more, finite and not all 0.")
    tail = (1.0 - keep) / 2 * total
    first = last = 0
    running = 0.0
    for i, change in enumerate(changes):
        if running <= tail:
            first = i
        if running < total - tail:
            last = i + 1
        running += change
    return float(ratios[first]), float(ratios[last])


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _rise(distance: float, softness: float) -> float:
    """0 well before the edge, 1 well after it, 1/2 on it."""
    if softness <= 0 or math.isinf(distance):
        return 1.0 if distance >= 0 else 0.0
    along = min(max(distance / softness + 0.5, 0.0), 1.0)
    return 0.5 - 0.5 * math.cos(math.pi * along)
