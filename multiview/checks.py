"""Entry checks that several parts share. Each raises a ValueError with one sentence: what, expected, what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from .cameras import Cameras


def check_images(images: Tensor, label: str = "images") -> Tensor:
    """(N,H,W,C>=3) finite pictures; returns their first three channels (a view, never a changed copy)."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[-1] < 3 or images.shape[0] == 0:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"The {label} should be a batch of colour pictures (N,H,W,3), got {got}.")
    if not torch.isfinite(images).all():
        bad = [i for i in range(images.shape[0]) if not torch.isfinite(images[i]).all()]
        raise ValueError(
            f"The {label} contain NaN or infinity (view {', '.join(map(str, bad[:8]))}); the model or VAE that made "
            "them overflowed: try it in fp32 or bf16."
        )
    return images[..., :3]


def check_view_count(views: int, cameras: Cameras, label: str = "images") -> None:
    if views != len(cameras):
        raise ValueError(
            f"There are {views} {label} but the cameras describe {len(cameras)} views ({cameras.name}); connect the "
            "cameras these views were made with, or pick the matching views."
        )


def check_size(width: int, height: int, multiple: int = 8) -> None:
    if width % multiple or height % multiple or width <= 0 or height <= 0:
        raise ValueError(
            f"The view size {width} x {height} must be a positive multiple of {multiple} on both sides; "
            f"the nearest is {max(multiple, round(width / multiple) * multiple)} x "
            f"{max(multiple, round(height / multiple) * multiple)}."
        )
