"""The splat itself: 3D Gaussians in render-ready form.

World frame of cameras.py (x right, y down, z forward). Scales are linear standard deviations in world units,
rotations unit quaternions with the scalar first, opacities in [0,1], colours spherical-harmonic coefficients of
3D Gaussian splatting: rgb = 0.5 + sum of coefficients times basis, band 0 being SH_C0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814


@dataclass(frozen=True)
class Gaussians:
    """P Gaussians.

    means (P,3), scales (P,3) > 0, quats (P,4) wxyz unit, opacities (P,) in [0,1], sh (P,K,3) with K = (degree+1)^2.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    sh: Tensor

    @property
    def num(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        return round(self.sh.shape[1] ** 0.5) - 1

    def validate(self) -> Gaussians:
        """Return self if every tensor has its shape and finite values; otherwise a ValueError that names the field."""
        p = self.num
        shapes = {"means": (p, 3), "scales": (p, 3), "quats": (p, 4), "opacities": (p,)}
        for field, shape in shapes.items():
            got = tuple(getattr(self, field).shape)
            if got != shape:
                raise ValueError(f"The splat's {field} should have shape {shape} for {p} Gaussians, got {got}.")
        if self.sh.ndim != 3 or self.sh.shape[0] != p or self.sh.shape[2] != 3 or self.sh.shape[1] not in (1, 4, 9, 16):
            raise ValueError(
                f"The splat's colours should have shape ({p}, 1|4|9|16, 3), got {tuple(self.sh.shape)}; spherical "
                "harmonics above degree 3 are not supported: save the splat with degree 3 or lower where it was made."
            )
        if p == 0:
            raise ValueError("The splat has no Gaussians; the node that made it produced nothing.")
        for field in (*shapes, "sh"):
            if not torch.isfinite(getattr(self, field)).all():
                raise ValueError(f"The splat's {field} contain NaN or infinity; fit it again or repair the file.")
        return self

    def to(self, *args, **kwargs) -> Gaussians:
        return Gaussians(*(t.to(*args, **kwargs) for t in self.tensors()))

    def detach(self) -> Gaussians:
        return Gaussians(*(t.detach() for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.means, self.scales, self.quats, self.opacities, self.sh
