"""The tables of renoise-restart (docs/im3d.md) on demo objects, with 95 % bootstrap intervals.

    python -m scripts.refine_tables                     all of them
    python -m scripts.refine_tables curve second fits   those that the defaults were chosen by
    python -m scripts.refine_tables main --objects 8    quicker, fewer objects

Every object's figures are kept in output/refine_tables, so that an interrupted run goes on (--fresh starts anew; remove
the folder after changes to the fit). About 20 minutes on one core. 64 px, 16 views, 6 variants sharing a front; the
analytic model with window 31 and front bias 0.1, Euler in 24 steps from sigma 700 to 0.02; the same noise for an object
in every row. main and mirror: 32 held-out objects. The others: 12 further ones, which the defaults were chosen by.
A star marks a difference to the table's first row, paired object by object, whose interval is clear of zero.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from multiview.consistency import QUICK, odd_even
from multiview.demo.analytic import AnalyticModel
from multiview.demo.bank import bank_key, bank_path, build_bank, load_bank, save_bank
from multiview.demo.depth_net import load_depth_net
from multiview.demo.measure import judge
from multiview.mirror_settings import PRESETS, Matching
from multiview.renoise import noised, remaining
from multiview.splats.fit import fit
from multiview.splats.render import render_gaussians
from multiview.statistics import bootstrap, paired_bootstrap
from scripts.mirror_cases import BANK_SEED, CAMERAS, MOST_DB, OBJECTS, REGIME, SIGMAS, SIZE, VARIANTS, Case, to_images

TUNING, TUNING_SEED = 12, 3_000_000
COUPLINGS = (0.0, 0.02, 0.1)
MEASURES = ("agreement", "second faces", "object dB", "picture dB", "odd/even dB")
# Where the node's default, a quarter of the steps, begins on the schedule of the demo workflows: karras, 30 steps.
KARRAS = [(700 ** (1 / 7) + i / 29 * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7 for i in range(30)] + [0.0]
DEFAULT = round(remaining(KARRAS, "fraction", 0.25)[0], 2)
CURVE = (10.0, 5.0, 3.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.2, 0.1)
FITS = (10, 20, 40, 80, 160)
SECOND = ((2.0, 1.0), (1.0, 1.0), (1.0, 0.6), (0.6, 0.6), (0.6, 1.0), (0.35, 1.0), (0.35, 0.35))


@dataclass(frozen=True)
class Row:
    """start: "stage1" (drawn from noise) or "mirror" (the same, rectified, in a second stage). restarts: sigma of each
    round. splat: False renoises the views themselves. keep: each fit goes on from the splat before. iterations: of each
    fit, four views each."""

    restarts: tuple[float, ...] = ()
    kappa: float = REGIME.kappa
    start: str = "stage1"
    splat: bool = True
    keep: bool = False
    iterations: int = QUICK.iterations
    with_splats: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        levels = "-".join(f"{s:.4g}" for s in self.restarts) or "none"
        return (
            f"{self.start}_{levels}_kappa{self.kappa:g}"
            + "_views" * (not self.splat)
            + "_kept" * self.keep
            + (f"_fit{self.iterations}" if self.iterations != QUICK.iterations else "")
        )

    def before(self) -> Row:
        return replace(self, restarts=self.restarts[:-1])


def main_rows(kappa: float) -> dict[str, Row]:
    row = Row(kappa=kappa, with_splats=True)
    return {
        f"kappa {kappa:g}, no round": row,
        f"kappa {kappa:g}, 1 round": replace(row, restarts=(DEFAULT,)),
        f"kappa {kappa:g}, 2 rounds": replace(row, restarts=(DEFAULT, DEFAULT)),
    }


TABLES: dict[str, tuple[bool, dict[str, Row]]] = {
    "curve": (
        False,
        {"no round": Row()}
        | {f"sigma {s:g}": Row((s,)) for s in CURVE}
        | {f"sigma {s:g}, without a splat": Row((s,), splat=False) for s in (10.0, 3.0, 1.0, 0.35)},
    ),
    "second": (
        False,
        {"one round, 0.6": Row((0.6,))}
        | {f"two rounds, {a:g}, {b:g}": Row((a, b)) for a, b in SECOND}
        | {"two rounds, 0.6, 0.6, splat kept": Row((0.6, 0.6), keep=True), "three rounds, 0.6": Row((0.6,) * 3)},
    ),
    "fits": (
        False,
        {"no round": Row()}
        | {f"{r} rounds, fits of {n} steps": Row((0.6,) * r, iterations=n) for n in FITS for r in (1, 2)},
    ),
    **{f"main {kappa:g}": (True, main_rows(kappa)) for kappa in COUPLINGS},
    "mirror": (
        True,
        {
            "no round": Row(with_splats=True),
            "1 round": Row((DEFAULT,), with_splats=True),
            "MIRROR": Row(start="mirror", with_splats=True),
            "MIRROR, then 1 round": Row((DEFAULT,), start="mirror", with_splats=True),
        },
    ),
}


class Bench:
    """A bank of objects and the model that knows them; what Case asks its bench for, at any coupling."""

    def __init__(self, folder: Path, objects: int, seed: int):
        path = bank_path(folder, bank_key(CAMERAS, SIZE, objects, VARIANTS, seed))
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            print(f"drawing {objects * VARIANTS} objects, once ...", flush=True)
            save_bank(build_bank(CAMERAS, SIZE, objects, VARIANTS, seed), path)
        self.bank, self.net = load_bank(path), load_depth_net()
        self.model = AnalyticModel(self.bank, REGIME)

    def coupled(self, kappa: float) -> Bench:
        other = object.__new__(Bench)
        other.bank, other.net = self.bank, self.net
        other.model = AnalyticModel(self.bank, replace(REGIME, kappa=kappa))
        return other


class Runs:
    """All rows of one object: what they share is drawn and fitted once."""

    def __init__(self, bench: Bench, number: int):
        self.bench, self.number = bench, number
        self._cases: dict[float, Case] = {}
        self._views: dict[Row, Tensor] = {}
        self._splats: dict[Row, tuple] = {}

    def case(self, kappa: float) -> Case:
        if kappa not in self._cases:
            self._cases[kappa] = Case(self.bench.coupled(kappa), self.number)
        return self._cases[kappa]

    @cached_property
    def noises(self) -> list[Tensor]:
        return [
            torch.randn(len(CAMERAS), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1000 * r + self.number))
            for r in (1, 2, 3)
        ]

    def views(self, row: Row) -> Tensor:
        """(N,3,H,W) in [-1,1] after the row's last round."""
        if row not in self._views:
            self._views[row] = self._restarted(row) if row.restarts else self._start(row)
        return self._views[row]

    def _start(self, row: Row) -> Tensor:
        case = self.case(row.kappa)
        if row.start == "stage1":
            return case.stage1
        return case.sample(case.pull(PRESETS["default"], Matching(), case.estimated))

    def _restarted(self, row: Row) -> Tensor:
        before = row.before()
        clean = self._splat(before)[1] if row.splat else self.views(before)
        levels = remaining(SIGMAS, "sigma", row.restarts[-1])
        x = noised(clean, self.noises[len(before.restarts)], levels[0])
        case = self.case(row.kappa)
        for now, after in zip(levels[:-1], levels[1:], strict=True):
            predicted = case.denoised(x, now)
            x = predicted + (x - predicted) * (after / now)
        return x

    def _splat(self, row: Row) -> tuple:
        """The splat of a row's views, and its renders (N,3,H,W) in [-1,1]."""
        if row not in self._splats:
            warm = self._splat(row.before())[0] if row.keep and row.restarts else None
            config = replace(QUICK, iterations=row.iterations)
            found = fit(to_images(self.views(row)), CAMERAS, config=config, start=warm)
            with torch.no_grad():
                drawn = render_gaussians(found.gaussians, CAMERAS, SIZE, SIZE, found.background).features
            self._splats[row] = (found.gaussians, drawn.clamp(0, 1).movedim(-1, 1) * 2 - 1)
        return self._splats[row]

    def measure(self, row: Row) -> list[float]:
        """MEASURES; odd/even is NaN where the row does not ask for it."""
        images = to_images(self.views(row))
        verdict = judge(images, self.bench.bank, self.number)
        return [
            verdict.agreement,
            float(verdict.second_faces),
            min(verdict.object_psnr, MOST_DB),
            min(verdict.view_psnr, MOST_DB),
            min(odd_even(images, CAMERAS).psnr, MOST_DB) if row.with_splats else math.nan,
        ]


