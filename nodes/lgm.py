"""Nodes around LGM: a splat from four views in one pass."""

from __future__ import annotations

import os

import torch
from comfy_api.latest import io

from ..multiview.cameras import Cameras
from ..multiview.checks import check_images, check_view_count
from ..multiview.draw import to_pil
from ..multiview.lgm_files import KINDS, SUFFIXES, load_lgm
from ..multiview.lgm_reconstruct import (
    MIN_OPACITY,
    ROTATIONS,
    TOLERANCE_DEG,
    LGMModel,
    choose_views,
    lgm_model,
)
from ..multiview.splats.render import render_gaussians
from . import host
from .host import CamerasType, SplatType, advanced, schema
from .model_folders import model_files, model_path

CATEGORY = "multiview/splat"
FOLDER = "lgm"
LGMType = io.Custom("MV_LGM")


class LoadLGM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVLoadLGM",
            display_name="Load LGM (Multi-View)",
            category=CATEGORY,
            description="Loads a network that turns four views into a splat in one pass: LGM, the LGM inside VideoMV's "
            "weights, or Ouroboros3D's reconstruction model.",
            search_aliases=["large multi-view gaussian model", "recon_model", "ouroboros3d", "videomv"],
            inputs=[
                io.Combo.Input("file", options=model_files(FOLDER, SUFFIXES),
                               tooltip="A file in models/lgm: LGM's model_fp16_fixrot.safetensors, Ouroboros3D's "
                               "recon_model.pth, VideoMV's weights, or a small LGM trained with this pack."),
                advanced(io.Combo.Input, "rotations", options=list(ROTATIONS), default="auto",
                         tooltip="Whether the Gaussians take the rotations that the network predicts. Weights from "
                         "before April 2024 were trained with a fault that made every rotation the identity. auto: "
                         "predicted for LGM files named ...fixrot... and those trained with this pack, identity for "
                         "all others."),
            ],
            outputs=[
                LGMType.Output(display_name="lgm", tooltip="For LGM Reconstruct."),
                io.String.Output(display_name="report", tooltip="What the file is, and for which cameras it was "
                                 "trained."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        # Taking `file` here also stops the host from refusing files that were put there after the list was made.
        return True if file in model_files(FOLDER, SUFFIXES) else f"There is no '{file}' in models/{FOLDER}."

    @classmethod
    def fingerprint_inputs(cls, file, rotations) -> str:
        state = os.stat(model_path(FOLDER, file, SUFFIXES))
        return f"{file}|{rotations}|{state.st_mtime_ns}|{state.st_size}"

    @classmethod
    def execute(cls, file: str, rotations: str) -> io.NodeOutput:
        network, kind = load_lgm(model_path(FOLDER, file, SUFFIXES))
        model = lgm_model(network, kind, rotations, os.path.basename(file))
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        report = (
            f"{file}: {KINDS[kind][0]}, {millions:.1f} million parameters, up to "
            f"{4 * network.config.splat_size(model.rig.side) ** 2} Gaussians from 4 views of {model.rig.side} pixels; "
            f"trained at distance {model.rig.radius:g} with a field of view of {model.rig.fov_y:g} degrees; rotations: "
            f"{'all the identity' if model.identity_rotations else 'as predicted'}."
        )
        return io.NodeOutput(model, report)


class LGMReconstruct(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVLGMReconstruct",
            display_name="LGM Reconstruct (Multi-View)",
            category=CATEGORY,
            description="Four views, 90 degrees apart, become a splat in one pass of LGM. Of more views it takes the "
            "four it needs.",
            search_aliases=["lgm", "large multi-view gaussian model", "feed-forward reconstruction", "image to splat"],
            inputs=[
                LGMType.Input("lgm", tooltip="The network, from Load LGM."),
                io.Image.Input("images", tooltip="The views, one for each camera and in the same order, on white. An "
                               "alpha channel is used to put them on white."),
                CamerasType.Input("cameras", tooltip="The cameras the views were made from. Those at 0, 90, 180 and "
                                  "270 degrees from the input view are used."),
                advanced(io.Float.Input, "tolerance", default=TOLERANCE_DEG, min=0.1, max=45.0, step=0.5,
                         tooltip="How far, in degrees, a view may be from those four. Its true rays are used."),
                advanced(io.Float.Input, "min_opacity", default=MIN_OPACITY, min=0.0, max=1.0, step=0.005,
                         tooltip="Gaussians that are fainter are left out."),
                advanced(io.Float.Input, "sigma", default=0.0, min=0.0, max=1000.0, step=0.01,
                         tooltip="Noise level of views that are not finished yet. Only Ouroboros3D's reconstruction "
                         "model heeds it; 0 = finished."),
                io.Mask.Input("masks", optional=True, tooltip="Where the object is (white = object); the rest is "
                              "painted white. Needed when the views are not on white."),
            ],
            outputs=[
                SplatType.Output(display_name="splat", tooltip="The Gaussians, in the world of the cameras."),
                io.Image.Output(display_name="renders", tooltip="The splat seen from all the cameras, on white."),
                io.String.Output(display_name="report", tooltip="Which views were used and how many Gaussians came."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, lgm: LGMModel, images, cameras: Cameras, tolerance, min_opacity, sigma,
                masks=None) -> io.NodeOutput:  # fmt: skip
        if not isinstance(lgm, LGMModel):
            raise ValueError(f"lgm should come from Load LGM, got {type(lgm).__name__}.")
        check_images(images)
        check_view_count(len(images), cameras)
        picked = choose_views(cameras, tolerance)
        progress = host.Progress(1 + len(cameras))
        host.place_network(lgm.network)
        views = on_white(images, masks).to(lgm.network.conv.weight.device)
        gaussians = lgm(views, cameras, sigma or None, tolerance_deg=tolerance, min_opacity=min_opacity)
        progress.step(1)
        gaussians = gaussians.to(host.fit_device())
        height, width = images.shape[1:3]
        renders = []
        for i in range(len(cameras)):
            drawn = render_gaussians(gaussians, cameras.subset([i]), width, height)
            renders.append(drawn.features.clamp(0, 1).cpu())
            progress.step(2 + i, picture=to_pil(renders[-1][0]))
        azimuths = cameras.azimuths()
        report = f"{gaussians.num} Gaussians from " + ", ".join(
            f"view {i} ({float(azimuths[i]):.1f} degrees)" for i in picked
        )
        return io.NodeOutput(host.to_splat(gaussians), torch.cat(renders), report)


def on_white(images: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
    """(N,H,W,3) over white, by the alpha channel and by masks (N,H,W) or (1,H,W) where they are given."""
    colour = images[..., :3]
    if images.shape[-1] > 3:
        alpha = images[..., 3:4].clamp(0, 1)
        colour = colour * alpha + 1 - alpha
    if masks is None:
        return colour
    if masks.ndim != 3 or masks.shape[0] not in (1, len(images)) or masks.shape[1:] != images.shape[1:3]:
        raise ValueError(
            f"The masks should have shape {tuple(images.shape[:3])} as the views have, got {tuple(masks.shape)}."
        )
    inside = masks.to(colour)[..., None].clamp(0, 1)
    return colour * inside + 1 - inside


NODES = [LoadLGM, LGMReconstruct]
