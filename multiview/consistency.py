"""Do generated views show one object? Measures that need no ground truth.

Odd/even (MVGBench's idea, references.md 8.1): a splat fitted to every second view and one fitted to the others are
drawn by all cameras and compared; views that contradict each other give two different objects. Held out: views are
compared with a splat that was fitted to the others. Neighbours: each view is compared with what the views beside it
show of the same surface points. What the numbers mean and how far to trust them: docs/consistency.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cameras import Cameras
from .correspondence import neighbour_table, track
from .mirror import MirrorOptions, fuse
from .splats.fit import FitConfig, fit
from .splats.gaussians import Gaussians
from .splats.losses import psnr, ssim
from .splats.render import render_gaussians
from .splats.views import Views, prepare_views

# Few steps of many views with high rates: half the time of 40 steps of two views at the default rates, and it tells
# consistent from contradicting views as well (docs/consistency.md).
# hull_seen 1: with half of the views, lumps that only some of them see would be the largest difference.
QUICK = FitConfig(
    iterations=20,
    views_per_step=4,
    points=800,
    max_points=800,
    densify_every=0,
    w_msssim=0.0,
    lr_means=1.2e-2,
    lr_sh=6e-2,
    hull_seen=1.0,
)
FULL = FitConfig(hull_seen=1.0)
FEWEST_VIEWS = 4
BEST_DB = 99.0  # written for equal pictures, whose PSNR is infinite
OPAQUE = 0.5
INSIDE = 0.9  # mask from which a pixel shows nothing but the object
# Relative error that the occlusion test of the neighbour comparison makes room for: depth of splats is a mean over
# Gaussians, and estimated depth is no better.
DEPTH_ERROR = 0.02
OnStep = Callable[[int, int, dict], None]
Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """Pictures of N cameras against others.

    psnr (dB, at most 99), ssim and perceptual (LPIPS, None if not asked for): all compared views together.
    view_psnr, view_ssim (N,): each view, NaN where not compared. error (N,H,W): root mean square difference over the
    colour channels. share (N,H,W) in [0,1]: how much each pixel counts.
    """

    psnr: float
    ssim: float
    view_psnr: Tensor
    view_ssim: Tensor
    error: Tensor
    share: Tensor
    perceptual: float | None = None


@dataclass(frozen=True)
class OddEven:
    """Two splats, of every second view along the orbit and of the others, drawn by all N cameras and compared.

    pictures: the comparison of their renders; psnr and ssim are its overall numbers. depth: mean relative difference of
    camera z where both are opaque, view_depth (N,) for each view (NaN: not compared). splats, renders (N,H,W,3) and
    used (the views each was fitted to): first the even, then the odd.
    """

    pictures: Comparison
    depth: float
    view_depth: Tensor
    splats: tuple[Gaussians, Gaussians]
    renders: tuple[Tensor, Tensor]
    used: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def psnr(self) -> float:
        return self.pictures.psnr

    @property
    def ssim(self) -> float:
        return self.pictures.ssim


def odd_even(
    views: Tensor,
    cameras: Cameras,
    masks: Tensor | None = None,
    config: FitConfig = QUICK,
    on_step: OnStep | None = None,
    *,
    perceptual: Perceptual | None = None,
    device: torch.device | str | None = None,
) -> OddEven:
    """Fit a splat to every second view along the orbit and one to the others, and compare their renders.

    views (N,H,W,3|4) in [0,1], N >= 4; masks (N,H,W), 1 = object, None = alpha or estimated. Pixels count as far as
    one of the two splats covers them. On an open orbit the first and the last view are not compared: one of the
    splats has no view beyond them. on_step as in fit(), with the total of both fits.
    Deterministic in config.seed. ValueError for bad input, before any heavy work.
    """
    prepared = checked_views(views, cameras, masks, config.background)
    order = orbit_order(cameras)
    used = (tuple(order[0::2]), tuple(order[1::2]))
    first, second = (
        fit_some(prepared, cameras, chosen, config, part_of(on_step, part, 2), device)
        for part, chosen in enumerate(used)
    )
    return _compare_splats((first, second), used, prepared, cameras, perceptual)


def _compare_splats(
    splats: tuple[Gaussians, Gaussians],
    used: tuple[tuple[int, ...], tuple[int, ...]],
    views: Views,
    cameras: Cameras,
    perceptual: Perceptual | None = None,
) -> OddEven:
    """Renders of two splats by all cameras, compared where one of them covers the pixel. Errors: empty splats."""
    height, width = views.images.shape[1:3]
    drawn = []
    for splat in splats:
        with torch.no_grad():
            out = render_gaussians(splat, cameras, width, height, views.background)
        drawn.append([t.cpu() for t in (out.features.clamp(0, 1), out.alpha[..., 0], out.depth[..., 0])])
    (first, first_alpha, first_depth), (second, second_alpha, second_depth) = drawn
    compared = torch.ones(len(cameras))
    if not cameras.closed:
        order = orbit_order(cameras)
        compared[[order[0], order[-1]]] = 0
    pictures = compare(first, second, torch.maximum(first_alpha, second_alpha), compared, perceptual)
    both = ((first_alpha > OPAQUE) & (second_alpha > OPAQUE)).float() * compared[:, None, None]
    gap = 2 * (first_depth - second_depth).abs() / (first_depth + second_depth).clamp_min(1e-9)
    total = both.sum((1, 2))
    view_depth = (gap * both).sum((1, 2)) / total  # 0/0 = NaN where the two share nothing
    depth = float((gap * both).sum() / total.sum())
    return OddEven(pictures, depth, view_depth, splats, (first, second), used)


def held_out(
    views: Tensor,
    cameras: Cameras,
    masks: Tensor | None = None,
    config: FitConfig = QUICK,
    on_step: OnStep | None = None,
    *,
    folds: int = 4,
    most_folds: int | None = None,
    device: torch.device | str | None = None,
) -> Comparison:
    """Views against a splat of the others.

    Every folds-th view along the orbit is left out of a fit and compared with its render; this is done for each of the
    `folds` ways to begin, or the first most_folds of them (views that were never left out are NaN in the result).
    Pixels count as far as the view's mask or the splat covers them. The two ends of an open orbit are never left out.
    Arguments otherwise as in odd_even.
    """
    if folds < 2:
        raise ValueError(f"Views can be left out in 2 or more folds, got {folds}.")
    prepared = checked_views(views, cameras, masks, config.background)
    parts = left_out_parts(cameras, folds)[:most_folds]
    splats = []
    for part, left in enumerate(parts):
        kept = [i for i in orbit_order(cameras) if i not in left]
        splats.append(fit_some(prepared, cameras, kept, config, part_of(on_step, part, len(parts)), device))
    return compare_held_out(splats, parts, prepared, cameras)


def compare_held_out(
    splats: Sequence[Gaussians], left_out: Sequence[Sequence[int]], views: Views, cameras: Cameras
) -> Comparison:
    """Each splat's renders against the views that were left out of it."""
    n, height, width = views.masks.shape
    renders, share, compared = views.images.cpu().clone(), views.masks.cpu().clone(), torch.zeros(n)
    for splat, left in zip(splats, left_out, strict=True):
        left = list(left)
        with torch.no_grad():
            out = render_gaussians(splat, cameras.subset(left), width, height, views.background)
        renders[left] = out.features.clamp(0, 1).cpu()
        share[left] = torch.maximum(share[left], out.alpha[..., 0].cpu())
        compared[left] = 1
    return compare(views.images.cpu(), renders, share, compared)


