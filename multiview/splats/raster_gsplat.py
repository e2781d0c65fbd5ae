"""gsplat's CUDA rasteriser behind the same interface, and the probe that tells whether it works here."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def render(
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
    near: float,
    far: float,
    eps2d: float,
    antialiased: bool,
) -> tuple[Tensor, Tensor, Tensor, dict]:
    """Arguments as rasterize(), float32 on a CUDA device -> features (C,H,W,D), alpha, depth (C,H,W,1), info."""
    from gsplat import rasterization

    drawn, alpha, info = rasterization(
        means, quats, scales, opacities, features, w2c, K, width, height,
        near_plane=near, far_plane=far, eps2d=eps2d, packed=False, render_mode="RGB+ED",
        rasterize_mode="antialiased" if antialiased else "classic",
    )  # fmt: skip
    return drawn[..., :-1], alpha, drawn[..., -1:], info


@functools.lru_cache(maxsize=1)
def gsplat_status() -> tuple[bool, str]:
    """(usable, one sentence for the user). Probes once with a one-Gaussian render and its gradient; never raises.

    gsplat 1.5.3 may compile its kernels during the first probe, which takes minutes.
    """
    if not torch.cuda.is_available():
        return False, "gsplat needs an NVIDIA GPU and PyTorch sees none here, so the built-in torch rasteriser is used."
    try:
        import gsplat
    except Exception as error:  # noqa: BLE001 - a broken install fails in many ways; the reason must reach the user
        return False, f"gsplat could not be imported ({_reason(error)}); install it with: pip install gsplat"
    try:
        covered = _probe(torch.device("cuda", torch.cuda.current_device()))
    except Exception as error:  # noqa: BLE001
        return False, (
            f"gsplat {gsplat.__version__} is installed but its CUDA kernels do not run ({_reason(error)}); install a "
            "wheel built for this PyTorch and CUDA, or set CUDA_HOME so that it can compile them."
        )
    if not covered:
        return False, f"gsplat {gsplat.__version__} drew nothing in a test picture; reinstall it for this PyTorch."
    return True, f"gsplat {gsplat.__version__} works on {torch.cuda.get_device_name()}."


def _probe(device: torch.device) -> bool:
    """Whether one Gaussian in front of one camera is drawn and gets a finite gradient."""
    with torch.inference_mode(False), torch.enable_grad():
        means = torch.tensor([[0.0, 0.0, 2.0]], device=device, requires_grad=True)
        quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device)
        eye = torch.eye(4, device=device)[None]
        K = torch.tensor([[[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]]], device=device)
        _, alpha, _, _ = render(
            means, quats, torch.full((1, 3), 0.3, device=device), torch.full((1,), 0.9, device=device),
            torch.ones(1, 3, device=device), eye, K, 16, 16, near=0.01, far=1e10, eps2d=0.3, antialiased=False,
        )  # fmt: skip
        alpha[..., 2:].sum().backward()
        return bool(alpha[0, 8, 8, 0] > 0.5) and bool(torch.isfinite(means.grad).all())


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
