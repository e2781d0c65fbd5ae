"""Conditioning of orbit models (SV3D and the demo models) from cameras."""

from __future__ import annotations

import comfy.utils
import torch
from comfy_api.latest import io

from ..multiview.cameras import Cameras
from ..multiview.checks import check_images, check_size
from .host import CamerasType, schema


class ViewConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVViewConditioning",
            display_name="Orbit View Conditioning (Multi-View)",
            category="multiview/conditioning",
            description="Tells an orbit model (SV3D, or this pack's demo models) which picture to start from and from "
            "which cameras to draw it. Unlike core's SV3D_Conditioning it feeds the cameras you give it, so that the "
            "views stand exactly where the splat fit expects them.",
            search_aliases=["sv3d conditioning", "view conditioning", "zero123"],
            inputs=[
                io.Image.Input("image", tooltip="The input picture: one object, filling most of the frame, on a plain "
                               "background. Only the first picture of a batch is used."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                CamerasType.Input("cameras", tooltip="The cameras to draw the views from, one view for each."),
                io.Int.Input("width", default=128, min=8, max=4096, step=8,
                             tooltip="Width of the views in pixels, a multiple of 8. SV3D: 576; demo models: the "
                             "resolution they were loaded with."),
                io.Int.Input("height", default=128, min=8, max=4096, step=8,
                             tooltip="Height of the views in pixels, a multiple of 8. SV3D: 576."),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="The CLIP vision model of the checkpoint (SV3D needs it; the demo models "
                                    "do without)."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="With the input picture."),
                io.Conditioning.Output(display_name="negative", tooltip="The same cameras without the input picture."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent with one entry for each view."),
            ],
        )

    @classmethod
    def execute(cls, image, vae, cameras: Cameras, width: int, height: int, clip_vision=None) -> io.NodeOutput:
        check_size(width, height)
        picture = check_images(image, "input picture")[:1]
        pixels = comfy.utils.common_upscale(picture.movedim(-1, 1), width, height, "bicubic", "center").movedim(1, -1)
        reference = vae.encode(pixels.clamp(0, 1))
        if clip_vision is None:
            embedding = torch.zeros(1, 1, 1024)
        else:
            embedding = clip_vision.encode_image(picture).image_embeds.unsqueeze(0)
        azimuths = cameras.azimuths()
        if cameras.input_view is not None:
            azimuths = (azimuths - azimuths[cameras.input_view]) % 360.0
        pose = {"azimuth": azimuths.tolist(), "elevation": cameras.elevations().tolist()}
        positive = [[embedding, {"concat_latent_image": reference, **pose}]]
        negative = [[torch.zeros_like(embedding), {"concat_latent_image": torch.zeros_like(reference), **pose}]]
        latent = torch.zeros((len(cameras), *reference.shape[1:]))
        return io.NodeOutput(positive, negative, {"samples": latent})


NODES = [ViewConditioning]
