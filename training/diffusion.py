"""The diffusion side of the video UNet's training: noise levels, the v-prediction loss, an Euler sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..multiview.demo.video_unet import VideoConfig, denoised_from_output
from .video_data import conditioning

SIGMA_MEAN, SIGMA_SPREAD = 0.8, 1.6
UNIFORM_SHARE = 0.1
DROP_REFERENCE = 0.12
IMAGES_ONLY = 0.10


def draw_sigmas(count: int, config: VideoConfig, generator: torch.Generator) -> Tensor:
    """(count,) ln sigma normal around 0.8; one in ten log-uniform, so that the ends of the range are trained too."""
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    normal = SIGMA_MEAN + SIGMA_SPREAD * torch.randn(count, generator=generator)
    uniform = low + (high - low) * torch.rand(count, generator=generator)
    pick = torch.rand(count, generator=generator) < UNIFORM_SHARE
    return torch.where(pick, uniform, normal).clamp(low, high).exp()


def apply_unet(
    unet: nn.Module,
    x: Tensor,
    sigma: Tensor,
    cond: dict[str, Tensor],
    views: int,
    dtype=torch.float32,
    images_only: Tensor | None = None,
    patches: dict | None = None,
) -> Tensor:
    """Raw output F for x (BV,C,h,w) at sigma (BV,), computed in dtype, returned as float32.

    images_only: (B,V). patches: functions at the host's patch points, by their names there.
    """
    scaled = x / (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
    if images_only is None:
        images_only = torch.zeros(x.shape[0] // views, views, device=x.device)
    return unet(
        torch.cat([scaled, cond["concat"]], dim=1).to(dtype),
        0.25 * sigma.log(),
        context=cond["context"].to(dtype),
        y=cond["y"].to(dtype),
        num_video_frames=views,
        image_only_indicator=images_only,
        transformer_options={"patches": patches or {}},
    ).float()


@dataclass(frozen=True)
class Noisy:
    """B scenes of V views with noise: x (BV,C,h,w) at sigma (BV,), and what the UNet is told and should say."""

    x: Tensor
    sigma: Tensor
    cond: dict[str, Tensor]
    images_only: Tensor
    target: Tensor

    @property
    def views(self) -> int:
        return self.images_only.shape[1]

    def output(self, unet: nn.Module, dtype=torch.float32, patches: dict | None = None) -> Tensor:
        """Raw output of the UNet."""
        return apply_unet(unet, self.x, self.sigma, self.cond, self.views, dtype, self.images_only, patches)

    def loss(self, output: Tensor) -> Tensor:
        """(B,) squared error of the v-prediction, which weighs all noise levels alike (EDM's weighting, Karras et al.
        2022, equation 8).
        """
        return (output - self.target).square().mean((1, 2, 3)).view(-1, self.views).mean(1)

    def denoised(self, output: Tensor) -> Tensor:
        """(B,V,C,h,w)."""
        return denoised_from_output(self.x, output, self.sigma).unflatten(0, (-1, self.views))


def add_noise(clean: Tensor, config: VideoConfig, generator: torch.Generator) -> Noisy:
    """clean: (B,V,C,h,w), view 0 is the input view, which is dropped now and then, as views are cut apart."""
    scenes, views = clean.shape[:2]
    device = clean.device
    sigma = draw_sigmas(scenes, config, generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    keep = (torch.rand(scenes, generator=generator) >= DROP_REFERENCE).float().to(device)
    alone = (torch.rand(scenes, generator=generator) < IMAGES_ONLY).float().to(device)
    cond = conditioning(config, clean[:, 0] * keep[:, None, None, None], views)
    each = sigma.repeat_interleave(views)
    x = (clean + sigma.view(-1, 1, 1, 1, 1) * noise).flatten(0, 1)
    s = each.view(-1, 1, 1, 1)
    root = (s * s + 1).sqrt()
    target = (x / root - clean.flatten(0, 1) * root) / s
    return Noisy(x, each, cond, alone[:, None].expand(-1, views), target)


def v_loss(
    unet: nn.Module, clean: Tensor, config: VideoConfig, generator: torch.Generator, dtype=torch.float32
) -> Tensor:
    """(B,) loss of each scene. clean: (B,V,C,h,w), view 0 is the input view."""
    noisy = add_noise(clean, config, generator)
    return noisy.loss(noisy.output(unet, dtype))


def karras_sigmas(steps: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """(steps+1,) falling noise levels, the last one 0 (Karras et al. 2022, equation 5)."""
    ramp = torch.linspace(0, 1, steps)
    sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([sigmas, torch.zeros(1)])


@torch.no_grad()
def sample(
    unet: nn.Module,
    config: VideoConfig,
    reference: Tensor,
    views: int,
    generator: torch.Generator,
    steps: int = 20,
    cfg: float = 1.0,
    dtype=torch.float32,
) -> Tensor:
    """Euler sampling of all views from input-view latents (B,C,h,w) -> (B,V,C,h,w)."""
    scenes, device = reference.shape[0], reference.device
    sigmas = karras_sigmas(steps, config.sigma_min, config.sigma_max).tolist()
    x = sigmas[0] * torch.randn((scenes * views, *reference.shape[1:]), generator=generator).to(device)
    cond, none = (conditioning(config, r, views) for r in (reference, torch.zeros_like(reference)))
    for now, after in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((x.shape[0],), now, device=device)
        denoised = denoised_from_output(x, apply_unet(unet, x, level, cond, views, dtype), level)
        if cfg != 1.0:
            plain = denoised_from_output(x, apply_unet(unet, x, level, none, views, dtype), level)
            denoised = plain + cfg * (denoised - plain)
        x = x + (x - denoised) / now * (after - now)
    return x.unflatten(0, (scenes, views))


def pose_errors(views: Tensor, truth: Tensor) -> Tensor:
    """(B,V-1) degrees between each view's azimuth and that of the true view it resembles most. Without view 0, the
    input.

    views, truth: (B,V,...) of even orbits. A set whose views all show the input scores 180 for the back; guessing at
    random about 88 with 8 or 16 views.
    """
    count = views.shape[1]
    a, b = views.flatten(2), truth.flatten(2)
    distance = torch.cdist(a.float(), b.float())
    best = distance.argmin(dim=2)
    steps = (best - torch.arange(count, device=best.device)[None]).abs()
    return (torch.minimum(steps, count - steps) * (360.0 / count))[:, 1:]
