"""Competitors for bench_raster.py: the 2D stage of Gaussian rasterisation in numba, forward and closed-form backward.

Same semantics as multiview/splats/raster_torch.py (alpha clamp, skip below 1/255, stop at 1e-4). Both kernels bin
Gaussians into tiles by a counting sort in depth order, cull a tile that a Gaussian's alpha does not reach only by its
bounding box, and leave a pixel when it is opaque.
 - "scalar": one pixel after the other, skipping a Gaussian before its exp is taken; the usual CPU port of 3DGS.
 - "simd": one Gaussian after the other, 64 pixels of a tile at a time with an own exp, so that LLVM vectorises.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit

ALPHA_MIN, ALPHA_MAX, T_MIN = np.float32(1 / 255), np.float32(0.999), np.float32(1e-4)
TILE = 8


@njit(fastmath=True)
def _bin(means, radii, order, columns, rows):
    n = order.shape[0]
    count = np.zeros(columns * rows + 1, np.int64)
    box = np.empty((n, 4), np.int32)
    for i in range(n):
        g = order[i]
        x, y, rx, ry = means[g, 0], means[g, 1], radii[g, 0], radii[g, 1]
        box[i, 0] = min(max(0, int(math.floor((x - rx) / TILE))), columns)
        box[i, 1] = min(max(0, int(math.ceil((x + rx) / TILE))), columns)
        box[i, 2] = min(max(0, int(math.floor((y - ry) / TILE))), rows)
        box[i, 3] = min(max(0, int(math.ceil((y + ry) / TILE))), rows)
        for r in range(box[i, 2], box[i, 3]):
            for c in range(box[i, 0], box[i, 1]):
                count[r * columns + c + 1] += 1
    start = np.cumsum(count)
    fill = start[:-1].copy()
    ids = np.empty(start[-1], np.int64)
    for i in range(n):
        for r in range(box[i, 2], box[i, 3]):
            for c in range(box[i, 0], box[i, 1]):
                t = r * columns + c
                ids[fill[t]] = order[i]
                fill[t] += 1
    return start, ids


@njit(fastmath=True)
def _scalar_forward(means, conics, opacities, reach, features, start, ids, width, height, columns):
    channels = features.shape[1]
    out = np.zeros((height, width, channels), np.float32)
    transmittance = np.ones((height, width), np.float32)
    last = np.zeros((height, width), np.int64)
    for py in range(height):
        for px in range(width):
            t = (py // TILE) * columns + px // TILE
            T = np.float32(1)
            x, y = np.float32(px + 0.5), np.float32(py + 0.5)
            end = start[t]
            for k in range(start[t], start[t + 1]):
                g = ids[k]
                dx, dy = means[g, 0] - x, means[g, 1] - y
                sigma = np.float32(0.5) * (conics[g, 0] * dx * dx + conics[g, 2] * dy * dy) + conics[g, 1] * dx * dy
                if sigma > reach[g]:
                    continue
                alpha = min(ALPHA_MAX, opacities[g] * math.exp(-sigma))
                after = T * (np.float32(1) - alpha)
                if after <= T_MIN:
                    break
                weight = alpha * T
                for d in range(channels):
                    out[py, px, d] += weight * features[g, d]
                T = after
                end = k + 1
            transmittance[py, px] = T
            last[py, px] = end
    return out, transmittance, last


@njit(fastmath=True)
def _scalar_backward(
    means, conics, opacities, reach, features, start, ids, width, height, columns, transmittance, last, grad
):
    n, channels = features.shape
    g_means, g_conics = np.zeros((n, 2), np.float32), np.zeros((n, 3), np.float32)
    g_opacities, g_features = np.zeros(n, np.float32), np.zeros((n, channels), np.float32)
    for py in range(height):
        for px in range(width):
            t = (py // TILE) * columns + px // TILE
            T = transmittance[py, px]
            x, y = np.float32(px + 0.5), np.float32(py + 0.5)
            behind = np.float32(0)
            for k in range(last[py, px] - 1, start[t] - 1, -1):
                g = ids[k]
                dx, dy = means[g, 0] - x, means[g, 1] - y
                sigma = np.float32(0.5) * (conics[g, 0] * dx * dx + conics[g, 2] * dy * dy) + conics[g, 1] * dx * dy
                if sigma > reach[g]:
                    continue
                raw = opacities[g] * math.exp(-sigma)
                alpha = min(ALPHA_MAX, raw)
                T = T / (np.float32(1) - alpha)
                weight = alpha * T
                gain = np.float32(0)
                for d in range(channels):
                    gain += features[g, d] * grad[py, px, d]
                    g_features[g, d] += weight * grad[py, px, d]
                excess = gain - behind
                behind += alpha * excess
                if raw <= ALPHA_MAX:
                    v = weight * excess
                    g_opacities[g] += v / opacities[g]
                    g_conics[g, 0] -= np.float32(0.5) * v * dx * dx
                    g_conics[g, 1] -= v * dx * dy
                    g_conics[g, 2] -= np.float32(0.5) * v * dy * dy
                    g_means[g, 0] -= v * (conics[g, 0] * dx + conics[g, 1] * dy)
                    g_means[g, 1] -= v * (conics[g, 1] * dx + conics[g, 2] * dy)
    return g_means, g_conics, g_opacities, g_features


class _Scalar(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, opacities, features, depths, radii, width, height):
        means, con, opa, fea = (t.detach()[0].contiguous().numpy() for t in (means2d, conics, opacities, features))
        rad = radii[0].numpy()
        shown = np.nonzero((rad > 0).all(1))[0]
        order = shown[np.argsort(depths.detach()[0].numpy()[shown], kind="stable")]
        columns, rows = -(-width // TILE), -(-height // TILE)
        reach = np.log(np.maximum(opa, ALPHA_MIN) / ALPHA_MIN)
        lists = _bin(means, rad, order, columns, rows)
        ctx.args = (means, con, opa, reach, fea, *lists, width, height, columns)
        out, ctx.transmittance, ctx.last = _scalar_forward(*ctx.args)
        return torch.from_numpy(out)[None]

    @staticmethod
    def backward(ctx, grad):
        grads = _scalar_backward(*ctx.args, ctx.transmittance, ctx.last, grad[0].contiguous().numpy())
        return *(torch.from_numpy(g)[None] for g in grads), None, None, None, None


def scalar_composite(*args):
    """Drop-in for raster_torch.composite with one camera, float32, CPU."""
    return _Scalar.apply(*args)


@njit(fastmath=True, inline="always")
def _exp(x):
    """exp on [-6, 0] to about 1e-6, from operations that LLVM can put into vector registers."""
    y = x * np.float32(0.125)
    p = np.float32(1 / 5040)
    p = p * y + np.float32(1 / 720)
    p = p * y + np.float32(1 / 120)
    p = p * y + np.float32(1 / 24)
    p = p * y + np.float32(1 / 6)
    p = p * y + np.float32(0.5)
    p = p * y + np.float32(1)
    p = p * y + np.float32(1)
    p = p * p
    p = p * p
    return p * p


@njit(fastmath=True)
def _alpha_row(alpha, T, live, mx, my, xx, xy, yy, opacity, reach):
    """alphas of one Gaussian in the 64 pixels of a tile whose first centre is the origin; updates T."""
    for i in range(TILE * TILE):
        dx = mx - np.float32(i % TILE)
        dy = my - np.float32(i // TILE)
        sigma = np.float32(0.5) * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
        a = min(ALPHA_MAX, opacity * _exp(-min(sigma, np.float32(6))))
        a = a if sigma <= reach else np.float32(0)
        after = live[i] * (np.float32(1) - a)
        stop = after <= T_MIN
        a = np.float32(0) if stop else a
        alpha[i] = a
        T[i] = T[i] if stop else after
        live[i] = np.float32(0) if stop else after


@njit(fastmath=True)
def _simd_forward(means, conics, opacities, reach, features, start, ids, width, height, columns):
    n, channels = features.shape
    tiles = start.shape[0] - 1
    out = np.zeros((tiles, channels, TILE * TILE), np.float32)
    final = np.ones((tiles, TILE * TILE), np.float32)
    last = np.zeros(tiles, np.int64)
    alpha = np.empty((ids.shape[0], TILE * TILE), np.float32)
    live = np.empty(TILE * TILE, np.float32)
    before = np.empty(TILE * TILE, np.float32)
    for t in range(tiles):
        x0, y0 = np.float32((t % columns) * TILE + 0.5), np.float32((t // columns) * TILE + 0.5)
        live[:] = 1
        T = final[t]
        last[t] = start[t]
        for k in range(start[t], start[t + 1]):
            g = ids[k]
            for i in range(TILE * TILE):
                before[i] = T[i]
            _alpha_row(
                alpha[k], T, live, means[g, 0] - x0, means[g, 1] - y0,
                conics[g, 0], conics[g, 1], conics[g, 2], opacities[g], reach[g],
            )  # fmt: skip
            for d in range(channels):
                f, row = features[g, d], out[t, d]
                for i in range(TILE * TILE):
                    row[i] += f * (before[i] - T[i])
            last[t] = k + 1
            if k % 8 == 7 and live.max() == 0:
                break
    return out, final, alpha, last


@njit(fastmath=True)
def _simd_backward(means, conics, opacities, features, start, ids, columns, final, alpha, last, grad):
    n, channels = features.shape
    g_means, g_conics = np.zeros((n, 2), np.float32), np.zeros((n, 3), np.float32)
    g_opacities, g_features = np.zeros(n, np.float32), np.zeros((n, channels), np.float32)
    behind = np.empty(TILE * TILE, np.float32)
    weight, gain = np.empty(TILE * TILE, np.float32), np.empty(TILE * TILE, np.float32)
    for t in range(start.shape[0] - 1):
        x0, y0 = np.float32((t % columns) * TILE + 0.5), np.float32((t // columns) * TILE + 0.5)
        T = final[t]
        behind[:] = 0
        for k in range(last[t] - 1, start[t] - 1, -1):
            g = ids[k]
            a = alpha[k]
            for i in range(TILE * TILE):
                T[i] = T[i] / (np.float32(1) - a[i])
                weight[i] = a[i] * T[i]
                gain[i] = 0
            for d in range(channels):
                f, row = features[g, d], grad[t, d]
                total = np.float32(0)
                for i in range(TILE * TILE):
                    gain[i] += f * row[i]
                    total += weight[i] * row[i]
                g_features[g, d] += total
            mx, my = means[g, 0] - x0, means[g, 1] - y0
            m0 = m1 = m2 = m3 = m4 = m5 = np.float32(0)
            for i in range(TILE * TILE):
                dx, dy = mx - np.float32(i % TILE), my - np.float32(i // TILE)
                excess = gain[i] - behind[i]
                behind[i] += a[i] * excess
                v = weight[i] * excess
                v = v if a[i] < ALPHA_MAX else np.float32(0)
                m0 += v
                m1 += v * dx
                m2 += v * dy
                m3 += v * dx * dx
                m4 += v * dx * dy
                m5 += v * dy * dy
            g_opacities[g] += m0 / opacities[g]
            g_conics[g, 0] -= np.float32(0.5) * m3
            g_conics[g, 1] -= m4
            g_conics[g, 2] -= np.float32(0.5) * m5
            g_means[g, 0] -= conics[g, 0] * m1 + conics[g, 1] * m2
            g_means[g, 1] -= conics[g, 1] * m1 + conics[g, 2] * m2
    return g_means, g_conics, g_opacities, g_features


class _Simd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, opacities, features, depths, radii, width, height):
        means, con, opa, fea = (t.detach()[0].contiguous().numpy() for t in (means2d, conics, opacities, features))
        rad = radii[0].numpy()
        shown = np.nonzero((rad > 0).all(1))[0]
        order = shown[np.argsort(depths.detach()[0].numpy()[shown], kind="stable")]
        columns, rows = -(-width // TILE), -(-height // TILE)
        reach = np.log(np.maximum(opa, ALPHA_MIN) / ALPHA_MIN)
        start, ids = _bin(means, rad, order, columns, rows)
        out, final, alpha, last = _simd_forward(means, con, opa, reach, fea, start, ids, width, height, columns)
        ctx.args = (means, con, opa, fea, start, ids, columns, final, alpha, last)
        ctx.grid = (1, rows, columns, height, width)
        image = torch.from_numpy(out).reshape(1, rows, columns, -1, TILE, TILE).permute(0, 1, 4, 2, 5, 3)
        return image.reshape(1, rows * TILE, columns * TILE, -1)[:, :height, :width].contiguous()

    @staticmethod
    def backward(ctx, grad):
        _, rows, columns, height, width = ctx.grid
        padded = torch.nn.functional.pad(grad[0], (0, 0, 0, columns * TILE - width, 0, rows * TILE - height))
        tiles = padded.reshape(rows, TILE, columns, TILE, -1).permute(0, 2, 4, 1, 3).reshape(rows * columns, -1, 64)
        grads = _simd_backward(*ctx.args, tiles.contiguous().numpy())
        return *(torch.from_numpy(g)[None] for g in grads), None, None, None, None


def simd_composite(*args):
    """As scalar_composite, vectorised over the pixels of a tile."""
    return _Simd.apply(*args)
