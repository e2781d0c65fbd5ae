"""MIRROR's feature rectification: pull every view toward what its neighbours show of the same surface point.

The paper moves the noise prediction along the gradient of L = sum_j w_j |x0_i(u) - M_j(u)|^2 (Eq. 11, 14). With the
neighbours and their weights detached that is exactly a blend of the clean prediction,
    x0 <- x0 + eta (M - x0),    eta = 2 s(t) S^2,    S = sigma (eps, v, EDM) or sigma / (1 - sigma) (flow),
so there is no gradient to compute here (design.md section 4, references.md 5.3). mirror_schedule.py has the etas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .correspondence import Correspondence
from .mirror_taps import Taps, bracket

ANCHORS = ("image", "block")


@dataclass(frozen=True)
class MirrorOptions:
    """How the block around a match is fused (Eq. 7-9).

    positive: m+, share of the weights that come from likeness to the point itself; m- = 1 - m+ comes from being unlike
        the negative anchor. negative: what that anchor is, the mean of the four corners of the neighbour's picture
        ("image": background) or of the block ("block"); the paper's words allow both.
    temperature: softmax temperature; 1 is the paper's and nearly a plain mean over the block, small picks the best.
    block: side of the block in cells, odd; 3 is the paper's, 1 takes the match alone.
    nearest: block of whole cells around the nearest one, instead of bilinear values around the exact position.
    skip_background: leave cells of the block out where the neighbour shows background.
    neighbour_weights: one per neighbour of the correspondence, None = all alike.
    """

    positive: float = 0.5
    negative: str = "image"
    temperature: float = 1.0
    block: int = 3
    nearest: bool = False
    skip_background: bool = True
    neighbour_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        if not 0 <= self.positive <= 1:
            raise ValueError(f"The positive anchor's share must lie between 0 and 1, got {self.positive}.")
        if self.negative not in ANCHORS:
            raise ValueError(f"The negative anchor must be one of {', '.join(ANCHORS)}, got '{self.negative}'.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"The temperature must be positive, got {self.temperature}.")
        if self.block < 1 or self.block % 2 == 0:
            raise ValueError(f"The block's side must be an odd number of cells, got {self.block}.")
        weights = self.neighbour_weights
        if weights is not None and not (all(w >= 0 and math.isfinite(w) for w in weights) and sum(weights) > 0):
            raise ValueError(f"Neighbour weights must be 0 or more and not all 0, got {list(weights)}.")


def rectify(
    x0: Tensor,
    matches: Correspondence,
    eta: float | Tensor,
    options: MirrorOptions = MirrorOptions(),
    *,
    iterations: int = 1,
    guidance: float = 1.0,
    views_at_once: int = 8,
    taps: Taps | None = None,
) -> Tensor:
    """Clean predictions, each view pulled toward its neighbours by the fraction eta.

    x0: (N,C,H,W) with N the matches' views and H,W their grid, or (G*N,C,H,W) for G objects one after the other, or
    (G,C,N,H,W) video latents. Any float dtype; computed in float32, returned in x0's dtype. x0 is not changed.
    eta: pull, clamped to [0,1]; one number, or (N,) for each view (0 keeps a view, such as the input, as it is).
    iterations: repeat the pull, so that agreement spreads further along the orbit than to the next view.
    guidance: how far to go along the way the pulls have moved a view; 1 = there, more = beyond, which outweighs what
        the view's own noise still says for its own version (as classifier-free guidance overshoots).
    views_at_once: fewer take less memory. taps: what lay_out gives for the same matches and options, to save its time.
    Cells without a match keep their exact value.
    """
    if iterations < 1:
        raise ValueError(f"The number of iterations must be at least 1, got {iterations}.")
    strength = torch.as_tensor(eta, dtype=torch.float32)
    n = matches.uv.shape[0]
    if strength.ndim > 1 or strength.numel() not in (1, n) or not torch.isfinite(strength).all():
        raise ValueError(f"eta must be one finite number or one for each of the {n} views, got {eta}.")
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"The guidance must be 0 or more, got {guidance}.")
    if not bool((strength > 0).any()) or guidance == 0:
        return x0
    groups = as_views(x0, matches)
    matches = matches.to(x0.device)
    pull = strength.to(x0.device).clamp(0, 1).expand(n)
    repeat = _repeated_pull(matches, pull, options, iterations, views_at_once, taps)
    out = []
    for views in groups:
        start = views.float()
        moved = repeat(start)
        beyond = moved if guidance == 1 else start + guidance * (moved - start)
        out.append(torch.where(moved == start, views, beyond.to(x0.dtype)))
    result = torch.stack(out)
    return result.movedim(1, 2) if x0.ndim == 5 else result.flatten(0, 1)


def lay_out(matches: Correspondence, options: MirrorOptions = MirrorOptions()) -> Taps | None:
    """What rectify can prepare once for many calls, on the matches' device; None where nothing can be."""
    if options.block != 1 or options.nearest:
        return None
    weights = _neighbour_weights(options.neighbour_weights, matches.neighbours.shape[1])
    return Taps(matches, weights.to(matches.uv.device), options.skip_background)


