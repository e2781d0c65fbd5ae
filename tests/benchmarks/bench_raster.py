"""Forward and backward of the torch rasteriser beside two numba kernels and literal torch, on one thread, interleaved.

    .venv/bin/python tests/benchmarks/bench_raster.py [--rounds 9] [--only 5000x256]

Prints medians in ms of wall time and of this thread's CPU time (the steadier one on a shared machine), and the ratio
torch / other from the CPU times. All share the projection and the interface around the 2D stage; that they agree is
checked. numba is the fastest CPU candidate beside plain torch of those that were tried for the pack.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from pathlib import Path

import literal_raster
import numba_raster
import torch

ROOT = Path(__file__).resolve().parents[2]
SCENES = ((5000, 256), (20000, 256), (20000, 512), (1000, 128))


def load_pack() -> None:
    spec = importlib.util.spec_from_file_location(
        "mvpack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["mvpack"] = module
    spec.loader.exec_module(module)


def surface(count: int) -> list[torch.Tensor]:
    """Gaussians that tile a bumpy ball of radius 0.42, as a fitted object does; size falls with their number."""
    g = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    means = direction * 0.42 * (1 + 0.15 * torch.sin(5 * direction[:, :1]))
    spacing = 0.42 * math.sqrt(4 * math.pi / count)
    scales = 0.6 * spacing * torch.exp(0.4 * torch.randn(count, 3, generator=g))
    quats = torch.randn(count, 4, generator=g)
    opacities = 0.05 + 0.9 * torch.rand(count, generator=g)
    features = torch.rand(count, 3, generator=g)
    return [t.requires_grad_() for t in (means, quats, scales, opacities, features)]


def measure(count: int, size: int, rounds: int) -> None:
    from mvpack.multiview.cameras import orbit
    from mvpack.multiview.splats import raster, raster_torch

    kernels = {
        "torch": raster_torch.composite,
        "numba": numba_raster.scalar_composite,
        "numba, vectorised": numba_raster.simd_composite,
        "literal torch": literal_raster.composite,
    }
    values = surface(count)
    cameras = orbit([30.0], 15.0, 1.5, 49.13)
    w2c, K = cameras.w2c(), cameras.pixel_intrinsics(size, size)
    weight = torch.randn(1, size, size, 3, generator=torch.Generator().manual_seed(1))
    times = {name: [] for name in kernels}
    gradients = {}
    for round_ in range(rounds + 1):
        for name, kernel in kernels.items():
            raster.composite = kernel
            for v in values:
                v.grad = None
            wall, cpu = time.perf_counter(), time.thread_time()
            render = raster.rasterize(*values, w2c, K, size, size, background=torch.ones(3), backend="torch")
            middle = time.thread_time()
            ((render.features * weight).sum() + render.alpha.sum() + render.depth.sum()).backward()
            end = time.thread_time()
            if round_:  # the first one compiles and warms up
                times[name].append((time.perf_counter() - wall, end - cpu, middle - cpu, end - middle))
            gradients[name] = [v.grad for v in values]
    raster.composite = raster_torch.composite
    for name in kernels:
        for ours, theirs in zip(gradients["torch"], gradients[name], strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3 * float(ours.abs().max()))

    print(f"{count} Gaussians, {size}x{size}, {rounds} rounds")
    median = {name: [1e3 * statistics.median(column) for column in zip(*t, strict=True)] for name, t in times.items()}
    for name, (wall, cpu, forward, backward) in median.items():
        ratio = statistics.median(o[1] / t[1] for o, t in zip(times["torch"], times[name], strict=True))
        print(
            f"  {name:18s} wall {wall:7.1f}  cpu {cpu:7.1f} (forward {forward:6.1f}, backward {backward:6.1f})"
            f"  torch / this {ratio:5.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="one scene, as Gaussians x side, such as 5000x256")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_pack()
    scenes = SCENES if not arguments.only else [tuple(int(n) for n in arguments.only.split("x"))]
    for count, size in scenes:
        measure(count, size, arguments.rounds)


if __name__ == "__main__":
    main()
