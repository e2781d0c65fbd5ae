"""DDIM inversion: from clean views back to the noise that a deterministic sampler would make them from.

Everything is written on the clean prediction. A model is a callable denoised(x, sigma) -> x0 with
    x = a(sigma) x0 + b(sigma) noise:   a = 1, b = sigma (eps, v and EDM models as ComfyUI's samplers see them),
                                        a = 1 - sigma, b = sigma (flow models).
For both, the sampling ODE is dx/dsigma = (x - x0) / sigma, and its Euler step is DDIM with eta 0: x' = a' x0 + b' e for
the noise prediction e = (x - a x0) / b. (A flow model at sigma is the eps model at S = sigma / (1 - sigma) with
x / (1 - sigma); S is infinite at sigma 1, so nothing here divides by a.)
Methods (references.md section 7), each the inverse of a deterministic sampler in sample():
    ddim         Euler's step run backwards with the noise predicted at the lower level (Eq. 3 of MIRROR): order 1
    fixed_point  the same with the noise predicted at the level it goes to, found by iterating: order 1, and the inverse
                 of the sampler's own step, so the round trip closes as the iterations converge
    belm         O-BELM's two-step formula in sigma: order 2; the inverse is exact for any model and steps, but needs
                 both of the last two latents. Growing steps amplify the first step's error by (last step / first
                 step)^2, so its noise is only as good as the first steps are small.
Clean views say nothing about the noise they came from where a model is certain of them: the noise found is then what
little the model changes in them, divided by a small sigma. noisy_start() begins with noise of the lowest level instead,
which is carried up; what comes back is then only as close as that noise is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

METHODS = ("ddim", "fixed_point", "belm")
# How many earlier rounds a fixed-point step learns from.
MEMORY = 3

Denoiser = Callable[[Tensor, float], Tensor]
OnStep = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Inversion:
    """x: the latent at sigmas[-1]. previous: the latent one level below, which belm's way back needs (else None).

    sigmas: rising, the levels gone through. flow: which x the model takes, see the head of this file.
    """

    x: Tensor
    previous: Tensor | None
    sigmas: tuple[float, ...]
    method: str
    flow: bool

    def noise(self, x0: Tensor | None = None) -> Tensor:
        """The unit noise for which x = a x0 + b noise, with x0 the latent a sampler is started from (None = empty)."""
        a, b = scales(self.sigmas[-1], self.flow)
        return self.x / b if x0 is None else (self.x - a * x0) / b


def scales(sigma: float, flow: bool) -> tuple[float, float]:
    """a, b of x = a x0 + b noise."""
    return (1.0 - sigma, sigma) if flow else (1.0, sigma)


def ddim_step(x: Tensor, x0: Tensor, sigma: float, to: float) -> Tensor:
    """One deterministic step from level sigma > 0 to level `to`, up or down, with clean prediction x0 at sigma."""
    return x + (to - sigma) * _slope(x, x0, sigma)


def noisy_start(x: Tensor, sigma: float, seed: int, flow: bool = False) -> Tensor:
    """Clean views x at level sigma: a x + b noise, the same for the same seed. Invert this from sigma instead of 0."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
    a, b = scales(sigma, flow)
    return a * _state(x) + b * noise


def invert(
    denoised: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    method: str = "ddim",
    *,
    iterations: int = 3,
    flow: bool = False,
    on_step: OnStep | None = None,
) -> Inversion:
    """Carry clean (or partly noisy) views x, any shape, at level sigmas[0] up to level sigmas[-1].

    sigmas: rising, at least two; the first may be 0. To stop early, leave the rest out.
    iterations: of fixed_point, at most; each costs one model call a step, and the first is ddim's step. 2 to 5 are
        usual, more on few steps or with guidance. A step ends early where nothing changes any more.
    on_step(step, steps, x) is called after every step and may raise to cancel.
    Model calls a step: 1 (ddim, belm), iterations (fixed_point). The state is kept in float32 or better.
    """
    levels = _levels(sigmas, rising=True, flow=flow)
    if method not in METHODS:
        raise ValueError(f"There is no inversion method '{method}'; choose one of: {', '.join(METHODS)}.")
    if iterations < 1:
        raise ValueError(f"Fixed point inversion needs at least 1 iteration, got {iterations}.")
    x = _state(x)
    if method == "belm":
        return _belm_up(denoised, x, levels, flow, on_step)
    for i, (low, high) in enumerate(pairwise(levels)):
        if method == "ddim":
            x = _ddim_up(denoised, x, low, high, flow)
        else:
            x = _implicit_up(denoised, x, low, high, flow, iterations)
        _report(on_step, i, len(levels) - 1, x)
    return Inversion(x, None, levels, method, flow)


