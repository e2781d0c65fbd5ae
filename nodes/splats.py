"""The node that fits a Gaussian splat to views."""

from __future__ import annotations

import logging
from dataclasses import replace

import comfy.model_management
import torch
from comfy_api.latest import io

from ..multiview.cameras import Cameras
from ..multiview.draw import curves, from_pil, to_pil
from ..multiview.splats.camera_search import find_cameras
from ..multiview.splats.fit import FitResult, fit
from ..multiview.splats.fit_config import IM3D_FIT, LOSSES, STRATEGIES, FitConfig
from ..multiview.splats.init import METHODS
from ..multiview.splats.losses import psnr
from ..multiview.splats.memory import memory_advice
from ..multiview.splats.views import parse_colour, parse_view_weights
from . import host
from .host import BACKGROUNDS, CamerasType, DepthType, SplatType, advanced, schema
from .lpips_weights import FILES, lpips_network
from .splat_files import CATEGORY, render_views

# Working memory of a fit, a generous guess, so that big models make room first; LPIPS keeps features of the views.
FIT_MEMORY_BYTES, LPIPS_MEMORY_BYTES = 2 << 30, 2 << 30
PREVIEWS = 30
CUSTOM, PAPER = "custom", "IM-3D paper"
PRESETS = (CUSTOM, PAPER)
REFINE = {
    "off": (),
    "elevation": ("elevation",),
    "elevation and azimuths": ("elevation", "azimuths"),
    "elevation, azimuths and field of view": ("elevation", "azimuths", "fov"),
}
MEMORY_ADVICE = (
    "lower max_points, the size of the views or sh_degree, or choose losses without LPIPS; other models were unloaded, "
    "and you can run again at once."
)


