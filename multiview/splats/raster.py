"""The pack's one interface for drawing Gaussians: rasterize(), whichever back end does the work.

Frames: means, quats and scales in the world frame of cameras.py; w2c are OpenCV world-to-camera matrices (x right,
y down, z forward); K is in pixels, pixel centres at +0.5. Both back ends follow gsplat 1.5.3 and agree to about 1e-4.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import raster_gsplat
from .projection import project
from .raster_gsplat import gsplat_status
from .raster_torch import composite

BACKENDS = ("auto", "torch", "gsplat")
MAX_SIDE = 16384
__all__ = ["BACKENDS", "Render", "choose_backend", "gsplat_status", "rasterize"]


@dataclass
class Render:
    """What C cameras see.

    features: (C,H,W,D) alpha-composited, plus (1 - alpha) * background where one was given.
    alpha: (C,H,W,1) coverage in [0,1]. depth: (C,H,W,1) camera z averaged by weight, 0 where alpha is 0.
    info: what gsplat's DefaultStrategy asks for (means2d (C,P,2), radii (C,P,2), width, height, n_cameras,
    gaussian_ids), depths (C,P), and "backend", the one that did the work.
    """

    features: Tensor
    alpha: Tensor
    depth: Tensor
    info: dict = field(default_factory=dict)


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    w2c: Tensor,
    K: Tensor,
    width: int,
    height: int,
    *,
    background: Tensor | None = None,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
    antialiased: bool = False,
    backend: str = "auto",
) -> Render:
    """Draw P Gaussians into C pictures; differentiable in means, quats, scales, opacities, features and background.

    means (P,3) world; quats (P,4) wxyz of any norm; scales (P,3) linear, world units; opacities (P,) in [0,1];
    features (P,D) or (C,P,D), any D >= 1; w2c (C,4,4); K (C,3,3) pixels; background (D,) or (C,D).
    near, far: Gaussians with their centre outside this camera-z range are not drawn. eps2d: variance in square pixels
    added to each footprint. antialiased: scale opacity down by what eps2d adds (Mip-Splatting).
    backend: "auto" takes gsplat for float32 on CUDA where it works and torch otherwise.
    The pictures have the dtype and device of means. Raises ValueError for bad input, RuntimeError if gsplat was asked
    for and does not work here.
    """
    width, height = _checked_size(width), _checked_size(height)
    means, quats, scales, opacities, features = _checked_gaussians(means, quats, scales, opacities, features)
    w2c, K = _checked_cameras(w2c, K, means)
    cameras = w2c.shape[0]
    if features.ndim == 3 and features.shape[0] != cameras:
        raise ValueError(f"features hold {features.shape[0]} views but there are {cameras} cameras; give one for each.")
    if not 0 < near < far:
        raise ValueError(f"near and far must satisfy 0 < near < far, got {near} and {far}.")
    if eps2d < 0:
        raise ValueError(f"eps2d is a variance in square pixels and cannot be negative, got {eps2d}.")
    background = _checked_background(background, cameras, features)
    chosen = choose_backend(backend, means) if len(means) else "torch"
    options = {"near": near, "far": far, "eps2d": eps2d, "antialiased": antialiased}
    draw = raster_gsplat.render if chosen == "gsplat" else _render_torch
    drawn, alpha, depth, info = draw(means, quats, scales, opacities, features, w2c, K, width, height, **options)
    if background is not None:
        drawn = drawn + (1 - alpha) * background[:, None, None, :]
    info = {key: info[key] for key in ("means2d", "radii", "depths")}
    info.update(width=width, height=height, n_cameras=cameras, gaussian_ids=None, backend=chosen)
    return Render(drawn, alpha, depth, info)


def choose_backend(backend: str, like: Tensor) -> str:
    """Resolve "auto": "torch" or "gsplat" for tensors like this one.

    Raises ValueError for an unknown name or tensors gsplat cannot take, RuntimeError where gsplat does not work.
    """
    if backend not in BACKENDS:
        raise ValueError(f"Unknown rasteriser back end {backend!r}; choose one of {', '.join(BACKENDS)}.")
    if backend == "torch":
        return "torch"
    if backend == "auto":
        if not like.is_cuda or like.dtype != torch.float32:
            return "torch"
        usable, sentence = gsplat_status()
        if not usable:
            _warn_once(sentence)
        return "gsplat" if usable else "torch"
    usable, sentence = gsplat_status()
    if not usable:
        raise RuntimeError(f"The gsplat back end was asked for but cannot run here: {sentence} Or choose 'auto'.")
    if not like.is_cuda:
        raise ValueError(f"gsplat draws on CUDA only but the Gaussians are on {like.device}; move them or use 'auto'.")
    if like.dtype != torch.float32:
        raise ValueError(f"gsplat draws in float32 only but the Gaussians are {like.dtype}; use the torch back end.")
    return "gsplat"


@functools.lru_cache(maxsize=1)
def _warn_once(sentence: str) -> None:
    logging.getLogger(__name__).warning("%s The slower torch rasteriser is used instead.", sentence)


def _render_torch(means, quats, scales, opacities, features, w2c, K, width, height, *, near, far, eps2d, antialiased):
    """Same contract as raster_gsplat.render, on any device and float type."""
    options = {"near": near, "far": far, "eps2d": eps2d, "antialiased": antialiased}
    flat = project(means, quats, scales, opacities, w2c, K, width, height, **options)
    cameras, points = flat.depths.shape
    seen = opacities.expand(cameras, points)
    if antialiased:
        seen = seen * flat.compensations
    channels = [features.expand(cameras, points, -1), flat.depths[..., None], torch.ones_like(flat.depths)[..., None]]
    drawn = composite(
        flat.means2d, flat.conics, seen, torch.cat(channels, dim=-1), flat.depths.detach(), flat.radii, width, height
    )
    alpha = drawn[..., -1:]
    depth = drawn[..., -2:-1] / alpha.clamp_min(1e-10)
    return drawn[..., :-2], alpha, depth, flat._asdict()


def _checked_size(side: int) -> int:
    if int(side) != side or not 1 <= side <= MAX_SIDE:
        raise ValueError(f"Picture sides must be whole numbers from 1 to {MAX_SIDE} pixels, got {side}.")
    return int(side)


def _checked_gaussians(*tensors: Tensor) -> tuple[Tensor, ...]:
    names = ("means", "quats", "scales", "opacities", "features")
    means = tensors[0]
    p = means.shape[0] if means.ndim else 0
    wanted = ((p, 3), (p, 4), (p, 3), (p,))
    for name, tensor, shape in zip(names, tensors, wanted, strict=False):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} should have shape {shape} for {p} Gaussians, got {tuple(tensor.shape)}.")
    features = tensors[4]
    if features.ndim not in (2, 3) or features.shape[-2] != p or features.shape[-1] < 1:
        raise ValueError(f"features should have shape ({p},D) or (C,{p},D), D >= 1, got {tuple(features.shape)}.")
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != means.dtype:
            raise ValueError(f"{name} should be float32 or float64 like means, got {tensor.dtype} and {means.dtype}.")
        if tensor.device != means.device:
            raise ValueError(f"{name} is on {tensor.device} but means on {means.device}; move them to one device.")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} contain NaN or infinity; check what made the splat.")
    if p and (tensors[2] < 0).any():
        raise ValueError("scales are standard deviations and cannot be negative; pass exp() of log scales.")
    if p and (tensors[3].amin() < 0 or tensors[3].amax() > 1):
        raise ValueError("opacities must lie in [0,1]; pass sigmoid() of logits.")
    return tuple(_usable(t) for t in tensors)


def _checked_cameras(w2c: Tensor, K: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    c = w2c.shape[0] if w2c.ndim == 3 else 0
    if c < 1 or w2c.shape[1:] != (4, 4):
        raise ValueError(f"w2c should have shape (C,4,4) with C >= 1, got {tuple(w2c.shape)}.")
    if K.shape != (c, 3, 3):
        raise ValueError(f"K should have shape ({c},3,3) for {c} cameras, got {tuple(K.shape)}.")
    if not (torch.isfinite(w2c).all() and torch.isfinite(K).all()):
        raise ValueError("w2c or K contain NaN or infinity; check the cameras.")
    if (K[:, 0, 0] <= 0).any() or (K[:, 1, 1] <= 0).any() or (K[:, 0, 1] != 0).any():
        raise ValueError("K must be a pinhole matrix in pixels with positive focal lengths and no skew.")
    return _usable(w2c.to(like)), _usable(K.to(like))


def _checked_background(background: Tensor | None, cameras: int, features: Tensor) -> Tensor | None:
    if background is None:
        return None
    d = features.shape[-1]
    background = torch.as_tensor(background, dtype=features.dtype, device=features.device)
    if tuple(background.shape) not in ((d,), (cameras, d)):
        raise ValueError(
            f"background should have shape ({d},) or ({cameras},{d}) like the features, got {tuple(background.shape)}."
        )
    return _usable(background).expand(cameras, d)


def _usable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where it was made in inference mode and autograd is now to record with it."""
    records = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return tensor.clone() if records and tensor.is_inference() else tensor
