"""The settings of a fit, and the named sets of them that nodes and tables offer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .init import HULL_CELLS, METHODS

STRATEGIES = ("default", "mcmc", "none")
# What a fit may correct in the cameras (camera_refine.py).
REFINABLE = ("elevation", "azimuths", "fov")
# Weights of the losses by name. IM-3D: references.md 8.4 (LPIPS on VGG, and no term on pixels). Without LPIPS,
# MS-SSIM alone knows little of colour: a light L1 term stands in (docs/splat_fitting.md).
LOSSES: dict[str, dict[str, float]] = {
    "default": {"w_l1": 1.0, "w_l2": 0.0, "w_lpips": 0.0, "w_msssim": 0.2, "w_mask": 0.2},
    "IM-3D": {"w_l1": 0.0, "w_l2": 0.0, "w_lpips": 10.0, "w_msssim": 0.2, "w_mask": 1.0},
    "IM-3D without LPIPS": {"w_l1": 0.2, "w_l2": 0.0, "w_lpips": 0.0, "w_msssim": 1.0, "w_mask": 1.0},
    "L2": {"w_l1": 0.0, "w_l2": 10.0, "w_lpips": 0.0, "w_msssim": 0.0, "w_mask": 0.2},
}
# The fit of IM-3D's appendix. What it leaves open (rates, views per step, thresholds) is ours.
IM3D_FIT = {"iterations": 1200, "points": 5000, "init": "center", "densify_every": 50, "strategy": "default"}


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit; ValueError for impossible ones.

    iterations: optimiser steps of views_per_step views each.
    points: Gaussians to begin with; max_points: where growing ends; init: "hull", "sphere", "center" or "depth".
    hull_seen: share of the views whose picture must hold a point of the hull; hull_cells: cells along the longest side
    of its grid (init.py).
    sh_degree 0..3: reached step by step over the first half. w_*: weights of the losses (losses.py).
    lr_means is in units of the scene's radius and falls to lr_means_final of itself; the others are per unit of the
    stored parameter (logarithm, logit, quaternion, coefficient).
    strategy: "default" (gsplat's: split, double, prune), "mcmc" (mcmc.py) or "none".
    densify_every: steps between growing and pruning, 0 = never, in the part [densify_from, densify_until] of the fit;
    grow_grad2d: gradient in the picture (units of half its side, per view) from which a Gaussian grows;
    grow_scale3d: size, in units of the scene's radius, from which it is split and below which it is doubled.
    reset_opacity_every: steps, 0 = never. background: "auto" or three numbers in [0,1].
    patience: stop when the mean loss of this many steps is not below that of as many before; 0 = never.
    refine: which of REFINABLE the fit corrects in the cameras as it goes; lr_cameras: its first rate, radians.
    """

    iterations: int = 150
    points: int = 3000
    max_points: int = 10000
    init: str = "hull"
    hull_seen: float = 0.5
    sh_degree: int = 0
    views_per_step: int = 2
    w_l1: float = 1.0
    w_msssim: float = 0.2
    w_mask: float = 0.2
    lr_means: float = 6e-3
    lr_means_final: float = 0.05
    lr_scales: float = 8e-2
    lr_quats: float = 1e-2
    lr_opacities: float = 1e-1
    lr_sh: float = 3e-2
    densify_every: int = 50
    densify_from: float = 0.1
    densify_until: float = 0.7
    grow_grad2d: float = 5e-4
    grow_scale3d: float = 0.01
    prune_opacity: float = 0.02
    reset_opacity_every: int = 0
    background: str | tuple[float, float, float] = "auto"
    antialiased: bool = False
    backend: str = "auto"
    seed: int = 0
    w_l2: float = 0.0
    w_lpips: float = 0.0
    strategy: str = "default"
    patience: int = 0
    refine: tuple[str, ...] = ()
    lr_cameras: float = 4e-3
    hull_cells: int = HULL_CELLS

    def __post_init__(self):
        smallest = {
            "iterations": 1,
            "points": 1,
            "views_per_step": 1,
            "densify_every": 0,
            "patience": 0,
            "hull_cells": 8,
        }
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.max_points < self.points:
            raise ValueError(f"max_points ({self.max_points}) must not be below points ({self.points}).")
        if self.sh_degree not in (0, 1, 2, 3):
            raise ValueError(f"sh_degree must be 0, 1, 2 or 3, got {self.sh_degree}.")
        for name, choices in (("init", METHODS), ("strategy", STRATEGIES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        unknown = [name for name in self.refine if name not in REFINABLE]
        if unknown:
            raise ValueError(f"A fit can refine {', '.join(REFINABLE)}, not {', '.join(map(repr, unknown))}.")
        weights = (self.w_l1, self.w_l2, self.w_lpips, self.w_msssim, self.w_mask)
        if min(weights) < 0 or not math.isfinite(sum(weights)) or sum(weights[:4]) <= 0:
            raise ValueError(
                "Loss weights must be finite, not negative, and L1, L2, LPIPS or MS-SSIM above 0, got "
                f"{weights} for L1, L2, LPIPS, MS-SSIM and mask."
            )
