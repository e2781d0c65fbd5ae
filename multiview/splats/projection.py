"""EWA projection of 3D Gaussians to the image plane.

Zwicker et al., EWA Splatting, 2002; the details (clamped Jacobian, blur, radius rule, culling) are those of gsplat
1.5.3's CUDA projection, so that both back ends see the same Gaussians. Camera frame: x right, y down, z forward;
pixels have their centres at +0.5. Works in any float type; every output is differentiable except radii.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA_MIN = 1 / 255  # contributions below this are not drawn
EXTENT = 3.33  # standard deviations at which even an opaque Gaussian has fallen below ALPHA_MIN
FRUSTUM_MARGIN = 0.3  # how far outside the picture, in half-pictures, the Jacobian still follows the mean


class Projected(NamedTuple):
    """C cameras times P Gaussians. Where radii are 0 the Gaussian is not drawn and the other values mean nothing."""

    means2d: Tensor  # (C,P,2) pixels
    conics: Tensor  # (C,P,3) inverse 2D covariance: xx, xy, yy, per square pixel
    depths: Tensor  # (C,P) camera z
    radii: Tensor  # (C,P,2) int32, half extents in pixels
    compensations: Tensor | None  # (C,P) opacity factor that undoes the brightening by eps2d (antialiased mode)


def rotation_matrices(quats: Tensor) -> Tensor:
    """Quaternions (...,4) wxyz of any norm -> rotation matrices (...,3,3)."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    w2c: Tensor,
    K: Tensor,
    width: int,
    height: int,
    *,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
    antialiased: bool = False,
) -> Projected:
    """means (P,3), quats (P,4), scales (P,3), opacities (P,), w2c (C,4,4), K (C,3,3) pixels -> Projected.

    eps2d: variance in square pixels added to every footprint. antialiased: also return compensations.
    """
    rotation = w2c[:, :3, :3]
    x, y, z = (torch.einsum("cij,pj->cip", rotation, means) + w2c[:, :3, 3:]).unbind(1)
    in_depth = (z >= near) & (z <= far)
    safe_z = torch.where(in_depth, z, torch.ones_like(z))  # keeps culled Gaussians' gradients finite
    fx, fy, cx, cy = K[:, 0, 0, None], K[:, 1, 1, None], K[:, 0, 2, None], K[:, 1, 2, None]
    u, v = x / safe_z, y / safe_z
    means2d = torch.stack([fx * u + cx, fy * v + cy], dim=-1)

    # The covariance is root root^T; J rotation root is formed first, as its square cannot lose definiteness.
    root = torch.einsum("cij,pjk->cipk", rotation, rotation_matrices(quats) * scales[:, None, :])
    edge_u, edge_v = _clamp_to_frustum(u, fx, cx, width), _clamp_to_frustum(v, fy, cy, height)
    row_x = (fx / safe_z)[..., None] * (root[:, 0] - edge_u[..., None] * root[:, 2])
    row_y = (fy / safe_z)[..., None] * (root[:, 1] - edge_v[..., None] * root[:, 2])
    xx, xy, yy = (row_x * row_x).sum(-1), (row_x * row_y).sum(-1), (row_y * row_y).sum(-1)
    det_sharp = xx * yy - xy * xy
    xx, yy = xx + eps2d, yy + eps2d
    det = (xx * yy - xy * xy).clamp_min(1e-10)
    compensations = _compensation(det_sharp, det) if antialiased else None
    conics = torch.stack([yy / det, -xy / det, xx / det], dim=-1)

    with torch.no_grad():
        faint = opacities * compensations if antialiased else opacities.expand_as(z)
        extent = (2 * (faint / ALPHA_MIN).clamp_min(1).log()).sqrt().clamp_max(EXTENT)
        radii = torch.ceil(extent[..., None] * torch.stack([xx, yy], dim=-1).sqrt())
        outside = (means2d + radii <= 0) | (means2d - radii >= means2d.new_tensor([width, height]))
        shown = in_depth & (faint >= ALPHA_MIN) & ~outside.any(-1)
        # a Gaussian that all but touches the camera plane overflows int32; nothing is lost by the limit
        radii = (radii * shown[..., None]).nan_to_num(0).clamp_max(1e6).int()
    return Projected(means2d, conics, z, radii, compensations)


def _clamp_to_frustum(slope: Tensor, focal: Tensor, center: Tensor, size: int) -> Tensor:
    """x/z, limited to a little outside the picture: far off axis the linearised projection explodes."""
    margin = FRUSTUM_MARGIN * 0.5 * size / focal
    return torch.minimum(torch.maximum(slope, -(center / focal + margin)), (size - center) / focal + margin)


def _compensation(det_sharp: Tensor, det: Tensor) -> Tensor:
    """sqrt(det_sharp / det), with slope 0 instead of infinity at 0, where a needle is seen end on."""
    ratio = det_sharp / det
    positive = ratio > 1e-12
    return torch.where(positive, torch.where(positive, ratio, 1.0).sqrt(), 0.0)
