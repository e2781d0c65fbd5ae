"""Fit a Gaussian splat to calibrated views (3D Gaussian Splatting, Kerbl et al. 2023; losses as in IM-3D).

Every view is compared as a whole picture (losses.py) over the views' own background colour. Adam on log scales, logit
opacities and spherical harmonics; Gaussians grow and go by densify.py or mcmc.py; the cameras may be corrected as well
(camera_refine.py). How the defaults were found: docs/splat_fitting.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..depth import DepthMaps
from .camera_refine import CameraOffsets, CameraRefiner
from .densify import Densifier, check_gsplat_installed
from .fit_config import FitConfig
from .gaussians import Gaussians
from .init import initial_gaussians, scene_sphere
from .losses import ViewLoss, check_perceptual
from .mcmc import Mcmc
from .raster import rasterize
from .sh import eval_sh
from .views import Views, prepare_views

LARGEST_LOGIT = 12.0
# A fit with patience stops when the mean loss has fallen by less than this share.
STILL_FALLING = 0.01
__all__ = ["FitConfig", "FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """gaussians: the splat, on the device of the fit. history: one number per step for "loss", its weighted terms
    (named as in losses.py) and "gaussians" (their count); shorter than asked for where the fit stopped early.
    background (3,): the colour the views were taken on. cameras: the given ones, corrected as config.refine says by
    `offsets`."""

    gaussians: Gaussians
    history: dict[str, list[float]] = field(default_factory=dict)
    background: Tensor | None = None
    cameras: Cameras | None = None
    offsets: CameraOffsets = CameraOffsets()


def fit(
    images: Tensor,
    cameras: Cameras,
    masks: Tensor | None = None,
    config: FitConfig | None = None,
    on_step: Callable[[int, int, dict[str, Any]], None] | None = None,
    *,
    start: Gaussians | None = None,
    view_weights: Tensor | None = None,
    depth: DepthMaps | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
) -> FitResult:
    """Fit a splat to N views.

    images (N,H,W,3 or 4) in [0,1]; cameras: N of them; masks (N,H,W), 1 = object, None = alpha or estimated
    (views.py); view_weights (N,) >= 0; start: a splat to go on from instead of config.init; depth: N maps, for init
    "depth". perceptual: what config.w_lpips weighs, a differentiable distance of two batches (N,H,W,3) -> (N,), such
    as lpips.Lpips; a module is moved to the fit's device and its weights must be frozen.
    on_step(step, total, info) follows every step (1..total); it may raise to end the fit, and what it raises comes
    through untouched. info: "loss" (0-d tensor), "gaussians" (count), "get_preview" (view=0 -> (H,W,3) picture on the
    CPU, rendered only when called).
    Same inputs, seed and machine give the same splat on the CPU; the global random state is not touched. Works inside
    torch.inference_mode. ValueError for bad input, before any heavy work.
    """
    config = config or FitConfig()
    if config.densify_every and config.strategy == "default":
        check_gsplat_installed()
    with torch.inference_mode(False), torch.enable_grad():
        device = torch.device(device) if device is not None else images.device
        views = prepare_views(images, cameras, masks, config.background)
        views = Views(*(t.to(device) for t in (views.images, views.masks, views.background)))
        weights = _checked_weights(view_weights, len(cameras), device)
        if config.w_lpips:
            perceptual = check_perceptual(perceptual, views.images)
        generator = torch.Generator().manual_seed(config.seed)
        if start is None:
            start = initial_gaussians(
                config.init, config.points, views, cameras, generator, config.hull_seen, depth, config.hull_cells
            )
        else:
            start = Gaussians(*(t.detach().clone() for t in start.validate().tensors())).to(device).to(torch.float32)
        return _Fit(views, cameras, weights, config, start, generator, perceptual).run(on_step)


class _Fit:
    """The state of one fit; used once."""

    def __init__(self, views, cameras, weights, config, start, generator, perceptual):
        self.views, self.config, self.generator, self.weights = views, config, generator, weights
        self.cameras, self.device = cameras, views.images.device
        self.radius = scene_sphere(cameras)[1]
        self.centers = cameras.centers().clone().to(self.device)
        self.w2c = cameras.w2c().to(self.device)
        self.height, self.width = views.images.shape[1:3]
        self.k = cameras.pixel_intrinsics(self.width, self.height).to(self.device)
        self.loss = ViewLoss(config.w_l1, config.w_msssim, config.w_mask, config.w_l2, config.w_lpips, perceptual)
        self.params = _parameters(start, config.sh_degree)
        self.optimizers = self._make_optimizers()
        self.strategy = self._make_strategy()
        self.refiner = CameraRefiner(cameras, config.refine, config.lr_cameras, self.device) if config.refine else None
        # gsplat has no gradient for the focal length.
        self.backend = "torch" if "fov" in config.refine else config.backend
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
            if self._has_settled(curves["loss"]):
                break
        # Read once at the end: reading every step would make a GPU wait.
        history = {k: torch.stack(v).tolist() if isinstance(v[0], Tensor) else v for k, v in curves.items()}
        with torch.no_grad():
            result = Gaussians(*(t.detach().clone() for t in self._gaussians(self.config.sh_degree).tensors()))
        cameras, offsets = self.cameras, CameraOffsets()
        if self.refiner is not None:
            cameras, offsets = self.refiner.cameras(), self.refiner.offsets()
        return FitResult(result, history, self.views.background, cameras, offsets)

    def _has_settled(self, losses: list[Tensor]) -> bool:
        """Whether the last `patience` steps were no better than those before them; looked at once in as many steps."""
        patience = self.config.patience
        if not patience or len(losses) < 2 * patience or len(losses) % patience:
            return False
        before, after = torch.stack(losses[-2 * patience :]).view(2, patience).mean(1).tolist()
        return after > before * (1 - STILL_FALLING)

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
        if isinstance(self.strategy, Mcmc):
            penalty = self.strategy.penalty(self.params)
            loss, terms["mcmc"] = loss + penalty, penalty.detach()
        if isinstance(self.strategy, Densifier):
            out.info["means2d"].retain_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.refiner is not None:
            self.refiner.step(progress)
        if self.strategy is not None:
            self.strategy.after_step(self.params, self.optimizers, step, out.info)
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
        w2c, k, centers = self.w2c[chosen], self.k[chosen], self.centers[chosen]
        if self.refiner is not None:
            w2c, k = self.refiner.w2c(chosen), self.refiner.k(k)
            centers = -(w2c[:, :3, :3].transpose(1, 2) @ w2c[:, :3, 3:])[..., 0].detach()
        directions = g.means.detach()[None] - centers[:, None]
        return rasterize(
            g.means, g.quats, g.scales, g.opacities, eval_sh(g.sh, directions), w2c, k, self.width, self.height,
            background=self.views.background, antialiased=self.config.antialiased, backend=self.backend,
        )  # fmt: skip

    def _make_strategy(self) -> Densifier | Mcmc | None:
        c = self.config
        if c.strategy == "mcmc":
            return Mcmc(c, self.radius)
        return Densifier(c, self.radius) if c.strategy == "default" and c.densify_every else None

    def _make_optimizers(self) -> dict[str, torch.optim.Adam]:
        c = self.config
        rates = {"means": c.lr_means * self.radius, "scales": c.lr_scales, "quats": c.lr_quats}
        rates |= {"opacities": c.lr_opacities, "sh0": c.lr_sh, "shN": c.lr_sh / 20}
        # One optimiser each, as DefaultStrategy wants them. eps: gradients of a mean over pixels are tiny.
        fused = self.device.type == "cuda"
        return {k: torch.optim.Adam([p], lr=rates[k], eps=1e-15, fused=fused) for k, p in self.params.items()}


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
