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


class TileLists(NamedTuple):
    """M pairs, sorted by tile and inside a tile from front to back; T = C * rows * columns tiles."""

    gaussian: Tensor  # (M,) index into C*P
    center_x: Tensor  # (M,) pixels, centre of the pair's tile
    center_y: Tensor  # (M,)
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

    A pair is kept only if some pixel centre's box of the tile reaches ALPHA_MIN, so long thin Gaussians do not burden
    every tile of their bounding box.
    """
    cameras, points = depths.shape
    shown = (radii > 0).all(-1).flatten().nonzero()[:, 0]
    shown = shown[torch.argsort(depths.flatten()[shown], stable=True)]
    mean_x, mean_y = means2d.reshape(-1, 2)[shown].unbind(-1)
    radius_x, radius_y = radii.reshape(-1, 2)[shown].to(means2d.dtype).unbind(-1)

    left, right = _tile_range(mean_x, radius_x, columns)
    top, bottom = _tile_range(mean_y, radius_y, rows)
    wide = right - left
    tiles_each = wide * (bottom - top)
    pair = torch.repeat_interleave(torch.arange(len(shown), device=shown.device), tiles_each)
    first = tiles_each.cumsum(0) - tiles_each
    nth = torch.arange(len(pair), device=shown.device) - first[pair]
    row = torch.div(nth, wide[pair], rounding_mode="floor")
    column = nth - row * wide[pair] + left[pair]
    row += top[pair]

    gaussian = shown[pair]
    center_x = (column * TILE + TILE / 2).to(means2d.dtype)
    center_y = (row * TILE + TILE / 2).to(means2d.dtype)
    reach = log_opacities.flatten()[shown] - LOG_ALPHA_MIN + _CULL_SLACK
    conic_xx, conic_xy, conic_yy = conics.reshape(-1, 3)[shown].unbind(-1)
    near = _least_sigma(
        mean_x[pair] - center_x, mean_y[pair] - center_y, conic_xx[pair], conic_xy[pair], conic_yy[pair]
    )
    kept = (near <= reach[pair]).nonzero()[:, 0]

    tile = torch.div(gaussian[kept], max(points, 1), rounding_mode="floor") * (rows * columns)
    tile += row[kept] * columns + column[kept]
    tile, order = torch.sort(tile.int(), stable=True)
    kept = kept[order]
    count = torch.bincount(tile, minlength=cameras * rows * columns)
    return TileLists(gaussian[kept], center_x[kept], center_y[kept], count.cumsum(0) - count, count)


def _tile_range(mean: Tensor, radius: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    first = torch.floor((mean - radius) / TILE).clamp(0, tiles)
    last = torch.ceil((mean + radius) / TILE).clamp(0, tiles)
    return first.long(), last.long()


def _least_sigma(dx: Tensor, dy: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    """Smallest sigma over the box of a tile's pixel centres; dx, dy: mean minus tile centre.

    The minimum of a convex quadratic over a box lies on an edge facing the mean (or is 0 inside); on each of the two
    facing edges it is a one-dimensional minimum, clamped to the edge.
    """
    half = (TILE - 1) / 2
    edge_x = dx - dx.clamp(-half, half)
    edge_y = dy - dy.clamp(-half, half)
    along_y = dy - (dy + xy / yy * edge_x).clamp(-half, half)
    along_x = dx - (dx + xy / xx * edge_y).clamp(-half, half)
    on_vertical = 0.5 * (xx * edge_x * edge_x + yy * along_y * along_y) + xy * edge_x * along_y
    on_horizontal = 0.5 * (xx * along_x * along_x + yy * edge_y * edge_y) + xy * along_x * edge_y
    return torch.minimum(on_vertical, on_horizontal)


def pair_coefficients(lists: TileLists, means2d: Tensor, conics: Tensor, log_opacities: Tensor) -> Tensor:
    """(M+1,6) coefficients of log alpha on `pixel_basis`; the last row is a padding pair that draws nothing.

    Sigma is expanded as half a sum of two squares (the Cholesky factor of the conic): expanding the conic itself would
    cancel badly for long thin Gaussians far from the tile's centre.
    """
    xx, xy, yy = conics.reshape(-1, 3).unbind(-1)
    l11 = xx.clamp_min(1e-30).sqrt()
    l12 = xy / l11
    l22 = (yy - l12 * l12).clamp_min(0).sqrt()
    table = torch.cat([means2d.reshape(-1, 2), torch.stack([l11, l12, l22, log_opacities.flatten()], -1)], -1)
    mean_x, mean_y, l11, l12, l22, log_opacity = table.index_select(0, lists.gaussian).t().contiguous()
    dy = mean_y - lists.center_y
    u = l11 * (mean_x - lists.center_x) + l12 * dy
    v = l22 * dy
    out = u.new_zeros(len(u) + 1, 6)
    out[-1, 0] = _NEVER
    rows = out[:-1]
    rows[:, 0] = log_opacity - 0.5 * (u * u + v * v)
    rows[:, 1] = u * l11
    rows[:, 2] = u * l12 + v * l22
    rows[:, 3] = -0.5 * l11 * l11
    rows[:, 4] = -l11 * l12
    rows[:, 5] = -0.5 * (l12 * l12 + l22 * l22)
    return out


def parameter_gradients(lists: TileLists, moments: Tensor, means2d: Tensor, conics: Tensor) -> Tensor:
    """Moments (M,6) of d loss / d log alpha about the tile's centre -> (M,6): d/d mean x, y, conic xx, xy, yy, log opacity.

    With X = mean - pixel, sigma = (xx X^2 + yy Y^2) / 2 + xy X Y, so every derivative is a moment of X and Y.
    """
    table = torch.cat([means2d.reshape(-1, 2), conics.reshape(-1, 3)], dim=-1)
    mean_x, mean_y, xx, xy, yy = table.index_select(0, lists.gaussian).t().contiguous()
    dx, dy = mean_x - lists.center_x, mean_y - lists.center_y
    m, m_x, m_y, m_xx, m_xy, m_yy = moments.t()
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