def _repeated_pull(matches, pull: Tensor, options: MirrorOptions, iterations: int, views_at_once: int, taps):
    """A function from views (N,C,H,W) float32 to pulled ones; cells without a match keep their value exactly."""
    taps = taps or lay_out(matches, options)
    if taps is not None:
        return lambda views: taps.pull(views, pull, iterations)

    def repeat(views: Tensor) -> Tensor:
        for _ in range(iterations):
            fused, trust = fuse(views, matches, options, views_at_once=views_at_once)
            views = views + pull.view(-1, 1, 1, 1) * trust * (fused - views)
        return views

    return repeat


def fuse(
    x0: Tensor, matches: Correspondence, options: MirrorOptions = MirrorOptions(), *, views_at_once: int = 8
) -> tuple[Tensor, Tensor]:
    """What the neighbours show of each view's cells: M (N,C,H,W) float32, and how far to trust it, (N,1,H,W) in [0,1].

    M is the mean over the neighbours of their fused blocks, by confidence times neighbour weight; the trust is the
    largest confidence among the neighbours that count. 0 = no match, and M is then 0.
    x0: (N,C,H,W) on the matches' device.
    """
    n, k = matches.neighbours.shape
    omega = _neighbour_weights(options.neighbour_weights, k).to(x0.device)
    _, channels, height, width = x0.shape
    source = x0.float()
    corners = source[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(-1)
    cells = source.movedim(1, -1)  # (N,H,W,C)
    total = source.new_zeros(n, height, width, channels)
    norm, trust = source.new_zeros(n, height, width), source.new_zeros(n, height, width)
    for start in range(0, n, max(1, views_at_once)):
        for step in range(k):
            # Only cells with a match: often a fifth of them.
            view, row, column = (matches.confidence[start : start + views_at_once, step] > 0).nonzero().unbind(1)
            view = view + start
            at = (view, row, column)
            value, found = _fused_blocks(cells, corners, matches, at, step, options)
            confidence = matches.confidence[view, step, row, column] * found
            share = omega[step] * confidence
            total[at] += share[:, None] * value
            norm[at] += share
            trust[at] = torch.maximum(trust[at], confidence * (omega[step] > 0))
    return (total / norm.clamp_min(1e-12)[..., None]).movedim(-1, 1), trust[:, None]


def loss(x0: Tensor, matches: Correspondence, options: MirrorOptions = MirrorOptions()) -> Tensor:
    """The paper's L (Eq. 11) summed over views, cells and channels, neighbours and weights detached: a scalar.

    Differentiable in x0 (N,C,H,W): for the form of the method that goes through the network (Eq. 12). Its gradient is
    2 trust (x0 - M), so that rectify is one step of it.
    """
    fused, trust = fuse(x0.detach(), matches, options)
    return (trust * (x0.float() - fused).square()).sum()


def as_views(x0: Tensor, matches: Correspondence) -> Tensor:
    """(G,N,C,H,W) view of a batch of views or of video latents; ValueError if it does not fit the matches."""
    n, _, height, width = matches.uv.shape[:4]
    if not x0.is_floating_point():
        raise ValueError(f"Views must be floating point numbers, got {x0.dtype}.")
    if x0.ndim == 5 and x0.shape[2] == n and x0.shape[3:] == (height, width):
        return x0.movedim(2, 1)
    if x0.ndim == 4 and x0.shape[2:] == (height, width) and x0.shape[0] % n == 0 and x0.shape[0] > 0:
        return x0.unflatten(0, (-1, n))
    raise ValueError(
        f"The latent is {tuple(x0.shape)} but the correspondence is for {n} views of {height} x {width} cells; the "
        f"batch (or, for video latents, the frames) must be the {n} views the cameras describe, all of them in every "
        "call (no context windows), at the size the correspondence was made for."
    )


def _neighbour_weights(weights: Sequence[float] | None, count: int) -> Tensor:
    if weights is None:
        return torch.full((count,), 1.0 / count)
    if len(weights) != count:
        raise ValueError(f"There are {count} neighbours but {len(weights)} neighbour weights; give one for each.")
    values = torch.tensor(weights, dtype=torch.float32)
    return values / values.sum()


def _fused_blocks(cells, corners, matches, at, step, options) -> tuple[Tensor, Tensor]:
    """Fused block (R,C) in one neighbour of the cells at (view, row, column), and (R,) 1 where it has any value."""
    view, row, column = at
    other = matches.neighbours[view, step]
    uv = matches.uv[view, step, row, column]
    block, inside = _block(cells, other, uv, options.block, options.nearest)
    if options.skip_background:
        solid, _ = _block(matches.foreground[..., None], other, uv, options.block, options.nearest)
        inside = inside * solid[..., 0]
    if options.block == 1:
        return block[:, 0], (inside[:, 0] > 0).to(block)
    anchor = corners[other][:, None]
    if options.negative == "block":
        side = options.block
        anchor = block[:, [0, side - 1, side * (side - 1), side * side - 1]].mean(1, keepdim=True)
    length = block.square().sum(-1).sqrt()
    like = _cosine(cells[at][:, None], block, length)
    unlike = 1.0 - _cosine(anchor, block, length)
    weights = options.positive * _softmax(like, inside, options.temperature) + (1 - options.positive) * _softmax(
        unlike, inside, options.temperature
    )
    return (weights[..., None] * block).sum(1), (inside.amax(1) > 0).to(block)


def _cosine(anchor: Tensor, block: Tensor, length: Tensor) -> Tensor:
    """Cosine similarity over channels (the last dimension); torch's own is 20 times slower on this layout."""
    return (anchor * block).sum(-1) / (anchor.square().sum(-1).sqrt() * length).clamp_min(1e-8)


def _softmax(score: Tensor, inside: Tensor, temperature: float) -> Tensor:
    """Softmax over the block (dim 1) with prior weights `inside` in [0,1]; all zero where the block has nothing."""
    score = score / temperature
    weights = inside * (score - score.amax(1, keepdim=True)).exp()
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-12)


