"""Nodes that render, save and load Gaussian splats. The fit: splats.py."""

from __future__ import annotations

import os

import folder_paths
import torch
from comfy_api.latest import io

from ..multiview.cameras import Cameras
from ..multiview.checks import check_size
from ..multiview.depth import DepthMaps
from ..multiview.draw import to_pil
from ..multiview.splats.ply import load_ply, save_ply
from ..multiview.splats.render import render_coordinates, render_gaussians
from . import host
from .host import BACKGROUNDS, CamerasType, DepthType, SplatType, advanced, schema

CATEGORY = "multiview/splat"


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
                advanced(io.Boolean.Input, "antialiased", default=False, optional=True,
                         tooltip="For splats that were fitted with antialiased, and only for those."),
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
    def execute(cls, splat, cameras: Cameras, width, height, background, antialiased=False) -> io.NodeOutput:
        check_size(width, height)
        gaussians = host.from_splat(splat).to(host.fit_device())
        images, masks, depth, coordinates = render_views(
            gaussians, cameras, width, height, BACKGROUNDS[background], antialiased, everything=True
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
def render_views(
    gaussians, cameras: Cameras, width: int, height: int, background, antialiased=False, everything=False, show=True
) -> tuple[torch.Tensor, ...]:
    """Pictures one view at a time, so that memory stays that of one view and a cancel is noticed between views.

    show: whether the node shows each picture as it is made; front ends keep the last one below the node's widgets.
    """
    progress = host.Progress(len(cameras))
    images, masks, depth, coordinates = [], [], [], []
    for i in range(len(cameras)):
        view = cameras.subset([i])
        out = render_gaussians(gaussians, view, width, height, background, antialiased=antialiased)
        images.append(out.features.clamp(0, 1).cpu())
        if everything:
            alpha = out.alpha.cpu()
            masks.append(alpha[..., 0].clamp(0, 1))
            depth.append(out.depth[..., 0].cpu())
            where = render_coordinates(gaussians, view, width, height)
            coordinates.append(((where.features.cpu() * alpha) + 0.5).clamp(0, 1))
        progress.step(i + 1, picture=to_pil(images[-1][0]) if show else None)
    joined = tuple(torch.cat(parts) for parts in (images, masks, depth, coordinates) if parts)
    return joined if everything else joined[:1]


NODES = [GaussianRender, SaveSplat, LoadSplat]
