"""The workflow from views on disk to a splat and a mesh."""

from __future__ import annotations

from workflow_graph import Graph
from workflow_parts import BLUE, BROWN, GREEN, PURPLE

NOTE = """
## Views from disk to a splat and a mesh

Press **Run**. It needs no graphics card; on two CPU cores it takes a few minutes.

1. **Input**: *Load Image* reads all pictures of an animated WEBP, GIF or PNG as one batch. Set here: the turntable that
   the workflow *image_to_splat_demo* saves. **Run that one first**, or drop a file of your own onto the node. A video
   goes through *Load Video* and *Get Video Components* instead.
   *The cameras* must say how the pictures were taken: their number, elevation, distance and field of view. Wrong
   cameras give mush. The pictures go once around, camera to the right, the first from the front; choose a model's
   name under *preset* if a model made them.
2. **Splat**: Gaussians are fitted to the pictures.
3. **Mesh**: the splat's surface, closed, with colours. *Save Coloured Mesh* writes the file that Blender, game engines
   and viewers open, with its colours. Core's *Save GLB* does the same on newer versions of ComfyUI; on 0.3.75 it
   leaves the colours out.
4. **Look**: drag the turntable, turn the wheel over it or use the arrow keys. Left of the line are your pictures, right
   of it the splat. Newer versions of ComfyUI also show the splat itself: connect *Splat to File 3D* and *Preview 3D*.
"""


def views_to_mesh(graph: Graph) -> None:
    prefix = "multiview/mesh"
    with graph.group("Read me", BROWN):
        graph.note(NOTE, (480, 460))
    with graph.group("1 Input", BLUE):
        pictures = graph.node(
            "LoadImage", "Your views, one file", image="multiview/demo/turntable_00001_.webp [output]"
        ).shows(300)["IMAGE"]
        cameras = graph.node(
            "MVOrbitCameras", "The cameras", preset="custom orbit", views=48, preset_elevation=False, elevation=15.0,
            radius=1.5, fov=49.13,
        )["cameras"]  # fmt: skip
    with graph.group("2 Splat", GREEN):
        fit = graph.node(
            "MVGaussianReconstruct", "Fit the splat", images=pictures, cameras=cameras, iterations=400
        ).shows(300)  # fmt: skip
        graph.node("MVSaveSplat", "Save the splat (.ply)", splat=fit["splat"], filename_prefix=f"{prefix}/splat")
    with graph.group("3 Mesh", PURPLE):
        mesh = graph.node("MVSplatToMesh", "Its surface", splat=fit["splat"], resolution=128).shows(240)
        graph.node("PreviewAny", "What it reports", source=mesh["report"]).shows(120)
        graph.node(
            "MVSaveMesh", "Save the mesh with colours", mesh=mesh["mesh"], filename_prefix=f"{prefix}/coloured"
        )
        graph.node("SaveGLB", "Core's Save GLB", mesh=mesh["mesh"], filename_prefix=f"{prefix}/core").shows(240)
    with graph.group("4 Look", BROWN):
        graph.node(
            "MVTurntablePreview", "Drag me: your views | the splat", views=fit["renders"], before=pictures,
            cameras=cameras,
        ).shows(460, 460)  # fmt: skip
