"""How well inversion and way back return views of the analytic demo model: the tables of docs/inversion.md.

Run `python -m scripts.inversion_table` in the repository's root; about a minute on one core. 64 px, 16 views that
contradict each other (window 31, kappa 0.02), made by 30 Euler steps with the Karras schedule from sigma 700 to 0.002,
which is what KSampler does by default in the demo workflows. Then each method carries them up in 10, 20 and 50 steps of
that schedule and back. Figures are of all objects together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from multiview.demo.analytic import AnalyticOptions
from multiview.inversion import Inversion, ddim_step, invert, noisy_start, round_trip, sample
from scripts.mirror_trial import Trial

LOW, HIGH = 0.002, 700.0
# Printed for equal pictures.
BEST = 120.0
METHODS = {"ddim": ("ddim", 1), "fixed_point, 3": ("fixed_point", 3), "fixed_point, 8": ("fixed_point", 8),
           "belm": ("belm", 1)}  # fmt: skip
# Enough that the inverse hardly changes with more.
FINE = 400


def rising(steps: int) -> list[float]:
    """Karras et al.'s schedule (rho 7) from 0, as ComfyUI's scheduler "karras" has it."""
    ramp = torch.linspace(LOW ** (1 / 7), HIGH ** (1 / 7), steps, dtype=torch.float64)
    return [0.0, *(ramp**7).tolist()]


def decibels(views: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Of the decoded views (the model's latents are pixels in [-1,1]), all as one picture."""
    decoded = [(torch.cat(x) / 2 + 0.5).clamp(0, 1) for x in (views, reference)]
    error = (decoded[0] - decoded[1]).square().mean()
    return min(BEST, float(-10 * torch.log10(error.clamp_min(1e-30))))


class Case:
    """The views of one object, and its model."""

    def __init__(self, trial: Trial, family: int):
        self.reference = trial.bank.references[trial.bank.member(family, 0)].movedim(-1, 0).float() / 127.5 - 1
        self.model = trial.model
        generator = torch.Generator().manual_seed(1000 * family)
        self.noise = torch.randn(16, 3, trial.bank.views.shape[2], trial.bank.views.shape[3], generator=generator)
        self.views = sample(self.denoised, self.noise * HIGH, rising(30)[::-1])
        self.fine = {}

    def denoised(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.model.denoise(x, sigma, self.reference)

    def invert(self, steps: int, method: str, iterations: int, begun: bool) -> Inversion:
        levels, views = rising(steps), self.views
        if begun:
            levels, views = levels[1:], noisy_start(views, LOW, seed=0)
        return invert(self.denoised, views, levels, method, iterations=iterations)

    def back(self, found: Inversion, euler: bool) -> torch.Tensor:
        """Down to clean views, by the method's own sampler or by Euler."""
        x = sample(self.denoised, found.x, found.sigmas[::-1]) if euler else round_trip(self.denoised, found)
        return x if found.sigmas[0] == 0 else ddim_step(x, self.denoised(x, found.sigmas[0]), found.sigmas[0], 0.0)

    def exact(self, begun: bool) -> torch.Tensor:
        """The noise that very many small steps find."""
        if begun not in self.fine:
            self.fine[begun] = self.invert(FINE, "ddim", 1, begun).noise()
        return self.fine[begun]


def table(cases: list[Case], begun: bool) -> None:
    columns = ("model calls, at most", "own sampler, dB", "Euler, dB", "spread of the noise", "off the exact noise")
    print(f"| steps | method | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|")
    for steps in (10, 20, 50):
        for name, (method, iterations) in METHODS.items():
            found = [case.invert(steps, method, iterations, begun) for case in cases]
            views, pairs = [case.views for case in cases], list(zip(cases, found, strict=True))
            euler = own = decibels([case.back(one, euler=True) for case, one in pairs], views)
            if method == "belm":
                own = decibels([case.back(one, euler=False) for case, one in pairs], views)
            noise = torch.cat([f.noise() for f in found])
            off = (noise - torch.cat([case.exact(begun) for case in cases])).square().mean().sqrt()
            calls = (steps - begun) * iterations
            figures = f"{own:.1f} | {euler:.1f} | {float(noise.std()):.2f} | {float(off):.2f}"
            print(f"| {steps} | {name} | {calls} | {figures} |", flush=True)
    exact = torch.cat([case.exact(begun) for case in cases])
    print(f"\nSpread of the exact noise (ddim in {FINE} steps): {float(exact.std()):.2f}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--banks", type=Path, default=Path("output/banks"))
    parser.add_argument("--objects", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trial = Trial(arguments.banks, arguments.objects, 1, AnalyticOptions(31, 0.02))
    cases = [Case(trial, family) for family in range(arguments.objects)]
    print("From the clean views:\n")
    table(cases, begun=False)
    print("Begun with noise of the lowest level (start_noise):\n")
    table(cases, begun=True)
    again = [sample(case.denoised, case.noise * HIGH, rising(30)[::-1]) for case in cases]
    print(f"Cached noise, the same 30 steps: {decibels(again, [case.views for case in cases]):.1f} dB.")


if __name__ == "__main__":
    main()
