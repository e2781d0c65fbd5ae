"""HarmonyView's scales on the analytic demo model, where the answers are known: the figures of docs/harmonyview.md.

    python -m scripts.harmony_tables [--objects 32] [--seeds 4] [--banks FOLDER]

in the repository's root prints the tables as Markdown, in the layout of the paper's Tables 1 and 5. 32 px, 16 views, a
model that sees 15 pixels, couples views by kappa 0.1 and trusts the input picture little (reference_sigma 27: a view
keeps to its front with odds of about 1.4 to 1 before it looks at its noise); 2 fronts with 6 variants each, Euler in 12
steps from sigma 700 to 0.02, the same starting noise in every row. What is done is kept in --keep after each object, so
that an interrupted run goes on where it was. Then, for the paper's claims about two rows, the paired difference.
Intervals: 95 %, bootstrap over objects.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from multiview.cameras import orbit
from multiview.demo.analytic import AnalyticModel, AnalyticOptions
from multiview.demo.bank import Bank, bank_key, bank_path, build_bank, load_bank, save_bank
from multiview.demo.measure import distances, judge
from multiview.demo.objects import HELD_OUT_SEED
from multiview.harmony import baseline, combine
from multiview.statistics import bootstrap, paired_bootstrap

CAMERAS = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
SIZE, STEPS, FAMILIES, VARIANTS = 32, 12, 2, 6
SIGMAS = [*(torch.linspace(700 ** (1 / 7), 0.02 ** (1 / 7), STEPS) ** 7).tolist(), 0.0]
# Differences below this cannot be seen; without a limit a few equal pictures would decide a mean of decibels.
MOST_DB = 50.0
COLUMNS = {
    "input, dB": "view 0 against the input picture",
    "right front": "share of views whose nearest picture is of the family with the input's front",
    "truth, dB": "all views against one object with that front (variant 0)",
    "agreement": "share of the telling views that show the most common variant",
    "one object, dB": "all views together against the nearest object of the family",
    "a picture, dB": "each view against its nearest picture",
    "variants": "different variants over the seeds",
    "spread, %": "root mean square difference between seeds, in percent of white, of views 90 degrees and more away",
}
# (s of Eq. 3 or None, s1, s2)
ROWS = {
    "Table 1": [(None, 0, 0), (1, 0, 0), (None, 0, 1), (None, 2, 0), (None, 2, 1)],
    "Table 5": [
        (0.5, 0, 0), (1, 0, 0), (1.5, 0, 0), (None, 0, 1), (None, 1, 1), (None, 3, 1), (None, 2, 0), (None, 2, 0.5),
        (None, 2, 1),
    ],
}  # fmt: skip

NONE, BOTH = (None, 0, 0), (None, 2, 1)
FAITHFUL, AGREEING, DIVERSE = ("input, dB", "truth, dB"), ("agreement", "one object, dB"), ("variants", "spread, %")
# (table, columns, row, row it is compared with, 1 = the paper has more in the first, -1 = less)
ORDERS = [
    ("1", FAITHFUL, (None, 2, 0), NONE, 1),
    ("1", FAITHFUL, BOTH, NONE, 1),
    ("1", FAITHFUL, (1, 0, 0), NONE, -1),
    ("1", FAITHFUL, (None, 0, 1), NONE, -1),
    ("1", FAITHFUL, BOTH, (None, 2, 0), -1),
    ("1", AGREEING, (None, 2, 0), NONE, 1),
    ("1", AGREEING, (None, 0, 1), NONE, 1),
    ("1", AGREEING, (1, 0, 0), NONE, 1),
    ("1", AGREEING, BOTH, (1, 0, 0), 1),
    ("1", DIVERSE, (None, 0, 1), NONE, 1),
    ("1", DIVERSE, BOTH, NONE, 1),
    ("5", FAITHFUL, (1.5, 0, 0), (0.5, 0, 0), -1),
    ("5", AGREEING, (1.5, 0, 0), (0.5, 0, 0), 1),
    ("5", DIVERSE, (1.5, 0, 0), (0.5, 0, 0), 1),
    ("5", FAITHFUL, (None, 3, 1), (None, 0, 1), 1),
    ("5", AGREEING, BOTH, (None, 2, 0), 1),
    ("5", DIVERSE, BOTH, (None, 2, 0), 1),
]


def bank_of(index: int, folder: Path) -> Bank:
    """Two families each; held-out seeds, as everywhere where figures are kept."""
    seed = HELD_OUT_SEED + 100 * index
    path = bank_path(folder, bank_key(CAMERAS, SIZE, FAMILIES, VARIANTS, seed))
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_bank(build_bank(CAMERAS, SIZE, FAMILIES, VARIANTS, seed), path)
    return load_bank(path)


def guided(model: AnalyticModel, x, sigma: float, reference, s: float | None, s1: float, s2: float):
    """The clean views that one step aims at."""
    alone = torch.zeros(len(CAMERAS), dtype=torch.bool)
    cond = model.denoise(x, sigma, reference)
    if s is not None:
        return baseline(cond, model.denoise(x, sigma, None, alone), s)
    views_only = model.denoise(x, sigma) if s1 else None
    reference_only = model.denoise(x, sigma, reference, alone) if s2 else None
    return combine(cond, views_only, reference_only, s1, s2)


def sample(model: AnalyticModel, family: int, seed: int, row: tuple) -> torch.Tensor:
    """Views (N,H,W,3) in [0,1]."""
    bank = model.bank
    reference = bank.references[bank.member(family, 0)].movedim(-1, 0).float() / 127.5 - 1
    noise = torch.Generator().manual_seed(1000 * int(bank.seeds[bank.member(family, 0)]) + seed)
    x = torch.randn(len(CAMERAS), 3, SIZE, SIZE, generator=noise) * SIGMAS[0]
    for now, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
        clean = guided(model, x, now, reference, *row)
        x = clean + (x - clean) * (after / now)
    return (x / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def decibels(mse: float) -> float:
    return min(MOST_DB, -10 * math.log10(max(mse, 1e-12)))


def measured(bank: Bank, family: int, sets: list[torch.Tensor]) -> list[float]:
    """COLUMNS of one object over its seeds."""
    reference = bank.references[bank.member(family, 0)].float() / 255
    azimuth = CAMERAS.azimuths()
    behind = torch.minimum(azimuth, 360 - azimuth) >= 89.9
    figures, shown = [], set()
    for views in sets:
        verdict = judge(views, bank, family)
        own, _ = distances(views, bank)
        votes = bank.variant[verdict.members][verdict.telling]
        shown.add(int(votes.mode().values) if len(votes) else int(bank.variant[verdict.nearest]))
        figures.append([
            decibels(float((views[0] - reference).square().mean())),
            float((bank.family[own.argmin(0)] == family).float().mean()),
            decibels(float(own[bank.member(family, 0)].mean())),
            verdict.agreement if len(votes) else 1.0,
            min(MOST_DB, verdict.object_psnr),
            min(MOST_DB, verdict.view_psnr),
        ])  # fmt: skip
    gaps = [(a - b)[behind].square().mean().sqrt() for i, a in enumerate(sets) for b in sets[:i]]
    return [*torch.tensor(figures).mean(0).tolist(), float(len(shown)), 100 * float(torch.stack(gaps).mean())]


def named(row: tuple) -> str:
    told = [f"{name} {value:g}" for name, value in zip(("s", "s1", "s2"), row, strict=True) if value]
    return ", ".join(told) or "no guidance"


def orders(figures: dict[tuple, list]) -> str:
    """Markdown: does what the paper's tables say of two rows appear here? By paired differences over objects."""
    lines = ["| paper's table | row | against | measure | paper | here | |", "|---|---|---|---|---|---|---|"]
    for table, columns, row, other, sign in ORDERS:
        for name in columns:
            i = list(COLUMNS).index(name)
            gap = paired_bootstrap([f[i] for f in figures[other]], [f[i] for f in figures[row]])
            clear = gap.low > 0 or gap.high < 0
            verdict = "not clear" if not clear else "appears" if gap.mean * sign > 0 else "**opposite**"
            says = "more" if sign > 0 else "less"
            lines.append(f"| {table} | {named(row)} | {named(other)} | {name} | {says} | {gap} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--window", type=int, default=15)
    parser.add_argument("--kappa", type=float, default=0.1)
    parser.add_argument("--reference-sigma", type=float, default=27.0)
    parser.add_argument("--banks", type=Path, default=Path("output/banks"))
    parser.add_argument("--keep", type=Path, default=Path("output/harmony_tables.json"))
    parser.add_argument("--tables", nargs="*", default=list(ROWS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = dict.fromkeys(row for table in given.tables for row in ROWS[table])
    settings = [given.seeds, given.window, given.kappa, given.reference_sigma, SIZE, STEPS, [list(r) for r in rows]]
    kept = {"settings": settings, "figures": []}
    if given.keep.is_file():
        found = json.loads(given.keep.read_text())
        kept = found if found["settings"] == settings else kept
    for number in range(len(kept["figures"]), given.objects):
        bank = bank_of(number // FAMILIES, given.banks)
        model = AnalyticModel(bank, AnalyticOptions(given.window, given.kappa, 0.0, given.reference_sigma))
        family = number % FAMILIES
        kept["figures"].append(
            [measured(bank, family, [sample(model, family, seed, row) for seed in range(given.seeds)]) for row in rows]
        )
        given.keep.parent.mkdir(parents=True, exist_ok=True)
        given.keep.write_text(json.dumps(kept))
        print(f"object {number + 1} of {given.objects}", file=sys.stderr, flush=True)
    figures = {row: [one[i] for one in kept["figures"][: given.objects]] for i, row in enumerate(rows)}
    described = "\n".join(f"- {name}: {what}" for name, what in COLUMNS.items())
    print(
        f"{given.objects} objects, {given.seeds} seeds, window {given.window}, kappa {given.kappa}, "
        f"reference_sigma {given.reference_sigma}\n"
    )
    print(described + "\n")
    for table in given.tables:
        print(f"### {table}\n\n| s | s1 | s2 | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (3 + len(COLUMNS)))
        for row in ROWS[table]:
            cells = [str(bootstrap([f[i] for f in figures[row]])) for i in range(len(COLUMNS))]
            print("| " + " | ".join("-" if v is None else f"{v:g}" for v in row) + " | " + " | ".join(cells) + " |")
        print()
    if all({row, other} <= figures.keys() for _, _, row, other, _ in ORDERS):
        print("### The paper's orders\n\n" + orders(figures))


if __name__ == "__main__":
    main()
