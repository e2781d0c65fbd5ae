"""The tables of MIRROR on 32 held-out demo objects, with 95 % bootstrap intervals.

    python -m scripts.mirror_tables                 all tables, as docs/mirror.md has them
    python -m scripts.mirror_tables main depth      some of them
    python -m scripts.mirror_tables --objects 8     quicker, fewer objects

About 2 s a row and object on one core. What a row needs is in scripts/mirror_cases.py. Rows that several tables share
are run once; finished rows are kept in output/mirror_tables and not run again (--fresh does).
A star marks a difference to the first row of all, paired object by object, whose interval is clear of zero.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from multiview.inversion import invert
from multiview.mirror import MirrorOptions
from multiview.mirror_settings import PRESETS, Matching, Pull
from multiview.statistics import bootstrap, paired_bootstrap
from scripts.mirror_cases import MEASURES, SIGMAS, STEPS, Case, Cases

DEFAULT, EQ31, EQ32 = PRESETS["default"], PRESETS["paper Eq. 31"], PRESETS["paper Eq. 32"]
EXACT = Matching()
PAPER = Matching(mode="paper", occlusion=False)
# Inverting starts where there is a little noise: the model's first step.
RISING = [0.0, *SIGMAS[-2::-1]]
BASELINE = "one stage, no rectification"
MIRROR = "MIRROR, the node's defaults"
Row = Callable[[Case], torch.Tensor]


def rectified(pull: Pull = DEFAULT, matching: Matching = EXACT, depth: str = "estimated", **more) -> Row:
    """Stage 2 from the cached noise. depth: the case's property of that name, or "" for none."""
    return lambda case: case.sample(case.pull(pull, matching, getattr(case, depth) if depth else None, **more))


def inverted(method: str, pull: Pull | None = DEFAULT, matching: Matching = EXACT, iterations: int = 3) -> Row:
    """Stage 2 from the noise that inverting stage 1 gives."""

    def run(case: Case) -> torch.Tensor:
        start = invert(case.denoised, case.stage1, RISING, method, iterations=iterations).x
        return case.sample(case.pull(pull, matching, case.estimated) if pull else None, start)

    return run


