"""DDIM inversion: the noise that a deterministic sampler would make given views from."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..multiview.inversion import METHODS
from ..multiview.inversion_levels import Levels, plan
from .host import advanced, schema
from .inversion_sampler import InversionSampler, Settings, matching_sampler
from .sampling_checks import check_schedule, checked_latent

SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


class DDIMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVDDIMInvert",
            display_name="DDIM Invert (Multi-View)",
            category="multiview/sampling",
            description="Finds the noise that a deterministic sampler makes given views (or any latent) from, and "
            "measures how well the way back returns them. For views that were not made in the same graph; otherwise "
            "their own RandomNoise is the exact answer.",
            search_aliases=["inversion", "unsample", "unsampler", "noise from image", "belm", "fixed point"],
            inputs=[
                io.Model.Input("model", tooltip="The model that shall draw the views again."),
                io.Conditioning.Input("positive", tooltip="The conditioning that shall be used when sampling again."),
                io.Conditioning.Input("negative", tooltip="Used if cfg is above 1."),
                io.Latent.Input("latent", tooltip="The views as a latent: clean, or partly noisy (see start_sigma)."),
                io.Float.Input("cfg", default=1.0, min=1.0, max=100.0, step=0.1, round=0.01,
                               tooltip="Guidance, the same as when sampling again. 1 inverts best; above it, take "
                               "fixed_point with more iterations, or belm."),
                io.Combo.Input("method", options=list(METHODS), default="fixed_point",
                               tooltip="ddim: fastest, inexact. fixed_point: iterates each step until Euler would come "
                               "back. belm: exact with the sampler of this node, at the cost of ddim."),
                advanced(io.Int.Input, "iterations", default=3, min=1, max=50,
                         tooltip="Model calls for each step of fixed_point. 2 to 5 are usual; look at the error."),
                io.Int.Input("steps", default=30, min=1, max=10000,
                             tooltip="Steps of the schedule, the same as when sampling again."),
                io.Combo.Input("scheduler", options=SCHEDULERS, default="karras",
                               tooltip="The schedule, the same as when sampling again."),
                io.Boolean.Input("measure", default=True,
                                 tooltip="Go the way back too, to measure the error. Costs one model call a step."),
                advanced(io.Boolean.Input, "start_noise", default=False,
                         tooltip="Begin with a little noise, that of the lowest level. The noise found is then closer "
                         "to real noise where the model is certain of the views; the way back ends that much off."),
                advanced(io.Int.Input, "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                         tooltip="Seed of start_noise, and the seed that the noise output names."),
                advanced(io.Float.Input, "start_sigma", default=0.0, min=0.0, max=100000.0, step=0.01, round=False,
                         tooltip="Noise level at which the latent stands. 0 = clean. Above: a latent that a sampler "
                         "left there."),
                advanced(io.Int.Input, "stop_at_step", default=0, min=0, max=10000,
                         tooltip="Stop where this step of the schedule starts, as start_at_step of KSampler "
                         "(Advanced). 0 = go all the way up."),
                advanced(io.Float.Input, "stop_sigma", default=0.0, min=0.0, max=100000.0, step=0.01, round=False,
                         tooltip="Stop at this noise level instead of at a step. 0 = stop_at_step counts."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Instead of steps and scheduler: falling, the same as when sampling again."),
            ],
            outputs=[
                io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced, with the sigmas of this node "
                                "and an empty latent of the same size (or the inverted one)."),
                io.Latent.Output(display_name="latent", tooltip="The noisy latent, for KSampler (Advanced) without "
                                 "added noise, or SamplerCustomAdvanced with DisableNoise."),
                io.Sigmas.Output(display_name="sigmas", tooltip="From where the inversion stopped down to 0."),
                io.Float.Output(display_name="error", tooltip="Root mean square difference of latent and round trip, "
                                "in the latent's units; -1 if it was not measured."),
                io.String.Output(display_name="report", tooltip="What was done, the noise's spread, the error."),
                io.Sampler.Output(display_name="sampler", tooltip="The sampler that was inverted: Euler, or that of "
                                  "belm, which only with this one comes back exactly."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, latent, cfg, method, iterations, steps, scheduler, measure, start_noise, seed,
        start_sigma, stop_at_step, stop_sigma, sigmas=None,
    ) -> io.NodeOutput:  # fmt: skip
        samples = checked_latent(
            model, latent, "inverted", ", because what the mask protects does not come from the model; remove the mask "
            "and set it again on the latent output"
        )  # fmt: skip
        if not bool(samples.any()):
            raise ValueError(
                "The latent is empty, so there is nothing to invert; connect the encoded or sampled views."
            )
        if not cfg >= 1:
            raise ValueError(f"cfg must be 1 or more, got {cfg}; below 1 the positive conditioning is weakened.")
        sampling = model.get_model_object("model_sampling")
        schedule = comfy.samplers.calculate_sigmas(sampling, scheduler, steps) if sigmas is None else sigmas
        levels = plan(schedule.float().tolist(), _single(start_sigma), stop_at_step, _single(stop_sigma))
        check_schedule(model, levels.falling[0])
        if start_noise and (levels.rising[0] > 0 or len(levels.rising) < 3):
            raise ValueError("start_noise needs a clean latent (start_sigma 0) and at least 2 steps.")
        settings = Settings(method, iterations, levels, measure, start_noise, seed)
        run = InversionSampler(samples, settings, latent_preview.prepare_callback(model, settings.calls()))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        falling = torch.tensor(levels.falling)
        # The guider sees an empty latent, as it does when sampling again from noise.
        empty = torch.zeros_like(samples, dtype=torch.float32)
        top = guider.sample(empty, empty, run, falling, callback=run.callback, disable_pbar=True, seed=seed)
        out = {**latent, "samples": top.to(comfy.model_management.intermediate_device())}
        error = -1.0 if run.back is None else float((run.back - samples.cpu().float()).square().mean().sqrt())
        scheduled = None if sigmas is not None else (steps, scheduler)
        report = _report(settings, run, samples, error, scheduled, _starts_from_latent(sampling, falling[0]))
        return io.NodeOutput(
            run.noise, out, falling, error, report, matching_sampler(run.inversion), ui=ui.PreviewText(report)
        )


def _single(number: float) -> float:
    """As the host's sigmas hold it, in float32."""
    return torch.tensor(number, dtype=torch.float32).item()


