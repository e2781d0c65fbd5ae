"""Orbit cameras from the views alone: which elevation, which azimuths, which field of view.

Small and short fits. First a few elevations are tried and the one whose fit ends with the lowest loss is kept: gradient
descent alone gets stuck where it is ten or more degrees off. Then fits with config.refine correct the cameras, each
from a hull that the cameras of the one before carve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from .camera_refine import CameraOffsets, offset_cameras
from .fit import fit
from .fit_config import FitConfig
from .views import prepare_views

# Elevations tried, degrees, and how finely around the best.
ELEVATIONS = tuple(range(-30, 61, 15))
FINER = 7.5
SEARCH_SIDE, REFINE_SIDE = 32, 64
SEARCH_FIT = {"iterations": 24, "points": 500, "max_points": 500, "views_per_step": 4, "hull_cells": 24}
REFINE_FIT = {"iterations": 100, "points": 800, "max_points": 800, "views_per_step": 4, "hull_cells": 32}
ROUNDS = 2
LAST = 4  # steps whose mean loss decides


def find_cameras(
    images: Tensor,
    cameras: Cameras,
    masks: Tensor | None = None,
    refine: tuple[str, ...] = ("elevation",),
    *,
    search: bool = True,
    background: str | tuple[float, float, float] = "auto",
    seed: int = 0,
    on_step: Callable[[int, int, dict[str, Any]], None] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Cameras, CameraOffsets]:
    """Cameras corrected by what the views (N,H,W,3|4) show, and what was added to the given ones.

    search: try the ELEVATIONS first (where refine holds "elevation"); without, the given elevation must be right to
    about ten degrees. The search speaks of the mean elevation of the cameras and moves all of them alike.
    Arguments and errors otherwise as for fit(); on_step counts the steps of all fits together.
    """
    with torch.inference_mode(False):
        views = prepare_views(images, cameras, masks, background)
        colour = tuple(views.background.tolist())
        small = {side: _reduced(views.images, views.masks, side) for side in (SEARCH_SIDE, REFINE_SIDE)}
    counted = _Counter(on_step, len(ELEVATIONS) + 2 if search and "elevation" in refine else 0)

    def loss_at(offset: float) -> float:
        settings = FitConfig(**SEARCH_FIT, strategy="none", background=colour, seed=seed)
        moved = offset_cameras(cameras, CameraOffsets(elevation=offset))
        history = fit(*_with(small[SEARCH_SIDE], moved), settings, counted, device=device).history
        return sum(history["loss"][-LAST:]) / LAST

    lift = 0.0
    if counted.searches:
        given = float(cameras.elevations().mean())
        losses = {e - given: loss_at(e - given) for e in ELEVATIONS}
        best = min(losses, key=losses.get)
        losses |= {o: loss_at(o) for o in (best - FINER, best + FINER)}
        lift = min(losses, key=losses.get)
    found = CameraOffsets(elevation=lift)
    for _ in range(ROUNDS):
        now = offset_cameras(cameras, found)
        settings = FitConfig(**REFINE_FIT, strategy="none", background=colour, seed=seed, refine=refine)
        more = fit(*_with(small[REFINE_SIDE], now), settings, counted, device=device).offsets
        turned = tuple(a + b for a, b in zip(found.azimuths or (0.0,) * len(cameras), more.azimuths, strict=True))
        found = CameraOffsets(found.elevation + more.elevation, turned, found.zoom * more.zoom)
    return offset_cameras(cameras, found), found


class _Counter:
    """on_step of one fit after the other, counted as one long one."""

    def __init__(self, on_step, searches: int):
        self.on_step, self.searches, self.done = on_step, searches, 0
        self.total = searches * SEARCH_FIT["iterations"] + ROUNDS * REFINE_FIT["iterations"]

    def __call__(self, step: int, total: int, info: dict) -> None:
        self.done += 1
        if self.on_step is not None:
            self.on_step(self.done, self.total, info)


def _with(views: tuple[Tensor, Tensor], cameras: Cameras) -> tuple[Tensor, Cameras, Tensor]:
    return views[0], cameras, views[1]


def _reduced(images: Tensor, masks: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Views and masks whose longer side is at most `side` pixels."""
    h, w = masks.shape[1:]
    scale = min(1.0, side / max(h, w))
    size = (max(16, round(h * scale)), max(16, round(w * scale)))
    small = F.interpolate(torch.cat([images, masks[..., None]], -1).movedim(-1, 1), size, mode="area").movedim(1, -1)
    return small[..., :3].contiguous(), small[..., 3].contiguous()
