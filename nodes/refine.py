"""Renoise-restart (IM-3D): noise on finished views with the sigmas that remain, and the loop of fit and redraw.

Figures and the choice of defaults: docs/im3d.md.
"""

from __future__ import annotations

import math

import comfy.sample
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor

from ..multiview.cameras import Cameras
from ..multiview.checks import check_images, check_view_count
from ..multiview.renoise import RESTARTS, remaining, round_values
from ..multiview.splats.fit_config import LOSSES, FitConfig
from ..multiview.splats.init import METHODS
from .host import BACKGROUNDS, CamerasType, SplatType, advanced, schema
from .inversion_sampler import InvertedNoise
from .sampling_checks import check_channels, check_schedule, checked_latent
from .splats import CUSTOM, GaussianReconstruct

# Share of the steps that are taken again: where the tables of docs/im3d.md are best, and about the 10 steps of the
# paper (of the 40 that it draws the first views in).
RESTART = 0.25
# About five passes over 16 views, two at a time: with 60 or more steps views no longer come together (docs/im3d.md).
ITERATIONS, FINAL_ITERATIONS = 40, FitConfig().iterations
RESTART_TOOLTIP = "fraction: the restart is a share of the schedule's steps. sigma: it is a noise level."


class Renoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVRenoise",
            display_name="Renoise for Restart (Multi-View)",
            category="multiview/sampling",
            description="Puts noise on finished views, so that a sampler can take it off again from the middle of its "
            "schedule: little noise keeps the views and sharpens them, much noise lets the model draw anew.",
            search_aliases=["im-3d", "img2img", "add noise", "restart", "sdedit", "denoise strength"],
            inputs=[
                io.MultiType.Input("model", types=[io.Model, io.Guider],
                                   tooltip="The model that will draw the views again, or the guider around it: it says "
                                   "how its noise is scaled."),
                io.Sigmas.Input("sigmas", tooltip="The whole schedule, from which the part after the restart is "
                                "taken."),
                io.Combo.Input("restart", options=list(RESTARTS), default="fraction", tooltip=RESTART_TOOLTIP),
                io.Float.Input("value", default=RESTART, min=0.0, max=100000.0, step=0.01, round=False,
                               tooltip="Where sampling starts again. fraction: 1 = all steps, as from noise; 0 = none, "
                               "the views come out as they are. sigma: a noise level inside the schedule, or 0."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                             tooltip="Seed of the noise, as that of RandomNoise."),
                io.Latent.Input("latent", optional=True,
                                tooltip="The views as a latent, one entry for each or a video. Either this, or image "
                                "and vae."),
                io.Image.Input("image", optional=True, tooltip="The views as pictures, to be encoded by the vae."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the model; only with image."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The noised views, for samplers that add no noise: "
                                 "SamplerCustomAdvanced with DisableNoise, KSampler (Advanced) with add_noise "
                                 "disabled."),
                io.Sigmas.Output(display_name="sigmas", tooltip="From the restart to the end; empty at 0."),
                io.Noise.Output(display_name="noise", tooltip="What is missing to the noised views on any latent of "
                                "their size. Use it instead of DisableNoise; flow models need it at sigma 1."),
                io.String.Output(display_name="report", tooltip="Noise level and number of steps."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, sigmas, restart, value, seed, latent=None, image=None, vae=None) -> io.NodeOutput:
        patcher = getattr(model, "model_patcher", model)
        if (latent is None) == (image is None) or (image is None) != (vae is None):
            raise ValueError("Connect either latent, or image together with vae, not both and not one of them alone.")
        levels = _levels(patcher, sigmas, restart, value)
        if latent is None:
            latent = {"samples": vae.encode(check_images(image, "views"))}
        samples = checked_latent(
            patcher, latent, "restarted from", ", because samplers would protect its noise; remove the mask, or use "
            "RandomNoise with the sigmas of this node"
        )  # fmt: skip
        noised, noise = _start(patcher, samples, levels, seed, latent.get("batch_index"))
        left = torch.tensor(levels, dtype=torch.float32)
        return io.NodeOutput({**latent, "samples": noised}, left, noise, _report(levels, len(sigmas) - 1))


def _levels(patcher, sigmas: Tensor, restart: str, value: float) -> tuple[float, ...]:
    """What remains of a schedule that this model can follow."""
    schedule = sigmas.float().tolist()
    if schedule:
        check_schedule(patcher, schedule[0])
    return remaining(schedule, restart, value)


def _start(patcher, samples: Tensor, levels: tuple[float, ...], seed: int, batch_index):
    """(latent, NOISE) that both stand at the first level.

    At the model's highest level the views count nothing, as in an empty latent: the same as sampling from noise.
    """
    sampling, form = patcher.get_model_object("model_sampling"), patcher.get_model_object("latent_format")
    clean = form.process_in(samples) if bool(samples.any()) else samples  # the host leaves an empty latent alone, too
    if not levels:
        return samples, InvertedNoise(clean, 0.0, 1.0, sampling, form, seed)
    sigma, highest = torch.tensor(levels[0], dtype=clean.dtype), float(sampling.sigma_max)
    top = math.isclose(levels[0], highest, rel_tol=1e-5) or levels[0] > highest
    noise = comfy.sample.prepare_noise(samples, seed, batch_index)
    x = sampling.noise_scaling(sigma, noise, torch.zeros_like(clean) if top else clean, top)
    one = torch.ones((1, 1, 1, 1), dtype=clean.dtype)
    unit = float(sampling.noise_scaling(sigma, one, torch.zeros_like(one), top).mean())
    latent = sampling.inverse_noise_scaling(sigma, x)
    # A flow model at sigma 1 has no latent that stands for its state: the sampler takes 1 - 1 = 0 parts of it.
    latent = form.process_out(latent) if bool(torch.isfinite(latent).all()) else x
    return latent, InvertedNoise(x, levels[0], unit, sampling, form, seed)


def _report(levels: tuple[float, ...], steps: int) -> str:
    if not levels:
        return "no noise and no steps: the views stay as they are"
    return f"restart at sigma {levels[0]:.4g}, {len(levels) - 1} of {steps} steps"


class IterativeRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVIterativeRefine",
            display_name="Refine Views and Splat (Multi-View)",
            category="multiview/sampling",
            description="IM-3D's loop: fits a splat to the views, renders it, puts some noise on the renders and lets "
            "the model draw them again, a number of times, and fits the final splat. A splat is one object, so the "
            "views come to agree; the model makes them sharp again.",
            search_aliases=["im-3d", "iterative", "renoise", "restart", "refine", "loop"],
            inputs=[
                io.Image.Input("images", tooltip="The views, one for each camera and in the same order."),
                CamerasType.Input("cameras", tooltip="The cameras the views were made from."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Guider.Input("guider", tooltip="The model with its conditioning, as for SamplerCustomAdvanced: the "
                                "one that drew the views."),
                io.Sampler.Input("sampler", tooltip="As for SamplerCustomAdvanced."),
                io.Sigmas.Input("sigmas", tooltip="The whole schedule; each round uses its end."),
                io.Int.Input("rounds", default=2, min=1, max=20,
                             tooltip="How often the views are drawn again. Each round costs a fit and a part of the "
                             "sampling. IM-3D does 2."),
                io.Combo.Input("restart", options=list(RESTARTS), default="fraction", tooltip=RESTART_TOOLTIP),
                io.String.Input("values", default=str(RESTART),
                                tooltip="Where each round starts again, with commas between them, such as 0.4, 0.25. "
                                "The last one counts for all further rounds. More keeps less of the splat."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=False,
                             tooltip="Seed of the fits and of the first round's noise; the next round takes the next "
                             "number."),
                io.Int.Input("iterations", default=ITERATIONS, min=1, max=30000,
                             tooltip="Steps of the fits between rounds. Few on purpose: a short fit is one compromise "
                             "of all views, a long one shows each side what its own view had. The last fit has its own "
                             "number, final_iterations."),
                io.Combo.Input("background", options=["auto", *BACKGROUNDS], default="auto",
                               tooltip="Colour behind the object in the views. auto measures it at the borders."),
                advanced(io.Int.Input, "points", default=3000, min=10, max=500000,
                         tooltip="Number of Gaussians each fit starts with."),
                advanced(io.Combo.Input, "start", options=[m for m in METHODS if m != "depth"], default="hull",
                         tooltip="Where the Gaussians start; see Fit Gaussian Splat."),
                advanced(io.Combo.Input, "losses", options=[CUSTOM, *LOSSES], default=CUSTOM,
                         tooltip="How a render is compared with its view; see Fit Gaussian Splat. custom: that node's "
                         "own weights. IM-3D needs LPIPS weights."),
                advanced(io.Boolean.Input, "keep_splat", default=False,
                         tooltip="On: each fit goes on from the splat before, as IM-3D's does. Off: each starts anew, "
                         "so that nothing of the first, contradicting views stays in it."),
                io.Mask.Input("masks", optional=True,
                              tooltip="Where the object is in the views (white = object), if their background is not "
                              "plain. From the second fit on the splat's own coverage is used instead."),
                # Saved workflows know the inputs above by their order: new ones go to the end, and are optional.
                advanced(io.Int.Input, "final_iterations", default=FINAL_ITERATIONS, min=1, max=30000,
                         optional=True, tooltip="Steps of the last fit, whose splat you get."),
            ],
            outputs=[
                io.Image.Output(display_name="views", tooltip="The views of the last round."),
                SplatType.Output(display_name="splat", tooltip="The splat fitted to them."),
                io.Image.Output(display_name="renders", tooltip="That splat seen from the cameras."),
                io.Image.Output(display_name="all_views", tooltip="The views you gave, then those of every round, in "
                                "one batch."),
                io.String.Output(display_name="report", tooltip="Where each round started again."),
                io.String.Output(display_name="fit_report", tooltip="What the last fit reports."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images, cameras: Cameras, vae, guider, sampler, sigmas, rounds, restart, values, seed, iterations,
        background, points, start, losses, keep_splat, masks=None, final_iterations=FINAL_ITERATIONS,
    ) -> io.NodeOutput:  # fmt: skip
        levels = _checked_rounds(images, cameras, vae, guider.model_patcher, sigmas, rounds, restart, values)
        # Links, not values: the executor knows the rounds by where their inputs come from, and keeps those whose
        # settings did not change.
        links = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]
        fit = _defaults(GaussianReconstruct) | {
            "iterations": iterations, "seed": seed, "start": start, "background": background, "points": points,
            "losses": losses, "cameras": links["cameras"],
        }  # fmt: skip
        fit["max_points"] = max(points, fit["max_points"])
        graph = GraphBuilder()
        views, everything, coverage = links["images"], links["images"], links.get("masks")
        splat = None
        for number, value in enumerate(round_values(values, rounds)):
            splat = _fitted(graph, number, fit, views, coverage, splat if keep_splat else None)
            if masks is not None:
                coverage = _coverage(graph, number, splat, links["cameras"], images.shape[2], images.shape[1])
            encoded = graph.node("VAEEncode", f"round{number + 1}_encode", pixels=splat.out(1), vae=links["vae"])
            noised = graph.node(
                "MVRenoise", f"round{number + 1}_renoise", model=links["guider"], sigmas=links["sigmas"],
                restart=restart, value=value, seed=seed + number, latent=encoded.out(0),
            )  # fmt: skip
            sampled = graph.node(
                "SamplerCustomAdvanced", f"round{number + 1}_sample", noise=noised.out(2), guider=links["guider"],
                sampler=links["sampler"], sigmas=noised.out(1), latent_image=noised.out(0),
            )  # fmt: skip
            decoded = graph.node("VAEDecode", f"round{number + 1}_decode", samples=sampled.out(0), vae=links["vae"])
            views = decoded.out(0)
            everything = graph.node(
                "ImageBatch", f"round{number + 1}_collect", image1=everything, image2=views
            ).out(0)  # fmt: skip
        fit["iterations"] = final_iterations
        splat = _fitted(graph, rounds, fit, views, coverage, splat if keep_splat else None)
        report = "\n".join(f"- round {i + 1}: {_report(left, len(sigmas) - 1)}" for i, left in enumerate(levels))
        return io.NodeOutput(
            views, splat.out(0), splat.out(1), everything, report, splat.out(3), expand=graph.finalize()
        )


def _checked_rounds(images, cameras, vae, patcher, sigmas, rounds, restart, values) -> list[tuple[float, ...]]:
    """The levels of every round. Errors that would otherwise come after the first fit are raised here."""
    check_images(images, "views")
    check_view_count(len(images), cameras, "views")
    step = int(vae.spacial_compression_encode())
    height, width = images.shape[1:3]
    if height % step or width % step:
        raise ValueError(
            f"The views are {width} x {height} pixels, but this VAE works in steps of {step} and would cut them; "
            f"scale them to multiples of {step} first."
        )
    check_channels(patcher, vae.latent_channels)
    return [_levels(patcher, sigmas, restart, value) for value in round_values(values, rounds)]


def _defaults(node: type[io.ComfyNode]) -> dict:
    """What a node's widgets say when nobody touches them."""
    return {one.id: one.default for one in node.GET_SCHEMA().inputs if getattr(one, "default", None) is not None}


def _fitted(graph: GraphBuilder, number: int, settings: dict, views: list, masks: list | None, before):
    """A fit of the given views; node and links of the expansion."""
    more = {} if masks is None else {"masks": masks}
    if before is not None:
        more["start_from"] = before.out(0)
    return graph.node("MVGaussianReconstruct", f"fit{number}", images=views, **settings, **more)


def _coverage(graph: GraphBuilder, number: int, splat, cameras: list, width: int, height: int) -> list:
    return graph.node(
        "MVGaussianRender", f"coverage{number}", splat=splat.out(0), cameras=cameras, width=width, height=height,
        background="white",
    ).out(1)  # fmt: skip


NODES = [Renoise, IterativeRefine]
