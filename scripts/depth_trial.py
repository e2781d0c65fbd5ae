"""How well do the calibrations recover metric depth? True depth of demo objects, made affine and noisy per view.

Run `python -m scripts.depth_trial` in the repository's root; the figures are in docs/depth.md. 16 views of 128 px.
Each view's inverse depth (or depth) gets a random factor and offset, noise on every pixel and a smooth error, both in
shares of the view's range.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor

from multiview.cameras import Cameras, orbit
from multiview.demo.depth_net import estimate_depth, load_depth_net
from multiview.demo.objects import make_object
from multiview.demo.raycast import render_object
from multiview.depth_agreement import disagreement
from multiview.depth_calibrate import Calibrated, calibrate
from multiview.depth_rig import Rig, neighbours, spread_pixels

HELD_OUT = 1_000_000


def distorted(depth: Tensor, kind: str, seed: int, noise: float = 0.01, smooth: float = 0.03) -> Tensor:
    """(N,H,W) what a network might say about true depth (N,H,W), 0 = nothing: another scale and offset in each view."""
    chance = torch.Generator().manual_seed(seed)
    out = torch.zeros_like(depth)
    for i, z in enumerate(depth):
        inside = z > 0
        value = 1 / z.clamp_min(1e-3) if kind == "disparity" else z.clone()
        span = value[inside].max() - value[inside].min()
        waves = torch.randn(1, 1, 4, 4, generator=chance)
        waves = torch.nn.functional.interpolate(waves, size=z.shape, mode="bicubic")[0, 0]
        value = value + span * (noise * torch.randn(z.shape, generator=chance) + smooth * waves)
        factor, offset = torch.rand(2, generator=chance).tolist()
        far = value[inside].min() - 2 * span if kind == "disparity" else value[inside].max() + 2 * span
        out[i] = torch.where(inside, value, far) * (0.2 + 20 * factor) + 10 * (offset - 0.5)
    return out


def errors(found: Tensor, truth: Tensor, cameras: Cameras) -> tuple[float, float, float]:
    """Mean |Z - true| in world units, the same relative to the true Z, mean error in pixels in the next view."""
    both = (found > 0) & (truth > 0)
    gap = (found - truth).abs()[both].double()
    rig = Rig.of(cameras, tuple(truth.shape[1:]))
    view, uv = spread_pixels(both, 500)
    column, row = uv.long().unbind(1)
    next_view = torch.tensor([j[0] for j in neighbours(cameras, 0.5, 180.0, 1)])[view]
    rays = rig.rays(view, uv)
    there, here = (rig.move(view, next_view, rays, z[view, row, column].double())[0] for z in (found, truth))
    return float(gap.mean()), float((gap / truth[both]).mean()), float((there - here).norm(dim=1).mean())


def best_possible(raw: Tensor, truth: Tensor, kind: str) -> Tensor:
    """The affine map of each view with the least squared error in depth's (or its inverse's) own units: needs truth."""
    out = torch.zeros_like(truth)
    for i, z in enumerate(truth):
        inside = z > 0
        wanted = (1 / z[inside] if kind == "disparity" else z[inside]).double()
        value = raw[i][inside].double()
        design = torch.stack([value, torch.ones_like(value)], dim=1)
        fitted = design @ torch.linalg.lstsq(design, wanted[:, None]).solution[:, 0]
        out[i][inside] = (1 / fitted if kind == "disparity" else fitted).float()
    return out


def measured(result: Calibrated | Tensor, truth: Tensor, cameras: Cameras, seconds: float = math.nan) -> list[float]:
    depth = result if isinstance(result, Tensor) else result.maps.depth
    after = disagreement(depth, cameras)
    said = [after.world, after.pixels] if after else [math.nan] * 2
    row = [*errors(depth, truth, cameras), *said]
    if isinstance(result, Tensor):
        return [*row, math.nan, math.nan]
    trust, inside = result.maps.confidence, (depth > 0) & (truth > 0)
    sure = inside & (trust >= trust[inside].median())
    return [*row, float((depth - truth).abs()[sure].mean()), seconds]


def line(maps: str, calibration: str, rows: list[list[float]]) -> None:
    """One row of the table; nan (not measured) is a dash."""
    mean = torch.tensor(rows).mean(0).tolist()
    mean[1] *= 100
    forms = (".4f", ".2f", ".2f", ".4f", ".2f", ".4f", ".2f")
    cells = ["-" if math.isnan(m) else format(m, f) for m, f in zip(mean, forms, strict=True)]
    cells[1] += " %"
    print(f"| {maps} | {calibration} | {' | '.join(cells)} |", flush=True)


def timed(*args, **keywords) -> tuple[Calibrated, float]:
    begin = time.process_time()
    result = calibrate(*args, **keywords)
    return result, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--elevation", type=float, default=15.0)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--smooth", type=float, default=0.03)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cameras = orbit([360 / options.views * i for i in range(options.views)], options.elevation, 1.5, 49.13)
    truths = [render_object(make_object(HELD_OUT + i, 0, 6), cameras, options.size, 1) for i in range(options.objects)]
    calibrate(distorted(truths[0].depth, "depth", 0), (truths[0].depth > 0).float(), cameras, kind="depth")  # imports
    print("| maps | calibration | error | relative | px in the next view | views disagree | px | surer half | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in ("disparity", "depth"):
        raws = [distorted(t.depth, kind, i, options.noise, options.smooth) for i, t in enumerate(truths)]
        for method in ("minmax", "silhouette", "joint"):
            rows = []
            for raw, truth in zip(raws, truths, strict=True):
                found = timed(raw, (truth.depth > 0).float(), cameras, kind=kind, method=method)
                rows.append(measured(found[0], truth.depth, cameras, found[1]))
            line(kind, method, rows)
        rows = [
            measured(best_possible(raw, t.depth, kind), t.depth, cameras) for raw, t in zip(raws, truths, strict=True)
        ]
        line(kind, "best possible", rows)
    net = load_depth_net()
    for method in ("none", "joint"):
        rows = []
        for truth in truths:
            estimate, trust = estimate_depth(net, truth.rgb, cameras)
            mask = (estimate > 0).float()
            found = timed(estimate, mask, cameras, kind="depth", method=method, metric=True)
            rows.append(measured(found[0], truth.depth, cameras, found[1]))
        line("demo net", method, rows)


if __name__ == "__main__":
    main()
