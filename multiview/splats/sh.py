"""Real spherical harmonics up to degree 3, with the signs of 3D Gaussian splatting.

The basis is the real orthonormal one with the Condon-Shortley phase kept (band 1 is -y, z, -x), ordered by
degree l and then by order m = -l..l; Sloan, Efficient Spherical Harmonic Evaluation, JCGT 2(2), 2013.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_PI = math.pi
_L0 = math.sqrt(1 / (4 * _PI))
_L1 = math.sqrt(3 / (4 * _PI))
_L2 = [math.sqrt(15 / (4 * _PI)), math.sqrt(5 / (16 * _PI)), math.sqrt(15 / (16 * _PI))]
_L3 = [
    math.sqrt(35 / (32 * _PI)),
    math.sqrt(105 / (4 * _PI)),
    math.sqrt(21 / (32 * _PI)),
    math.sqrt(7 / (16 * _PI)),
    math.sqrt(105 / (16 * _PI)),
]


def sh_basis(directions: Tensor, count: int) -> Tensor:
    """Basis functions at directions (...,3) of any length -> (...,count), count in 1, 4, 9, 16."""
    if count not in (1, 4, 9, 16):
        raise ValueError(f"Spherical harmonics have 1, 4, 9 or 16 functions here (degree 0 to 3), got {count}.")
    if directions.shape[-1] != 3:
        raise ValueError(f"Directions must end in 3 components, got shape {tuple(directions.shape)}.")
    x, y, z = F.normalize(directions, dim=-1).unbind(-1)
    values = [torch.full_like(x, _L0)]
    if count > 1:
        values += [-_L1 * y, _L1 * z, -_L1 * x]
    if count > 4:
        a, b, c = _L2
        values += [a * x * y, -a * y * z, b * (3 * z * z - 1), -a * x * z, c * (x * x - y * y)]
    if count > 9:
        a, b, c, d, e = _L3
        xx, yy, zz = x * x, y * y, z * z
        values += [
            -a * y * (3 * xx - yy),
            b * x * y * z,
            -c * y * (5 * zz - 1),
            d * z * (5 * zz - 3),
            -c * x * (5 * zz - 1),
            e * z * (xx - yy),
            -a * x * (xx - 3 * yy),
        ]
    return torch.stack(values, dim=-1)


def eval_sh(sh: Tensor, directions: Tensor) -> Tensor:
    """Colour seen along a direction: clamp_min(0.5 + sum of coefficients times basis, 0).

    sh: (P,K,3) coefficients, K in 1, 4, 9, 16. directions: (P,3) or (C,P,3), from the camera to the Gaussian, of any
    length. Returns (P,3) or (C,P,3). Raises ValueError where the shapes do not fit.
    """
    if sh.ndim != 3 or sh.shape[2] != 3:
        raise ValueError(f"Spherical harmonic coefficients must have shape (P,K,3), got {tuple(sh.shape)}.")
    if directions.ndim < 2 or directions.shape[-2] != sh.shape[0]:
        raise ValueError(f"There are {sh.shape[0]} Gaussians but directions of shape {tuple(directions.shape)}.")
    basis = sh_basis(directions, sh.shape[1])
    return (torch.einsum("...pk,pkc->...pc", basis, sh) + 0.5).clamp_min(0)
