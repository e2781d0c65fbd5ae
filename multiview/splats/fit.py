"""Fit a Gaussian splat to calibrated views (3D Gaussian Splatting, Kerbl et al. 2023; losses as in IM-3D).

Every view is compared as a whole picture: L1, MS-SSIM and the object's mask, over the views' own background colour.
Adam on log scales, logit opacities and spherical harmonics; gsplat's DefaultStrategy splits, clones and prunes, on
the CPU as well, since it needs nothing from the rasteriser but positions, radii and gradients in the picture.
How the defaults were found: docs/splat_fitting.md.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from .gaussians import Gaussians
from .init import METHODS, initial_gaussians, scene_sphere
from .losses import ViewLoss
from .raster import rasterize
from .sh import eval_sh
from .views import Views, prepare_views

LARGEST_LOGIT = 12.0
NEVER = 2**31


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit; ValueError for impossible ones.

    iterations: optimiser steps of views_per_step views each.
    points: Gaussians to begin with; max_points: where growing ends; init: "hull", "sphere" or "center".
    hull_seen: share of the views whose picture must hold a point of the hull (init.py).
    sh_degree 0..3: reached step by step over the first half. w_*: weights of the losses.
    lr_means is in units of the scene's radius and falls to lr_means_final of itself; the others are per unit of the
    stored parameter (logarithm, logit, quaternion, coefficient).
    densify_every: steps between growing and pruning, 0 = never, in the part [densify_from, densify_until] of the fit;
    grow_grad2d: gradient in the picture (units of half its side, per view) from which a Gaussian grows;
    grow_scale3d: size, in units of the scene's radius, from which it is split and below which it is doubled.
    reset_opacity_every: steps, 0 = never. background: "auto" or three numbers in [0,1].
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

    def __post_init__(self):
        for name, least in (("iterations", 1), ("points", 1), ("views_per_step", 1), ("densify_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.max_points < self.points:
            raise ValueError(f"max_points ({self.max_points}) must not be below points ({self.points}).")
        if self.sh_degree not in (0, 1, 2, 3):
            raise ValueError(f"sh_degree must be 0, 1, 2 or 3, got {self.sh_degree}.")
        if self.init not in METHODS:
            raise ValueError(f"init must be one of {', '.join(METHODS)}, got {self.init!r}.")
        weights = (self.w_l1, self.w_msssim, self.w_mask)
        if min(weights) < 0 or not math.isfinite(sum(weights)) or self.w_l1 + self.w_msssim <= 0:
            raise ValueError(f"Loss weights must be finite, not negative, and L1 or MS-SSIM above 0, got {weights}.")


@dataclass(frozen=True)
class FitResult:
    """gaussians: the splat, on the device of the fit. history: one number per step for "loss", its weighted terms
    ("l1", "msssim", "mask") and "gaussians" (their count). background (3,): the colour the views were taken on."""

    gaussians: Gaussians
    history: dict[str, list[float]] = field(default_factory=dict)
    background: Tensor | None = None


def fit(
    images: Tensor,
    cameras: Cameras,
    masks: Tensor | None = None,
    config: FitConfig | None = None,
    on_step: Callable[[int, int, dict[str, Any]], None] | None = None,
    *,
    start: Gaussians | None = None,
    view_weights: Tensor | None = None,
    device: torch.device | str | None = None,
) -> FitResult:
    """Fit a splat to N views.

    images (N,H,W,3 or 4) in [0,1]; cameras: N of them; masks (N,H,W), 1 = object, None = alpha or estimated
    (views.py); view_weights (N,) >= 0; start: a splat to go on from instead of config.init.
    on_step(step, total, info) follows every step (1..total); it may raise to end the fit, and what it raises comes
    through untouched. info: "loss" (0-d tensor), "gaussians" (count), "get_preview" (view=0 -> (H,W,3) picture on the
    CPU, rendered only when called).
    Same inputs, seed and machine give the same splat on the CPU; the global random state is not touched. Works inside
    torch.inference_mode. ValueError for bad input, before any heavy work.
    """
    config = config or FitConfig()
    if config.densify_every:
        check_gsplat_installed()
    with torch.inference_mode(False), torch.enable_grad():
        device = torch.device(device) if device is not None else images.device
        views = prepare_views(images, cameras, masks, config.background)
        views = Views(*(t.to(device) for t in (views.images, views.masks, views.background)))
        weights = _checked_weights(view_weights, len(cameras), device)
        generator = torch.Generator().manual_seed(config.seed)
        if start is None:
            start = initial_gaussians(config.init, config.points, views, cameras, generator, config.hull_seen)
        else:
            start = Gaussians(*(t.detach().clone() for t in start.validate().tensors())).to(device).to(torch.float32)
        return _Fit(views, cameras, weights, config, start, generator).run(on_step)


def check_gsplat_installed() -> None:
    """ValueError where the package gsplat, whose strategy decides where Gaussians grow, is not installed."""
    if importlib.util.find_spec("gsplat") is None:
        raise ValueError(
            "Fitting a splat needs the package gsplat, which this Python does not have; install the pack's "
            "requirements.txt with ComfyUI's own Python and restart."
        )


class _Fit:
    """The state of one fit; used once."""

    def __init__(self, views, cameras, weights, config, start, generator):
        self.views, self.config, self.generator, self.weights = views, config, generator, weights
        self.device = views.images.device
        self.radius = scene_sphere(cameras)[1]
        self.centers = cameras.centers().clone().to(self.device)
        self.w2c = cameras.w2c().to(self.device)
        self.height, self.width = views.images.shape[1:3]
        self.k = cameras.pixel_intrinsics(self.width, self.height).to(self.device)
        self.loss = ViewLoss(config.w_l1, config.w_msssim, config.w_mask)
        self.params = _parameters(start, config.sh_degree)
        self.optimizers = self._make_optimizers()
        self.densifier = _Densifier(config, self.radius) if config.densify_every else None
        self.queue: list[int] = []

    def run(self, on_step) -> FitResult:
        total = self.config.iterations
        curves: dict[str, list] = {}
        for step in range(1, total + 1):
            loss, terms = self._step(step)
            for name, value in {"loss": loss, **terms}.items():
                curves.setdefault(name, []).append(value)
            curves.setdefault("gaussians", []).append(len(self.params["means"]))
            if on_step is not None:
                info = {"loss": loss, "gaussians": len(self.params["means"]), "get_preview": self.preview}
                on_step(step, total, info)
        # Read once at the end: reading every step would make a GPU wait.
        history = {k: torch.stack(v).tolist() if isinstance(v[0], Tensor) else v for k, v in curves.items()}
        with torch.no_grad():
            result = Gaussians(*(t.detach().clone() for t in self._gaussians(self.config.sh_degree).tensors()))
        return FitResult(result, history, self.views.background)

    def preview(self, view: int = 0) -> Tensor:
        """(H,W,3) picture on the CPU of the splat as it is now, from camera `view`."""
        with torch.no_grad():
            out = self._render([view], self.config.sh_degree)
            return out.features[0].clamp(0, 1).cpu()

    def _step(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        progress = (step - 1) / config.iterations
        # The degree rises by one at equal distances over the first half.
        degree = min(config.sh_degree, int(progress * 2 * (config.sh_degree + 1)))
        self.optimizers["means"].param_groups[0]["lr"] = config.lr_means * self.radius * config.lr_means_final**progress
        chosen = self._next_views()
        out = self._render(chosen, degree)
        weights = None if self.weights is None else self.weights[chosen]
        images, masks = self.views.images[chosen], self.views.masks[chosen]
        loss, terms = self.loss(out.features, out.alpha[..., 0], images, masks, weights)
        if self.densifier is not None:
            out.info["means2d"].retain_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.densifier is not None:
            self.densifier.after_step(self.params, self.optimizers, step, out.info)
        return loss.detach(), terms

    def _next_views(self) -> list[int]:
        """The next views of a random order that shows every view once before any again."""
        count = len(self.w2c)
        chosen: list[int] = []
        while len(chosen) < min(self.config.views_per_step, count):
            if not self.queue:
                self.queue = torch.randperm(count, generator=self.generator).tolist()
            fresh = next((i for i in self.queue if i not in chosen), None)
            if fresh is None:
                self.queue = []
                continue
            self.queue.remove(fresh)
            chosen.append(fresh)
        return chosen

    def _gaussians(self, degree: int) -> Gaussians:
        p = self.params
        sh = p["sh0"] if degree == 0 else torch.cat([p["sh0"], p["shN"][:, : (degree + 1) ** 2 - 1]], dim=1)
        quats = F.normalize(p["quats"], dim=1)
        return Gaussians(p["means"], p["scales"].exp(), quats, torch.sigmoid(p["opacities"]), sh)

    def _render(self, chosen: list[int], degree: int):
        g = self._gaussians(degree)
        directions = g.means.detach()[None] - self.centers[chosen][:, None]
        return rasterize(
            g.means, g.quats, g.scales, g.opacities, eval_sh(g.sh, directions), self.w2c[chosen], self.k[chosen],
            self.width, self.height, background=self.views.background, antialiased=self.config.antialiased,
            backend=self.config.backend,
        )  # fmt: skip

    def _make_optimizers(self) -> dict[str, torch.optim.Adam]:
        c = self.config
        rates = {"means": c.lr_means * self.radius, "scales": c.lr_scales, "quats": c.lr_quats}
        rates |= {"opacities": c.lr_opacities, "sh0": c.lr_sh, "shN": c.lr_sh / 20}
        # One optimiser each, as DefaultStrategy wants them. eps: gradients of a mean over pixels are tiny.
        fused = self.device.type == "cuda"
        return {k: torch.optim.Adam([p], lr=rates[k], eps=1e-15, fused=fused) for k, p in self.params.items()}


class _Densifier:
    """gsplat's DefaultStrategy with a bound on the number of Gaussians and its own random numbers."""

    def __init__(self, config: FitConfig, radius: float):
        from gsplat.strategy import DefaultStrategy

        self.config = config
        self.first = int(config.densify_from * config.iterations)
        self.last = int(config.densify_until * config.iterations)
        self.strategy = DefaultStrategy(
            prune_opa=config.prune_opacity,
            grow_scale3d=config.grow_scale3d,
            refine_start_iter=self.first,
            refine_stop_iter=self.last + 1,
            refine_every=config.densify_every,
            reset_every=NEVER,  # gsplat 1.5.3 never resets (an operator precedence slip)
        )
        self.state = self.strategy.initialize_state(scene_scale=radius)

    def after_step(self, params: dict, optimizers: dict, step: int, info: dict) -> None:
        """Collect this step's gradients; at the steps for it, grow, prune and reset."""
        if step % self.config.densify_every or not self.first < step <= self.last:
            self.strategy.step_post_backward(params, optimizers, self.state, step, info)
        else:
            self.strategy.grow_grad2d = self._threshold(len(params["means"]))
            with seeded_global_rng(self.config.seed + step, params["means"].device):
                self.strategy.step_post_backward(params, optimizers, self.state, step, info)
            self._trim(params, optimizers)
            if not len(params["means"]):
                raise ValueError(
                    "Every Gaussian faded away during the fit: the views do not fit the cameras; check that they are "
                    "in the cameras' order and that the masks are not inverted."
                )
        every = self.config.reset_opacity_every
        if every and step % every == 0 and step <= self.last:
            from gsplat.strategy.ops import reset_opa

            reset_opa(params, optimizers, self.state, value=self.config.prune_opacity * 2)

    def _threshold(self, count: int) -> float:
        """The configured gradient, or a higher one if more Gaussians than there is room for lie above it."""
        room = self.config.max_points - count
        grads = self.state["grad2d"]
        if room <= 0:
            return math.inf
        if grads is None or room >= count:
            return self.config.grow_grad2d
        mean = grads / self.state["count"].clamp_min(1)
        return max(self.config.grow_grad2d, float(mean.topk(room + 1).values[-1]))

    def _trim(self, params: dict, optimizers: dict) -> None:
        """Drop the faintest surplus: the threshold did not know the gradients of the very last step."""
        surplus = len(params["means"]) - self.config.max_points
        if surplus > 0:
            from gsplat.strategy.ops import remove

            mask = torch.zeros(len(params["means"]), dtype=torch.bool, device=params["means"].device)
            mask[params["opacities"].topk(surplus, largest=False).indices] = True
            remove(params, optimizers, self.state, mask)


