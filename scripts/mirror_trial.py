"""Which schedule, correspondence and block make MIRROR's rectification work on the analytic demo model?

Run `python -m scripts.mirror_trial [stages ...]` in the repository's root; figures go to docs/mirror_notes.md by hand.
64 px, 16 views, bank of 4 families x 6 variants, window 31, kappa 0.02, Euler from sigma 700 to 0.02 in 24 steps, same
starting noise in every row. Columns: agreement (share of telling views that show one variant), second faces, dB
against the nearest single object, dB of each view against its nearest picture, dB between neighbours at the true
matches. 3 to 8 s a run on one core, a run for each object and seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from multiview.cameras import orbit
from multiview.correspondence import Correspondence, track
from multiview.demo.analytic import AnalyticModel, AnalyticOptions
from multiview.demo.bank import Bank, bank_key, bank_path, build_bank, load_bank, save_bank
from multiview.demo.measure import judge
from multiview.demo.objects import make_object
from multiview.demo.raycast import render_object
from multiview.mirror import MirrorOptions, fuse, rectify
from multiview.mirror_schedule import decision_window, paper_eta, window_eta

CAMERAS = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
SIZE, STEPS, FAMILIES = 64, 24, 4
SIGMAS = [*(torch.linspace(700 ** (1 / 7), 0.02 ** (1 / 7), STEPS) ** 7).tolist(), 0.0]
MATCH = MirrorOptions(block=1)
Patch = Callable[[torch.Tensor, int, float], torch.Tensor]


class Trial:
    """One model and the objects (family, seed) it is tried on."""

    def __init__(self, folder: Path, objects: int, seeds: int, options: AnalyticOptions):
        path = bank_path(folder, bank_key(CAMERAS, SIZE, FAMILIES, 6, 0))
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            save_bank(build_bank(CAMERAS, SIZE, FAMILIES, 6, 0), path)
        self.bank: Bank = load_bank(path)
        self.model = AnalyticModel(self.bank, options)
        self.runs = [(family, seed) for family in range(objects) for seed in range(seeds)]
        self.depth = {}
        for family in range(objects):
            member = self.bank.member(family, 0)
            spec = make_object(int(self.bank.seeds[member]), 0, 6)
            self.depth[family] = render_object(spec, CAMERAS, 4 * SIZE, 1).depth
        self.truth = {f: track(CAMERAS, (SIZE, SIZE), d) for f, d in self.depth.items()}

    def sample(self, family: int, seed: int, patch: Patch | None = None, changes: list | None = None) -> torch.Tensor:
        """(N,3,H,W) in [-1,1]."""
        reference = self.bank.references[self.bank.member(family, 0)].movedim(-1, 0).float() / 127.5 - 1
        noise = torch.Generator().manual_seed(1000 * family + seed)
        x = torch.randn(len(CAMERAS), 3, SIZE, SIZE, generator=noise) * SIGMAS[0]
        before = None
        for step, (now, after) in enumerate(zip(SIGMAS[:-1], SIGMAS[1:], strict=True)):
            clean = self.model.denoise(x, now, reference)
            if changes is not None and before is not None:
                changes.append(float((clean - before).square().mean()))
            before = clean
            if patch is not None:
                clean = patch(clean, step, now)
            x = clean + (x - clean) * (after / now)
        return x

    def measure(self, family: int, views: torch.Tensor) -> list[float]:
        verdict = judge((views / 2 + 0.5).clamp(0, 1).movedim(1, -1), self.bank, family)
        matches = self.truth[family]
        fused, trust = fuse(views, matches, MATCH)
        gap = (trust * (views - fused).square()).sum() / (3 * trust.sum() * 4)
        near = float(-10 * torch.log10(gap.clamp_min(1e-10)))
        return [verdict.agreement, verdict.second_faces, verdict.object_psnr, verdict.view_psnr, near]

    def row(self, name: str, make: Callable[[int, int], Patch | None]) -> list[float]:
        figures = []
        for family, seed in self.runs:
            figures.append(self.measure(family, self.sample(family, seed, make(family, seed))))
        mean = torch.tensor(figures).mean(0).tolist()
        print(f"{name:44s} | {mean[0]:.2f} | {mean[1]:.1f} | " + " | ".join(f"{m:.1f}" for m in mean[2:]), flush=True)
        return mean

    def window(
        self,
        peak: float,
        start: float,
        end: float,
        iterations: int = 1,
        tracking: dict | None = None,
        options: MirrorOptions = MATCH,
    ) -> Callable[[int, int], Patch]:
        """Rectified in a window of noise levels; by the true depth and perspective unless `tracking` says otherwise."""
        matches = {f: self.matches(f, **(tracking or {})) for f in self.depth}

        def make(family: int, _seed: int) -> Patch:
            return lambda x0, _step, sigma: rectify(
                x0, matches[family], window_eta(sigma, peak, start, end, 0.7), options, iterations=iterations
            )

        return make

    def matches(self, family: int, depth: bool = True, **tracking) -> Correspondence:
        return track(CAMERAS, (SIZE, SIZE), self.depth[family] if depth else None, **tracking)


def where_views_decide(t: Trial) -> None:
    total = None
    for family, seed in t.runs:
        changes: list[float] = []
        t.sample(family, seed, changes=changes)
        total = changes if total is None else [a + b for a, b in zip(total, changes, strict=True)]
    share = [c / sum(total) for c in total]
    levels = ", ".join(f"{sigma:.3g} ({100 * c:.0f})" for sigma, c in zip(SIGMAS[:-2], share, strict=True))
    print(f"sigma (change of the clean views from there to the next step, %): {levels}")
    print("90 % of it between sigma", decision_window(SIGMAS[:-1], total))


def schedules(t: Trial) -> None:
    """Eta over the noise levels; the paper's 3 x 3 block (first) against the match alone."""
    t.row("no rectification", lambda f, s: None)
    for table in ("eq31", "eq32"):
        t.row(
            f"{table} by step index, 3x3",
            lambda f, s, table=table: lambda x0, i, sigma: rectify(x0, t.truth[f], paper_eta(i, STEPS, sigma, table)),
        )
    t.row("eta 0.75, all sigmas, 3x3", t.window(0.75, 1e6, 0.0, options=MirrorOptions()))
    for start, end in ((1e6, 0.0), (1e6, 10), (1e6, 3), (1e6, 1), (1e6, 0.3), (10, 0.3), (3, 0.0)):
        t.row(f"eta 0.75, sigma {start:g} to {end:g}", t.window(0.75, start, end))


