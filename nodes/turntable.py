"""A node that shows views as a turntable: drag it and the object turns. The page's part is web/js/turntable.js."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..multiview.checks import check_images, check_view_count
from .host import CamerasType, schema


class TurntablePreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVTurntablePreview",
            display_name="Turntable Preview (Multi-View)",
            category="multiview/look",
            description="Turns through views by dragging, wheel or arrow keys; a second batch is compared by a slider.",
            search_aliases=["orbit viewer", "before after", "compare", "360"],
            inputs=[
                io.Image.Input("views", tooltip="The views in the order of the orbit."),
                io.Float.Input("fps", default=8.0, min=0.5, max=60.0, step=0.5,
                               tooltip="Views per second when Play is pressed."),
                io.Image.Input("before", optional=True,
                               tooltip="The same views before a change: shown left of the slider. As many as views."),
                CamerasType.Input("cameras", optional=True, tooltip="To show the azimuth of each view in degrees."),
            ],
            outputs=[],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, views, fps: float, before=None, cameras=None) -> io.NodeOutput:
        views = check_images(views, "views")
        if cameras is not None:
            check_view_count(len(views), cameras, "views")
        if before is not None:
            before = check_images(before, "views of the input 'before'")
            if len(before) != len(views):
                raise ValueError(
                    f"There are {len(views)} views but {len(before)} in 'before'; connect the same views before and "
                    "after."
                )
        azimuths = [] if cameras is None else [round(a, 2) for a in cameras.azimuths().tolist()]
        # "images" is what every front end shows by itself, where the script does not run.
        shown = ui.PreviewImage(views, cls=cls).as_dict()
        compared = [] if before is None else ui.PreviewImage(before, cls=cls).as_dict()["images"]
        return io.NodeOutput(ui={**shown, "mv_turntable": [{"azimuths": azimuths, "before": compared}]})


NODES = [TurntablePreview]
