"""What MVDDIMInvert hands to the host's guider, and what it gives to samplers afterwards.

The inversion runs as a sampler inside CFGGuider.sample, so that guidance, conditioning of every kind, hooks, patches
and memory are the host's own affair. It is given the falling sigmas that will sample again and goes through them
backwards: patches that look for their place among the sample_sigmas find the same one as in sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ..multiview.inversion import Inversion, ddim_step, invert, noisy_start, round_trip, sample
from ..multiview.inversion_levels import Levels
from . import host


@dataclass(frozen=True)
class Settings:
    """start_noise: begin with noise of the lowest level, from `seed`, instead of with the latent as it is."""

    method: str
    iterations: int
    levels: Levels
    measure: bool
    start_noise: bool
    seed: int

    def rising(self) -> tuple[float, ...]:
        rising = self.levels.rising
        return rising[1:] if self.start_noise else rising

    def calls(self) -> int:
        """How often the model is asked, both ways."""
        steps = len(self.rising()) - 1
        up = steps * (self.iterations if self.method == "fixed_point" else 1)
        back = (steps - (self.method == "belm") + self.start_noise) if self.measure else 0
        return up + back


class InversionSampler(comfy.samplers.Sampler):
    """Carries `latent` (as the host's LATENT has it) up; `inversion`, `noise` and `back` hold what it found.

    back: the round trip in the units of the LATENT, None without `measure`.
    """

    def __init__(self, latent: Tensor, settings: Settings, callback):
        self.latent, self.settings, self.callback = latent, settings, callback
        self.inversion: Inversion | None = None
        self.noise: InvertedNoise | None = None
        self.back: Tensor | None = None
        self.calls = 0

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model = model_wrap.inner_model
        levels, sampling = self.settings.levels, model.model_sampling
        flow = isinstance(sampling, comfy.model_sampling.CONST)
        start = model.process_latent_in(self.latent.to(noise))
        x = sampling.noise_scaling(_like(levels.rising[0], noise), torch.zeros_like(noise), start)
        self._refuse_windows(model_wrap, x, sigmas, extra_args)
        unit = _unit(sampling, sigmas[0], self.max_denoise(model_wrap, sigmas))
        total = self.settings.calls()

        def denoised(x: Tensor, sigma: float) -> Tensor:
            host.check_cancelled()
            found = model_wrap(x, x.new_full((x.shape[0],), sigma), **extra_args)
            self.callback(self.calls, found, x, total)
            self.calls += 1
            return found

        rising = self.settings.rising()
        if self.settings.start_noise:
            x = noisy_start(x, rising[0], self.settings.seed, flow)
        found = invert(denoised, x, rising, self.settings.method, iterations=self.settings.iterations, flow=flow)
        if not bool(torch.isfinite(found.x).all()):
            raise ValueError(
                "The inversion ran off to infinity or NaN; take more steps, the method ddim, or run the model in fp32."
            )
        self.inversion = found
        self.noise = InvertedNoise(
            found.x, float(sigmas[0]), unit, sampling, model.latent_format, self.settings.seed
        )
        if self.settings.measure:
            back = round_trip(denoised, found)
            if rising[0] > levels.rising[0]:
                back = ddim_step(back, denoised(back, rising[0]), rising[0], levels.rising[0])
            back = sampling.inverse_noise_scaling(_like(levels.rising[0], back), back)
            self.back = model.process_latent_out(back).cpu()
        top = sampling.inverse_noise_scaling(sigmas[0], found.x)
        # A flow model at sigma 1 has no latent that stands for its state: the sampler takes 1 - 1 = 0 parts of it.
        return top if bool(torch.isfinite(top).all()) else found.x

    @staticmethod
    def _refuse_windows(model_wrap, x: Tensor, sigmas: Tensor, extra_args: dict) -> None:
        options = extra_args["model_options"]
        handler, conds = options.get("context_handler"), list(model_wrap.conds.values())
        if handler is not None and handler.should_use_context(model_wrap.inner_model, conds, x, sigmas[:1], options):
            raise ValueError(
                "Context windows cut the views into parts that the model sees one after the other, and their inverse "
                "is not one noise for all views; take the context windows off the model or make them long enough."
            )


class InvertedNoise:
    """A NOISE: what a sampler must add at sigma to the latent it is given, empty or not, to stand at x."""

    def __init__(self, x: Tensor, sigma: float, unit: float, sampling, latent_format, seed: int):
        self.seed = seed
        self.sigma = sigma
        self.unit = unit
        self._x = x.cpu()
        # A patched model has its own sampling only while it runs. The model itself must not be kept alive by its noise.
        self._sampling, self._latent_format = sampling, latent_format

    def generate_noise(self, input_latent: dict) -> Tensor:
        """(like the latent) float32 on the CPU, new each time. ValueError for a latent of another shape."""
        given = input_latent["samples"]
        if tuple(given.shape) != tuple(self._x.shape):
            raise ValueError(
                f"This noise was found for a latent of shape {tuple(self._x.shape)}, but the sampler works on "
                f"{tuple(given.shape)}; give it an empty latent of the size that was inverted."
            )
        given = given.to(self._x)
        if torch.count_nonzero(given) > 0:  # The host leaves the empty latent as it is, too.
            given = self._latent_format.process_in(given)
        known = self._sampling.noise_scaling(_like(self.sigma, given), torch.zeros_like(given), given)
        return (self._x - known) / self.unit

    def spread(self) -> float:
        """Standard deviation of the noise for an empty latent; 1 is what a sampler expects."""
        return float(self._x.std()) / self.unit


def matching_sampler(inversion: Inversion):
    """The SAMPLER that this inversion inverts: Euler, or belm's two-step one with the second latent it needs."""
    if inversion.method != "belm":
        return comfy.samplers.ksampler("euler")
    return comfy.samplers.KSAMPLER(_BelmSampler(inversion))


class _BelmSampler:
    """The second latent is used where sampling starts from the inverted noise; elsewhere Euler makes the first step."""

    def __init__(self, inversion: Inversion):
        self._top, self._second = inversion.x.cpu(), inversion.previous.cpu()
        self._levels = inversion.sigmas[-1], inversion.sigmas[-2]

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        extra_args = {} if extra_args is None else extra_args
        clean = x

        def denoised(x: Tensor, sigma: float) -> Tensor:
            nonlocal clean
            clean = model(x, x.new_full((x.shape[0],), sigma), **extra_args)
            return clean

        def on_step(step: int, steps: int, x: Tensor) -> None:
            if callback is not None:
                callback({"i": step - 1, "denoised": clean, "x": x})

        second = self._second.to(x) if self._starts_here(x, sigmas) else None
        return sample(denoised, x, sigmas.tolist(), "belm", previous=second, on_step=on_step)

    def _starts_here(self, x: Tensor, sigmas: Tensor) -> bool:
        if x.shape != self._top.shape or not torch.allclose(sigmas[:2].cpu(), torch.tensor(self._levels), rtol=1e-5):
            return False
        top = self._top.to(x)
        return bool((x - top).abs().max() <= 1e-4 * top.abs().max())


def _like(sigma: float, x: Tensor) -> Tensor:
    return torch.tensor(sigma, dtype=x.dtype, device=x.device)


def _unit(sampling, sigma: Tensor, max_denoise: bool) -> float:
    """How much of x one unit of noise makes at the level sampling starts from. ValueError if noise plays no part."""
    one = torch.ones((1, 1, 1, 1), device=sigma.device)
    unit = float(sampling.noise_scaling(sigma, one, torch.zeros_like(one), max_denoise).mean())
    if unit == 0:
        raise ValueError("This model's sampler does not start from noise, so there is none to find; use another model.")
    return unit
