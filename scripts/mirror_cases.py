"""The 32 objects, runs and measures that the tables of MIRROR are made of (scripts/mirror_tables.py).

Held-out demo objects (seeds that nothing was trained or tuned on), 64 px, 16 views, 6 variants sharing a front; the
analytic model with window 31, kappa 0.02 and front bias 0.1: each view plausible, the set contradictory, second faces.
Euler in 24 steps from sigma 700 to 0.02. The same starting noise for an object in every row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from multiview.cameras import orbit
from multiview.consistency import QUICK, odd_even
from multiview.correspondence import track
from multiview.demo.analytic import AnalyticModel, AnalyticOptions
from multiview.demo.bank import Bank, bank_key, bank_path, build_bank, load_bank, save_bank
from multiview.demo.depth_net import estimate_depth, load_depth_net
from multiview.demo.measure import judge
from multiview.demo.objects import make_object
from multiview.demo.raycast import render_object
from multiview.depth import DepthMaps
from multiview.depth_calibrate import calibrate, object_masks
from multiview.mirror import MirrorOptions, fuse
from multiview.mirror_settings import Matching, Pull, match_views
from multiview.splats.fit import fit
from multiview.splats.render import render_gaussians

CAMERAS = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
SIZE, STEPS, OBJECTS, VARIANTS, BANK_SEED = 64, 24, 32, 6, 2_000_000
REGIME = AnalyticOptions(window=31, kappa=0.02, front_bias=0.1)
SIGMAS = [*(torch.linspace(700 ** (1 / 7), 0.02 ** (1 / 7), STEPS) ** 7).tolist(), 0.0]
# A run that hits an object exactly would dominate a mean of decibels.
MOST_DB = 50.0
MEASURES = ("agreement", "second faces", "object dB", "picture dB", "neighbour dB", "odd/even dB")
Patch = Callable[[Tensor, int, float], Tensor]


def to_images(views: Tensor) -> Tensor:
    """(N,3,H,W) in [-1,1] -> (N,H,W,3) in [0,1]."""
    return (views / 2 + 0.5).clamp(0, 1).movedim(1, -1)


class Cases:
    """The model with its objects."""

    def __init__(self, folder: Path, regime: AnalyticOptions = REGIME, objects: int = OBJECTS, seed: int = BANK_SEED):
        path = bank_path(folder, bank_key(CAMERAS, SIZE, objects, VARIANTS, seed))
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            print(f"drawing {objects * VARIANTS} objects, once (a minute or two) ...", flush=True)
            save_bank(build_bank(CAMERAS, SIZE, objects, VARIANTS, seed), path)
        self.bank: Bank = load_bank(path)
        self.model = AnalyticModel(self.bank, regime)
        self.net = load_depth_net()

    def case(self, number: int) -> Case:
        return Case(self, number)


class Case:
    """One object: the views of stage 1, what can be known about their depth, and stage 2 under any patch."""

    def __init__(self, cases: Cases, number: int):
        self.number, self.bank, self.model, self.net = number, cases.bank, cases.model, cases.net
        picture = self.bank.references[self.bank.member(number, 0)]
        self.reference = picture.movedim(-1, 0).float() / 127.5 - 1

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        return self.model.denoise(x, sigma, self.reference)

    @cached_property
    def noise(self) -> Tensor:
        """At the highest sigma."""
        generator = torch.Generator().manual_seed(self.number)
        return torch.randn(len(CAMERAS), 3, SIZE, SIZE, generator=generator) * SIGMAS[0]

    def sample(self, patch: Patch | None = None, start: Tensor | None = None) -> Tensor:
        """Euler's method; patch(x0, step, sigma) may change the clean prediction. (N,3,H,W) in [-1,1]."""
        x = self.noise if start is None else start
        for step, (now, after) in enumerate(zip(SIGMAS[:-1], SIGMAS[1:], strict=True)):
            clean = self.denoised(x, now)
            if patch is not None:
                clean = patch(clean, step, now)
            x = clean + (x - clean) * (after / now)
        return x

    # --- depth of the views of stage 1 ------------------------------------------------------------------------------

    @cached_property
    def stage1(self) -> Tensor:
        return self.sample()

    @cached_property
    def estimated(self) -> DepthMaps:
        """By the demo depth network."""
        return self.estimate(self.stage1)

    def estimate(self, views: Tensor) -> DepthMaps:
        return DepthMaps(*estimate_depth(self.net, to_images(views), CAMERAS))

    @cached_property
    def calibrated(self) -> DepthMaps:
        """As Estimate Depth gives it by default: the network's maps brought to one surface by the cameras."""
        images = to_images(self.stage1)
        raw, _ = estimate_depth(self.net, images, CAMERAS)
        masks = object_masks(images, None) * (raw > 0)
        return calibrate(raw, masks, CAMERAS, kind="depth", method="joint", metric=True).maps

    @cached_property
    def true_depth(self) -> DepthMaps:
        """Of the object that stage 1 as a whole comes nearest to."""
        member = judge(to_images(self.stage1), self.bank, self.number).nearest
        spec = make_object(int(self.bank.seeds[member]), int(self.bank.variant[member]), VARIANTS)
        depth = render_object(spec, CAMERAS, 2 * SIZE, 1).depth
        return DepthMaps(depth, (depth > 0).float())

    @cached_property
    def splat_depth(self) -> DepthMaps:
        """Of a splat fitted to stage 1, with the quick settings of the consistency measures."""
        splat = fit(to_images(self.stage1), CAMERAS, config=QUICK).gaussians
        with torch.no_grad():
            drawn = render_gaussians(splat, CAMERAS, SIZE, SIZE)
        alpha = drawn.alpha[..., 0]
        depth = torch.where(alpha > 0.5, drawn.depth[..., 0], torch.zeros(()))
        return DepthMaps(depth, alpha * (depth > 0))

    # --- stage 2 ----------------------------------------------------------------------------------------------------

    def pull(self, pull: Pull, matching: Matching, depth: DepthMaps | None, pinned: bool = False) -> Patch:
        """What the node does to every clean prediction."""
        masks = (self.estimated.depth > 0).float() if depth is None else None
        matches = match_views(CAMERAS, (SIZE, SIZE), depth, masks, pull.offsets, matching)
        keep = torch.ones(len(CAMERAS))
        keep[CAMERAS.input_view] = 0.0 if pinned else 1.0

        def patch(x0: Tensor, step: int, sigma: float) -> Tensor:
            eta = pull.eta_at(sigma, step, STEPS)
            return x0 if eta <= 0 else pull.apply(x0, matches, eta * keep)

        return patch

    def pull_with_depth_of_the_moment(self, pull: Pull, matching: Matching) -> Patch:
        """A single stage: depth is estimated from every clean prediction anew."""

        def patch(x0: Tensor, step: int, sigma: float) -> Tensor:
            eta = pull.eta_at(sigma, step, STEPS)
            if eta <= 0:
                return x0
            depth = self.estimate(x0)
            if not bool((depth.depth > 0).any()):  # nothing to be seen yet
                return x0
            return pull.apply(x0, match_views(CAMERAS, (SIZE, SIZE), depth, None, pull.offsets, matching), eta)

        return patch

    # --- figures ----------------------------------------------------------------------------------------------------

    @cached_property
    def _true_matches(self):
        return track(CAMERAS, (SIZE, SIZE), self.true_depth.depth)

    def measure(self, views: Tensor, with_splats: bool = True) -> list[float]:
        """MEASURES of one run; odd/even is NaN without splats.

        Neighbours are compared at the matches of the object nearest to stage 1.
        """
        images = to_images(views)
        verdict = judge(images, self.bank, self.number)
        fused, trust = fuse(views, self._true_matches, MirrorOptions(block=1))
        gap = (trust * (views - fused).square()).sum() / (3 * trust.sum() * 4)
        neighbours = float(-10 * torch.log10(gap.clamp_min(1e-10)))
        return [
            verdict.agreement,
            float(verdict.second_faces),
            min(verdict.object_psnr, MOST_DB),
            min(verdict.view_psnr, MOST_DB),
            neighbours,
            min(odd_even(images, CAMERAS).psnr, MOST_DB) if with_splats else math.nan,
        ]