def reach(t: Trial) -> None:
    """How far agreement must spread: repeated pulls and more neighbours."""
    for iterations in (4, 16):
        for end in (3, 1, 0.3):
            t.row(f"eta 0.75, to sigma {end}, {iterations} times", t.window(0.75, 1e6, end, iterations))
    wide = {"offsets": (-3, -2, -1, 1, 2, 3)}
    t.row("eta 0.75, to sigma 1, 3 neighbours a side", t.window(0.75, 1e6, 1, tracking=wide))
    t.row("eta 0.75, to sigma 1, 3 a side, 4 times", t.window(0.75, 1e6, 1, 4, tracking=wide))
    t.row("eta 0.75, to sigma 1, 16 times, 3x3", t.window(0.75, 1e6, 1, 16, options=MirrorOptions()))


def geometry(t: Trial) -> None:
    """Correspondence, with the schedule that worked best above."""
    kinds = {
        "perspective, no occlusion test": {"occlusion": False},
        "orthographic with elevation": {"mode": "orthographic"},
        "Eq. 4": {"mode": "paper", "occlusion": False},
        "Eq. 4 without depth": {"mode": "paper", "depth": False},
        "same pixel": {"mode": "identity", "occlusion": False},
    }
    for name, tracking in kinds.items():
        t.row(f"{name}, 16 times to sigma 1", t.window(0.75, 1e6, 1, 16, tracking=tracking))


def refine(t: Trial) -> None:
    """Around the best of the rows above: 16 pulls a step, to sigma 0.3."""
    for peak, start, end, iterations in (
        (0.75, 1e6, 0.1, 16),
        (0.75, 1e6, 0.3, 32),
        (0.5, 1e6, 0.3, 16),
        (0.75, 30, 0.3, 16),
        (0.75, 8, 0.3, 16),
    ):
        name = f"eta {peak}, sigma {start:g} to {end}, {iterations} times"
        t.row(name, t.window(peak, start, end, iterations))
    cold = MirrorOptions(positive=1.0, temperature=0.05)
    t.row("eta 0.75, to 0.3, 16 times, 3x3 cold", t.window(0.75, 1e6, 0.3, 16, options=cold))


def confirm(t: Trial) -> None:
    """The finding, and what it is compared with: for more objects than it was found on."""
    t.row("no rectification", lambda f, s: None)
    t.row("once a step, to sigma 0.1", t.window(0.75, 1e6, 0.1))
    t.row("16 times, to sigma 0.1", t.window(0.75, 1e6, 0.1, 16))
    t.row("16 times, to sigma 0.3", t.window(0.75, 1e6, 0.3, 16))
    t.row("16 times, to sigma 0.3, no depth (Eq. 4)", t.window(0.75, 1e6, 0.3, 16, {"mode": "paper", "depth": False}))


def two_stages(t: Trial) -> None:
    """Depth from the views of stage 1 by the demo depth network, same starting noise again in stage 2."""
    from multiview.demo.depth_net import estimate_depth, load_depth_net

    net = load_depth_net()
    for end in (0.3, 1):

        def make(family: int, seed: int, end: float = end) -> Patch:
            first = (t.sample(family, seed) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
            depth, _ = estimate_depth(net, first, CAMERAS)
            matches = track(CAMERAS, (SIZE, SIZE), depth, depth_error=0.02)
            return lambda x0, _step, sigma: rectify(
                x0, matches, window_eta(sigma, 0.75, 1e6, end, 0.7), MATCH, iterations=16
            )

        t.row(f"depth network, 16 times to sigma {end}", make)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "stages",
        nargs="*",
        default=["where_views_decide", "schedules", "reach", "geometry", "refine", "two_stages", "confirm"],
    )
    parser.add_argument("--banks", type=Path, default=Path("output/banks"))
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--front-bias", type=float, default=0.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    trial = Trial(args.banks, args.objects, args.seeds, AnalyticOptions(31, 0.02, args.front_bias))
    for stage in args.stages:
        globals()[stage](trial)


if __name__ == "__main__":
    main()
