"""Nodes that fit, render, save and load Gaussian splats."""

from __future__ import annotations

import os

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from ..multiview.cameras import Cameras
from ..multiview.checks import check_size
from ..multiview.depth import DepthMaps
from ..multiview.draw import curves, from_pil, to_pil
from ..multiview.splats.fit import FitConfig, fit
from ..multiview.splats.init import METHODS
from ..multiview.splats.losses import psnr
from ..multiview.splats.ply import load_ply, save_ply
from ..multiview.splats.render import render_coordinates, render_gaussians
from . import host
from .host import BACKGROUNDS, CamerasType, DepthType, SplatType, advanced, schema

CATEGORY = "multiview/splat"
# Working memory of a fit, a generous guess, so that big models make room first.
FIT_MEMORY_BYTES = 2 << 30
PREVIEWS = 30


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
            search_aliases=["3dgs", "gaussian splatting", "reconstruct", "im-3d"],
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
                               "in IM-3D."),
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
            ],
            outputs=[
                SplatType.Output(display_name="splat", tooltip="The fitted Gaussians."),
                io.Image.Output(display_name="renders", tooltip="The splat seen from the cameras of the views."),
                io.Image.Output(display_name="loss_curve", tooltip="How the losses fell, as a picture."),
                io.String.Output(display_name="report", tooltip="Gaussians, losses and PSNR against the views."),
            ],
        )

    @classmethod
    def execute(cls, images, cameras: Cameras, iterations, seed, start, background, points, max_points, sh_degree,
                weight_l1, weight_ms_ssim, weight_mask, masks=None, start_from=None) -> io.NodeOutput:
        config = FitConfig(
            iterations=iterations, seed=seed, init=start, points=points, max_points=max_points, sh_degree=sh_degree,
            w_l1=weight_l1, w_msssim=weight_ms_ssim, w_mask=weight_mask,
            background=BACKGROUNDS.get(background, "auto"),
        )
        warm = None if start_from is None else host.from_splat(start_from)
        device = host.fit_device()
        comfy.model_management.free_memory(FIT_MEMORY_BYTES, device)
        progress = host.Progress(iterations)
        every = max(1, iterations // PREVIEWS)

        def on_step(step: int, total: int, info: dict) -> None:
            last = step == total
            picture = to_pil(info["get_preview"]()) if step % every == 0 or last else None
            progress.step(step, total, picture, send=picture is not None)

        result = fit(images, cameras, masks, config, on_step, start=warm, device=device)
        height, width = images.shape[1:3]
        renders = _render(result.gaussians, cameras, width, height, result.background)[0]
        history = {name: values for name, values in result.history.items() if name != "gaussians"}
        picture = curves(history, "loss by iteration", log=True)
        report = (
            f"{result.gaussians.num} Gaussians after {iterations} iterations on {device.type}; "
            f"PSNR against the views {float(psnr(renders, _over(images, result.background)).mean()):.2f} dB; "
            + ", ".join(f"{name} {values[-1]:.4f}" for name, values in history.items())
        )
        return io.NodeOutput(host.to_splat(result.gaussians), renders, from_pil(picture), report)


class GaussianRender(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVGaussianRender",
            display_name="Render Gaussian Splat (Multi-View)",
            category=CATEGORY,
            description="Renders a splat from any cameras: colour, coverage, metric depth and world coordinates.",
            search_aliases=["3dgs", "turntable", "canonical coordinates"],
            inputs=[
                SplatType.Input("splat", tooltip="The splat to render. Of a batch, the first one."),
                CamerasType.Input("cameras", tooltip="The cameras to render from, one picture for each."),
                io.Int.Input("width", default=512, min=8, max=4096, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=512, min=8, max=4096, step=8, tooltip="Height in pixels."),
                io.Combo.Input("background", options=list(BACKGROUNDS), default="white",
                               tooltip="Colour behind the splat."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Colour, over the background."),
                io.Mask.Output(display_name="masks", tooltip="Coverage: 1 = object."),
                DepthType.Output(display_name="depth", tooltip="Metric depth along the view axis, with coverage as its "
                                 "confidence."),
                io.Image.Output(display_name="coordinates", tooltip="World position of the surface as colour: "
                                "r, g, b = x, y, z + 0.5; grey where there is nothing."),
                io.Image.Output(display_name="depth_picture", tooltip="Depth to look at: near is white."),
            ],
        )

    @classmethod
    def execute(cls, splat, cameras: Cameras, width, height, background) -> io.NodeOutput:
        check_size(width, height)
        gaussians = host.from_splat(splat).to(host.fit_device())
        images, masks, depth, coordinates = _render(
            gaussians, cameras, width, height, BACKGROUNDS[background], everything=True
        )
        maps = DepthMaps(depth, masks)
        return io.NodeOutput(images, masks, maps, coordinates, maps.picture())


class SaveSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVSaveSplat",
            display_name="Save Gaussian Splat (Multi-View)",
            category=CATEGORY,
            description="Saves a splat as the standard 3DGS .ply that splat viewers and editors open.",
            search_aliases=["export ply", "3dgs"],
            inputs=[
                SplatType.Input("splat", tooltip="The splat to save. Of a batch, the first one."),
                io.String.Input("filename_prefix", default="3d/multiview",
                                tooltip="Start of the file's name, in ComfyUI's output folder; folders are made."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Full path of the saved file.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, splat, filename_prefix: str) -> io.NodeOutput:
        gaussians = host.from_splat(splat)
        path, file, subfolder = host.output_path(filename_prefix, ".ply")
        save_ply(gaussians, path)
        saved = {"filename": file, "subfolder": subfolder, "type": "output"}
        return io.NodeOutput(path, ui={"3d": [saved], "text": [f"{gaussians.num} Gaussians saved to {path}"]})


class LoadSplat(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVLoadSplat",
            display_name="Load Gaussian Splat (Multi-View)",
            category=CATEGORY,
            description="Loads a 3DGS .ply from ComfyUI's input or output folder.",
            search_aliases=["import ply", "3dgs"],
            inputs=[
                io.Combo.Input("file", options=_ply_files(),
                               tooltip="A .ply below ComfyUI's input folder, or below output (marked [output])."),
            ],
            outputs=[SplatType.Output(display_name="splat", tooltip="The splat.")],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        # Taking `file` here also stops the host from refusing files that were saved after the list was made.
        return True if folder_paths.exists_annotated_filepath(file) else (
            f"There is no splat file '{file}' in ComfyUI's folders; put the .ply into the input folder and reload."
        )

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        state = os.stat(folder_paths.get_annotated_filepath(file))
        return f"{file}|{state.st_mtime_ns}|{state.st_size}"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(host.to_splat(load_ply(_inside_folders(file))))


def _inside_folders(file: str) -> str:
    path = os.path.realpath(folder_paths.get_annotated_filepath(file))
    roots = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
    if not any(path.startswith(os.path.join(os.path.realpath(root), "")) for root in roots):
        raise ValueError(f"'{file}' lies outside ComfyUI's input and output folders; copy it into one of them.")
    return path


def _ply_files() -> list[str]:
    found = []
    for root, mark in ((folder_paths.get_input_directory(), ""), (folder_paths.get_output_directory(), " [output]")):
        for folder, _, files in os.walk(root):
            relative = os.path.relpath(folder, root).replace(os.sep, "/")
            prefix = "" if relative == "." else relative + "/"
            found += [f"{prefix}{name}{mark}" for name in sorted(files) if name.lower().endswith(".ply")]
    return found


@torch.no_grad()
def _render(gaussians, cameras: Cameras, width: int, height: int, background, everything: bool = False):
    """Pictures one view at a time, so that memory stays that of one view and a cancel is noticed between views."""
    progress = host.Progress(len(cameras))
    images, masks, depth, coordinates = [], [], [], []
    for i in range(len(cameras)):
        view = cameras.subset([i])
        out = render_gaussians(gaussians, view, width, height, background)
        images.append(out.features.clamp(0, 1).cpu())
        if everything:
            alpha = out.alpha.cpu()
            masks.append(alpha[..., 0].clamp(0, 1))
            depth.append(out.depth[..., 0].cpu())
            where = render_coordinates(gaussians, view, width, height)
            coordinates.append(((where.features.cpu() * alpha) + 0.5).clamp(0, 1))
        progress.step(i + 1, picture=to_pil(images[-1][0]))
    joined = tuple(torch.cat(parts) for parts in (images, masks, depth, coordinates) if parts)
    return joined if everything else joined[:1]


def _over(images, background) -> torch.Tensor:
    """Views as the fit saw them: colours in front of the background where they carry alpha."""
    if images.shape[-1] < 4:
        return images
    alpha = images[..., 3:4].clamp(0, 1)
    return images[..., :3] * alpha + background.to(images) * (1 - alpha)


NODES = [GaussianReconstruct, GaussianRender, SaveSplat, LoadSplat]
