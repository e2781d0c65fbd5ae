"""Which Gaussians touch which 8x8 tile, front to back, and the polynomial each of them is inside that tile.

Inside a tile log(alpha) = log(opacity) - sigma is a quadratic polynomial of the pixel, so six coefficients per
(tile, Gaussian) pair give alpha for all 64 pixels by one matrix product with the monomials of `pixel_basis`.
Pixels are counted from the tile's centre, which keeps the polynomial well conditioned in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .projection import ALPHA_MIN

TILE = 8
PIXELS = TILE * TILE
LOG_ALPHA_MIN = math.log(ALPHA_MIN)
_CULL_SLACK = 1e-3  # in sigma; rounding must not drop a pair that one pixel still needs
_NEVER = -1e4  # log alpha of the padding pair
MAX_PAIRS = 2**26  # about 8 GB of tables


class TileLists(NamedTuple):
    """M pairs, sorted by tile and inside a tile from front to back; T = C * rows * columns tiles."""

    gaussian: Tensor  # (M,) index into C*P
    local: Tensor  # (M,6) mean x and y from the tile's centre, conic xx, xy, yy, log opacity
    start: Tensor  # (T,) first pair of each tile
    count: Tensor  # (T,) number of pairs of each tile


def pixel_basis(like: Tensor) -> Tensor:
    """(6,64) monomials 1, x, y, xx, xy, yy of the pixel centres of a tile, counted from the tile's centre."""
    line = torch.arange(TILE, dtype=like.dtype, device=like.device) - (TILE - 1) / 2
    y, x = (t.flatten() for t in torch.meshgrid(line, line, indexing="ij"))
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])


@torch.no_grad()
def tile_lists(
    means2d: Tensor, conics: Tensor, log_opacities: Tensor, radii: Tensor, depths: Tensor, rows: int, columns: int
) -> TileLists:
    """means2d (C,P,2), conics (C,P,3), log_opacities (C,P), radii (C,P,2), depths (C,P) -> TileLists.

    A pair is kept only if the Gaussian reaches ALPHA_MIN in the box of the tile's pixel centres, so long thin Gaussians
    do not burden every tile of their bounding box.
    """
    cameras, points = depths.shape
    shown = (radii > 0).all(-1).flatten().nonzero()[:, 0]
    shown = shown[torch.argsort(depths.flatten()[shown], stable=True)]
    values = torch.cat([means2d, conics, log_opacities[..., None]], dim=-1).reshape(-1, 6).index_select(0, shown)
    radius = radii.reshape(-1, 2).index_select(0, shown)
    left, right = _tile_range(values[:, 0], radius[:, 0], columns)
    top, bottom = _tile_range(values[:, 1], radius[:, 1], rows)
    wide = right - left
    tiles_each = wide * (bottom - top)
    total = int(tiles_each.sum())
    if total > MAX_PAIRS:
        raise ValueError(
            f"The Gaussians cover {total} picture tiles, more than the {MAX_PAIRS} that fit into memory; they are too "
            "large or too many for this picture: lower the resolution, or check the scales."
        )
    first = tiles_each.cumsum(0) - tiles_each

    # every tile of every bounding box
    pair = torch.repeat_interleave(torch.arange(len(shown), device=shown.device), tiles_each)
    left, top, wide, first, image = (
        torch.stack([left, top, wide, first, shown // max(points, 1)], -1).index_select(0, pair).unbind(-1)
    )
    nth = torch.arange(len(pair), device=shown.device) - first
    row = nth // wide
    column = nth - row * wide + left
    row = row + top
    local = values.index_select(0, pair)
    local[:, 0] -= column * TILE + TILE / 2
    local[:, 1] -= row * TILE + TILE / 2
    kept = (_least_sigma(local) <= local[:, 5] - LOG_ALPHA_MIN + _CULL_SLACK).nonzero()[:, 0]

    tile = ((image * rows + row) * columns + column).index_select(0, kept)
    tile, order = torch.sort(tile.int(), stable=True)
    kept = kept.index_select(0, order)
    count = torch.bincount(tile, minlength=cameras * rows * columns)
    gaussian = shown.index_select(0, pair.index_select(0, kept))
    return TileLists(gaussian, local.index_select(0, kept), count.cumsum(0) - count, count)


def _tile_range(mean: Tensor, radius: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    first = torch.floor((mean - radius) / TILE).clamp(0, tiles)
    last = torch.ceil((mean + radius) / TILE).clamp(0, tiles)
    return first.long(), last.long()


def _least_sigma(local: Tensor) -> Tensor:
    """Smallest sigma over the box of a tile's pixel centres; local as in TileLists.

    The minimum of a convex quadratic over a box lies on an edge facing the mean (or is 0 inside); on each of the two
    facing edges it is a one-dimensional minimum, clamped to the edge.
    """
    dx, dy, xx, xy, yy, _ = local.t().contiguous()
    half = (TILE - 1) / 2
    edge_x = dx - dx.clamp(-half, half)
    edge_y = dy - dy.clamp(-half, half)
    along_y = dy - (dy + xy / yy * edge_x).clamp(-half, half)
    along_x = dx - (dx + xy / xx * edge_y).clamp(-half, half)
    on_vertical = 0.5 * (xx * edge_x * edge_x + yy * along_y * along_y) + xy * edge_x * along_y
    on_horizontal = 0.5 * (xx * along_x * along_x + yy * edge_y * edge_y) + xy * along_x * edge_y
    return torch.minimum(on_vertical, on_horizontal)


def pair_coefficients(local: Tensor) -> Tensor:
    """local (M,6) of TileLists -> (M+1,6) coefficients of log alpha on pixel_basis; the last row draws nothing.

    Sigma is expanded as half a sum of two squares (the Cholesky factor of the conic): expanding the conic itself would
    cancel badly for long thin Gaussians far from the tile's centre.
    """
    dx, dy, xx, xy, yy, log_opacity = local.t().contiguous()
    l11 = xx.clamp_min(1e-30).sqrt()
    l12 = xy / l11
    l22 = (yy - l12 * l12).clamp_min(0).sqrt()
    u = l11 * dx + l12 * dy
    v = l22 * dy
    drawn = torch.stack(
        [
            log_opacity - 0.5 * (u * u + v * v),
            u * l11,
            u * l12 + v * l22,
            -0.5 * l11 * l11,
            -l11 * l12,
            -0.5 * (l12 * l12 + l22 * l22),
        ],
        dim=-1,
    )
    padding = drawn.new_tensor([[_NEVER, 0, 0, 0, 0, 0]])
    return torch.cat([drawn, padding])


def parameter_gradients(local: Tensor, moments: Tensor) -> Tensor:
    """Moments (M,6) of d loss / d log alpha on pixel_basis -> gradients (M,6), in the order of `local`.

    With X = mean - pixel, sigma = (xx X^2 + yy Y^2) / 2 + xy X Y, so every derivative is a moment of X and Y.
    """
    dx, dy, xx, xy, yy, _ = local.t().contiguous()
    m, m_x, m_y, m_xx, m_xy, m_yy = moments.t().contiguous()
    first_x, first_y = dx * m - m_x, dy * m - m_y
    second_xx = dx * (first_x - m_x) + m_xx
    second_yy = dy * (first_y - m_y) + m_yy
    second_xy = dx * first_y - dy * m_x + m_xy
    return torch.stack(
        [
            -(xx * first_x + xy * first_y),
            -(xy * first_x + yy * first_y),
            -0.5 * second_xx,
            -second_xy,
            -0.5 * second_yy,
            m,
        ],
        dim=-1,
    )