def _block(pictures: Tensor, other: Tensor, uv: Tensor, side: int, nearest: bool) -> tuple[Tensor, Tensor]:
    """Values (R,side*side,C) of pictures (N,H,W,C) around positions uv (R,2) in pictures `other` (R,), row by row.

    Also (R,side*side), 1 where the position lies in the picture. Outside, the border's values are repeated.
    """
    _, height, width, channels = pictures.shape
    flat = pictures.reshape(-1, channels)
    reach = side // 2
    span = torch.arange(-reach, reach + 1, device=uv.device, dtype=uv.dtype)
    dv, du = torch.meshgrid(span, span, indexing="ij")
    centre = uv.floor() + 0.5 if nearest else uv
    u, v = centre[:, :1] + du.flatten(), centre[:, 1:] + dv.flatten()
    inside = ((u >= 0) & (u <= width) & (v >= 0) & (v <= height)).to(pictures.dtype)
    first = (other * height * width)[:, None]

    def values(row: Tensor, column: Tensor) -> Tensor:
        return flat.index_select(0, (first + row * width + column).flatten()).view(*row.shape, channels)

    if nearest:
        return values(v.long().clamp(0, height - 1), u.long().clamp(0, width - 1)), inside
    (left, right, across), (up, down, along) = bracket(u, width), bracket(v, height)
    upper = torch.lerp(values(up, left), values(up, right), across[..., None])
    lower = torch.lerp(values(down, left), values(down, right), across[..., None])
    return torch.lerp(upper, lower, along[..., None]), inside