def neighbour_error(
    views: Tensor,
    cameras: Cameras,
    depth: Tensor,
    masks: Tensor | None = None,
    *,
    offsets: Sequence[int] = (-1, 1),
    depth_error: float = DEPTH_ERROR,
) -> tuple[Comparison, float]:
    """Each view against what its neighbours show of the same surface points, and the mean absolute difference.

    views (N,H,W,3|4) in [0,1]; depth (N,h,w) camera z, world units, 0 = nothing; masks (N,h2,w2), 1 = object. Points
    that the neighbours do not see (hidden, outside their picture) do not count, nor do pixels at outlines, which show
    some background. The neighbours are mixed by their confidence; their values are bilinear, so that even views of one
    object differ where they have fine patterns.
    """
    _check_count(cameras)
    prepared = prepare_views(views, cameras, masks)
    matches = track(cameras, tuple(prepared.masks.shape[1:]), depth, masks, offsets=offsets, depth_error=depth_error)
    inside = (prepared.masks > INSIDE).float()
    pictures = torch.cat([prepared.images * inside[..., None], inside[..., None]], dim=-1).movedim(-1, 1)
    fused, trust = fuse(pictures.to(matches.uv.device), matches, MirrorOptions(block=1))
    fused, found = fused[:, :3].cpu(), fused[:, 3:].cpu()
    fused = fused / found.clamp_min(INSIDE / 4)
    share = (trust.cpu() * (found >= INSIDE / 4))[:, 0] * inside.cpu()
    if float(share.sum()) == 0:
        raise ValueError(
            "No surface point is seen by two neighbouring views; check that depth, cameras and views belong together."
        )
    images, fused = prepared.images.cpu(), fused.movedim(1, -1)
    compared = (share.flatten(1).sum(1) > 0).float()
    mean_absolute = float(((images - fused).abs().mean(-1) * share).sum() / share.sum())
    # Where nothing was found there is no picture either; SSIM's windows reach into it.
    fused = torch.where(share[..., None] > 0, fused, images)
    return compare(images, fused, share, compared), mean_absolute


