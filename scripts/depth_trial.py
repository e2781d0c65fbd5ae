"""How well do the calibrations recover metric depth? True depth of demo objects, made affine and noisy per view.

Run `python -m scripts.depth_trial` in the repository's root; the figures are in docs/depth.md. 16 views of 128 px.
Each view's inverse depth (or depth) gets a random factor and offset, noise on every pixel and a smooth error, both in
shares of the view's range.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from multiview.cameras import Cameras, orbit
from multiview.correspondence import tangent_planes, track  # noqa: F401
from multiview.demo.objects import make_object
from multiview.demo.raycast import render_object
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


def one(seed: int, cameras: Cameras, size: int, kind: str, method: str, noise: float, smooth: float):
    truth = render_object(make_object(seed, 0, 6), cameras, size, 1)
    raw = distorted(truth.depth, kind, seed, noise, smooth)
    begin = time.perf_counter()
    result: Calibrated = calibrate(raw, (truth.depth > 0).float(), cameras, kind=kind, method=method)
    return result, truth, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--smooth", type=float, default=0.03)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cameras = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
    print("| maps | calibration | error | relative | px in the next view | views disagree | px | surer half | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in ("disparity", "depth"):
        for method in ("minmax", "silhouette", "joint"):
            rows = []
            for i in range(options.objects):
                result, truth, seconds = one(
                    HELD_OUT + i, cameras, options.size, kind, method, options.noise, options.smooth
                )
                depth, trust = result.maps.depth, result.maps.confidence
                inside = depth > 0
                sure = inside & (trust >= trust[inside].median())
                better = float((depth - truth.depth).abs()[sure].mean())
                after = result.after
                rows.append([*errors(depth, truth.depth, cameras), after.world, after.pixels, better, seconds])
            mean = torch.tensor(rows).mean(0).tolist()
            print(
                f"| {kind} | {method} | {mean[0]:.4f} | {100 * mean[1]:.2f} % | {mean[2]:.2f} | {mean[3]:.4f} | "
                f"{mean[4]:.2f} | {mean[5]:.4f} | {mean[6]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
