"""Differentiable tile rasteriser in plain torch: the CPU path, and the reference for gsplat's CUDA path.

Semantics of gsplat 1.5.3, per pixel and front to back: alpha = min(0.999, opacity exp(-sigma)); alpha < 1/255 is
skipped; drawing stops before the Gaussian that would bring the transmittance to 1e-4 or below.

Tiles are sorted by length and worked off in blocks (a bounded number of elements, so memory is bounded and the data
stays in the cache), each block in segments of at most SEGMENT Gaussians; tiles whose pixels are all covered drop out.
The backward pass is closed form. Let v_k be the gradient of the loss with respect to the weight w_k = a_k T_k of the
k-th Gaussian, and q_k what the loss would gain from the light behind it. From back to front
    d loss / d log a_k = w_k (v_k - q_k),      q_(k-1) = q_k + a_k (v_k - q_k),
which needs no division by 1 - a_k; the rest are matrix products with the pixel monomials.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import threshold_

from .projection import ALPHA_MIN
from .raster_tiles import (
    LOG_ALPHA_MIN,
    PIXELS,
    TILE,
    TileLists,
    pair_coefficients,
    parameter_gradients,
    pixel_basis,
    tile_lists,
)

ALPHA_MAX = 0.999
LOG_ALPHA_MAX = math.log(ALPHA_MAX)
T_MIN = 1e-4
SEGMENT = 16
BLOCK_CPU = 2**19  # elements worked on at a time: few enough for the cache, enough to hide torch's overhead
BLOCK_GPU = 2**25
TILES_AT_ONCE = 4096  # views are drawn together up to this number of tiles: one view of 512 pixels, four of 256
KEEP_BYTES = 2**28  # alphas kept for the backward pass; beyond this they are computed again


class _Segment(NamedTuple):
    """Part of a block: n of its tiles times k consecutive Gaussians each."""

    slots: Tensor  # (n,) index into the block's tiles
    pairs: Tensor  # (n*k,) index into the pairs, M where a tile has no more
    before: Tensor  # (n,64) transmittance in front of the segment
    alphas: Tensor | None  # (n,k,64), 0 where nothing is drawn
    weights: Tensor | None  # (n,k,64)


class _Block(NamedTuple):
    tiles: Tensor  # (B,) index into the tiles
    segments: list[_Segment]


def composite(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    features: Tensor,
    depths: Tensor,
    radii: Tensor,
    width: int,
    height: int,
) -> Tensor:
    """Alpha-composite C images.

    means2d (C,P,2) pixels, conics (C,P,3), opacities (C,P), features (C,P,D), depths (C,P) for the order only,
    radii (C,P,2) int. Returns (C,H,W,D), the sum of weights times features. Differentiable in the first four.
    """
    views = max(1, TILES_AT_ONCE // (-(-height // TILE) * -(-width // TILE)))
    groups = zip(*(t.split(views) for t in (means2d, conics, opacities, features, depths, radii)), strict=True)
    return torch.cat([_Composite.apply(*group, width, height) for group in groups])


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, opacities, features, depths, radii, width, height):
        cameras = means2d.shape[0]
        rows, columns = -(-height // TILE), -(-width // TILE)
        log_opacities = opacities.clamp_min(ALPHA_MIN * 0.5).log()
        lists = tile_lists(means2d, conics, log_opacities, radii, depths, rows, columns)
        colours = features.reshape(-1, features.shape[-1]).index_select(0, lists.gaussian)
        table = torch.cat([pair_coefficients(lists.local), torch.nn.functional.pad(colours, (0, 0, 0, 1))], dim=1)
        keep = any(ctx.needs_input_grad[:4])
        out, blocks = _draw(lists, table, keep)
        if keep:
            ctx.save_for_backward(opacities, table, *lists)
            ctx.blocks, ctx.shapes = blocks, (means2d.shape, conics.shape, opacities.shape, features.shape)
            ctx.grid = (cameras, rows, columns, height, width)
        return _untile(out, cameras, rows, columns)[:, :height, :width].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        opacities, table, *lists = ctx.saved_tensors
        lists = TileLists(*lists)
        clamped = bool((opacities > ALPHA_MAX).any())
        per_pair = _draw_backward(ctx.blocks, table, _tile(grad, *ctx.grid), clamped)
        per_pair[:, :6] = parameter_gradients(lists.local, per_pair[:, :6])
        total = per_pair.new_zeros(opacities.numel(), per_pair.shape[1])
        total.index_add_(0, lists.gaussian, per_pair)
        total[:, 5] /= opacities.flatten().clamp_min(ALPHA_MIN * 0.5)
        parts = (total[:, 0:2], total[:, 2:5], total[:, 5], total[:, 6:])
        return *(part.reshape(shape) for part, shape in zip(parts, ctx.shapes, strict=True)), None, None, None, None


def _untile(tiles: Tensor, cameras: int, rows: int, columns: int) -> Tensor:
    """(C*rows*columns, D, 64) -> (C, 8 rows, 8 columns, D)."""
    grid = tiles.reshape(cameras, rows, columns, -1, TILE, TILE).permute(0, 1, 4, 2, 5, 3)
    return grid.reshape(cameras, rows * TILE, columns * TILE, -1)


def _tile(image: Tensor, cameras: int, rows: int, columns: int, height: int, width: int) -> Tensor:
    """(C,H,W,D) -> (C*rows*columns, D, 64), zero outside the picture."""
    depth = image.shape[-1]
    padded = image.new_zeros(cameras, rows * TILE, columns * TILE, depth)
    padded[:, :height, :width] = image
    grid = padded.reshape(cameras, rows, TILE, columns, TILE, depth).permute(0, 1, 3, 5, 2, 4)
    return grid.reshape(-1, depth, PIXELS)


def _draw(lists: TileLists, table: Tensor, keep: bool) -> tuple[Tensor, list[_Block]]:
    """table (M+1,6+D): coefficients and features of each pair, the last row drawing nothing.

    Returns the tiles (T,D,64) and what the backward pass needs (no segments unless keep).
    """
    basis = pixel_basis(table)
    out = table.new_zeros(len(lists.count), table.shape[1] - 6, PIXELS)
    counts, order = torch.sort(lists.count, descending=True)
    filled = int((counts > 0).sum())
    block_size = max(1, (BLOCK_CPU if table.device.type == "cpu" else BLOCK_GPU) // (SEGMENT * PIXELS))
    kept_bytes = 0
    blocks = []
    if not filled:  # split would give one empty block
        return out, blocks
    for tiles, count in zip(order[:filled].split(block_size), counts[:filled].split(block_size), strict=True):
        block = _Block(tiles, [])
        drawn = out.new_zeros(len(tiles), *out.shape[1:])
        slots = torch.arange(len(tiles), device=out.device)
        start = lists.start.index_select(0, tiles)
        before = out.new_ones(len(tiles), PIXELS)
        done, longest = 0, int(count[0])
        while len(slots):
            nth = torch.arange(done, min(done + SEGMENT, longest), device=out.device)
            pairs = torch.where(nth < count[:, None], start[:, None] + nth, len(table) - 1).flatten()
            rows = table.index_select(0, pairs)
            alphas, weights, after = _weights(_alphas(rows, basis, len(nth)), before)
            drawn.index_add_(0, slots, torch.bmm(_features(rows, len(nth)).transpose(1, 2), weights))
            if keep:
                kept_bytes += 2 * alphas.numel() * alphas.element_size()
                stored = (alphas, weights) if kept_bytes <= KEEP_BYTES else (None, None)
                block.segments.append(_Segment(slots, pairs, before, *stored))
            done += len(nth)
            slots, start, count, before = _unfinished(slots, start, count, after, done)
        out.index_copy_(0, tiles, drawn)
        blocks.append(block)
    return out, blocks


def _unfinished(slots: Tensor, start: Tensor, count: Tensor, after: Tensor, done: int) -> tuple[Tensor, ...]:
    """slots, start, count and transmittance of the tiles that go on; counts fall, so those with pairs left lead."""
    n = int((count > done).sum())
    open_ = after[:n].amax(1) > T_MIN
    going = int(open_.sum())
    if going > 0.8 * n:  # a few covered tiles cost less than a copy
        return slots[:n], start[:n], count[:n], after[:n]
    alive = open_.nonzero()[:, 0]
    return tuple(t.index_select(0, alive) for t in (slots, start, count, after))


def _features(rows: Tensor, k: int) -> Tensor:
    """Rows (n*k,6+D) of the table -> features (n,k,D)."""
    return rows[:, 6:].view(-1, k, rows.shape[1] - 6)


def _alphas(rows: Tensor, basis: Tensor, k: int) -> Tensor:
    """Rows (n*k,6+D) of the table -> alphas (n,k,64), 0 where they are below ALPHA_MIN.

    The logarithm is limited first: exp of very negative numbers gives denormals, which are many times slower.
    """
    alphas = torch.mm(rows[:, :6], basis).clamp_(LOG_ALPHA_MIN - 1, LOG_ALPHA_MAX).exp_()
    return threshold_(alphas, ALPHA_MIN * (1 - 1e-6), 0.0).view(-1, k, PIXELS)


def _weights(alphas: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alphas (n,k,64), transmittance before (n,64) -> alphas with the stop rule applied, weights, transmittance after.

    A step at a time, as each step's slices stay in the cache; k is at most SEGMENT.
    """
    weights, through = torch.empty_like(alphas), torch.empty_like(alphas)
    after = before
    for a, w, t in zip(alphas.unbind(1), weights.unbind(1), through.unbind(1), strict=True):
        torch.mul(after, a, out=w)
        after = torch.sub(after, w, out=t)
    if after.amin() <= T_MIN:
        # zero from the stopping Gaussian on; as the transmittance only falls, what follows it is zeroed as well
        alphas = torch.ops.aten.threshold_backward(alphas, through, T_MIN)
        weights = torch.ops.aten.threshold_backward(weights, through, T_MIN)
    return alphas, weights, after.clone()  # a view would keep all of `through`


