"""How ComfyUI's own splat nodes (since 0.23) read a SPLAT and draw it, written out literally in float64 numpy.

World and camera as in docs/conventions.md; scales linear, rotations wxyz, colours the constant spherical harmonic.
What core does otherwise than 3D Gaussian splatting's rasterisers:
- a Gaussian counts with its peak along the pixel's ray, without a low-pass filter; its covariance grows by 1e-3 of its
  mean variance;
- pixel i has its centre at i, not i + 0.5;
- Gaussians are sorted into slabs of about 1000 by depth. A slab's colour is the mean by alpha, its opacity exact;
- colours are blended in linear light.
"""

from __future__ import annotations

import numpy as np

SH_C0 = 0.28209479177387814


def to_linear(c):
    return np.where(c <= 0.04045, c / 12.92, ((np.maximum(c, 0) + 0.055) / 1.055) ** 2.4)


def to_srgb(c):
    return np.where(c <= 0.0031308, c * 12.92, 1.055 * np.maximum(c, 0) ** (1 / 2.4) - 0.055)


def turned(q):
    """(3,3) of a quaternion wxyz."""
    w, x, y, z = q / np.linalg.norm(q)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def orbit_camera(azimuth: float, elevation: float, radius: float):
    """(centre, axes): rows right, down, forward. Formulas of docs/conventions.md."""
    a, e = np.radians([azimuth, elevation])
    right = [np.cos(a), 0, np.sin(a)]
    down = [np.sin(e) * np.sin(a), np.cos(e), -np.sin(e) * np.cos(a)]
    forward = [-np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)]
    return -radius * np.array(forward), np.array([right, down, forward])


def draw(means, scales, quats, opacities, colours, camera, fov: float, side: int, slabs: int | None = None):
    """(side,side,3) on white, as displayed, and coverage (side,side). slabs: how many; None = as many as core takes."""
    centre, axes = camera
    seen = (means - centre) @ axes.T
    focal = side / 2 / np.tan(np.radians(fov) / 2)
    ramp = (np.arange(side) - side / 2) / focal
    rays = np.stack([*np.meshgrid(ramp, ramp), np.ones((side, side))], -1)
    slabs = slabs or min(256, max(1, len(means) // 1000))
    bounds = np.linspace(0, len(means), slabs + 1).round().astype(int)
    order = np.argsort(seen[:, 2])
    light, through = np.zeros((side, side, 3)), np.ones((side, side))
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        total, colour, clear = np.zeros((side, side)), np.zeros((side, side, 3)), np.ones((side, side))
        for i in order[low:high]:
            spread = axes @ turned(quats[i]) * scales[i]
            covariance = spread @ spread.T
            inverse = np.linalg.inv(covariance + 1e-3 * np.trace(covariance) / 3 * np.eye(3))
            along = rays @ inverse
            power = seen[i] @ inverse @ seen[i] - (along @ seen[i]) ** 2 / (along * rays).sum(-1)
            alpha = np.clip(opacities[i] * np.exp(-0.5 * np.maximum(power, 0)), 0, 0.999)
            total += alpha
            clear *= 1 - alpha
            colour += alpha[..., None] * to_linear(colours[i])
        light += (through * (1 - clear) / np.maximum(total, 1e-8))[..., None] * colour
        through = through * clear
    return np.clip(to_srgb(light + through[..., None]), 0, 1), 1 - through
