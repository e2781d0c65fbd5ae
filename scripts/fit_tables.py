"""The tables of docs/splat_fitting.md on 16 held-out demo objects, with 95 % bootstrap intervals.

    python -m scripts.fit_tables                      go on with what is missing, for at most 7 minutes, and print
    python -m scripts.fit_tables --minutes 0          only print what is there
    python -m scripts.fit_tables --only elevation     of clean, spoiled, long, elevation

Objects with seeds from 1,000,000, 64 px, a ring of 16 views at elevation 15: 12 to fit, 4 held out (every fourth, from
the third on). PSNR and SSIM on the true held-out views. Short fits: the tables compare, docs/splat_fitting.md has
figures of whole fits. Finished cases are kept in output/fit_tables and are not run again unless their settings
changed. The table "long" is for LPIPS, which needs more steps and its weights (scripts/lpips_weights.py); a case of it
takes two minutes. Seconds are CPU seconds of one thread; compare ratios only, other work on the machine moves them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from multiview.cameras import orbit
from multiview.demo.objects import HELD_OUT_SEED, make_object
from multiview.demo.raycast import render_object
from multiview.depth import DepthMaps
from multiview.lpips import find_weights, load_lpips
from multiview.splats.camera_search import find_cameras
from multiview.splats.fit import fit
from multiview.splats.fit_config import LOSSES, FitConfig
from multiview.splats.losses import psnr, ssim
from multiview.splats.render import render_gaussians
from multiview.statistics import Interval, bootstrap, paired_bootstrap

OBJECTS, SIZE = 16, 64
EVEN = [22.5 * i for i in range(16)]
CAMERAS = orbit(EVEN, 15.0, 1.5, 49.13)
HELD_OUT = [2, 6, 10, 14]
KEPT = [i for i in range(16) if i not in HELD_OUT]
BASE = {"iterations": 60, "points": 800, "max_points": 1600, "densify_every": 10, "hull_cells": 32}
NAMES = {"default": "default (L1, MS-SSIM)", "IM-3D": "IM-3D", "IM-3D without LPIPS": "IM-3D without LPIPS", "L2": "L2"}
ROWS: dict[str, dict] = {
    **{f"losses: {NAMES[name]}": dict(LOSSES[name]) for name in LOSSES if name != "IM-3D"},
    "start: sphere": {"init": "sphere"},
    "start: center": {"init": "center"},
    "start: depth (true)": {"init": "depth"},
    "strategy: mcmc": {"strategy": "mcmc"},
    "strategy: none": {"strategy": "none"},
}
FIRST = "losses: default (L1, MS-SSIM)"
SPOILS = ("colour drift", "2 px jitter", "second face")
LONG, LONG_OBJECTS = {"iterations": 300, "densify_every": 50}, 3
LONG_ROWS = ("IM-3D", "IM-3D without LPIPS", "default", "L2")
# True and given elevation, degrees: object i takes the i-th of each, around and around.
TRUE, GIVEN = (-10.0, 0.0, 10.0, 20.0, 30.0, 40.0), (10.0, 0.0)
AZIMUTH_ERROR = 5.0  # the true azimuths are off the even ones by up to this many degrees
ELEVATION_LIMIT, AZIMUTH_LIMIT = 3.0, 2.0


@lru_cache(maxsize=2)
def scene(index: int):
    return render_object(make_object(HELD_OUT_SEED + index), CAMERAS, SIZE)


@lru_cache(maxsize=2)
def perceptual(kind: str):
    """LPIPS on "vgg" (what fits minimise) or "alex" (what they are judged by); None where its weights are not here."""
    files = find_weights(["models/lpips", os.path.join(torch.hub.get_dir(), "checkpoints")], [kind])
    return None if files is None else load_lpips(files)


def spoiled(images: Tensor, alpha: Tensor, how: str | None, seed: int) -> Tensor:
    """The views with inconsistencies: (N,H,W,3), the white background kept.

    colour drift: each view's colours times its own factor per channel, 0.8 to 1.2. 2 px jitter: each view moved by up
    to 2 pixels each way. second face: the view from behind shows the front.
    """
    rng = random.Random(seed)
    if how is None:
        return images
    if how == "second face":
        out = images.clone()
        out[8] = images[0]
        return out
    if how == "2 px jitter":
        moves = [(rng.randint(-2, 2), rng.randint(-2, 2)) for _ in images]
        return torch.stack([image.roll(move, (0, 1)) for image, move in zip(images, moves, strict=True)])
    factor = torch.tensor([[rng.uniform(0.8, 1.2) for _ in range(3)] for _ in images])[:, None, None]
    cover = alpha[..., None]
    return ((images - (1 - cover)) * factor + (1 - cover)).clamp(0, 1)


def fitted_case(index: int, settings: dict, how: str | None) -> dict[str, float]:
    true = scene(index)
    config = FitConfig(**BASE | settings)
    views = spoiled(true.rgb, true.alpha, how, index)[KEPT]
    depth = DepthMaps(true.depth[KEPT], (true.depth[KEPT] > 0).float()) if config.init == "depth" else None
    network = perceptual("vgg") if config.w_lpips else None
    began = time.process_time()
    splat = fit(views, CAMERAS.subset(KEPT), None, config, depth=depth, perceptual=network).gaussians
    seconds = time.process_time() - began
    with torch.no_grad():
        drawn = render_gaussians(splat, CAMERAS.subset(HELD_OUT), SIZE, SIZE).features.clamp(0, 1)
    held = true.rgb[HELD_OUT]
    scores = {"psnr": float(psnr(drawn, held).mean()), "ssim": float(ssim(drawn, held).mean())}
    if perceptual("alex") is not None:
        with torch.no_grad():
            scores["lpips"] = float(perceptual("alex")(drawn, held).mean())
    return scores | {"seconds": seconds, "gaussians": splat.num}


def elevation_case(index: int) -> dict[str, float]:
    """Errors in degrees; azimuths relative to view 0, since a turn of everything cannot be seen."""
    rng = random.Random(index)
    shifts = torch.tensor([rng.uniform(-AZIMUTH_ERROR, AZIMUTH_ERROR) for _ in EVEN])
    true, given = TRUE[index % len(TRUE)], GIVEN[index % len(GIVEN)]
    cameras = orbit((torch.tensor(EVEN) + shifts).tolist(), true, 1.5, 49.13)
    views = render_object(make_object(HELD_OUT_SEED + index), cameras, SIZE).rgb
    began = time.process_time()
    found = find_cameras(views, orbit(EVEN, given, 1.5, 49.13), refine=("elevation", "azimuths"))[1]
    seconds = time.process_time() - began
    wrong = torch.tensor(found.azimuths) - shifts
    wrong = (wrong - wrong[0])[1:].abs()
    return {
        "true": true, "given": given, "elevation": abs(given + found.elevation - true),
        "azimuth": float(wrong.mean()), "worst azimuth": float(wrong.max()), "seconds": seconds,
        "before": float((shifts - shifts[0])[1:].abs().mean()),
    }  # fmt: skip


class Store:
    """One small file for each case."""

    def __init__(self, folder: Path, minutes: float, fresh: bool):
        self.folder, self.fresh, self.end = folder, fresh, time.monotonic() + 60 * minutes
        self.written: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def case(self, table: str, row: str, index: int, settings: dict, work) -> dict[str, float] | None:
        """What `work` returns, or what it returned in an earlier run; None once the time is up."""
        path = self.folder / f"{table}-{row}-{index}.json".replace(" ", "_").replace(":", "").replace(",", "")
        if path.is_file() and (not self.fresh or path in self.written):
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["settings"] == json.loads(json.dumps(settings)):
                return kept["result"]
        if time.monotonic() > self.end:
            return None
        result = work()
        text = json.dumps({"settings": settings, "result": result})
        path.with_suffix(".tmp").write_text(text, encoding="utf-8")
        os.replace(path.with_suffix(".tmp"), path)
        self.written.add(path)
        return result

    def fit(self, row: str, how: str | None, index: int) -> dict[str, float] | None:
        settings = ROWS[row]
        return self.case(how or "clean", row, index, BASE | settings, lambda: fitted_case(index, settings, how))

    def long_fit(self, name: str, how: str | None, index: int) -> dict[str, float] | None:
        settings = LONG | LOSSES[name]
        table = f"long {how or 'clean'}"
        return self.case(table, name, index, BASE | settings, lambda: fitted_case(index, settings, how))

    def long_fits(self, name: str, how: str | None) -> dict[int, dict[str, float]]:
        found = {i: self.long_fit(name, how, i) for i in range(LONG_OBJECTS)}
        return {i: result for i, result in found.items() if result is not None}

    def elevation(self, index: int) -> dict[str, float] | None:
        return self.case("elevation", "search", index, {"jitter": AZIMUTH_ERROR}, lambda: elevation_case(index))

    def fits(self, row: str, how: str | None) -> dict[int, dict[str, float]]:
        """Results by object of a row of ROWS."""
        found = {i: self.fit(row, how, i) for i in range(OBJECTS)}
        return {i: result for i, result in found.items() if result is not None}

    def go_on(self, tables: list[str]) -> None:
        """Everything of one object before the next, so that a part has the same objects in every row."""
        for i in range(OBJECTS):
            if "clean" in tables or "spoiled" in tables:
                for row in ROWS:
                    self.fit(row, None, i)
            if "spoiled" in tables:
                for row in (row for row in ROWS if row.startswith("losses")):
                    for how in SPOILS:
                        self.fit(row, how, i)
            if "long" in tables and i < LONG_OBJECTS and perceptual("vgg") is not None:
                for name in LONG_ROWS:
                    for how in (None, *SPOILS):
                        self.long_fit(name, how, i)
            if "elevation" in tables:
                self.elevation(i)


def interval(found: dict[int, dict], key: str) -> Interval:
    return bootstrap([r[key] for r in found.values()])


def ssim_text(value: Interval) -> str:
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"


def difference(first: dict[int, dict], second: dict[int, dict], key: str = "psnr") -> Interval:
    """second - first over the objects that both have."""
    both = [i for i in first if i in second]
    return paired_bootstrap([first[i][key] for i in both], [second[i][key] for i in both])


def clean_table(store: Store) -> None:
    print("\n| setting | objects | held-out PSNR, dB | SSIM | against the first row, dB | Gaussians | time ratio |")
    print("|---|---|---|---|---|---|---|")
    base = store.fits(FIRST, None)
    for row in ROWS:
        found = store.fits(row, None)
        if not found or not base:
            print(f"| {row} | not measured: out of time | | | | | |")
            continue
        both = [i for i in base if i in found]
        ratio = sum(found[i]["seconds"] for i in both) / sum(base[i]["seconds"] for i in both)
        against = "" if row == FIRST else str(difference(base, found))
        print(
            f"| {row} | {len(found)} | {interval(found, 'psnr')} | {ssim_text(interval(found, 'ssim'))} | {against} | "
            f"{interval(found, 'gaussians').mean:.0f} | {ratio:.2f} |",
            flush=True,
        )


def spoiled_table(store: Store) -> None:
    rows = [row for row in ROWS if row.startswith("losses")]
    l2 = f"losses: {NAMES['L2']}"
    print("\n| views | losses | objects | held-out PSNR, dB | lost, dB | SSIM | less lost than L2, dB |")
    print("|---|---|---|---|---|---|---|")
    for how in SPOILS:
        found = {row: store.fits(row, how) for row in rows}
        clean = {row: store.fits(row, None) for row in rows}
        for row in rows:
            both = [i for i in found[row] if i in clean[row]]
            if not both or not found[l2]:
                print(f"| {how} | {row.removeprefix('losses: ')} | not measured: out of time | | | | |")
                continue
            lost = {r: {i: {"psnr": clean[r][i]["psnr"] - v["psnr"]} for i, v in found[r].items()} for r in (row, l2)}
            less = "" if row == l2 else str(difference(lost[row], lost[l2]))
            print(
                f"| {how} | {row.removeprefix('losses: ')} | {len(both)} | {interval(found[row], 'psnr')} | "
                f"{interval(lost[row], 'psnr')} | {ssim_text(interval(found[row], 'ssim'))} | {less} |",
                flush=True,
            )


def long_table(store: Store) -> None:
    """What is lost to inconsistencies, for losses that need many steps; judged by LPIPS of another network too."""
    if perceptual("vgg") is None or perceptual("alex") is None:
        print("\nThe table of LPIPS is not measured: models/lpips lacks its weights, see scripts/lpips_weights.py.")
        return
    clean = {name: store.long_fits(name, None) for name in LONG_ROWS}
    print("\n| views | losses | objects | held-out PSNR, dB | lost | LPIPS (alex) | lost | SSIM | seconds |")
    print("|---" * 9 + "|")
    for how in (None, *SPOILS):
        for name in LONG_ROWS:
            found = store.long_fits(name, how)
            if not found:
                print(f"| {how or 'clean'} | {NAMES[name]} | not measured: out of time | | | | | | |")
                continue
            lost = {key: difference(clean[name], found, key) for key in ("psnr", "lpips")}
            shown = ("", "") if how is None else (f"{-lost['psnr'].mean:.2f}", f"{lost['lpips'].mean:.4f}")
            print(
                f"| {how or 'clean'} | {NAMES[name]} | {len(found)} | {interval(found, 'psnr')} | {shown[0]} | "
                f"{interval(found, 'lpips').mean:.4f} | {shown[1]} | {interval(found, 'ssim').mean:.4f} | "
                f"{interval(found, 'seconds').mean:.0f} |",
                flush=True,
            )


def elevation_table(store: Store) -> None:
    print("\n| object | true elevation | given | error | azimuths: error before | after | worst view | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    for i in range(OBJECTS):
        r = store.elevation(i)
        if r is None:
            continue
        found.append(r)
        print(
            f"| {HELD_OUT_SEED + i} | {r['true']:.0f} | {r['given']:.0f} | {r['elevation']:.2f} | {r['before']:.2f} | "
            f"{r['azimuth']:.2f} | {r['worst azimuth']:.2f} | {r['seconds']:.0f} |",
            flush=True,
        )
    if found:
        lifted = sum(r["elevation"] <= ELEVATION_LIMIT for r in found)
        turned = sum(r["azimuth"] <= AZIMUTH_LIMIT for r in found)
        print(
            f"\nOf {len(found)} objects: elevation within {ELEVATION_LIMIT:.0f} degrees on {lifted}, azimuths within "
            f"{AZIMUTH_LIMIT:.0f} degrees (mean over the views) on {turned}."
        )


TABLES = {"clean": clean_table, "spoiled": spoiled_table, "long": long_table, "elevation": elevation_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.0, help="start no new case after this many minutes")
    parser.add_argument("--only", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--fresh", action="store_true", help="run finished cases again")
    parser.add_argument("--folder", type=Path, default=Path("output/fit_tables"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(options.folder, options.minutes, options.fresh)
    store.go_on(options.only)
    store.end = 0.0
    for name in options.only:
        TABLES[name](store)


if __name__ == "__main__":
    main()