def _draw_backward(blocks: list[_Block], table: Tensor, grad: Tensor, clamped: bool) -> Tensor:
    """grad (T,D,64) of the tiles -> (M,6+D): moments of d loss / d log alpha on pixel_basis, d loss / d features.

    clamped: whether some alpha may have been limited to ALPHA_MAX; where it was, it does not follow the Gaussian.
    """
    basis = pixel_basis(grad)
    out = torch.zeros_like(table)
    for block in blocks:
        block_grad = grad.index_select(0, block.tiles)
        behind = grad.new_zeros(len(block.tiles), PIXELS)
        for slots, pairs, before, alphas, weights in reversed(block.segments):
            rows = table.index_select(0, pairs)
            k = len(pairs) // len(slots)
            if alphas is None:
                alphas, weights, _ = _weights(_alphas(rows, basis, k), before)
            tile_grad = block_grad.index_select(0, slots)
            gain = torch.bmm(_features(rows, k), tile_grad)
            q = behind.index_select(0, slots)
            for a, v in zip(reversed(alphas.unbind(1)), reversed(gain.unbind(1)), strict=True):
                v.sub_(q)
                q.addcmul_(a, v)
            behind.index_copy_(0, slots, q)
            gain.mul_(weights)
            if clamped:
                gain.mul_(alphas < ALPHA_MAX * (1 - 1e-6))
            moments = torch.mm(basis, gain.view(-1, PIXELS).t()).t()
            features = torch.bmm(tile_grad, weights.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
            out.index_copy_(0, pairs, torch.cat([moments, features], dim=1))
    return out[:-1]
