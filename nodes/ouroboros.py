"""Nodes around Ouroboros3D: its view model, what it is told of cameras and of the last splat, and coordinate maps."""

from __future__ import annotations

import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io

from ..multiview.cameras import Cameras
from ..multiview.checks import check_images, check_size, check_view_count
from ..multiview.coordinates import CUBE, DEFINITIONS, coordinate_map
from ..multiview.draw import to_pil
from ..multiview.lgm_files import SUFFIXES, read_tensors
from ..multiview.splats.render import render_gaussians
from . import host
from .host import CamerasType, SplatType, advanced, schema
from .model_folders import model_files, model_path
from .ouroboros_model import injector_of, load_view_model, with_injection

CATEGORY = "multiview/ouroboros3d"
FOLDER = "ouroboros3d"


class CoordinateMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCoordinateMaps",
            display_name="Coordinate Maps (Multi-View)",
            category="multiview/splat",
            description="Draws a splat so that every pixel's colour says where in the world the surface is. The same "
            "point has the same colour in every view; view models are fed with it.",
            search_aliases=["ccm", "canonical coordinates", "position map", "nocs"],
            inputs=[
                SplatType.Input("splat", tooltip="The splat to draw. Of a batch, the first one."),
                CamerasType.Input("cameras", tooltip="The cameras to draw it from, one picture for each."),
                io.Int.Input("width", default=512, min=8, max=4096, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=512, min=8, max=4096, step=8, tooltip="Height in pixels."),
                io.Combo.Input("definition", options=list(DEFINITIONS), default="canonical",
                               tooltip="canonical: red, green, blue = x, y, z in the cube, 0.5 in its middle. "
                               "released: what Ouroboros3D's public weights were trained with, not quite a position; "
                               "only for them, at 512 x 512."),
                advanced(io.Float.Input, "cube", default=CUBE, min=0.01, max=100.0, step=0.05,
                         tooltip="Side of the cube around the origin that fills the colours, in world units. Only for "
                         "canonical."),
            ],
            outputs=[
                io.Image.Output(display_name="coordinates", tooltip="The coordinate maps; grey where nothing is."),
                io.Image.Output(display_name="colour", tooltip="The splat's colours on white, from the same cameras."),
                io.Mask.Output(display_name="masks", tooltip="Coverage: 1 = object."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, splat, cameras: Cameras, width, height, definition, cube) -> io.NodeOutput:
        check_size(width, height)
        gaussians = host.from_splat(splat).to(host.fit_device())
        progress = host.Progress(len(cameras))
        seen: list[tuple[torch.Tensor, ...]] = []
        for i in range(len(cameras)):
            drawn = render_gaussians(gaussians, cameras.subset([i]), width, height)
            seen.append((drawn.features.clamp(0, 1).cpu(), drawn.depth[..., 0].cpu(), drawn.alpha[..., 0].cpu()))
            progress.step(i + 1, picture=to_pil(seen[-1][0][0]))
        colour, depth, coverage = (torch.cat(part) for part in zip(*seen, strict=True))
        coordinates = coordinate_map(depth, coverage, cameras, definition, cube)
        return io.NodeOutput(coordinates, colour, coverage.clamp(0, 1))


class LoadOuroboros3D(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVLoadOuroboros3D",
            display_name="Load Ouroboros3D (Multi-View)",
            category=CATEGORY,
            description="Loads Ouroboros3D's view model: Stable Video Diffusion that draws eight views of an object "
            "and can be told what a splat of them looks like. VAE and CLIP vision come from your SVD checkpoint.",
            search_aliases=["mv_model_unet", "svd", "image to views", "3d-aware feedback"],
            inputs=[
                io.Combo.Input("file", options=model_files(FOLDER, SUFFIXES),
                               tooltip="mv_model_unet.pth of Ouroboros3D-SVD-LGM, in models/ouroboros3d, or the same "
                               "saved as .safetensors."),
                io.Combo.Input("checkpoint", options=folder_paths.get_filename_list("checkpoints"),
                               tooltip="A Stable Video Diffusion checkpoint in models/checkpoints (svd.safetensors), "
                               "for its VAE and CLIP vision. Its own UNet is not loaded."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The view model. It needs Ouroboros3D Cameras before it "
                                "can sample what it was trained for."),
                io.Vae.Output(display_name="vae", tooltip="The checkpoint's VAE."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="The checkpoint's CLIP vision model."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        # Taking `file` here also stops the host from refusing files that were put there after the list was made.
        return True if file in model_files(FOLDER, SUFFIXES) else f"There is no '{file}' in models/{FOLDER}."

    @classmethod
    def execute(cls, file: str, checkpoint: str) -> io.NodeOutput:
        model = load_view_model(read_tensors(model_path(FOLDER, file, SUFFIXES)))
        path = folder_paths.get_full_path_or_raise("checkpoints", checkpoint)
        _, _, vae, clip_vision = comfy.sd.load_checkpoint_guess_config(
            path, output_vae=True, output_clip=False, output_clipvision=True, output_model=False
        )[:4]
        if clip_vision is None:
            raise ValueError(
                f"The checkpoint {checkpoint} brings no CLIP vision model; choose a Stable Video Diffusion one, such "
                "as svd.safetensors."
            )
        return io.NodeOutput(model, vae, clip_vision)


class Ouroboros3DCameras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVOuroboros3DCameras",
            display_name="Ouroboros3D Cameras and Feedback (Multi-View)",
            category=CATEGORY,
            description="Tells Ouroboros3D's view model from which cameras to draw, and optionally what a splat of an "
            "earlier round looks like from there. Without maps it draws as in the first step of its loop.",
            search_aliases=["plucker", "self-conditioning", "3d-aware feedback", "ccm"],
            inputs=[
                io.Model.Input("model", tooltip="The model of Load Ouroboros3D."),
                CamerasType.Input("cameras", tooltip="The cameras of the views, one for each frame; the preset "
                                  "ouroboros3d is what the weights were trained on."),
                io.Image.Input("colour", optional=True, tooltip="The splat's colours on white from these cameras, of "
                               "the same size as the views. Left out together with coordinates: black."),
                io.Image.Input("coordinates", optional=True, tooltip="Its coordinate maps from these cameras. Choose "
                               "the definition 'released' for the public weights."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model for a sampler, with as many frames as there "
                                "are cameras."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, cameras: Cameras, colour=None, coordinates=None) -> io.NodeOutput:
        injector_of(model)
        maps = {}
        for label, pictures in (("colour", colour), ("coordinates", coordinates)):
            if pictures is not None:
                checked = check_images(pictures, f"{label} maps")
                check_view_count(len(checked), cameras, f"{label} maps")
                maps[label] = checked.movedim(-1, 1).float().clamp(0, 1)
        return io.NodeOutput(with_injection(model, cameras, maps or None))


NODES = [CoordinateMaps, LoadOuroboros3D, Ouroboros3DCameras]