def figures(rows: dict[str, Row], bench: Bench, count: int, folder: Path, fresh: bool) -> dict[str, list[list[float]]]:
    """Measures (count, MEASURES) of every row; a file for each row, written after every object."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{row.key}_{int(bench.bank.seeds[0])}.json" for name, row in rows.items()}
    known = {n: {} if fresh or not p.is_file() else json.loads(p.read_text()) for n, p in paths.items()}
    for number in range(count):
        missing = [name for name in rows if str(number) not in known[name]]
        if not missing:
            continue
        runs = Runs(bench, number)
        for name in missing:
            known[name][str(number)] = runs.measure(rows[name])
            temporary = paths[name].with_suffix(".tmp")
            temporary.write_text(json.dumps(known[name]))
            os.replace(temporary, paths[name])
        print(f"object {number + 1} of {count}", flush=True)
    return {name: [known[name][str(i)] for i in range(count)] for name in rows}


def table(title: str, rows: dict[str, list[list[float]]]) -> str:
    """Markdown: mean and interval of every measure, and whether it differs from the first row (*)."""
    first = next(iter(rows.values()))
    lines = [f"| {title} | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, values in rows.items():
        cells = []
        for i in range(len(MEASURES)):
            column = [v[i] for v in values]
            if math.isnan(column[0]):
                cells.append("")
                continue
            spread, mark = bootstrap(column), ""
            if values is not first:
                gain = paired_bootstrap([v[i] for v in first], column)
                mark = "*" if gain.low > 0 or gain.high < 0 else ""
            digits = 2 if i < 2 else 1
            cells.append(f"{spread.mean:.{digits}f}{mark} ({spread.low:.{digits}f} to {spread.high:.{digits}f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gains(rows: dict[str, list[list[float]]]) -> str:
    """What each row adds to the one above it, paired."""
    lines = []
    names = list(rows)
    for before, after in zip(names, names[1:], strict=False):
        parts = []
        for i, measure in enumerate(MEASURES):
            if not math.isnan(rows[after][0][i]):
                gain = paired_bootstrap([v[i] for v in rows[before]], [v[i] for v in rows[after]])
                parts.append(f"{measure} {gain}")
        lines.append(f"- {after} against {before}: " + ", ".join(parts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", default=[], help=f"of {', '.join(TABLES)}, or main for all couplings")
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--banks", type=Path, default=Path("output/banks"))
    parser.add_argument("--results", type=Path, default=Path("output/refine_tables"))
    parser.add_argument("--fresh", action="store_true", help="run finished objects again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [name for name in TABLES if not args.tables or name in args.tables or name.split()[0] in args.tables]
    benches: dict[bool, Bench] = {}
    print(f"the node's default, a quarter of 30 karras steps: sigma {DEFAULT:g}")
    for title in wanted:
        held_out, rows = TABLES[title]
        if held_out not in benches:
            benches[held_out] = Bench(args.banks, *((OBJECTS, BANK_SEED) if held_out else (TUNING, TUNING_SEED)))
        count = min(args.objects, OBJECTS if held_out else TUNING)
        values = figures(rows, benches[held_out], count, args.results, args.fresh)
        print("\n" + table(title, values) + "\n")
        if held_out:
            print(gains(values) + "\n")


if __name__ == "__main__":
    main()
