"""Metric depth of a set of views, as nodes pass it around (socket MV_DEPTH)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DepthMaps:
    """depth: (N,H,W) camera z in world units, 0 where there is nothing. confidence: (N,H,W) in [0,1]."""

    depth: Tensor
    confidence: Tensor

    def __post_init__(self):
        if self.depth.ndim != 3 or self.depth.shape != self.confidence.shape:
            raise ValueError(
                f"Depth and confidence must both be (N,H,W), got {tuple(self.depth.shape)} and "
                f"{tuple(self.confidence.shape)}."
            )

    def picture(self) -> Tensor:
        """(N,H,W,3) in [0,1]: near is white, far is dark, nothing is black. One scale for all views."""
        seen = self.depth > 0
        if not seen.any():
            return torch.zeros(*self.depth.shape, 3)
        near, far = self.depth[seen].min(), self.depth[seen].max()
        shade = 1.0 - 0.85 * (self.depth - near) / (far - near).clamp_min(1e-6)
        return torch.where(seen, shade, torch.zeros_like(shade)).float().cpu()[..., None].expand(-1, -1, -1, 3).clone()
