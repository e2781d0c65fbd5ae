"""How well and how fast views become a splat: held-out PSNR of generated objects for each setting of the fit.

    .venv/bin/python scripts/fit_quality.py [--objects 8] [--size 128] [--only default no_msssim] [--list]

16 views on a ring, 12 to fit and 4 held out (every fourth, from the third on), objects held out from training
(seeds from 1,000,000). Seconds are CPU seconds of one thread, so that other work on the machine hardly counts;
compare them within one run only. Prints one line per setting, then the objects of the first setting one by one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
from pathlib import Path

import torch

FIRST_SEED = 1_000_000
HELD_OUT = (2, 6, 10, 14)
SETTINGS: dict[str, dict] = {
    "default": {},
    "iterations_75": {"iterations": 75},
    "iterations_300": {"iterations": 300},
    "iterations_600": {"iterations": 600},
    "one_view_per_step": {"views_per_step": 1, "iterations": 300},
    "four_views_per_step": {"views_per_step": 4, "iterations": 75},
    "sphere": {"init": "sphere"},
    "center": {"init": "center"},
    "center_600": {"init": "center", "iterations": 600, "points": 5000},
    "no_msssim": {"w_msssim": 0.0},
    "no_l1": {"w_l1": 0.0},
    "no_mask": {"w_mask": 0.0},
    "mask_1": {"w_mask": 1.0},
    "no_growth": {"densify_every": 0},
    "points_1500": {"points": 1500},
    "points_6000": {"points": 6000},
    "lr_means_half": {"lr_means": 3e-3},
    "lr_means_double": {"lr_means": 1.2e-2},
    "lr_scales_quarter": {"lr_scales": 2e-2},
    "lr_opacities_half": {"lr_opacities": 5e-2},
    "sh_1": {"sh_degree": 1},
    "sh_3": {"sh_degree": 3},
    "antialiased": {"antialiased": True},
}


def load_pack() -> None:
    """The checkout as package `mvpack`, without running its root module and without touching sys.path."""
    pack = types.ModuleType("mvpack")
    pack.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["mvpack"] = pack


def measure(settings: dict, scenes: list, cameras) -> list[dict]:
    """One row per object."""
    from mvpack.multiview.splats.fit import FitConfig, fit
    from mvpack.multiview.splats.losses import psnr, ssim
    from mvpack.multiview.splats.render import render_gaussians

    kept = [i for i in range(len(cameras)) if i not in HELD_OUT]
    rows = []
    for name, images in scenes:
        began = time.process_time()
        splat = fit(images[kept], cameras.subset(kept), config=FitConfig(**settings)).gaussians
        seconds = time.process_time() - began
        with torch.no_grad():
            smooth = settings.get("antialiased", False)
            drawn = render_gaussians(splat, cameras, images.shape[2], images.shape[1], antialiased=smooth).features
            drawn = drawn.clamp(0, 1)
        held = list(HELD_OUT)
        rows.append(
            {
                "object": name,
                "held": float(psnr(drawn[held], images[held]).mean()),
                "fitted": float(psnr(drawn[kept], images[kept]).mean()),
                "ssim": float(ssim(drawn[held], images[held]).mean()),
                "gaussians": splat.num,
                "seconds": seconds,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--list", action="store_true", help="print the settings and stop")
    options = parser.parse_args()
    if options.list:
        for name, settings in SETTINGS.items():
            print(f"{name}: {settings}")
        return
    torch.set_num_threads(1)
    load_pack()
    from mvpack.multiview.cameras import even_azimuths, orbit
    from mvpack.multiview.demo.objects import make_object
    from mvpack.multiview.demo.raycast import render_object

    cameras = orbit(even_azimuths(16), 15.0, 1.5, 49.13)
    specs = [make_object(FIRST_SEED + i) for i in range(options.objects)]
    scenes = [(f"{FIRST_SEED + i}", render_object(s, cameras, options.size).rgb) for i, s in enumerate(specs)]
    measure({"iterations": 2}, scenes[:1], cameras)  # first use loads libraries, which is no part of a fit

    print("| setting | held-out PSNR | worst object | SSIM | fitted views | Gaussians | CPU s |")
    print("|---|---|---|---|---|---|---|")
    first = None
    for name in options.only:
        rows = measure(SETTINGS[name], scenes, cameras)
        first = first or rows
        mean = {key: statistics.fmean(r[key] for r in rows) for key in rows[0] if key != "object"}
        worst = min(r["held"] for r in rows)
        print(
            f"| {name} | {mean['held']:.2f} | {worst:.2f} | {mean['ssim']:.4f} | {mean['fitted']:.2f} "
            f"| {mean['gaussians']:.0f} | {mean['seconds']:.1f} |",
            flush=True,
        )
    print("\n| object | held-out PSNR | SSIM | fitted views | Gaussians | CPU s |\n|---|---|---|---|---|---|")
    for r in first or []:
        print(
            f"| {r['object']} | {r['held']:.2f} | {r['ssim']:.4f} | {r['fitted']:.2f} | {r['gaussians']} "
            f"| {r['seconds']:.1f} |"
        )


if __name__ == "__main__":
    main()
