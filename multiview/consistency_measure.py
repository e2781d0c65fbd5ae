"""All measures of consistency in one go, sharing fits between them: what the node and the scripts call."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .cameras import Cameras
from .checks import check_images
from .consistency import (
    BEST_DB,
    FULL,
    QUICK,
    Comparison,
    OddEven,
    OnStep,
    Perceptual,
    checked_views,
    compare,
    compare_held_out,
    fit_some,
    held_out,
    left_out_parts,
    neighbour_error,
    odd_even,
    part_of,
)
from .splat_compare import splat_chamfer, volume_iou
from .splats.fit import FitConfig
from .splats.gaussians import Gaussians
from .splats.render import render_gaussians
from .splats.views import Views


@dataclass(frozen=True)
class Quality:
    """fit: settings of every fit. side: views whose longer side is above this are reduced to it. folds: of held_out."""

    fit: FitConfig
    side: int
    folds: int


# Two folds need no fits of their own beside odd/even: each of the two splats is tested on the views of the other.
QUALITIES = {"quick": Quality(QUICK, 96, 2), "full": Quality(FULL, 256, 4)}


@dataclass(frozen=True)
class Wanted:
    """Which measures to take; `truth` and the two shape measures follow from what is given."""

    odd_even: bool = True
    neighbours: bool = True
    held_out: bool = True


@dataclass(frozen=True)
class Measured:
    """What was measured; None = not asked for or not possible.

    truth: views against the true ones, whole pictures. neighbour_l1: mean absolute difference. chamfer (world units)
    and iou: the splat against the true one. views: as they were measured, reduced and over one background.
    """

    views: Views
    odd_even: OddEven | None = None
    neighbours: Comparison | None = None
    neighbour_l1: float | None = None
    held_out: Comparison | None = None
    truth: Comparison | None = None
    chamfer: float | None = None
    iou: float | None = None

    def comparisons(self) -> dict[str, Comparison]:
        """Those that were made, by name."""
        found = {"odd_even": None if self.odd_even is None else self.odd_even.pictures}
        found |= {"neighbours": self.neighbours, "held_out": self.held_out, "truth": self.truth}
        return {name: one for name, one in found.items() if one is not None}

    def numbers(self) -> dict:
        """Everything as plain numbers for JSON: None where there is none, lists by view in the order of the batch."""
        out: dict = {"views": len(self.views.images), "size": list(self.views.images.shape[2:0:-1])}
        for name, one in self.comparisons().items():
            out[name] = {
                "psnr": one.psnr,
                "ssim": one.ssim,
                "lpips": one.perceptual,
                "view_psnr": _plain(one.view_psnr),
                "view_ssim": _plain(one.view_ssim),
            }
        if self.odd_even is not None:
            out["odd_even"] |= {"depth": _finite(self.odd_even.depth), "view_depth": _plain(self.odd_even.view_depth)}
        if self.neighbours is not None:
            out["neighbours"]["l1"] = self.neighbour_l1
        if self.chamfer is not None:
            out["splat"] = {"chamfer": self.chamfer, "iou": self.iou}
        return out


def measure(
    views: Tensor,
    cameras: Cameras,
    masks: Tensor | None = None,
    *,
    quality: Quality = QUALITIES["quick"],
    wanted: Wanted = Wanted(),
    depth: Tensor | None = None,
    truth: Tensor | None = None,
    splat: Gaussians | None = None,
    true_splat: Gaussians | None = None,
    perceptual: Perceptual | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    device: torch.device | str | None = None,
) -> Measured:
    """Measure views (N,H,W,3|4) in [0,1], N >= 4.

    depth (N,h,w) camera z for the neighbours; without it from `splat`, without that from a splat fitted to all views.
    truth (N,h,w,3): the true views, scaled to the size of the views. true_splat: compared with `splat`, or with
    one fitted to all views. on_step(step, total, info) over all fits. ValueError in one sentence, before any fit.
    """
    config = replace(quality.fit, seed=seed)
    prepared = _reduced(checked_views(views, cameras, masks, config.background), quality.side)
    against_truth = None if truth is None else _against_truth(views, truth, perceptual)
    depth_needed = wanted.neighbours and depth is None
    whole_needed = splat is None and (depth_needed or true_splat is not None)
    own_folds = wanted.held_out and not (wanted.odd_even and quality.folds == 2)
    parts = left_out_parts(cameras, quality.folds) if own_folds else []
    total = 2 * wanted.odd_even + len(parts) + whole_needed
    images, masks, done = prepared.images, prepared.masks, 0
    config = replace(config, background=tuple(prepared.background.tolist()))
    neighbours = (None, None)
    if wanted.neighbours and depth is not None:
        neighbours = neighbour_error(images, cameras, depth, masks)

    halves = left_out = chamfer = iou = None
    if wanted.odd_even:
        steps = part_of(on_step, 0, total, 2)
        halves = odd_even(images, cameras, masks, config, steps, perceptual=perceptual, device=device)
        done = 2
    if parts:
        steps = part_of(on_step, done, total, len(parts))
        left_out = held_out(images, cameras, masks, config, steps, folds=quality.folds, device=device)
        done += len(parts)
    elif wanted.held_out:
        even, odd = left_out_parts(cameras, 2)
        left_out = compare_held_out(halves.splats, (odd, even), prepared, cameras)
    if whole_needed:
        splat = fit_some(prepared, cameras, range(len(cameras)), config, part_of(on_step, done, total), device)
    if depth_needed:
        neighbours = neighbour_error(images, cameras, depth_of(splat, cameras, *images.shape[1:3]), masks)
    if true_splat is not None:
        chamfer, iou = splat_chamfer(splat, true_splat), volume_iou(splat, true_splat)
    return Measured(prepared, halves, *neighbours, left_out, against_truth, chamfer, iou)


def depth_of(splat: Gaussians, cameras: Cameras, height: int, width: int) -> Tensor:
    """(N,H,W) camera z of a splat, world units, 0 where it covers less than half of the pixel; on the CPU."""
    with torch.no_grad():
        out = render_gaussians(splat, cameras, width, height)
    return torch.where(out.alpha >= 0.5, out.depth, torch.zeros_like(out.depth))[..., 0].cpu()


def _against_truth(views: Tensor, truth: Tensor, perceptual: Perceptual | None) -> Comparison:
    """Whole pictures, as published tables compare them."""
    views, truth = check_images(views, "views").float().cpu(), check_images(truth, "true views").float().cpu()
    if len(views) != len(truth):
        raise ValueError(
            f"There are {len(views)} views but {len(truth)} true views; give one true view for each, in the same order."
        )
    if views.shape[1:3] != truth.shape[1:3]:
        truth = interpolate(truth.movedim(-1, 1), size=views.shape[1:3], mode="bilinear", antialias=True)
        truth = truth.movedim(1, -1).clamp(0, 1)
    return compare(views, truth, torch.ones(views.shape[:3]), perceptual=perceptual)


def _reduced(views: Views, side: int) -> Views:
    """The same at a longer side of at most `side` pixels."""
    height, width = views.images.shape[1:3]
    if max(height, width) <= side:
        return views
    size = [max(16, round(s * side / max(height, width))) for s in (height, width)]
    images = interpolate(views.images.movedim(-1, 1), size=size, mode="area").movedim(1, -1).contiguous()
    return Views(images, interpolate(views.masks[:, None], size=size, mode="area")[:, 0], views.background)


def _plain(values: Tensor) -> list[float | None]:
    return [_finite(v) for v in values.tolist()]


def _finite(value: float) -> float | None:
    return min(value, BEST_DB) if math.isfinite(value) else None