class GaussianReconstruct(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        default = FitConfig()
        return schema(
            node_id="MVGaussianReconstruct",
            display_name="Fit Gaussian Splat (Multi-View)",
            category=CATEGORY,
            description="Fits 3D Gaussians to views of one object by gradient descent. Uses gsplat on an NVIDIA card "
            "where it is installed, otherwise a rasteriser in plain torch that runs everywhere.",
            search_aliases=["3dgs", "gaussian splatting", "reconstruct", "im-3d", "mcmc", "elevation"],
            inputs=[
                io.Image.Input("images", tooltip="The views, one for each camera and in the same order. An alpha "
                               "channel is used as the mask."),
                CamerasType.Input("cameras", tooltip="The cameras the views were made from."),
                io.Int.Input("iterations", default=default.iterations, min=1, max=30000,
                             tooltip="Steps of gradient descent. More is sharper and slower; cancel stops at once."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=False,
                             tooltip="Same seed, same splat (bit for bit on the CPU)."),
                io.Combo.Input("start", options=list(METHODS), default=default.init,
                               tooltip="Where the Gaussians start. hull: on the visual hull of the masks (best when "
                               "they are good); sphere: anywhere in the scene; center: a small ball at the centre, as "
                               "in IM-3D; depth: on the surface that depth shows."),
                io.Combo.Input("background", options=["auto", *BACKGROUNDS], default="auto",
                               tooltip="Colour behind the object in the views. auto measures it at the borders."),
                advanced(io.Int.Input, "points", default=default.points, min=10, max=500000,
                         tooltip="Number of Gaussians to start with."),
                advanced(io.Int.Input, "max_points", default=default.max_points, min=10, max=2000000,
                         tooltip="Densification stops at this number of Gaussians."),
                advanced(io.Int.Input, "sh_degree", default=default.sh_degree, min=0, max=3,
                         tooltip="Degree of view-dependent colour. 0 = one colour from every side, which is best when "
                         "views contradict each other; 3 also draws gloss."),
                advanced(io.Float.Input, "weight_l1", default=default.w_l1, min=0.0, max=100.0, step=0.05,
                         tooltip="Weight of the absolute colour difference."),
                advanced(io.Float.Input, "weight_ms_ssim", default=default.w_msssim, min=0.0, max=100.0, step=0.05,
                         tooltip="Weight of the structural difference (MS-SSIM). Forgives small shifts between views."),
                advanced(io.Float.Input, "weight_mask", default=default.w_mask, min=0.0, max=100.0, step=0.05,
                         tooltip="Weight of the difference between the splat's coverage and the masks."),
                io.Mask.Input("masks", optional=True,
                              tooltip="Where the object is (white = object), one for each view. Left out: the views' "
                              "alpha, or estimated from the background colour. LoadImage's mask is the inverse."),
                SplatType.Input("start_from", optional=True,
                                tooltip="A splat to go on from instead of starting anew."),
                # Saved workflows know the inputs above by their order: new ones go to the end, and are optional.
                DepthType.Input("depth", optional=True,
                                tooltip="Depth of the views, for the start \"depth\", and only for it."),
                io.Combo.Input("preset", options=list(PRESETS), default=CUSTOM, optional=True,
                               tooltip="custom: the settings of this node. IM-3D paper: 1,200 iterations from 5,000 "
                               "points at the centre, growing every 50 steps, with the losses of IM-3D; needs a "
                               "graphics card. A preset overrides those settings."),
                io.Combo.Input("losses", options=[CUSTOM, *LOSSES], default=CUSTOM, optional=True,
                               tooltip="How a render is compared with its view. custom: the weights of this node. "
                               "IM-3D: LPIPS, MS-SSIM and mask, which forgives views that contradict each other; needs "
                               "LPIPS weights in models/lpips. IM-3D without LPIPS: MS-SSIM in its place. L2: plain "
                               "squared difference."),
                io.Combo.Input("refine_cameras", options=list(REFINE), default="off", optional=True,
                               tooltip="Correct the cameras from the views: for views whose elevation nobody told you, "
                               "and for models whose steps are uneven. The result is the output cameras."),
                advanced(io.Boolean.Input, "search_elevation", default=True, optional=True,
                         tooltip="Before refining, try elevations from -30 to 60 degrees with short fits. Off: the "
                         "given elevation is right to about 10 degrees."),
                advanced(io.String.Input, "view_weights", default="", optional=True,
                         tooltip="How much each view counts: numbers between commas, one for each view. Empty: all "
                         "the same. 0 leaves a view out."),
                advanced(io.Float.Input, "weight_l2", default=default.w_l2, min=0.0, max=100.0, step=0.05,
                         optional=True, tooltip="Weight of the squared colour difference."),
                advanced(io.Float.Input, "weight_lpips", default=default.w_lpips, min=0.0, max=100.0, step=0.05,
                         optional=True, tooltip="Weight of the perceptual difference LPIPS. IM-3D uses 10."),
                advanced(io.Combo.Input, "lpips_net", options=list(FILES), default="vgg", optional=True,
                         tooltip="Network of LPIPS: vgg as in IM-3D, alex is several times faster."),
                advanced(io.Combo.Input, "strategy", options=list(STRATEGIES), default=default.strategy, optional=True,
                         tooltip="How Gaussians grow. default: split and prune by gradient. mcmc: move faint ones onto "
                         "opaque ones, with noise. none: keep the number."),
                advanced(io.Int.Input, "densify_every", default=default.densify_every, min=0, max=10000, optional=True,
                         tooltip="Steps between growing and pruning. 0 = never."),
                advanced(io.Boolean.Input, "antialiased", default=False, optional=True,
                         tooltip="Draw small Gaussians without making them brighter (Mip-Splatting). Render the splat "
                         "with antialiased as well: a .ply cannot say so."),
                advanced(io.Int.Input, "stop_after", default=0, min=0, max=10000, optional=True,
                         tooltip="Stop early when the loss has not fallen for this many steps. 0 = never."),
                advanced(io.String.Input, "background_colour", default="", optional=True,
                         tooltip="Colour behind the object as #rrggbb, instead of background. Empty: as chosen there."),
            ],
            outputs=[
                SplatType.Output(display_name="splat", tooltip="The fitted Gaussians."),
                io.Image.Output(display_name="renders", tooltip="The splat seen from the cameras of the views."),
                io.Image.Output(display_name="loss_curve", tooltip="How the losses fell, as a picture."),
                io.String.Output(display_name="report", tooltip="Gaussians, losses and PSNR against the views; what "
                                 "the preset set, what was left out, how the cameras were corrected."),
                CamerasType.Output(display_name="cameras", tooltip="The cameras, corrected if refine_cameras is on: "
                                   "use these to render the splat like the views."),
            ],
        )

    @classmethod
    def execute(cls, images, cameras: Cameras, iterations, seed, start, background, points, max_points, sh_degree,
                weight_l1, weight_ms_ssim, weight_mask, masks=None, start_from=None, depth=None, preset=CUSTOM,
                losses=CUSTOM, refine_cameras="off", search_elevation=True, view_weights="", weight_l2=0.0,
                weight_lpips=0.0, lpips_net="vgg", strategy="default", densify_every=50, antialiased=False,
                stop_after=0, background_colour="") -> io.NodeOutput:
        config = FitConfig(
            iterations=iterations, seed=seed, init=start, points=points, max_points=max_points, sh_degree=sh_degree,
            w_l1=weight_l1, w_msssim=weight_ms_ssim, w_mask=weight_mask, w_l2=weight_l2, w_lpips=weight_lpips,
            strategy=strategy, densify_every=densify_every, antialiased=antialiased, patience=stop_after,
            refine=REFINE[refine_cameras],
            background=parse_colour(background_colour) if background_colour.strip() else
            BACKGROUNDS.get(background, "auto"),
        )
        notes = []
        if preset == PAPER:
            config = replace(config, **IM3D_FIT, max_points=max(max_points, IM3D_FIT["points"]))
            losses = "IM-3D"
            notes.append(f"preset {PAPER}: " + ", ".join(f"{k} {v}" for k, v in IM3D_FIT.items()))
        if losses != CUSTOM:
            config = replace(config, **LOSSES[losses])
        config, network, note = _with_lpips(config, lpips_net)
        if note:
            logging.getLogger(__name__).warning(note)
            notes.append(note)
        weights = parse_view_weights(view_weights, len(images))
        warm = None if start_from is None else host.from_splat(start_from)
        device = host.fit_device()
        memory = FIT_MEMORY_BYTES + (LPIPS_MEMORY_BYTES if network is not None else 0)
        comfy.model_management.free_memory(memory, device)
        with memory_advice("fitting the splat", MEMORY_ADVICE):
            if config.refine and search_elevation and "elevation" in config.refine:
                cameras, found = find_cameras(
                    images, cameras, masks, config.refine, background=config.background, seed=seed,
                    on_step=_reporter(1), device=device,
                )
                notes.append(f"cameras corrected before the fit: {found.describe() or 'not at all'}")
            result = fit(
                images, cameras, masks, config, _reporter(config.iterations), start=warm, view_weights=weights,
                depth=depth, perceptual=network, device=device,
            )
            height, width = images.shape[1:3]
            renders = render_views(
                result.gaussians, result.cameras, width, height, result.background, config.antialiased
            )[0]
        if config.refine:
            notes.append(f"cameras corrected during the fit: {result.offsets.describe() or 'not at all'}")
        history = {name: values for name, values in result.history.items() if name != "gaussians"}
        picture = curves(history, "loss by iteration", log=True)
        score = float(psnr(renders, _over(images, result.background)).mean())
        report = "\n".join([_summary(result, config, device, score), *notes])
        splat = host.to_splat(result.gaussians)
        return io.NodeOutput(splat, renders, from_pil(picture), report, result.cameras.to("cpu"))


def _with_lpips(config: FitConfig, kind: str) -> tuple[FitConfig, torch.nn.Module | None, str]:
    """The settings, the network where they weigh LPIPS, and a sentence where not everything was there."""
    if not config.w_lpips:
        return config, None, ""
    network, note = lpips_network(kind)
    if network is None:
        config = replace(config, **LOSSES["IM-3D without LPIPS"])
        used = ", ".join(f"{name[2:]} {value:g}" for name, value in LOSSES["IM-3D without LPIPS"].items() if value)
        note += f" Used instead: the losses 'IM-3D without LPIPS' ({used})."
    return config, network, note


def _reporter(total: int):
    """on_step of a fit: the host's progress bar, a picture of the growing splat now and then, and cancelling."""
    progress = host.Progress(total)

    def on_step(step: int, total: int, info: dict) -> None:
        shown = step % max(1, total // PREVIEWS) == 0 or step == total
        progress.step(step, total, to_pil(info["get_preview"]()) if shown else None, send=shown)

    return on_step


def _summary(result: FitResult, config: FitConfig, device: torch.device, score: float) -> str:
    history = result.history
    done = len(history["loss"])
    steps = f"{done} iterations"
    if done < config.iterations:
        steps += f" (stopped early, {config.iterations} were allowed)"
    parts = [f"{name} {values[-1]:.4f}" for name, values in history.items() if name != "gaussians"]
    return (
        f"{result.gaussians.num} Gaussians after {steps} on {device.type}; PSNR against the views {score:.2f} dB; "
        + ", ".join(parts)
    )


def _over(images, background) -> torch.Tensor:
    """Views as the fit saw them: colours in front of the background where they carry alpha."""
    if images.shape[-1] < 4:
        return images
    alpha = images[..., 3:4].clamp(0, 1)
    return images[..., :3] * alpha + background.to(images) * (1 - alpha)


NODES = [GaussianReconstruct]
