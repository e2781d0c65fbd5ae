"""HarmonyView's guidance: one scale for faithfulness to the input picture, one for diversity (references.md 1.1).

The model's prediction for a view depends on the reference r (input picture and pose) and on the other noisy views
x^(1:N). Three predictions are combined (paper, Eq. 7):

    guided = c + s1 (c - views_only) + s2 (c - reference_only)

c sees both. views_only, eps(x^(n); x^(1:N)) of the paper, does not see the reference; it stands for the implicit
classifier p(r | x^(n), x^(1:N)) of Eq. 5: s1 asks for views that fit the input. reference_only, eps(x^(n); r), does
not see the other views; it stands for p(x^(1:N) | x^(n), r) of Eq. 6: s2 asks for views that fit each other.
The weights sum to 1, so that the same formula holds for eps, v and x0 predictions alike.

Special cases: s2 = 0 is classifier-free guidance with scale 1 + s1; s1 = s2 = 0 is the plain conditional model.
The paper's baseline (Eq. 3, SyncDreamer's guidance) is c + s (c - neither), where `neither` sees no reference and no
other views.
"""

from __future__ import annotations

import math

from torch import Tensor

SCHEDULES = ("constant", "falling", "rising")


def combine(cond: Tensor, views_only: Tensor | None, reference_only: Tensor | None, s1: float, s2: float) -> Tensor:
    """Eq. 7. All tensors of one shape; a prediction whose scale is 0 may be None. ValueError for scales below 0.

    cond is returned itself if both scales are 0.
    """
    _check_scales(s1, s2)
    out = cond
    for scale, without in ((s1, views_only), (s2, reference_only)):
        if scale:
            out = out + scale * (cond - without)
    return out


def as_negative(
    views_only: Tensor | None, reference_only: Tensor | None, s1: float, s2: float
) -> tuple[Tensor | None, float]:
    """Eq. 7 as ordinary guidance, for hosts that know no other: (negative, scale) with
    negative + scale (cond - negative) = combine(cond, views_only, reference_only, s1, s2).

    negative = (s1 views_only + s2 reference_only) / (s1 + s2), scale = 1 + s1 + s2; (None, 1) if both scales are 0.
    """
    _check_scales(s1, s2)
    parts = [(s, p) for s, p in ((s1, views_only), (s2, reference_only)) if s]
    if len(parts) < 2:
        return (parts[0][1] if parts else None), 1.0 + s1 + s2
    return views_only + (s2 / (s1 + s2)) * (reference_only - views_only), 1.0 + s1 + s2


def baseline(cond: Tensor, neither: Tensor, s: float) -> Tensor:
    """Eq. 3: one unconditional that sees neither the reference nor the other views. s = 0: cond."""
    return cond + s * (cond - neither)


def scale_at(scale: float, progress: float, schedule: str = "constant", start: float = 0.0, end: float = 1.0) -> float:
    """The scale at a point of the sampling, 0 outside of start <= progress <= end.

    progress, start, end: 0 = first step, pure noise; 1 = last, clean. falling: linearly from `scale` at `start` to 0
    at `end`; rising: the other way round. The paper knows only constant scales over the whole sampling.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"The schedule must be one of {', '.join(SCHEDULES)}, got '{schedule}'.")
    if not start <= progress <= end:
        return 0.0
    if schedule == "constant":
        return scale
    done = (progress - start) / (end - start) if end > start else 0.0
    return scale * (done if schedule == "rising" else 1.0 - done)


def check_range(start: float, end: float) -> None:
    """ValueError unless 0 <= start <= end <= 1."""
    if not 0 <= start <= end <= 1:
        raise ValueError(
            f"The guidance must start before it ends, both between 0 and 1, got start {start:g} and end {end:g}."
        )


def _check_scales(s1: float, s2: float) -> None:
    if not (math.isfinite(s1) and math.isfinite(s2) and s1 >= 0 and s2 >= 0):
        raise ValueError(f"The scales s1 and s2 must be 0 or more, got {s1:g} and {s2:g}.")