def sample(
    denoised: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    method: str = "ddim",
    *,
    previous: Tensor | None = None,
    flow: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """The deterministic sampler that this method inverts. sigmas: falling; the last may be 0.

    ddim and fixed_point: DDIM with eta 0 = Euler. belm: previous is the latent at sigmas[1], as Inversion has it;
    None makes it by one Euler step, which is how one samples from noise alone (no longer an exact round trip).
    """
    levels = _levels(sigmas, rising=False, flow=flow)
    if method not in METHODS:
        raise ValueError(f"There is no sampling method '{method}'; choose one of: {', '.join(METHODS)}.")
    x = _state(x)
    if method == "belm":
        return _belm_down(denoised, x, levels, previous, on_step)
    for i, (high, low) in enumerate(pairwise(levels)):
        x = ddim_step(x, denoised(x, high), high, low)
        _report(on_step, i, len(levels) - 1, x)
    return x


def round_trip(denoised: Denoiser, inversion: Inversion, on_step: OnStep | None = None) -> Tensor:
    """Back down from an inversion along the same levels with the sampler it belongs to."""
    falling = inversion.sigmas[::-1]
    return sample(
        denoised,
        inversion.x,
        falling,
        inversion.method,
        previous=inversion.previous,
        flow=inversion.flow,
        on_step=on_step,
    )


def round_trip_error(denoised: Denoiser, x: Tensor, inversion: Inversion, on_step: OnStep | None = None) -> float:
    """Root mean square difference between x and its round trip, relative to the spread (standard deviation) of x."""
    back = round_trip(denoised, inversion, on_step)
    start = _state(x)
    return float((back - start).square().mean().sqrt() / start.std().clamp_min(1e-12))


def _ddim_up(denoised: Denoiser, x: Tensor, low: float, high: float, flow: bool) -> Tensor:
    if low > 0:
        return ddim_step(x, denoised(x, low), low, high)
    return _implicit_up(denoised, x, low, high, flow, iterations=1)


def _implicit_up(denoised: Denoiser, x: Tensor, low: float, high: float, flow: bool, iterations: int) -> Tensor:
    """x' from which the sampler's step high -> low leads to x: x' = x + (high - low) slope(x'), by iterating.

    With Anderson acceleration (Walker and Ni 2011): plain iteration shrinks the error by about 1 - low / high a round,
    hardly at all on the large steps of a coarse schedule, and grows it where the model's output turns quickly.
    """
    if low > 0:
        guess, rounds = ddim_step(x, denoised(x, low), low, high), iterations - 1
    else:
        # Without noise there is none to predict: begin with what the model says of x as if it stood one level up.
        guess, rounds = x * scales(high, flow)[0], iterations
    before: list[tuple[Tensor, Tensor]] = []  # (answer to an earlier guess, how far it lay from that guess)
    for _ in range(rounds):
        answer = x + (high - low) * _slope(guess, denoised(guess, high), high)
        residual = answer - guess
        if float(residual.abs().max()) <= _rounding(x) * float(answer.abs().max()):
            return answer  # To rounding: another round costs a model call and finds nothing.
        before = [*before[-MEMORY:], (answer, residual)]
        guess = _accelerated(before)
    return guess


def _accelerated(before: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mix of the answers whose mix of residuals is smallest."""
    answer, residual = before[-1]
    changes = [(a - answer, r - residual) for a, r in before[:-1]]
    if not changes:
        return answer
    products = torch.tensor([[float((r * s).sum()) for _, s in changes] for _, r in changes], dtype=torch.float64)
    wanted = torch.tensor([float((r * residual).sum()) for _, r in changes], dtype=torch.float64)
    if not bool(torch.isfinite(products).all()):
        return answer
    # Directions in which the guesses have moved by no more than rounding say nothing, hence a pseudo-inverse.
    weights = torch.linalg.pinv(products, rtol=_rounding(residual), hermitian=True) @ wanted
    for (change, _), weight in zip(changes, weights.tolist(), strict=True):
        answer = answer - weight * change
    return answer


def _belm_up(denoised, x, levels, flow, on_step) -> Inversion:
    """O-BELM's identity between three latents, solved for the noisiest."""
    last = len(levels) - 1
    below, here = x, _ddim_up(denoised, x, levels[0], levels[1], flow)
    _report(on_step, 0, last, here)
    for i in range(1, last):
        h, up = levels[i] - levels[i - 1], levels[i + 1] - levels[i]
        rho = h / up
        slope = _slope(here, denoised(here, levels[i]), levels[i])
        below, here = here, (below - (1 - rho * rho) * here + h * (1 + rho) * slope) / (rho * rho)
        _report(on_step, i, last, here)
    return Inversion(here, below, levels, "belm", flow)


def _belm_down(denoised, x, levels, previous, on_step) -> Tensor:
    last = len(levels) - 1
    if previous is None:
        here = ddim_step(x, denoised(x, levels[0]), levels[0], levels[1])
    else:
        here = _state(previous)
    above = x
    _report(on_step, 0, last, here)
    for i in range(1, last):
        h, up = levels[i] - levels[i + 1], levels[i - 1] - levels[i]
        rho = h / up
        slope = _slope(here, denoised(here, levels[i]), levels[i])
        above, here = here, rho * rho * above + (1 - rho * rho) * here - h * (1 + rho) * slope
        _report(on_step, i, last, here)
    return here


def _slope(x: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """dx/dsigma, in every form of model."""
    return (x - x0) / sigma


def _state(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _rounding(x: Tensor) -> float:
    """What sums and products of numbers like these may be off by, relatively."""
    return 8 * torch.finfo(x.dtype).eps


def _report(on_step: OnStep | None, step: int, steps: int, x: Tensor) -> None:
    if on_step is not None:
        on_step(step + 1, steps, x)


def _levels(sigmas: Sequence[float], rising: bool, flow: bool) -> tuple[float, ...]:
    levels = tuple(float(s) for s in sigmas)
    word = "rising" if rising else "falling"
    ordered = all((low < high) == rising and low != high for low, high in pairwise(levels))
    if len(levels) < 2 or not ordered or min(levels) < 0 or not all(s < float("inf") for s in levels):
        raise ValueError(
            f"Sigmas must be at least two finite {word} numbers of 0 or more, got {[round(s, 4) for s in levels][:6]}."
        )
    if flow and max(levels) > 1:
        raise ValueError(f"Sigmas of a flow model lie between 0 and 1, got up to {max(levels):.4g}.")
    return levels
