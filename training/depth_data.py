"""Batches for the depth network from a rendered pool, and the baselines it has to beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64
PLAIN = ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))


def at_size(rgb: Tensor, alpha: Tensor, offset: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 rgb (N,S,S,3), alpha (N,S,S), offset half (N,S,S) -> float rgb (N,3,s,s), alpha and offset (N,s,s).

    Offsets are averaged over the object's own pixels only, or silhouettes would get depths that nothing has.
    """
    rgb, alpha, offset = rgb.permute(0, 3, 1, 2).float() / 255, alpha.float() / 255, offset.float()
    if rgb.shape[-1] == size:
        return rgb, alpha, offset
    inside = (offset != 0).float()
    stack = torch.cat([rgb, alpha[:, None], (offset * inside)[:, None], inside[:, None]], dim=1)
    stack = F.interpolate(stack, size=(size, size), mode="area")
    return stack[:, :3], stack[:, 3], stack[:, 4] / stack[:, 5].clamp_min(1e-6)


def _uniform(shape, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def backgrounds(count: int, generator: torch.Generator) -> Tensor:
    """(count,3): half of them white, grey or black, the others any plain colour."""
    colours = torch.rand(count, 3, generator=generator)
    kind = torch.rand(count, generator=generator)
    for colour, (low, high) in zip(PLAIN, ((0.0, 0.3), (0.3, 0.42), (0.42, 0.54)), strict=True):
        colours[(kind >= low) & (kind < high)] = torch.tensor(colour)
    return colours


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colour gain, gamma, blur and noise as generated views have them. images (N,3,H,W) in [0,1]."""
    n = images.shape[0]
    gain = _uniform((n, 3, 1, 1), 0.85, 1.1, generator)
    gamma = _uniform((n, 1, 1, 1), 0.8, 1.25, generator)
    out = (images.clamp_min(1e-4) ** gamma * gain).clamp(0, 1)
    # A 5-tap binomial-like blur whose width differs by picture; the 0.4 keeps most pictures sharp.
    sigma = (_uniform((n,), -0.8, 1.2, generator)).clamp_min(0.05)
    taps = torch.exp(-(torch.arange(-2, 3.0)[None] ** 2) / (2 * sigma[:, None] ** 2))
    taps = taps / taps.sum(1, keepdim=True)
    kernel = (taps[:, :, None] * taps[:, None, :]).repeat_interleave(3, dim=0)[:, None]
    padded = F.pad(out, (2, 2, 2, 2), mode="replicate").reshape(1, 3 * n, *[s + 4 for s in out.shape[2:]])
    out = F.conv2d(padded, kernel, groups=3 * n).reshape(images.shape)
    level = _uniform((n, 1, 1, 1), -0.04, 0.05, generator).clamp_min(0)
    return (out + level * torch.randn(out.shape, generator=generator)).clamp(0, 1)


def make_batch(pool: dict[str, Tensor], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """-> images (B,3,64,64), alpha, offset (B,64,64): random objects, views, mirroring, backgrounds and disturbance.

    One size only: on a CPU, spreading the training over sizes up to 128 px cost a fifth of
    the accuracy at all of them, and estimate_depth can resize.
    """
    k = torch.randint(pool["rgb"].shape[0], (batch,), generator=generator)
    v = torch.randint(pool["rgb"].shape[1], (batch,), generator=generator)
    rgb, alpha, offset = at_size(pool["rgb"][k, v], pool["alpha"][k, v], pool["offset"][k, v], SIZE)
    mirror = torch.rand(batch, generator=generator) < 0.5
    rgb, alpha, offset = (
        torch.where(mirror.view(-1, *[1] * (t.ndim - 1)), t.flip(-1), t) for t in (rgb, alpha, offset)
    )
    images = rgb + (1 - alpha)[:, None] * backgrounds(batch, generator)[:, :, None, None]
    return disturb(images, generator), alpha, offset


def loss_of(outputs: tuple[Tensor, Tensor, Tensor], alpha: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Laplace likelihood and absolute error inside, cross-entropy of the mask -> loss, mean absolute error (both
    scalar).
    """
    guess, log_b, logit = outputs
    inside = ((alpha > 0.5) & (offset != 0)).float()
    total = inside.sum().clamp_min(1)
    error = (guess - offset).abs() * inside
    likelihood = (error * torch.exp(-log_b) + log_b * inside).sum() / total
    mean_error = error.sum() / total
    mask = F.binary_cross_entropy_with_logits(logit, alpha)
    return 0.3 * likelihood + 3.0 * mean_error + mask, mean_error.detach()


def mean_map(pool: dict[str, Tensor]) -> Tensor:
    """(S,S) mean offset of the training pool over the views that cover a pixel, 0 where none does."""
    offset, inside = pool["offset"].float(), (pool["alpha"] > 127).float()
    return (offset * inside).sum((0, 1)) / inside.sum((0, 1)).clamp_min(1)


def sphere_map(inside: Tensor) -> Tensor:
    """(N,H,W) bool silhouettes -> offsets of the sphere of the same area around its middle, in half heights."""
    n, height, width = inside.shape
    mask = inside.float()
    area = mask.sum((1, 2)).clamp_min(1)
    y = (torch.arange(height) + 0.5).view(1, -1, 1)
    x = (torch.arange(width) + 0.5).view(1, 1, -1)
    cy, cx = (mask * y).sum((1, 2)) / area, (mask * x).sum((1, 2)) / area
    square = area[:, None, None] / torch.pi - (x - cx[:, None, None]) ** 2 - (y - cy[:, None, None]) ** 2
    return square.clamp_min(0).sqrt() / (height / 2)
