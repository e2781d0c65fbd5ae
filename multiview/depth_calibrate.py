"""Metric depth from depth networks' affine answers, by the cameras of an orbit (references.md 5.2).

A network like Depth Anything says per view something like a * (1 / Z) + b ("disparity") or a * Z + b ("depth") with
unknown a and b. Here every view's map is first stretched to V in [0,1] between robust percentiles inside the mask
(1 = nearest), which removes a and b, and then two numbers per view are found, its nearest and its farthest depth:
disparity  1/Z = V / near + (1 - V) / far,    depth  Z = V near + (1 - V) far.

    minmax      the paper's: Z = R - r V, linear, far at the axis, near one object radius before it
    silhouette  near and far from the visual hull: how deep can the object be, seen in the masks of the other views?
    joint       silhouette, then all views at once so that they agree on one surface (depth_joint.py)
    none        the maps are metric already
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .cameras import Cameras
from .checks import check_view_count
from .depth import DepthMaps
from .depth_agreement import Disagreement, confidence, disagreement
from .depth_joint import fit_jointly
from .depth_rig import Rig, bilinear, inside_frame, neighbours, shrunk, spread_pixels
from .splats.views import background_colour, estimate_masks

METHODS = ("joint", "silhouette", "minmax", "none")
KINDS = ("disparity", "depth")
# A view whose masks seen from the side are closer to its own direction than this cannot tell how deep the object is.
SIDE_VIEW_DEG = 55.0
HULL_SAMPLES, HULL_STEPS = 200, 64
# Values may lie this far outside the percentiles, as a share of their range, before they are cut off.
BEYOND = 0.5


@dataclass(frozen=True)
class Calibrated:
    """maps: metric depth with confidence. limits (N,2) near and far of each view in world units.

    before, after: how well neighbouring views agree as the paper calibrates, and here (None: nothing to compare).
    note: what a user should know, "" if all went well.
    """

    maps: DepthMaps
    limits: Tensor
    before: Disagreement | None
    after: Disagreement | None
    note: str

    def report(self) -> str:
        lines = [f"Disagreement of neighbouring views after calibration: {self.after or 'nothing to compare'}."]
        if self.before is not None:
            lines.append(f"With the paper's min-max instead: {self.before}.")
        near, far = self.limits[:, 0], self.limits[:, 1]
        lines.append(
            f"Depth from {float(near.min()):.3f} to {float(far.max()):.3f} world units; mean confidence inside the "
            f"object {float(self.maps.confidence[self.maps.depth > 0].mean()):.2f}."
        )
        return "\n".join([*lines, self.note] if self.note else lines)


def calibrate(
    raw: Tensor,
    masks: Tensor,
    cameras: Cameras,
    *,
    kind: str = "disparity",
    method: str = "joint",
    near_is_large: bool | None = None,
    metric: bool = False,
    percentiles: tuple[float, float] = (2.0, 98.0),
    radius: float = 0.0,
) -> Calibrated:
    """Maps of unknown scale -> camera z in world units, 0 outside the masks.

    raw: (N,h,w), any size. masks: (N,H,W) in [0,1], 1 = object; the answer has their size. cameras: N, the object
    around the origin. kind: whether the maps are linear in 1 / Z ("disparity") or in Z ("depth").
    near_is_large: orientation; None = disparity is large when near, depth is small.
    metric: the maps are camera z already (kind "depth"): "none" keeps them, "joint" starts from them, the others take
    them as depth of unknown scale.
    percentiles: of the values inside the mask that count as far and near. radius: of the object in world units,
    0 = measured in the silhouettes. Nothing random: same input, same answer.
    ValueError, one sentence: counts that do not match, empty masks, constant or non-finite maps, unknown names.
    """
    masks, inside = _check(raw, masks, cameras, kind, method, metric, percentiles)
    near_is_large = kind == "disparity" if near_is_large is None else near_is_large
    size = tuple(masks.shape[1:])
    values = raw.detach().double().cpu()
    if tuple(values.shape[1:]) != size:
        values = interpolate(values[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    oriented = values if near_is_large else -values
    share, ends = _stretched(oriented, inside, percentiles)
    axis_radius, extent = silhouette_radii(inside, cameras)
    radius = radius or axis_radius
    distances = cameras.radii().cpu()
    paper = torch.stack([distances - radius, distances], dim=1)
    note = ""
    metric = metric and method in ("joint", "none")
    if metric:
        start = -ends.flip(1)
    elif method == "minmax":
        start = paper
    else:
        start, lost = silhouette_limits(share, inside, cameras, kind, extent)
        if lost:
            start[lost] = paper[lost]
            which = "No view" if len(lost) == len(start) else f"For view {', '.join(map(str, lost[:8]))} no other"
            note = f"{which} sees the object from the side, so depth starts from min-max there."
    linear = kind == "depth" or method == "minmax"
    limits = start
    if method == "joint":
        limits, moved = fit_jointly(share, inside, cameras, start, linear, extent)
        if not moved:
            note = (note + " The joint fit found nothing better than its start.").strip()
    depth = values if method == "none" else _metric(share, limits, linear)
    depth = torch.where(inside, depth.clamp_min(1e-3 * float(distances.min())), torch.zeros_like(depth))
    before = None
    if not metric and method != "minmax":
        plain = _metric(share, paper, True).clamp_min(1e-3)
        before = disagreement(torch.where(inside, plain, torch.zeros_like(plain)), cameras)
    trust = confidence(depth, cameras, extent) * masks
    return Calibrated(DepthMaps(depth.float(), trust), limits, before, disagreement(depth, cameras), note)


def object_masks(images: Tensor, masks: Tensor | None) -> Tensor:
    """(N,H,W) in [0,1] for views (N,H,W,3 or 4): the given masks at the views' size, else alpha, else estimated.

    Estimated: by the distance to the colour of the pictures' borders. ValueError if that finds nothing.
    """
    size = tuple(images.shape[1:3])
    if masks is not None:
        if masks.ndim != 3:
            raise ValueError(f"Masks must be (views, height, width), got {tuple(masks.shape)}.")
        masks = masks.detach().float().cpu()
        same = tuple(masks.shape[1:]) == size
        return masks if same else interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    if images.shape[-1] == 4:
        return images[..., 3].detach().float().cpu().clamp(0, 1)
    pictures = images[..., :3].detach().float().cpu()
    found = estimate_masks(pictures, background_colour(pictures))
    bare = (found.flatten(1).amax(1) <= 0.5).nonzero().flatten().tolist()
    if bare:
        raise ValueError(
            f"No object stands out from the background colour in view {', '.join(map(str, bare[:8]))}; connect a mask."
        )
    return found


def silhouette_radii(inside: Tensor, cameras: Cameras) -> tuple[float, float]:
    """Largest distance of the silhouettes (N,H,W) bool from the vertical axis and from the origin, in world units.

    Distances of rays from the axis or origin, which is exact for a sphere, whatever the perspective.
    """
    rig = Rig.of(cameras, tuple(inside.shape[1:]))
    widest = farthest = 0.0
    for i, distance in enumerate(cameras.radii().tolist()):
        row, column = inside[i].nonzero().unbind(1)
        x, y, _ = rig.rays(i, torch.stack([column, row], dim=1) + 0.5).abs().unbind(1)
        across, away = float(x.max()), float((x * x + y * y).max()) ** 0.5
        widest = max(widest, distance * across / (1 + across**2) ** 0.5)
        farthest = max(farthest, distance * away / (1 + away**2) ** 0.5)
    return widest, farthest


def silhouette_limits(
    share: Tensor, inside: Tensor, cameras: Cameras, kind: str, extent: float
) -> tuple[Tensor, list[int]]:
    """(N,2) near and far of each view by the visual hull, and the views for which no other looks from the side.

    The hull's front surface lies before the object's, and touches it wherever an outline of another view passes.
    share (N,H,W): V in [0,1]. extent: no part of the object is further from the origin.
    Near and far are found by matching the quantiles of V to those of the hull's depth.
    """
    rig = Rig.of(cameras, tuple(inside.shape[1:]))
    view, uv = spread_pixels(shrunk(inside), HULL_SAMPLES)
    value = bilinear(share, view, uv)
    sideways = neighbours(cameras, SIDE_VIEW_DEG, 180.0 - SIDE_VIEW_DEG, 1)
    limits, lost = torch.zeros(len(inside), 2, dtype=torch.float64), []
    grid = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for i, distance in enumerate(cameras.radii().tolist()):
        reach = (max(distance - extent, 0.05 * distance), distance + extent)
        mine = view == i
        front = hull_depth(rig, inside, reach, i, uv[mine]) if sideways[i] else torch.zeros(0)
        met = torch.isfinite(front)
        if int(met.sum()) < 8:
            lost.append(i)
            continue
        front, source = front[met], torch.quantile(value[mine][met], grid)
        target = front if kind == "depth" else 1.0 / front
        # Depth falls with V, its inverse rises.
        wanted = torch.quantile(target, 1 - grid if kind == "depth" else grid)
        design = torch.stack([1 - source, source], dim=1)
        far, near = torch.linalg.lstsq(design, wanted[:, None]).solution[:, 0].tolist()
        if kind == "disparity":
            far, near = (1.0 / max(x, 1e-6) for x in (far, near))
        limits[i] = torch.tensor([near, far])
    return limits, lost


def hull_depth(rig: Rig, inside: Tensor, reach: tuple[float, float], view: int, uv: Tensor) -> Tensor:
    """(P,) camera z at which the rays through pixels uv (P,2) of a view first meet the visual hull, inf where never.

    reach: nearest and farthest z to look at. Exact to half a step, a 128th of that range.
    """
    height, width = rig.size
    steps = torch.linspace(*reach, HULL_STEPS, dtype=torch.float64)
    rays, z = rig.rays(view, uv).repeat_interleave(HULL_STEPS, 0), steps.repeat(len(uv))
    left = torch.arange(len(z))
    for j in range(len(inside)):
        there = rig.move(view, j, rays[left], z[left])[0]
        column, row = there.clamp(-1e6, 1e6).floor().long().unbind(1)
        hit = inside[j, row.clamp(0, height - 1), column.clamp(0, width - 1)]
        # What lies outside a picture is not known to be empty.
        left = left[hit | ~inside_frame(there, rig.size)]
    first = torch.full_like(z, torch.inf)
    first[left] = z[left]
    return first.view(-1, HULL_STEPS).amin(1) - 0.5 * float(steps[1] - steps[0])


def _stretched(oriented: Tensor, inside: Tensor, percentiles: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """V (N,H,W) and the two values (N,2) that became 0 and 1."""
    grid = torch.tensor(percentiles, dtype=torch.float64) / 100
    ends = torch.stack([torch.quantile(_some(v[mask]), grid) for v, mask in zip(oriented, inside, strict=True)])
    span = ends[:, 1] - ends[:, 0]
    flat = (span <= 1e-9 * ends.abs().amax(1).clamp_min(1e-30)).nonzero().flatten().tolist()
    if flat:
        raise ValueError(
            f"The depth map of view {', '.join(map(str, flat[:8]))} has the same value all over the object, so there "
            "is no relief to calibrate; check the depth model and the mask."
        )
    share = (oriented - ends[:, 0, None, None]) / span[:, None, None]
    return share.clamp(-BEYOND, 1 + BEYOND), ends


def _some(values: Tensor) -> Tensor:
    """At most 2^20 values, evenly: quantile() takes no more than 2^24."""
    return values[:: max(1, len(values) >> 20)]


def _metric(share: Tensor, limits: Tensor, linear: bool) -> Tensor:
    near, far = limits[:, 0, None, None], limits[:, 1, None, None]
    if linear:
        return share * near + (1 - share) * far
    # Beyond the far limit inverse depth must not reach zero.
    return 1.0 / (share / near + (1 - share) / far).clamp_min(1e-2)


def _check(raw, masks, cameras, kind, method, metric, percentiles) -> tuple[Tensor, Tensor]:
    """Masks and where they show the object. ValueError for anything that cannot be calibrated."""
    if method not in METHODS:
        raise ValueError(f"There is no calibration '{method}'; choose one of: {', '.join(METHODS)}.")
    if kind not in KINDS or (metric and kind != "depth"):
        raise ValueError(f"Depth maps are of kind {' or '.join(KINDS)} (metric ones of kind depth), got '{kind}'.")
    if method == "none" and not metric:
        raise ValueError(
            "These maps have no scale of their own, so calibration 'none' has no meaning; choose joint, silhouette or "
            "minmax."
        )
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ValueError(f"The percentiles must be two growing numbers from 0 to 100, got {low} and {high}.")
    if raw.ndim != 3 or masks.ndim != 3:
        raise ValueError(
            f"Depth maps and masks must be (views, height, width), got {tuple(raw.shape)} and {tuple(masks.shape)}."
        )
    check_view_count(raw.shape[0], cameras, "depth maps")
    check_view_count(masks.shape[0], cameras, "masks")
    if not torch.isfinite(masks).all():
        raise ValueError("The masks contain NaN or infinity; check the node that made them.")
    masks = masks.detach().float().cpu().clamp(0, 1)
    inside = masks > 0.5
    empty = (~inside.flatten(1).any(1)).nonzero().flatten().tolist()
    if len(empty) == len(masks):
        raise ValueError("Every mask is empty; a mask must be 1 where the object is (is it inverted?).")
    if empty:
        which = ", ".join(map(str, empty[:8]))
        raise ValueError(f"The mask of view {which} is empty; leave the view out or repair its mask.")
    if not torch.isfinite(raw).all():
        bad = [i for i, one in enumerate(raw) if not torch.isfinite(one).all()]
        raise ValueError(
            f"The depth maps contain NaN or infinity (view {', '.join(map(str, bad[:8]))}); run the depth model in "
            "fp32, or write 0 where there is nothing and mask it out."
        )
    if metric and bool((raw[_resized(inside, raw)] <= 0).any()):
        raise ValueError("Metric depth must be more than 0 inside the mask; shrink the mask or repair the depth.")
    return masks, inside


def _resized(inside: Tensor, raw: Tensor) -> Tensor:
    return interpolate(inside.float()[:, None], size=raw.shape[1:], mode="nearest")[:, 0].to(raw.device) > 0.5
