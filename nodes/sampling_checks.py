"""What nodes that change or restart a sampling share: which part of it they act in, and what they refuse to work on."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.sample
import torch
from comfy.model_sampling import CONST
from torch import Tensor

from ..multiview.cameras import Cameras
from ..multiview.mirror_schedule import noise_ratio

# How far above the model's highest noise level sigmas may lie: schedulers round.
ABOVE = 1.001


@dataclass(frozen=True)
class When:
    """Strength of a patch, and the part of the sampling it is restricted to, as fractions in the host's sense."""

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def check(self, what: str) -> When:
        """Itself. ValueError for an empty part; what: the thing that starts and ends."""
        if not self.start < self.end:
            raise ValueError(
                f"The {what} must start before it ends, got start_percent {self.start:g} and end_percent "
                f"{self.end:g}; choose a smaller start."
            )
        return self

    def ratio(self, sampling, sigma: float) -> float | None:
        """The noise-to-signal ratio at a noise level of a model_sampling; None outside the part."""
        if sigma > float(sampling.percent_to_sigma(self.start)) or sigma < float(sampling.percent_to_sigma(self.end)):
            return None
        flow = isinstance(sampling, CONST)
        return noise_ratio(min(sigma, 1.0) if flow else sigma, flow)


def step_of(sigma: float, model_options: dict, advice: str) -> tuple[int, int]:
    """(index of the sampling step that a noise level belongs to, number of steps).

    ValueError where the sampler does not tell its noise levels; advice: what the user can do then.
    """
    sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None or len(sigmas) < 2:
        raise ValueError(f"This sampler does not tell its noise levels, so the step index is not known; {advice}.")
    reached = int((sigmas.float() >= sigma * (1 - 1e-4)).sum()) - 1
    return min(max(reached, 0), len(sigmas) - 2), len(sigmas) - 1


def check_windows(model, cameras: Cameras, reason: str) -> None:
    """ValueError for a MODEL whose context windows are shorter than the orbit. Before sampling, so only by length."""
    handler = model.model_options.get("context_handler")
    if handler is not None and getattr(handler, "context_length", len(cameras)) < len(cameras):
        raise ValueError(windows_sentence(reason))


def windows_sentence(reason: str) -> str:
    return (
        f"{reason}, but this model draws them in context windows, which cut neighbours apart; take the context windows "
        "off the model or make them as long as there are views."
    )


def check_schedule(patcher, first: float) -> None:
    """ValueError for a schedule that begins above what the model knows."""
    highest = float(patcher.get_model_object("model_sampling").sigma_max)
    if first > highest * ABOVE:
        raise ValueError(
            f"The sigmas begin at {first:.4g}, but this model knows noise up to {highest:.4g}; use a schedule made for "
            "this model."
        )


def check_channels(patcher, channels: int) -> None:
    """ValueError for latents, or a VAE's, that are not of the model's kind."""
    wanted = patcher.get_model_object("latent_format").latent_channels
    if channels != wanted:
        raise ValueError(
            f"The latent has {channels} channels but the model works on {wanted}; encode with the model's own VAE."
        )


def checked_latent(patcher, latent: dict, done: str, mask: str) -> Tensor:
    """The latent's samples as the host's samplers would take them.

    done: what cannot be done with others ("inverted"); mask: why not with a noise mask, and what to do.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError(f"A latent of several parts (video with sound) cannot be {done}; give only the pictures.")
    if latent.get("noise_mask") is not None:
        raise ValueError(f"A latent with a noise mask cannot be {done}{mask}.")
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("The latent contains NaN or infinity; the model or VAE that made it overflowed: try fp32.")
    samples = comfy.sample.fix_empty_latent_channels(patcher, samples)
    check_channels(patcher, samples.shape[1])
    return samples
