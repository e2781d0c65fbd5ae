"""The tables of 3D-aware feedback without training, on 32 held-out demo objects, with 95 % bootstrap intervals.

    python -m scripts.feedback_tables                 both tables, as docs/feedback.md has them
    python -m scripts.feedback_tables --objects 8     quicker

Objects, model and measures are those of MIRROR's tables (scripts/mirror_cases.py), at two couplings. Of every run a
splat is fitted to the final views (post-hoc) and rendered at the same cameras. 1 to 15 s a row and object on one core,
half an hour in all; finished objects are kept in output/feedback_tables and not run again (--fresh does).
A star marks a difference to the run without feedback, paired object by object, whose interval is clear of zero.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from multiview.consistency import QUICK
from multiview.demo.measure import judge
from multiview.feedback import PRESETS, Moments, QuickFit, blend, render_views, something_to_see
from multiview.splats.fit import fit
from multiview.splats.losses import psnr
from multiview.statistics import bootstrap, paired_bootstrap
from scripts.mirror_cases import CAMERAS, MOST_DB, REGIME, STEPS, Case, Cases, to_images

DEFAULT, VIDEOMV, CYCLE = PRESETS["default"], PRESETS["VideoMV (three steps)"], PRESETS["Cycle3D (every step)"]
# A splat of 64 px needs no more.
FIT = QuickFit(CAMERAS, first=30, again=12, points=800)
NONE = "no feedback"
SHORT: dict[str, Moments | None] = {
    NONE: None,
    "VideoMV: three steps, w = 1": VIDEOMV,
    "default: every second step until S = 1, w = 2": DEFAULT,
}
FULL = SHORT | {
    "the same, w = 0.5": replace(DEFAULT, weight=0.5),
    "the same, w = 1": replace(DEFAULT, weight=1.0),
    "the same, w = 3": replace(DEFAULT, weight=3.0),
    "the same, every step": replace(DEFAULT, every=1),
    "every step from S = 10 to 1, w = 2": PRESETS["short (S = 10 to 1)"],
    "every step from S = 4 to 1, w = 2": replace(DEFAULT, start=4.0, every=1),
    "Cycle3D: every step, w = 1": CYCLE,
}
# The model's coupling between views, and what is run at it. At 0.1 its views contradict each other less.
KAPPAS = {0.02: FULL, 0.1: SHORT}
MEASURES = ("agreement", "second faces", "views, object dB", "renders, object dB", "views to renders dB", "seconds")


def run(case: Case, moments: Moments | None) -> Tensor:
    """Final views (N,H,W,3) of one object."""
    last = None

    def patch(x0: Tensor, step: int, sigma: float) -> Tensor:
        nonlocal last
        weight = moments.weight_at(sigma, step, STEPS)
        images = to_images(x0)
        if weight <= 0 or not something_to_see(images):
            return x0
        last = FIT(images, last)
        renders, _ = render_views(last, CAMERAS, images)
        return blend(x0, (2 * renders - 1).movedim(-1, 1), weight)

    return to_images(case.sample(patch) if moments else case.stage1)


def measure(case: Case, moments: Moments | None) -> list[float]:
    started = time.thread_time()
    views = run(case, moments)
    seconds = time.thread_time() - started
    renders, _ = render_views(fit(views, CAMERAS, config=QUICK).gaussians, CAMERAS, views)
    verdict, of_renders = (judge(v, case.bank, case.number) for v in (views, renders))
    return [
        verdict.agreement,
        float(verdict.second_faces),
        min(verdict.object_psnr, MOST_DB),
        min(of_renders.object_psnr, MOST_DB),
        float(psnr(renders, views).mean()),
        seconds,
    ]


def figures(kappa: float, objects: int, folder: Path, banks: Path, fresh: bool) -> dict[str, list[list[float]]]:
    """Measures (objects, MEASURES) of every row; a file is written after each object."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"kappa_{kappa:g}.json"
    rows = KAPPAS[kappa]
    done = json.loads(path.read_text()) if path.is_file() and not fresh else {}
    cases = None
    for number in range(objects):
        missing = [name for name in rows if len(done.get(name, [])) <= number]
        if not missing:
            continue
        cases = cases or Cases(banks, replace(REGIME, kappa=kappa))
        case = cases.case(number)
        case.stage1  # noqa: B018  shared by the rows, so that no row's seconds count it but the first
        for name in missing:
            done.setdefault(name, []).append(measure(case, rows[name]))
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(done))
        os.replace(temporary, path)
        print(f"kappa {kappa:g}: object {number + 1} of {objects}", flush=True)
    return {name: done[name][:objects] for name in rows}


def table(kappa: float, rows: dict[str, list[list[float]]]) -> str:
    lines = [f"| kappa {kappa:g} | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, values in rows.items():
        cells = []
        for i in range(len(MEASURES)):
            column = [v[i] for v in values]
            spread = bootstrap(column)
            gain = paired_bootstrap([v[i] for v in rows[NONE]], column)
            mark = "*" if name != NONE and i < 5 and (gain.low > 0 or gain.high < 0) else ""
            digits = 2 if i < 2 else 1
            cells.append(f"{spread.mean:.{digits}f}{mark} ({spread.low:.{digits}f} to {spread.high:.{digits}f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=32)
    parser.add_argument("--kappas", type=float, nargs="*", default=list(KAPPAS), choices=list(KAPPAS))
    parser.add_argument("--banks", type=Path, default=Path("output/banks"))
    parser.add_argument("--results", type=Path, default=Path("output/feedback_tables"))
    parser.add_argument("--fresh", action="store_true", help="run finished objects again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for kappa in args.kappas:
        print("\n" + table(kappa, figures(kappa, args.objects, args.results, args.banks, args.fresh)), flush=True)


if __name__ == "__main__":
    main()
