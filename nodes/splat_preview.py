"""A node that shows a splat to turn with the mouse, on every host. The page's part is web/js/splat_preview.js."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io, ui

from ..multiview.splats.look import cameras_around, first_sight
from ..multiview.splats.ply import save_ply
from . import host
from .host import BACKGROUNDS, CamerasType, SplatType, schema
from .splat_files import render_views

PICTURES, SIDE = 4, 256


class SplatPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVSplatPreview",
            display_name="Splat Preview (Multi-View)",
            category="multiview/look",
            description="Shows a splat in the node: drag to turn it, zoom with the wheel.",
            search_aliases=["3dgs viewer", "gaussian splat viewer", "preview 3d", "orbit"],
            inputs=[
                SplatType.Input("splat", tooltip="The splat to show. Of a batch, the first one."),
                io.Combo.Input("background", options=list(BACKGROUNDS), default="white",
                               tooltip="Colour behind the splat."),
                CamerasType.Input("cameras", optional=True,
                                  tooltip="To begin with the sight of the input view. Without: the front, from a "
                                  "little above, with all of the splat in the picture."),
            ],
            outputs=[],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, splat, background: str, cameras=None) -> io.NodeOutput:
        gaussians = host.from_splat(splat)
        sight = first_sight(gaussians, cameras)
        colour = BACKGROUNDS[background]
        path, file = host.temp_path("multiview_splat", ".ply")
        # The viewer knows only the colour that is the same from everywhere; the rest would triple the file.
        save_ply(dataclasses.replace(gaussians, sh=gaussians.sh[:, :1]), path)
        (pictures,) = render_views(
            gaussians.to(host.fit_device()), cameras_around(sight, PICTURES), SIDE, SIDE, colour, show=False
        )
        # "images" is what every front end shows by itself, where the script does not run.
        shown = ui.PreviewImage(pictures, cls=cls).as_dict()
        view = {
            "file": {"filename": file, "subfolder": "", "type": "temp"},
            "start": dataclasses.asdict(sight),
            "background": [round(255 * c) for c in colour],
            "gaussians": gaussians.num,
        }
        return io.NodeOutput(ui={**shown, "mv_splat_preview": [view]})


NODES = [SplatPreview]
