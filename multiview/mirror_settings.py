"""Everything MIRROR's node lets people choose, and what it means for one sampling step.

Three parts: when and how hard to pull (Eq. 31 and 32 by step index, or a window of noise levels), what to pull toward
(MirrorOptions, neighbours and their weights), and how views are matched. The presets are at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .cameras import Cameras
from .checks import check_view_count
from .correspondence import Correspondence, track
from .depth import DepthMaps
from .mirror import MirrorOptions, lay_out, rectify
from .mirror_schedule import paper_eta, window_eta
from .mirror_taps import Taps

WINDOW = "window"
SCHEDULES = (WINDOW, "eq31", "eq32")
# Stands for infinite noise (a flow model's first step), whose logarithm the window needs.
MOST_NOISE = 1e30


@dataclass(frozen=True)
class Pull:
    """When, how hard and toward what.

    schedule: "window" (eta while the noise ratio S is between start and end, soft edges) or the paper's "eq31", "eq32"
        by step index, which bring their own eta. start may be infinite. softness: see mirror_schedule.window_eta.
    iterations: pulls in one step. guidance: how far beyond the pulled views to go, 1 = not at all.
    neighbours: views on each side, 1 to 4. falloff: weight of each further neighbour relative to the one before it,
        in [0,1].
    """

    schedule: str = WINDOW
    eta: float = 0.75
    start: float = math.inf
    end: float = 0.3
    softness: float = 0.7
    iterations: int = 2
    guidance: float = 3.0
    options: MirrorOptions = field(default_factory=lambda: MirrorOptions(block=1))
    neighbours: int = 2
    falloff: float = 1.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"There is no schedule '{self.schedule}'; choose one of: {', '.join(SCHEDULES)}.")
        if not self.start > self.end >= 0:
            raise ValueError(
                f"The pull must start at more noise than it ends, got start {self.start:g} and end {self.end:g}; "
                "choose a larger start (0 = from the first step) or a smaller end."
            )
        if self.iterations < 1:
            raise ValueError(f"The number of pulls in a step must be at least 1, got {self.iterations}.")
        if not 0 <= self.guidance <= 10:
            raise ValueError(f"The guidance must lie between 0 and 10, got {self.guidance}.")
        if not 1 <= self.neighbours <= 4:
            raise ValueError(f"The number of neighbours on each side must be 1 to 4, got {self.neighbours}.")
        if not 0 <= self.falloff <= 1:
            raise ValueError(f"The falloff of the neighbours' weights must lie between 0 and 1, got {self.falloff}.")

    @property
    def by_step(self) -> bool:
        """Whether eta_at needs the step's index and number."""
        return self.schedule != WINDOW

    def eta_at(self, ratio: float, step: int = 0, steps: int = 1) -> float:
        """The fraction of the way, in [0,1], at noise ratio S and sampling step `step` (0 = first) of `steps`."""
        ratio = min(ratio, MOST_NOISE)
        if self.by_step:
            return paper_eta(step, steps, ratio, self.schedule)
        return window_eta(ratio, self.eta, self.start, self.end, self.softness)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Neighbours in steps along the orbit, for correspondence.track."""
        return tuple(o for o in range(-self.neighbours, self.neighbours + 1) if o)

    def apply(self, x0: Tensor, matches: Correspondence, eta: float | Tensor, taps: Taps | None = None) -> Tensor:
        """mirror.rectify with these settings; matches must have been made for these offsets. taps: see lay_out."""
        how = {"iterations": self.iterations, "guidance": self.guidance, "taps": taps}
        return rectify(x0, matches, eta, self._fusion, **how)

    def lay_out(self, matches: Correspondence) -> Taps | None:
        """What repeated calls of apply with the same matches can share."""
        return lay_out(matches, self._fusion)

    @property
    def _fusion(self) -> MirrorOptions:
        weights = tuple(self.falloff ** (abs(o) - 1) for o in self.offsets)
        return replace(self.options, neighbour_weights=weights)


@dataclass(frozen=True)
class Matching:
    """How views are matched: arguments of correspondence.track of the same names."""

    mode: str = "perspective"
    occlusion: bool = True
    depth_error: float = 0.02


def match_views(
    cameras: Cameras,
    size: tuple[int, int],
    depth: DepthMaps | None,
    masks: Tensor | None,
    offsets: tuple[int, ...],
    matching: Matching,
    device: torch.device | str = "cpu",
) -> Correspondence:
    """correspondence.track for what nodes hold, the depth's own confidence counted in.

    depth: of any resolution, a map for each camera; masks: (N,h,w), 1 = object. A match counts as much as the less sure
    of the two depths that it rests on. Raises ValueError for what track refuses and for depth without any shape.
    """
    if depth is not None:
        check_view_count(depth.depth.shape[0], cameras, "depth maps")
        check_shape(depth.depth)
    if masks is not None and masks.ndim != 3:
        raise ValueError(f"The masks must be (views, height, width), got {tuple(masks.shape)}.")
    matches = track(
        cameras,
        size,
        None if depth is None else depth.depth.to(device, torch.float32),
        None if masks is None else masks.to(device),
        offsets=offsets,
        mode=matching.mode,
        occlusion=matching.occlusion,
        depth_error=matching.depth_error,
    ).to(device)
    if depth is None or bool((depth.confidence[depth.depth > 0] >= 1).all()):
        return matches
    sure = _confidence_at_cells(depth, size).to(device)
    other = matches.neighbours.clamp_min(0)
    columns = matches.uv[..., 0].long().clamp(0, size[1] - 1)
    rows = matches.uv[..., 1].long().clamp(0, size[0] - 1)
    there = sure[other[:, :, None, None], rows, columns]
    return replace(matches, confidence=matches.confidence * torch.minimum(sure[:, None], there))


def check_shape(depth: Tensor) -> None:
    """ValueError for depth (N,h,w) that is not finite, or the same wherever there is something."""
    if not torch.isfinite(depth).all():
        bad = [i for i in range(len(depth)) if not torch.isfinite(depth[i]).all()]
        raise ValueError(
            f"The depth contains NaN or infinity (view {', '.join(map(str, bad[:8]))}); write 0 where there is "
            "nothing, or estimate it again."
        )
    there = depth[depth > 0]
    if there.numel() > 1 and len(depth) > 1 and bool((there == there[0]).all()):
        raise ValueError(
            f"The depth is {float(there[0]):g} everywhere, which no object looks like from several sides, so it cannot "
            "tell where a point goes; connect estimated or rendered depth, or choose paper or identity without depth."
        )


def _confidence_at_cells(depth: DepthMaps, size: tuple[int, int]) -> Tensor:
    """(N,H,W) mean confidence of the samples with depth in each cell, 1 in cells without any."""
    there = (depth.depth > 0).float()
    bins = torch.stack([there, there * depth.confidence.float().clamp(0, 1)], dim=1)
    shrink = depth.depth.shape[1] >= size[0] and depth.depth.shape[2] >= size[1]
    count, total = interpolate(bins, size=size, mode="area" if shrink else "bilinear").unbind(1)
    return torch.where(count > 0, total / count.clamp_min(1e-6), torch.ones_like(count))


# The best row of the tables (docs/mirror.md).
DEFAULT = Pull()
PRESETS = {
    "default": DEFAULT,
    "paper Eq. 31": Pull(schedule="eq31", iterations=1, guidance=1.0, options=MirrorOptions()),
    "paper Eq. 32": Pull(schedule="eq32", iterations=1, guidance=1.0, options=MirrorOptions()),
}
CUSTOM = "custom"