def compare(
    first: Tensor, second: Tensor, share: Tensor, compared: Tensor | None = None, perceptual: Perceptual | None = None
) -> Comparison:
    """Pictures (N,H,W,3) of the same poses, pixels weighted by share (N,H,W); views with compared (N,) 0 left out."""
    compared = torch.ones(len(first)) if compared is None else compared
    chosen = (compared > 0) & (share.flatten(1).sum(1) > 0)
    if not bool(chosen.any()):
        raise ValueError("There is nothing to compare: neither the splats nor the masks cover a pixel of these views.")
    view_psnr, view_ssim = torch.full((2, len(first)), math.nan).unbind(0)
    a, b, weight = first[chosen], second[chosen], share[chosen]
    view_psnr[chosen] = psnr(a, b, weight).clamp(max=BEST_DB)
    view_ssim[chosen] = ssim(a, b, weight)
    # All views as one picture: a mean of decibels would count a view that happens to be equal far too much.
    together = psnr(*(t.flatten(0, 1)[None] for t in (a, b, weight)))
    areas = weight.sum((1, 2))
    return Comparison(
        psnr=float(together.clamp(max=BEST_DB)),
        ssim=float((view_ssim[chosen] * areas).sum() / areas.sum()),
        view_psnr=view_psnr,
        view_ssim=view_ssim,
        error=(first - second).square().mean(-1).sqrt() * share * compared[:, None, None],
        share=share,
        perceptual=None if perceptual is None else float(perceptual(a, b).mean()),
    )


def orbit_order(cameras: Cameras) -> list[int]:
    """View indices along the orbit: from the smallest azimuth, or from the end of an open orbit."""
    following = neighbour_table(cameras, (1,))[:, 0].tolist()
    starts = sorted(set(range(len(cameras))) - set(following))
    view = starts[0] if starts else int(cameras.azimuths().argmin())
    order = [view]
    while len(order) < len(cameras):
        order.append(view := following[view])
    return order


def checked_views(
    views: Tensor, cameras: Cameras, masks: Tensor | None, background: str | tuple[float, float, float] = "auto"
) -> Views:
    """Views as every fit here gets them: one background colour, and masks. ValueError in one sentence."""
    _check_count(cameras)
    with torch.inference_mode(False):
        return prepare_views(views, cameras, masks, background)


def fit_some(
    views: Views, cameras: Cameras, chosen: Sequence[int], config: FitConfig, on_step: OnStep | None = None, device=None
) -> Gaussians:
    """A splat of the chosen views."""
    chosen = list(chosen)
    config = replace(config, background=tuple(views.background.tolist()))
    return fit(
        views.images[chosen], cameras.subset(chosen), views.masks[chosen], config, on_step, device=device
    ).gaussians


def left_out_parts(cameras: Cameras, folds: int) -> list[list[int]]:
    """Views to leave out together, a list for each fold; never the ends of an open orbit, which need extrapolation."""
    order = orbit_order(cameras)
    ends = set() if cameras.closed else {order[0], order[-1]}
    return [part for start in range(folds) if (part := [i for i in order[start::folds] if i not in ends])]


def part_of(on_step: OnStep | None, part: int, parts: int, together: int = 1) -> OnStep | None:
    """Steps of fits `part` to `part + together - 1` as steps of `parts` equal fits, for a loop that reports them all.

    What reports into the result counts its own total over the `together` fits.
    """
    if on_step is None:
        return None

    def report(step: int, total: int, info: dict) -> None:
        each = total // together
        on_step(part * each + step, parts * each, info)

    return report


def _check_count(cameras: Cameras) -> None:
    if len(cameras) < FEWEST_VIEWS:
        raise ValueError(
            f"Consistency needs at least {FEWEST_VIEWS} views, got {len(cameras)}; give more views of the orbit."
        )
