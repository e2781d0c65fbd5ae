"""3D-aware feedback without training: while views are denoised, reconstruct what they show so far and feed it back.

At chosen steps the clean predictions x0 are decoded, a splat is made of them, it is rendered from every view and
encoded again, and
    x0 <- x0 + w (render - x0).
VideoMV does it with w = 1 at three of its fifty steps, Cycle3D with w = 1 at every step, the input view kept as it is
(references.md section 2). Both reconstruct with a trained network; a splat fitted for a few dozen iterations, each time
from where the last one ended, needs none. w above 1 goes beyond the render: see docs/feedback.md for why it helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras
from .mirror_schedule import window_eta
from .splats.fit import FitConfig, fit
from .splats.gaussians import Gaussians
from .splats.render import render_gaussians
from .splats.views import background_colour, estimate_masks

OnStep = Callable[[int, int, dict], None]


@dataclass(frozen=True)
class Moments:
    """At which sampling steps to feed back, and with what weight.

    fractions: of the run, one step at each (VideoMV: 20, 30 and 40 of 50); empty: every `every`-th step whose noise
    ratio S (mirror_schedule.noise_ratio) lies between start and end, softened as in window_eta.
    weight: w, 0 = nothing, 1 = the render takes the place of the view, above = beyond it.
    """

    weight: float = 1.0
    fractions: tuple[float, ...] = ()
    start: float = math.inf
    end: float = 0.0
    softness: float = 0.0
    every: int = 1

    def __post_init__(self):
        if not 0 <= self.weight <= 10:
            raise ValueError(f"The weight of the renders must lie between 0 and 10, got {self.weight}.")
        if any(not 0 <= f <= 1 for f in self.fractions):
            raise ValueError(f"The steps of feedback must be fractions of the run, 0 to 1, got {self.fractions}.")
        if not self.start > self.end >= 0:
            raise ValueError(
                f"The feedback must start at more noise than it ends, got start {self.start:g} and end {self.end:g}; "
                "choose a larger start (0 = from the first step) or a smaller end."
            )
        if self.every < 1:
            raise ValueError(f"The feedback must come at least every 1 step, got {self.every}.")

    def weight_at(self, ratio: float, step: int, steps: int) -> float:
        """w at noise ratio S and sampling step `step` (0 = first) of `steps`; 0 = leave the model alone."""
        if self.fractions:
            return self.weight if step in {min(steps - 1, round(f * steps)) for f in self.fractions} else 0.0
        if step % self.every:
            return 0.0
        return window_eta(min(ratio, 1e30), self.weight, self.start, self.end, self.softness)


PRESETS = {
    "default": Moments(weight=2.0, end=1.0, softness=0.7, every=2),
    "short (S = 10 to 1)": Moments(weight=2.0, start=10.0, end=1.0, softness=0.7),
    "VideoMV (three steps)": Moments(fractions=(0.4, 0.6, 0.8)),
    "Cycle3D (every step)": Moments(),
}
CUSTOM = "custom"


class Reconstruct(Protocol):
    """Views (N,H,W,3) in [0,1] at noise level sigma, and the last splat, if there was one, to a splat.

    ValueError for useless views.
    """

    def __call__(
        self, images: Tensor, last: Gaussians | None, sigma: float | None = None, on_step: OnStep | None = None
    ) -> Gaussians: ...


@dataclass(frozen=True)
class QuickFit:
    """Reconstruction by a short fit, warm from the last one.

    first, again: iterations without and with a last splat. points: Gaussians, which stay as many.
    view_weights (N,): how much each view counts.
    """

    cameras: Cameras
    first: int = 60
    again: int = 30
    points: int = 2000
    view_weights: Tensor | None = None
    device: torch.device | str = "cpu"
    seed: int = 0

    def __call__(
        self, images: Tensor, last: Gaussians | None, sigma: float | None = None, on_step: OnStep | None = None
    ) -> Gaussians:
        config = FitConfig(
            iterations=self.first if last is None else self.again, points=self.points, max_points=self.points,
            densify_every=0, views_per_step=4, w_msssim=0.0, seed=self.seed,
        )  # fmt: skip
        if last is not None:  # it is nearly there
            config = replace(config, lr_means=config.lr_means / 2)
        return fit(
            images, self.cameras, None, config, on_step, start=last, view_weights=self.view_weights, device=self.device
        ).gaussians


def something_to_see(images: Tensor) -> bool:
    """Whether every view (N,H,W,3) stands out from its background: at much noise predictions are one flat colour."""
    masks = estimate_masks(images, background_colour(images))
    return bool((masks.flatten(1).amax(1) >= 0.5).all())


@torch.no_grad()
def render_views(splat: Gaussians, cameras: Cameras, images: Tensor) -> tuple[Tensor, Tensor]:
    """The splat as the views (N,H,W,3) are: their size, background colour and device. And its coverage (N,H,W)."""
    height, width = images.shape[1:3]
    out = render_gaussians(splat, cameras, width, height, background_colour(images).to(splat.means))
    return out.features.clamp(0, 1).to(images), out.alpha[..., 0].to(images)


def blend(
    x0: Tensor, renders: Tensor, weight: float, keep: Tensor | None = None, where: Tensor | None = None
) -> Tensor:
    """x0 + w (renders - x0), in x0's dtype.

    x0, renders (N,C,h,w) latents; keep (N,): share of the weight each view gets; where (N,H,W) in [0,1]: share of each
    place, at any resolution (it is averaged over the latent's cells).
    """
    if x0.shape != renders.shape:
        raise ValueError(
            f"The renders encode to {tuple(renders.shape)} but the views' latent is {tuple(x0.shape)}; connect the VAE "
            "of this model."
        )
    share = torch.full((len(x0), 1, 1, 1), float(weight), device=x0.device)
    if keep is not None:
        share = share * keep.to(share).view(-1, 1, 1, 1)
    if where is not None:
        share = share * F.interpolate(where[:, None].to(share), size=x0.shape[2:], mode="area")
    return (x0.float() + share * (renders.to(x0.device).float() - x0.float())).to(x0.dtype)
