"""Means with bootstrap confidence intervals, for tables over many view sets. numpy only, deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(values: Sequence[float], samples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of values (n,) with its percentile bootstrap interval (Efron 1979).

    samples: resamplings with replacement; level: share of them inside the interval. One value has no spread: low and
    high are then that value. ValueError for no values, NaN or infinity, and impossible settings.
    """
    data = _checked(values, samples, level)
    if len(data) == 1:
        return Interval(float(data[0]), float(data[0]), float(data[0]))
    generator = np.random.default_rng(seed)
    # Drawn a slice at a time: n may be in the thousands.
    means = np.concatenate(
        [
            data[generator.integers(0, len(data), (min(500, samples - start), len(data)))].mean(1)
            for start in range(0, samples, 500)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high))


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean of second - first (both (n,), the same cases in the same order) with its interval.

    An interval clear of zero is a difference at that level. Errors as for bootstrap.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"A paired difference needs the same cases on both sides, got {first.shape} and {second.shape} values."
        )
    return bootstrap(second - first, samples, seed, level)


def _checked(values: Sequence[float], samples: int, level: float) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data):
        raise ValueError(f"A bootstrap needs a list of at least one number, got an array of shape {data.shape}.")
    if not np.isfinite(data).all():
        raise ValueError(
            f"{int((~np.isfinite(data)).sum())} of the {len(data)} values are NaN or infinite; leave them out or cap "
            "them before averaging."
        )
    if samples < 1:
        raise ValueError(f"The number of resamplings must be at least 1, got {samples}.")
    if not 0 < level < 1:
        raise ValueError(f"The confidence level must lie between 0 and 1, got {level}.")
    return data
