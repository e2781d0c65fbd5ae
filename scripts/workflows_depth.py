"""The workflow that shows where depth of views can come from."""

from __future__ import annotations

from workflow_graph import Graph

GREEN, BLUE, PURPLE, BROWN = "#3f6f4a", "#3f789e", "#6b4f8f", "#8a6642"

NOTE = """
## Depth of views, from two sources

Press **Run**. It needs no download and no graphics card, and takes about half a minute on two CPU cores.

1. **Input**: a toy seen by 8 cameras around it.
2. **Depth by a network**: *Estimate Depth* looks at each view by itself, then uses the cameras to bring all views to
   one scale, so that they agree on one surface. The *demo depth net* knows only such toys. For your own pictures put
   **Depth-Anything-V2** (`depth_anything_v2_vits_fp16.safetensors` or a larger one) into
   `ComfyUI/models/depthanything` and choose it under *model*.
3. **Depth from a splat**: a splat is fitted to the same views, and its depth is rendered from the same cameras.
4. **Look**: both under the views. White is near, black is nothing.

The reports say how far neighbouring views disagree about the surface, in pixels. A splat is one object, so its views
agree almost perfectly; whether it is the *right* object is another question. Under 1 pixel is good; over 2 pixels
the views, the cameras or the masks do not fit together.

**Try** *calibration* minmax in *Estimate Depth*: the recipe of the MIRROR paper, which knows nothing of the cameras.
Preview or save *depth* with any node of this pack that takes MV_DEPTH.
"""


def depth_demo(graph: Graph) -> None:
    prefix = "multiview/depth"
    with graph.group("Read me", BROWN):
        graph.note(NOTE, (480, 560))
    with graph.group("1 Input", BLUE):
        cameras = graph.node(
            "MVOrbitCameras", "Eight cameras", preset="custom orbit", views=8, preset_elevation=False, elevation=15.0,
            radius=1.5, fov=49.13,
        )["cameras"]  # fmt: skip
        toy = graph.node("MVDemoObject", cameras=cameras, size=128)
    with graph.group("2 Depth by a network", GREEN):
        network = graph.node("MVDepthEstimate", views=toy["views"], cameras=cameras)
        graph.node("PreviewAny", "What it reports", source=network["report"]).shows(160, 400)
    with graph.group("3 Depth from a splat", GREEN):
        fit = graph.node(
            "MVGaussianReconstruct", "Fit a splat", images=toy["views"], cameras=cameras, masks=toy["masks"],
            iterations=150, points=2000,
        )  # fmt: skip
        graph.column()
        rendered = graph.node("MVDepthFromImage", cameras=cameras, splat=fit["splat"], masks=toy["masks"])
        graph.node("PreviewAny", "What it reports (splat)", source=rendered["report"]).shows(160, 400)
    graph.row()
    with graph.group("4 Look", BROWN):
        sheet = graph.node(
            "MVContactSheet", "Views and depth", columns=8, cameras=cameras, views=toy["views"], views_title="views",
            second=network["preview"], second_title="network", third=rendered["preview"], third_title="splat",
        ).shows(500, 900)  # fmt: skip
        graph.column()
        graph.node(
            "SaveImage", "Save the contact sheet", images=sheet["sheet"], filename_prefix=f"{prefix}/contact_sheet"
        ).shows(300, 400)
