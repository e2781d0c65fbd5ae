"""At which steps 3D feedback pays: agreement gained for each feedback, over several schedules.

    python -m scripts.feedback_steps [--objects 8] [--others]

Model, objects, fits and the measure of agreement are those of scripts/feedback_tables.py; all rows have w = 2. A
feedback is one fit with its renders, whatever it costs: docs/feedback.md, "Costs". Eight minutes on one core.
--others: objects that no table is made of, to choose a schedule by.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from multiview.demo.measure import judge
from multiview.statistics import bootstrap, paired_bootstrap
from scripts.feedback_tables import DEFAULT, run
from scripts.mirror_cases import MOST_DB, SIGMAS, STEPS, Cases

SCHEDULES = {
    "none": None,
    "every step until S = 1": replace(DEFAULT, every=1),
    "every second step until S = 1 (default)": DEFAULT,
    "every third step until S = 1": replace(DEFAULT, every=3),
    "every fourth step until S = 1": replace(DEFAULT, every=4),
    "every second step until S = 4": replace(DEFAULT, end=4.0),
    "every second step from S = 20 until S = 1": replace(DEFAULT, start=20.0),
    "every step from S = 10 until S = 1": replace(DEFAULT, start=10.0, every=1),
    "every step from S = 4 until S = 1": replace(DEFAULT, start=4.0, every=1),
    "every step from S = 2 until S = 1": replace(DEFAULT, start=2.0, every=1),
}
OTHER_SEED = 3_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--banks", type=Path, default=Path("output/banks"))
    parser.add_argument("--others", action="store_true", help="objects that no table is made of")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = Cases(args.banks, objects=args.objects, seed=OTHER_SEED) if args.others else Cases(args.banks)
    drawn = [cases.case(i) for i in range(args.objects)]
    print("| steps | feedbacks | agreement | gained | gained for each | object dB |\n|---|---|---|---|---|---|")
    plain: list[float] = []
    for name, moments in SCHEDULES.items():
        verdicts = [judge(run(case, moments), case.bank, case.number) for case in drawn]
        agreement = [v.agreement for v in verdicts]
        plain = plain or agreement
        count = sum(moments.weight_at(s, i, STEPS) > 0 for i, s in enumerate(SIGMAS[:-1])) if moments else 0
        gain = paired_bootstrap(plain, agreement)
        fidelity = bootstrap([min(v.object_psnr, MOST_DB) for v in verdicts]).mean
        print(
            f"| {name} | {count} | {bootstrap(agreement).mean:.2f} | {gain.mean:+.2f} ({gain.low:+.2f} to "
            f"{gain.high:+.2f}) | {gain.mean / max(1, count):.3f} | {fidelity:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