@contextmanager
def seeded_global_rng(seed: int, device: torch.device):
    """gsplat draws from the global generators: seed them, and put them back afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


def _parameters(g: Gaussians, degree: int) -> dict[str, torch.nn.Parameter]:
    """What is optimised, in storage form; higher bands are cut or filled with 0 to the wanted degree."""
    bands = (degree + 1) ** 2
    sh = torch.cat([g.sh, g.sh.new_zeros(g.num, max(0, bands - g.sh.shape[1]), 3)], dim=1)[:, :bands]
    tensors = {
        "means": g.means,
        "scales": g.scales.clamp_min(1e-8).log(),
        "quats": g.quats,
        "opacities": torch.logit(g.opacities.double()).clamp(-LARGEST_LOGIT, LARGEST_LOGIT).float(),
        "sh0": sh[:, :1],
    }
    if degree:
        tensors["shN"] = sh[:, 1:]
    return {name: torch.nn.Parameter(t.detach().clone().contiguous()) for name, t in tensors.items()}


def _checked_weights(weights: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    if weights is None:
        return None
    weights = torch.as_tensor(weights, dtype=torch.float32).detach().clone()
    if weights.shape != (count,) or not torch.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise ValueError(
            f"View weights must be {count} finite numbers, none negative and not all 0, got {weights.tolist()}."
        )
    return weights.to(device)
