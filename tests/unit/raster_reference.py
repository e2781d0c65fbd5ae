"""A slow, literal Gaussian rasteriser: one Gaussian after the other, every pixel, autograd for the gradients."""

from __future__ import annotations

import torch


def rotation(q):
    """Unit quaternion (4,) wxyz -> (3,3), by q v q* of the three axes."""
    w, v = q[0], q[1:]
    columns = []
    for axis in torch.eye(3, dtype=q.dtype):
        t = 2 * torch.linalg.cross(v, axis)
        columns.append(axis + w * t + torch.linalg.cross(v, t))
    return torch.stack(columns, 1)


def draw(means, quats, scales, opacities, features, w2c, K, width, height, background, antialiased=False):
    """-> features (C,H,W,D), alpha (C,H,W,1), depth (C,H,W,1). Semantics: the docstring of raster_torch.py."""
    results = [
        _draw_one(
            means, quats, scales, opacities, features if features.ndim == 2 else features[c],
            w2c[c], K[c], width, height, background, antialiased,
        )
        for c in range(len(w2c))
    ]  # fmt: skip
    return tuple(torch.stack(r) for r in zip(*results, strict=True))


def _draw_one(means, quats, scales, opacities, features, w2c, K, width, height, background, antialiased):
    like = {"dtype": means.dtype}
    py, px = torch.meshgrid(torch.arange(height, **like) + 0.5, torch.arange(width, **like) + 0.5, indexing="ij")
    transmittance = torch.ones(height, width, **like)
    stopped = torch.zeros(height, width, dtype=torch.bool)
    image = torch.zeros(height, width, features.shape[-1], **like)
    depth = torch.zeros(height, width, **like)
    (fx, fy), (cx, cy) = K.diagonal()[:2], K[:2, 2]
    R = w2c[:3, :3]
    camera = means @ R.T + w2c[:3, 3]
    for i in torch.argsort(camera[:, 2], stable=True).tolist():
        x, y, z = camera[i]
        if z < 0.01:
            continue
        # the linearisation point stays within 15 % of the picture's size around it
        tx = z * torch.clamp(x / z, -(cx / fx + 0.15 * width / fx), (width - cx) / fx + 0.15 * width / fx)
        ty = z * torch.clamp(y / z, -(cy / fy + 0.15 * height / fy), (height - cy) / fy + 0.15 * height / fy)
        zero = torch.zeros_like(z)
        J = torch.stack([torch.stack([fx / z, zero, -fx * tx / z**2]), torch.stack([zero, fy / z, -fy * ty / z**2])])
        half = R @ rotation(quats[i] / quats[i].norm()) @ torch.diag(scales[i])
        sharp = J @ half @ half.T @ J.T
        covariance = sharp + 0.3 * torch.eye(2, **like)
        opacity = opacities[i]
        if antialiased:
            opacity = opacity * torch.sqrt(torch.linalg.det(sharp) / torch.linalg.det(covariance))
        offset = torch.stack([px - (fx * x / z + cx), py - (fy * y / z + cy)], -1)
        sigma = 0.5 * (offset * (offset @ torch.linalg.inv(covariance))).sum(-1)
        alpha = torch.clamp(opacity * torch.exp(-sigma), max=0.999)
        counts = (alpha >= 1 / 255) & ~stopped
        stopped = stopped | (counts & (transmittance * (1 - alpha) <= 1e-4))
        counts = counts & ~stopped
        weight = torch.where(counts, transmittance * alpha, zero)
        image = image + weight[..., None] * features[i]
        depth = depth + weight * z
        transmittance = transmittance - weight
    alpha = (1 - transmittance)[..., None]
    return image + (1 - alpha) * background, alpha, depth[..., None] / alpha.clamp_min(1e-10)
