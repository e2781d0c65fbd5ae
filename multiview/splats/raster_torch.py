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

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .projection import ALPHA_MIN
from .raster_tiles import PIXELS, TILE, pair_coefficients, parameter_gradients, pixel_basis, tile_lists

ALPHA_MAX = 0.999
T_MIN = 1e-4
SEGMENT = 16
BLOCK_CPU = 2**17  # elements worked on at a time: about what fits a core's cache
BLOCK_GPU = 2**25
KEEP_BYTES = 2**28  # alphas kept for the backward pass; beyond this they are computed again


class _Segment(NamedTuple):
    """Part of the work: n tiles times k consecutive Gaussians each."""

    tiles: Tensor  # (n,) index into the tiles
    slots: Tensor  # (n,) index into the block's tiles
    pairs: Tensor  # (n,k) index into the pairs, M where a tile has no more
    before: Tensor  # (n,64) transmittance in front of the segment
    alphas: Tensor | None  # (n,k,64), 0 where nothing is drawn
    weights: Tensor | None  # (n,k,64)


class _Block(NamedTuple):
    tiles: Tensor
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
    return _Composite.apply(means2d, conics, opacities, features, depths, radii, width, height)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, opacities, features, depths, radii, width, height):
        cameras = means2d.shape[0]
        rows, columns = -(-height // TILE), -(-width // TILE)
        log_opacities = opacities.clamp_min(ALPHA_MIN * 0.5).log()
        lists = tile_lists(means2d, conics, log_opacities, radii, depths, rows, columns)
        coefficients = pair_coefficients(lists, means2d, conics, log_opacities)
        flat = features.reshape(-1, features.shape[-1])
        colours = torch.cat([flat.index_select(0, lists.gaussian), flat.new_zeros(1, flat.shape[1])])
        out = features.new_zeros(cameras * rows * columns, features.shape[-1], PIXELS)
        keep = any(ctx.needs_input_grad[:4])
        blocks = _draw(lists, coefficients, colours, out, keep)
        if keep:
            ctx.save_for_backward(means2d, conics, opacities, features)
            ctx.lists, ctx.blocks, ctx.coefficients, ctx.colours = lists, blocks, coefficients, colours
            ctx.grid = (cameras, rows, columns, height, width)
        return _untile(out, cameras, rows, columns)[:, :height, :width].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        means2d, conics, opacities, features = ctx.saved_tensors
        lists = ctx.lists
        clamped = bool((opacities > ALPHA_MAX).any())
        moments, grad_colours = _draw_backward(
            ctx.blocks, ctx.coefficients, ctx.colours, _tile(grad, *ctx.grid), clamped
        )
        per_pair = torch.cat([parameter_gradients(lists, moments, means2d, conics), grad_colours], dim=1)
        total = per_pair.new_zeros(opacities.numel(), per_pair.shape[1])
        total.index_add_(0, lists.gaussian, per_pair)
        return (
            total[:, 0:2].reshape(means2d.shape),
            total[:, 2:5].reshape(conics.shape),
            total[:, 5].reshape(opacities.shape) / opacities.clamp_min(ALPHA_MIN * 0.5),
            total[:, 6:].reshape(features.shape),
            None, None, None, None,
        )  # fmt: skip


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


def _draw(lists, coefficients: Tensor, colours: Tensor, out: Tensor, keep: bool) -> list[_Block]:
    """Fill `out` (T,D,64); return what the backward pass needs (nothing if not keep)."""
    basis = pixel_basis(out)
    order = torch.argsort(lists.count, descending=True)
    order = order[: int((lists.count > 0).sum())]
    counts = lists.count[order]
    block_size = max(1, (BLOCK_CPU if out.device.type == "cpu" else BLOCK_GPU) // (SEGMENT * PIXELS))
    kept_bytes = 0
    blocks = []
    for tiles, count in zip(order.split(block_size), counts.split(block_size), strict=True):
        accumulated = out.new_zeros(len(tiles), *out.shape[1:])
        block = _Block(tiles, [])
        slots = torch.arange(len(tiles), device=out.device)
        before = out.new_ones(len(tiles), PIXELS)
        done, longest = 0, int(count[0])
        while done < longest:
            size = min(SEGMENT, longest - done)
            pairs = _pair_window(lists, tiles[slots], done, size, len(coefficients) - 1)
            alphas = _alphas(coefficients, basis, pairs)
            alphas, weights, after = _weights(alphas, before)
            accumulated.index_add_(0, slots, torch.bmm(colours[pairs].transpose(1, 2), weights))
            if keep:
                kept_bytes += 2 * alphas.numel() * alphas.element_size()
                stored = (alphas, weights) if kept_bytes <= KEEP_BYTES else (None, None)
                block.segments.append(_Segment(tiles[slots], slots, pairs, before, *stored))
            done += size
            alive = (after.amax(1) > T_MIN) & (count[slots] > done)
            alive = alive.nonzero()[:, 0]
            if len(alive) == 0:
                break
            slots, before = slots[alive], after[alive]
        out[tiles] = accumulated
        blocks.append(block)
    return blocks


def _pair_window(lists, tiles: Tensor, done: int, size: int, padding: int) -> Tensor:
    """(n,size) pair indices `done` to `done + size` of each tile; `padding` beyond the tile's end."""
    nth = torch.arange(done, done + size, device=tiles.device)
    return torch.where(nth < lists.count[tiles, None], lists.start[tiles, None] + nth, padding)


def _alphas(coefficients: Tensor, basis: Tensor, pairs: Tensor) -> Tensor:
    """(n,k,64) alphas of pairs (n,k), 0 where they are below ALPHA_MIN."""
    alphas = torch.mm(coefficients.index_select(0, pairs.flatten()), basis).exp_().clamp_max_(ALPHA_MAX)
    below = ALPHA_MIN * (1 - 1e-6)
    return torch.nn.functional.threshold_(alphas, below, 0.0).view(*pairs.shape, PIXELS)


def _weights(alphas: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alphas (n,k,64), transmittance before (n,64) -> alphas with the stop rule applied, weights, transmittance after."""
    through = torch.cumprod(1 - alphas, dim=1).mul_(before[:, None])
    after = through[:, -1]
    if after.numel() and after.amin() <= T_MIN:
        # zero from the stopping Gaussian on; as products only shrink, what follows it is zeroed as well
        alphas = torch.ops.aten.threshold_backward(alphas, through, T_MIN)
    weights = torch.empty_like(alphas)
    torch.mul(alphas[:, 0], before, out=weights[:, 0])
    torch.mul(alphas[:, 1:], through[:, :-1], out=weights[:, 1:])
    return alphas, weights, after


def _draw_backward(
    blocks: list[_Block], coefficients: Tensor, colours: Tensor, grad: Tensor, clamped: bool
) -> tuple[Tensor, Tensor]:
    """grad (T,D,64) of the drawn tiles -> moments (M,6) of d loss / d log alpha, and d loss / d colours (M,D).

    clamped: whether some alpha may have been limited to ALPHA_MAX; such a pixel does not move the Gaussian.
    """
    basis = pixel_basis(grad)
    moments = coefficients.new_zeros(coefficients.shape)
    grad_colours = torch.zeros_like(colours)
    for block in blocks:
        behind = grad.new_zeros(len(block.tiles), PIXELS)
        for segment in reversed(block.segments):
            alphas, weights = segment.alphas, segment.weights
            if alphas is None:
                alphas, weights, _ = _weights(_alphas(coefficients, basis, segment.pairs), segment.before)
            flat_pairs = segment.pairs.flatten()
            local_grad = grad[segment.tiles]
            gain = torch.bmm(colours[segment.pairs], local_grad)
            q = behind[segment.slots]
            for a, v in zip(reversed(alphas.unbind(1)), reversed(gain.unbind(1)), strict=True):
                v.sub_(q)
                q.addcmul_(a, v)
            behind[segment.slots] = q
            gain.mul_(weights)
            if clamped:
                gain.mul_(alphas < ALPHA_MAX)
            moments[flat_pairs] = torch.mm(basis, gain.view(-1, PIXELS).t()).t()
            grad_colours[flat_pairs] = torch.bmm(local_grad, weights.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    return moments[:-1], grad_colours[:-1]
