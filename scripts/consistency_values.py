"""Typical values of the consistency measures on demo views, and what cheaper and longer fits tell apart.

Run `python -m scripts.consistency_values` in the repository's root; docs/consistency.md keeps what it printed.
64 px, the demo orbit of 16 views, held-out toys. "One toy": its true views. "Drift": a different tint on each view,
standard deviation 0.03. "One wrong": one view from behind shows another variant. "Each another": every view shows
the variant it likes. Then samples of the analytic model (docs/analytic_model.md) with their agreement. Intervals: 95 %
by bootstrap over the objects.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

from multiview.cameras import orbit
from multiview.consistency import QUICK, odd_even
from multiview.consistency_measure import QUALITIES, measure
from multiview.demo.analytic import AnalyticModel, AnalyticOptions
from multiview.demo.bank import build_bank
from multiview.demo.measure import judge
from multiview.demo.objects import make_object
from multiview.demo.raycast import render_object
from multiview.splats.fit import FitConfig
from multiview.statistics import bootstrap, paired_bootstrap

CAMERAS = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
SIZE, VARIANTS, STEPS = 64, 6, 18
SIGMAS = [*(torch.linspace(700 ** (1 / 7), 0.02 ** (1 / 7), STEPS) ** 7).tolist(), 0.0]
# Window and kappa at 64 px, from views that are one object to views that are each another.
REGIMES = {"whole, kappa 1": (0, 1.0), "31, kappa 0.3": (31, 0.3), "31, kappa 0.1": (31, 0.1), "31, kappa 0": (31, 0.0)}
FITS = {
    "quick": QUICK,
    "quick, 40 steps": replace(QUICK, iterations=40),
    "quick, default rates": replace(QUICK, lr_means=6e-3, lr_sh=3e-2),
    "quick, 400 points": replace(QUICK, points=400, max_points=400),
    "defaults of the fit": FitConfig(),
}


def sets_of(seed: int) -> dict[str, torch.Tensor]:
    views = torch.stack(
        [render_object(make_object(1_000_000 + seed, v, VARIANTS), CAMERAS, SIZE).rgb for v in range(VARIANTS)]
    )
    generator = torch.Generator().manual_seed(seed)
    tint = 0.03 * torch.randn(16, 1, 1, 3, generator=generator)
    inside = (views[0] < 0.99).any(-1, keepdim=True)
    wrong = views[0].clone()
    wrong[8] = views[1][8]
    pick = torch.randint(VARIANTS, (16,), generator=generator)
    return {
        "one toy": views[0],
        "drift": (views[0] + tint * inside).clamp(0, 1),
        "one wrong": wrong,
        "each another": views[pick, torch.arange(16)],
    }


def true_views(objects: int, quality: str) -> None:
    print(f"\n| views ({quality}) | odd/even dB | SSIM | depth % | neighbours dB | held out dB | CPU s |")
    print("|---|---|---|---|---|---|---|")
    everything = [sets_of(seed) for seed in range(objects)]
    for name in everything[0]:
        rows, start = [], time.process_time()
        for one in everything:
            found = measure(one[name], CAMERAS, quality=QUALITIES[quality])
            figures = [found.odd_even.psnr, found.odd_even.ssim, 100 * found.odd_even.depth]
            rows.append([*figures, found.neighbours.psnr, found.held_out.psnr])
        seconds = (time.process_time() - start) / objects
        first, *rest = (bootstrap(column) for column in zip(*rows, strict=True))
        cells = [str(first), f"{rest[0].mean:.3f}", f"{rest[1].mean:.2f}", str(rest[2]), str(rest[3])]
        print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


def trade(objects: int) -> None:
    print("\n| fit | one toy dB | loss by drift | loss by each another | CPU s |\n|---|---|---|---|---|")
    everything = [sets_of(seed) for seed in range(objects)]
    for name, config in FITS.items():
        start = time.process_time()
        found = {
            k: [odd_even(one[k], CAMERAS, config=config).psnr for one in everything]
            for k in ("one toy", "drift", "each another")
        }
        seconds = (time.process_time() - start) / (3 * objects)
        losses = [paired_bootstrap(found[k], found["one toy"]) for k in ("drift", "each another")]
        print(f"| {name} | {bootstrap(found['one toy'])} | {losses[0]} | {losses[1]} | {seconds:.1f} |", flush=True)


def generated_views(objects: int) -> None:
    bank = build_bank(CAMERAS, SIZE, objects, VARIANTS, 0)
    print("\n| window, coupling | agreement | odd/even dB | neighbours dB | held out dB |\n|---|---|---|---|---|")
    for name, (window, kappa) in REGIMES.items():
        model, rows = AnalyticModel(bank, AnalyticOptions(window=window, kappa=kappa)), []
        for family in range(objects):
            views = sampled(model, family)
            found = measure(views, CAMERAS, quality=QUALITIES["quick"])
            agreement = judge(views, bank, family).agreement
            rows.append([agreement, found.odd_even.psnr, found.neighbours.psnr, found.held_out.psnr])
        print(f"| {name} | " + " | ".join(str(bootstrap(c)) for c in zip(*rows, strict=True)) + " |", flush=True)


def sampled(model: AnalyticModel, family: int) -> torch.Tensor:
    """(16,64,64,3) in [0,1], Euler from sigma 700; the same noise for every regime."""
    bank = model.bank
    reference = bank.references[bank.member(family, 0)].movedim(-1, 0).float() / 127.5 - 1
    generator = torch.Generator().manual_seed(family)
    x = torch.randn(16, 3, SIZE, SIZE, generator=generator) * SIGMAS[0]
    for now, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
        clean = model.denoise(x, now, reference)
        x = clean + (x - clean) * (after / now)
    return (x / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--only", choices=["quick", "full", "trade", "generated"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = {
        "quick": lambda: true_views(arguments.objects, "quick"),
        "generated": lambda: generated_views(arguments.objects),
        "trade": lambda: trade(max(2, arguments.objects // 2)),
        "full": lambda: true_views(max(2, arguments.objects // 4), "full"),
    }
    for name, run in tables.items():
        if arguments.only in (None, name):
            run()


if __name__ == "__main__":
    main()
