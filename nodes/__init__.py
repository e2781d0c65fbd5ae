"""The nodes. Thin: schema, checks, progress and a call into multiview/."""

from comfy_api.latest import ComfyExtension, io

from . import (
    attention,
    cameras,
    clusters,
    conditioning,
    consistency,
    demo,
    depth,
    feedback,
    harmonyview,
    inversion,
    lgm,
    measure,
    mesh,
    mirror,
    ouroboros,
    pose_model,
    quality,
    refine,
    splat_files,
    splat_preview,
    splats,
    turntable,
    view_prompts,
)
from .host import has_depth_anything_3


class MultiViewExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [*cameras.NODES, *demo.NODES, *conditioning.NODES, *harmonyview.NODES, *inversion.NODES]
        nodes += [*attention.NODES, *view_prompts.NODES, *depth.NODES, *mirror.NODES, *splats.NODES]
        nodes += [*splat_files.NODES, *measure.NODES]
        nodes += [*consistency.NODES, *quality.NODES, *clusters.NODES, *pose_model.NODES, *refine.NODES]
        nodes += [*mesh.NODES, *turntable.NODES, *splat_preview.NODES, *feedback.NODES]
        nodes += [*lgm.NODES, *ouroboros.NODES]
        if has_depth_anything_3():
            nodes.append(cameras.CamerasFromDA3)
        return nodes
