"""Nodes that turn a splat into a coloured mesh and save it."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.latest import Types, io

from ..multiview import mesh_files
from ..multiview.draw import to_pil
from ..multiview.splat_mesh import LARGEST, edge_report, splat_to_mesh
from . import host
from .host import CamerasType, SplatType, advanced, schema

CATEGORY = "multiview/mesh"
WRITERS = {"glb": mesh_files.glb_bytes, "ply": mesh_files.ply_bytes}


class SplatToMesh(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVSplatToMesh",
            display_name="Splat to Closed Mesh (Multi-View)",
            category=CATEGORY,
            description="Makes a closed mesh with a colour at each vertex from a splat: its depth is rendered from all "
            "around, above and below, and fused.",
            search_aliases=["marching cubes", "tsdf", "depth fusion", "glb", "surface"],
            inputs=[
                SplatType.Input("splat", tooltip="The splat to mesh. Of a batch, the first one."),
                io.Int.Input("resolution", default=128, min=32, max=LARGEST, step=16,
                             tooltip="Voxels along the longest side. Twice as many show details half the size and "
                             "need eight times the memory."),
                advanced(io.Boolean.Input, "largest_only", default=True,
                         tooltip="Keep only the largest piece. Turn it off for objects made of several loose parts; "
                         "specks that float around the object then stay too."),
                CamerasType.Input("cameras", optional=True,
                                  tooltip="Look at the splat from these too, besides all around. Needed for masks."),
                io.Mask.Input("masks", optional=True,
                              tooltip="Where the object is (white), one for each of the cameras. What lies outside a "
                              "mask is cut away. LoadImage's mask is the inverse."),
            ],
            outputs=[
                io.Mesh.Output(display_name="mesh", tooltip="For Save GLB and other mesh nodes: y up, colours at the "
                               "vertices."),
                io.String.Output(display_name="report", tooltip="Vertices, faces, and whether the mesh is closed."),
            ],
        )

    @classmethod
    def execute(cls, splat, resolution: int, largest_only: bool, cameras=None, masks=None) -> io.NodeOutput:
        gaussians = host.from_splat(splat).to(host.fit_device())
        memory = comfy.model_management.get_free_memory(torch.device("cpu"))
        progress = host.Progress(1)

        def on_step(done, total, picture):
            progress.step(done, total, to_pil(picture.cpu()))

        mesh = splat_to_mesh(
            gaussians, resolution, cameras=cameras, masks=masks, largest_only=largest_only, memory_bytes=memory,
            on_step=on_step,
        )  # fmt: skip
        return io.NodeOutput(_to_host(mesh), _report(mesh))


class SaveMesh(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVSaveMesh",
            display_name="Save Coloured Mesh (Multi-View)",
            category=CATEGORY,
            description="Saves a mesh with its vertex colours, which core's Save GLB leaves out on older hosts.",
            search_aliases=["export glb", "export ply", "vertex colors"],
            inputs=[
                io.Mesh.Input("mesh", tooltip="The mesh to save. Of a batch, the first one."),
                io.String.Input("filename_prefix", default="3d/multiview",
                                tooltip="Start of the file's name, in ComfyUI's output folder; folders are made."),
                io.Combo.Input("format", options=list(WRITERS), default="glb",
                               tooltip="glb: for 3D viewers, Blender, game engines. ply: for MeshLab and the like."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Full path of the saved file.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, mesh, filename_prefix: str, format: str) -> io.NodeOutput:
        vertices, faces, colors = _from_host(mesh)
        data = WRITERS[format](vertices, faces, colors)
        path, file, subfolder = host.output_path(filename_prefix, f".{format}")
        mesh_files.write_whole(data, path)
        said = f"{len(vertices)} vertices, {len(faces)} faces saved to {path}"
        saved = {"filename": file, "subfolder": subfolder, "type": "output"}
        return io.NodeOutput(path, ui={"3d": [saved], "text": [said]})


def _to_host(mesh):
    """As core's MESH: y up, colours linear and shown unlit. Hosts before vertex colours carry them all the same."""
    made = Types.MESH(mesh_files.world_to_gltf(mesh.vertices)[None], mesh.faces[None])
    made.vertex_colors = mesh_files.srgb_to_linear(mesh.colors)[None]
    made.unlit = True
    return made


def _from_host(mesh) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Vertices (V,3), faces (F,3), linear colours (V,3) or None of the first mesh of a MESH."""
    if not hasattr(mesh, "vertices") or not hasattr(mesh, "faces") or len(mesh.vertices) == 0:
        raise ValueError(f"Expected a MESH, got {type(mesh).__name__}; connect a node that makes meshes.")
    counts, face_counts = getattr(mesh, "vertex_counts", None), getattr(mesh, "face_counts", None)
    v = mesh.vertices.shape[1] if counts is None else int(counts[0])
    f = mesh.faces.shape[1] if face_counts is None else int(face_counts[0])
    colors = getattr(mesh, "vertex_colors", None)
    return (
        mesh.vertices[0, :v].float(),
        mesh.faces[0, :f].long(),
        None if colors is None else colors[0, :v, :3].float(),
    )


def _report(mesh) -> str:
    edges, open_edges, euler = edge_report(mesh.faces)
    size = (mesh.vertices.amax(0) - mesh.vertices.amin(0)).tolist()
    closed = "closed" if open_edges == 0 else f"not closed ({open_edges} of {edges} edges)"
    return (
        f"{len(mesh.vertices)} vertices, {len(mesh.faces)} faces; {closed}, Euler characteristic {euler} "
        f"(2 = no handles); {size[0]:.3f} wide, {size[1]:.3f} high, {size[2]:.3f} deep."
    )


NODES = [SplatToMesh, SaveMesh]