def shared_start(case: Case) -> torch.Tensor:
    """As the example workflows: the first third of the steps is stage 1's."""
    pull = case.pull(DEFAULT, EXACT, case.estimated)
    return case.sample(lambda x0, step, sigma: x0 if step < STEPS // 3 else pull(x0, step, sigma))


def third_stage(case: Case) -> torch.Tensor:
    second = rectified()(case)
    return case.sample(case.pull(DEFAULT, EXACT, case.estimate(second)))


def single_stage(case: Case) -> torch.Tensor:
    return case.sample(case.pull_with_depth_of_the_moment(DEFAULT, EXACT))


def block(side: int = 3, **options) -> Row:
    """The default with the paper's 3 x 3 block and its one neighbour on each side."""
    return rectified(replace(DEFAULT, neighbours=1, options=MirrorOptions(block=side, **options)))


ROWS: dict[str, Row] = {
    BASELINE: lambda case: case.stage1,
    MIRROR: rectified(),
    "two stages (DDIM inversion), no rectification": inverted("ddim", None),
    "two stages, MIRROR, DDIM inversion": inverted("ddim"),
    "paper's recipe, Eq. 31, Eq. 4, DDIM inversion": inverted("ddim", EQ31, PAPER),
    "paper's recipe, Eq. 32, Eq. 4, DDIM inversion": inverted("ddim", EQ32, PAPER),
    "Eq. 31, perspective, cached noise": rectified(EQ31),
    "Eq. 32, perspective, cached noise": rectified(EQ32),
    "one stage, depth from each clean prediction": single_stage,
    "three stages, depth again from stage 2": third_stage,
    "match alone (block 1)": block(1),
    "3x3, m+ 0.5, m- 0.5 (paper)": block(),
    "3x3, m+ 1, m- 0": block(positive=1.0),
    "3x3, m+ 0, m- 1": block(positive=0.0),
    "3x3, negative anchor from the block": block(negative="block"),
    "3x3, m+ 1, temperature 0.1": block(positive=1.0, temperature=0.1),
    "no depth, z = 0 in Eq. 4": rectified(matching=Matching(mode="paper"), depth=""),
    "demo depth network (default)": rectified(),
    "demo depth network, joint calibration": rectified(depth="calibrated"),
    "splat fitted to stage 1": rectified(depth="splat_depth"),
    "true depth": rectified(depth="true_depth"),
    "perspective (default)": rectified(),
    "perspective, no occlusion test": rectified(matching=Matching(occlusion=False)),
    "orthographic with elevation": rectified(matching=Matching(mode="orthographic")),
    "Eq. 4": rectified(matching=Matching(mode="paper")),
    "same pixel": rectified(matching=Matching(mode="identity")),
    "perspective, true depth": rectified(depth="true_depth"),
    "Eq. 4, true depth": rectified(matching=Matching(mode="paper"), depth="true_depth"),
    "same pixel, true depth": rectified(matching=Matching(mode="identity"), depth="true_depth"),
    "cached noise (default)": rectified(),
    "ddim": inverted("ddim"),
    "fixed point, 3 iterations": inverted("fixed_point"),
    "belm": inverted("belm"),
    "1 neighbour a side": rectified(replace(DEFAULT, neighbours=1)),
    "2 neighbours a side (default)": rectified(),
    "3 neighbours a side": rectified(replace(DEFAULT, neighbours=3)),
    "input view pinned": rectified(pinned=True),
    "2 pulls, guidance 1": rectified(replace(DEFAULT, guidance=1.0)),
    "2 pulls, guidance 2": rectified(replace(DEFAULT, guidance=2.0)),
    "2 pulls, guidance 3 (default)": rectified(),
    "2 pulls, guidance 4": rectified(replace(DEFAULT, guidance=4.0)),
    "4 pulls, guidance 2": rectified(replace(DEFAULT, iterations=4, guidance=2.0)),
    "1 pull, guidance 1": rectified(replace(DEFAULT, iterations=1, guidance=1.0)),
    "1 pull, guidance 2": rectified(replace(DEFAULT, iterations=1, guidance=2.0)),
    "1 pull, guidance 4": rectified(replace(DEFAULT, iterations=1, guidance=4.0)),
    "16 pulls, guidance 2": rectified(replace(DEFAULT, iterations=16, guidance=2.0)),
    "down to S = 1": rectified(replace(DEFAULT, end=1.0)),
    "down to S = 0.1": rectified(replace(DEFAULT, end=0.1)),
    "first third of the steps shared with stage 1": shared_start,
}
# Rows that are the same run under another name.
SAME = {
    "1 neighbour a side": "match alone (block 1)",
    "demo depth network (default)": MIRROR,
    "perspective (default)": MIRROR,
    "cached noise (default)": MIRROR,
    "2 neighbours a side (default)": MIRROR,
    "2 pulls, guidance 3 (default)": MIRROR,
    "perspective, true depth": "true depth",
    "ddim": "two stages, MIRROR, DDIM inversion",
}
TABLES: dict[str, list[str]] = {
    "main": [
        BASELINE,
        "two stages (DDIM inversion), no rectification",
        MIRROR,
        "true depth",
        "paper's recipe, Eq. 31, Eq. 4, DDIM inversion",
        "paper's recipe, Eq. 32, Eq. 4, DDIM inversion",
        "Eq. 31, perspective, cached noise",
        "Eq. 32, perspective, cached noise",
    ],
    "stages": [
        BASELINE,
        "one stage, depth from each clean prediction",
        "two stages (DDIM inversion), no rectification",
        MIRROR,
        "three stages, depth again from stage 2",
    ],
    "anchors": [
        "match alone (block 1)",
        "3x3, m+ 0.5, m- 0.5 (paper)",
        "3x3, m+ 1, m- 0",
        "3x3, m+ 0, m- 1",
        "3x3, negative anchor from the block",
    ],
    "temperature": ["3x3, m+ 1, m- 0", "3x3, m+ 1, temperature 0.1", "match alone (block 1)"],
    "depth": [
        BASELINE,
        "no depth, z = 0 in Eq. 4",
        "demo depth network (default)",
        "demo depth network, joint calibration",
        "splat fitted to stage 1",
        "true depth",
    ],
    "correspondence": [
        "perspective (default)",
        "perspective, no occlusion test",
        "orthographic with elevation",
        "Eq. 4",
        "same pixel",
        "perspective, true depth",
        "Eq. 4, true depth",
        "same pixel, true depth",
    ],
    "inversion": [
        "cached noise (default)",
        "ddim",
        "fixed point, 3 iterations",
        "belm",
        "first third of the steps shared with stage 1",
    ],
    "neighbours": [
        "1 neighbour a side",
        "2 neighbours a side (default)",
        "3 neighbours a side",
        "input view pinned",
    ],
    "schedule": [
        "1 pull, guidance 1",
        "1 pull, guidance 2",
        "1 pull, guidance 4",
        "2 pulls, guidance 1",
        "2 pulls, guidance 2",
        "2 pulls, guidance 3 (default)",
        "2 pulls, guidance 4",
        "4 pulls, guidance 2",
        "16 pulls, guidance 2",
        "down to S = 1",
        "down to S = 0.1",
    ],
}


# Two splats take longer than the run they judge: only these rows have them.
WITH_SPLATS = {*TABLES["main"][:6], "three stages, depth again from stage 2"}


def figures(wanted: list[str], objects: int, folder: Path, cases: Cases, fresh: bool) -> dict[str, list[list[float]]]:
    """Measures (objects, MEASURES) of the rows wanted; kept in `folder`, a file for each row and number of objects."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {SAME.get(name, name) for name in wanted}
    paths = {name: folder / f"{''.join(c if c.isalnum() else '-' for c in name)}_{objects}.json" for name in names}
    found = {n: json.loads(p.read_text()) for n, p in paths.items() if p.is_file() and not fresh}
    missing = [name for name in ROWS if name in names and name not in found]
    rows: dict[str, list[list[float]]] = {name: [] for name in missing}
    for number in range(objects if missing else 0):
        case = cases.case(number)  # what rows share (stage 1, depths) is worked out once
        for name in missing:
            rows[name].append(case.measure(ROWS[name](case), name in WITH_SPLATS))
        print(f"object {number + 1} of {objects}", flush=True)
    for name, values in rows.items():
        temporary = paths[name].with_suffix(".tmp")
        temporary.write_text(json.dumps(values))
        os.replace(temporary, paths[name])
    return {name: (found | rows)[SAME.get(name, name)] for name in wanted}


def table(title: str, rows: dict[str, list[list[float]]], baseline: list[list[float]] | None) -> str:
    """Markdown: mean and interval of every measure, and where it is not the baseline itself, whether the difference to
    the baseline is clear of zero (*)."""
    lines = [f"| {title} | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, values in rows.items():
        cells = []
        for i in range(len(MEASURES)):
            column = [v[i] for v in values]
            if math.isnan(column[0]):
                cells.append("")
                continue
            spread = bootstrap(column)
            digits = 2 if i < 2 else 1
            mark = ""
            if baseline is not None and values != baseline:
                gain = paired_bootstrap([b[i] for b in baseline], column)
                mark = "*" if gain.low > 0 or gain.high < 0 else ""
            cells.append(f"{spread.mean:.{digits}f}{mark} ({spread.low:.{digits}f} to {spread.high:.{digits}f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--objects", type=int, default=32)
    parser.add_argument("--banks", type=Path, default=Path("output/banks"))
    parser.add_argument("--results", type=Path, default=Path("output/mirror_tables"))
    parser.add_argument("--fresh", action="store_true", help="run finished rows again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = list(dict.fromkeys([BASELINE, MIRROR, *(name for t in args.tables for name in TABLES[t])]))
    values = figures(wanted, args.objects, args.results, Cases(args.banks), args.fresh)
    for title in args.tables:
        print("\n" + table(title, {name: values[name] for name in TABLES[title]}, values[BASELINE]))
    print("\nMIRROR's defaults against one stage without rectification, paired:")
    for i, measure in enumerate(MEASURES):
        print(f"  {measure}: {paired_bootstrap([v[i] for v in values[BASELINE]], [v[i] for v in values[MIRROR]])}")


if __name__ == "__main__":
    main()
