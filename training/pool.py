"""Pre-rendered training pictures on disk: `python training render --out DIR --count 400 --views 12 --kind random`.

A pool is a folder of safetensors shards of a few objects each. Rendering goes on where it stopped, several workers
can share a folder, and a training can start on the shards that are there. Seeds below HELD_OUT_SEED are for training,
those from it on for measuring: a pool takes seeds first..first+count-1 and refuses a range that crosses the border.

Shard tensors (K objects, V views, S px): rgb uint8 (K,V,S,S,3) on black, that is, multiplied by alpha; alpha uint8
(K,V,S,S); offset float16 (K,V,S,S), only in pools of random cameras: depth as an offset toward the camera in units of
the picture's half height (multiview/demo/depth_net.py); camera float32 (K,V,4): azimuth and elevation in degrees,
radius, vertical field of view in degrees; seed int64 (K,).
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..multiview.cameras import Cameras, orbit
from ..multiview.demo.depth_net import half_heights
from ..multiview.demo.objects import GENERATOR_VERSION, HELD_OUT_SEED, make_object
from ..multiview.demo.raycast import render_object
from .checkpoint import read_meta, read_tensors, write_tensors

ORBIT_RADIUS, ORBIT_FOV = 1.5, 49.13
VARIANTS = 6


def random_cameras(seed: int, views: int) -> Cameras:
    """Cameras for the depth network: azimuths all round, elevation -10..40, distance 1.2..2.4, object in the frame."""
    rng = np.random.default_rng([seed, 7])
    azimuths = (rng.random() * 360 + np.arange(views) * 360 / views + rng.uniform(-15, 15, views)) % 360
    parts = []
    for azimuth in azimuths:
        radius, half = rng.uniform(1.2, 2.4), rng.uniform(0.56, 0.82)
        fov = math.degrees(2 * math.atan(half / radius))
        parts.append(orbit([float(azimuth)], float(rng.uniform(-10, 40)), float(radius), fov, input_view=None))
    return Cameras(torch.cat([p.c2w for p in parts]), torch.cat([p.intrinsics for p in parts]), name="random")


def orbit_cameras(seed: int, views: int, elevation: float = 15.0, jitter: float = 0.0) -> Cameras:
    """The demo orbit: `views` even steps from azimuth 0, elevation 15 (or up to `jitter` degrees off it)."""
    shift = np.random.default_rng([seed, 9]).uniform(-jitter, jitter) if jitter else 0.0
    return orbit([360.0 / views * i for i in range(views)], elevation + float(shift), ORBIT_RADIUS, ORBIT_FOV)


def render_one(
    seed: int, cameras: Cameras, size: int, supersample: int = 2, device: str = "cpu", with_depth: bool = True
) -> dict[str, Tensor]:
    """One object's entry of a shard (without the leading K). The variant follows from the seed."""
    spec = make_object(seed, int(np.random.default_rng([seed, 11]).integers(VARIANTS)), VARIANTS)
    shot = render_object(spec, cameras.to(device), size, supersample=supersample, background=(0.0, 0.0, 0.0))
    entry = {
        "rgb": (shot.rgb.cpu().clamp(0, 1) * 255).round().to(torch.uint8),
        "alpha": (shot.alpha.cpu().clamp(0, 1) * 255).round().to(torch.uint8),
        "camera": torch.stack(
            [cameras.azimuths(), cameras.elevations(), cameras.radii(), cameras.fov_y()], dim=1
        ).float(),
    }
    if with_depth:
        depth = shot.depth.cpu()
        offset = (cameras.radii().float()[:, None, None] - depth) / half_heights(cameras)[:, None, None]
        entry["offset"] = torch.where(depth > 0, offset, torch.zeros_like(offset)).half()
    return entry


def _is_current(path: Path, about: dict) -> bool:
    """Whether a finished shard is there and shows what would be drawn today."""
    return path.is_file() and about.items() <= read_meta(path).items()


def render_pool(
    folder: Path,
    first: int,
    count: int,
    views: int,
    size: int,
    kind: str = "random",
    *,
    elevation: float = 15.0,
    jitter: float = 0.0,
    shard: int = 16,
    worker: int = 0,
    workers: int = 1,
    supersample: int = 2,
    device: str = "cpu",
    minutes: float = 1e9,
) -> int:
    """Render this worker's missing shards; returns how many objects that were. Stops at a shard when time is up."""
    if first < HELD_OUT_SEED < first + count:
        raise ValueError(
            f"Seeds {first} to {first + count - 1} mix training and held-out objects; "
            f"stay on one side of {HELD_OUT_SEED}."
        )
    about = {"kind": kind, "size": size, "views": views, "generator_version": GENERATOR_VERSION}
    start, done = time.monotonic(), 0
    for index, low in enumerate(range(first, first + count, shard)):
        path = folder / f"shard-{low:08d}.safetensors"
        if index % workers != worker or _is_current(path, about):
            continue
        if time.monotonic() - start > 60 * minutes:
            break
        seeds = list(range(low, min(low + shard, first + count)))
        items = []
        for seed in seeds:
            cameras = random_cameras(seed, views) if kind == "random" else orbit_cameras(seed, views, elevation, jitter)
            items.append(render_one(seed, cameras, size, supersample, device, with_depth=kind == "random"))
        tensors = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        write_tensors(path, {**tensors, "seed": torch.tensor(seeds)}, about)
        done += len(seeds)
    return done


def read_shards(folder: Path, keys: Sequence[str], skip: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Name and tensors of every finished shard in seed order, without those named in skip."""
    for path in sorted(Path(folder).glob("shard-*.safetensors")):
        if path.name not in skip:
            tensors, _ = read_tensors(path)
            yield path.name, {key: tensors[key] for key in keys}


def load_pool(
    folder: Path, limit: int | None = None, keys: Sequence[str] = ("rgb", "alpha", "offset", "camera", "seed")
) -> dict[str, Tensor]:
    """The first `limit` objects of a folder, joined. ValueError when it holds none."""
    parts: list[dict[str, Tensor]] = []
    for _, tensors in read_shards(folder, keys):
        parts.append(tensors)
        if limit is not None and sum(len(p["seed"]) for p in parts) >= limit:
            break
    if not parts:
        raise ValueError(f"There are no shards in {folder}; make them with `python training render`.")
    return {key: torch.cat([p[key] for p in parts])[:limit] for key in keys}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training render", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help=f"first seed; {HELD_OUT_SEED} and above are held out")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--supersample", type=int, default=2)
    parser.add_argument("--kind", choices=("random", "orbit"), default="random")
    parser.add_argument("--elevation", type=float, default=15.0)
    parser.add_argument("--jitter", type=float, default=0.0, help="orbit elevations vary by up to this many degrees")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=1e9)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.nice(5)
    started = time.monotonic()
    done = render_pool(
        args.out,
        args.first,
        args.count,
        args.views,
        args.size,
        args.kind,
        elevation=args.elevation,
        jitter=args.jitter,
        worker=args.worker,
        workers=args.workers,
        supersample=args.supersample,
        device=args.device,
        minutes=args.minutes,
    )
    seconds = time.monotonic() - started
    print(f"rendered {done} objects in {seconds:.0f} s ({done / max(seconds, 1e-9):.2f} a second)", flush=True)
    return 0