def _starts_from_latent(sampling, sigma: Tensor) -> bool:
    """Whether a sampler that adds no noise can start at sigma: not at pure noise of a flow model."""
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    return float(sampling.noise_scaling(sigma, zero, one).mean()) != 0


def _report(settings: Settings, run: InversionSampler, samples: Tensor, error: float, scheduled, from_latent) -> str:
    levels: Levels = settings.levels
    name = settings.method
    if name == "fixed_point":
        name += f" ({settings.iterations} iterations)"
    lines = [
        f"- {name}: {len(settings.rising()) - 1} steps from sigma {settings.rising()[0]:.4g} to "
        f"{levels.falling[0]:.4g}, {run.calls} model calls in all",
        f"- spread of the noise: {run.noise.spread():.3f} (a sampler expects 1)",
    ]
    if error < 0:
        lines.append("- round trip: not measured")
    else:
        relative = error / max(float(samples.float().std()), 1e-12)
        lines.append(f"- round trip: off by {error:.3g} (root mean square), {relative:.3g} of the latent's spread")
    if settings.method == "belm":
        lines.append("- exact only with the sampler of this node; other samplers take another way back")
    if not from_latent:
        lines.append("- this is pure noise of a flow model: start from the noise output, the latent output is no start")
    elif scheduled and levels.step is not None:
        steps, scheduler = scheduled
        lines.append(
            f"- KSampler (Advanced): add_noise disabled, {steps} steps, {scheduler}, start_at_step {levels.step}"
        )
    return "\n".join(lines)


NODES = [DDIMInvert]
