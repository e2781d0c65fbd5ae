"""Nodes that give views metric depth: estimated by a network, or made elsewhere."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..multiview.cameras import Cameras
from ..multiview.checks import check_images, check_size, check_view_count
from ..multiview.demo.depth_net import estimate_depth, load_depth_net
from ..multiview.depth import DepthMaps
from ..multiview.depth_agreement import confidence, disagreement
from ..multiview.depth_anything import estimate, load_depth_model
from ..multiview.depth_calibrate import METHODS, calibrate, object_masks, silhouette_radii
from ..multiview.depth_sources import from_da3_geometry, from_moge_geometry, from_picture
from ..multiview.splats.render import render_gaussians
from . import host
from .host import CamerasType, DepthType, SplatType, advanced, schema

CATEGORY = "multiview/depth"
DEMO_NET = "demo depth net"
CALIBRATION_TIP = (
    "How maps of unknown scale become metric. joint: all views together, so that they agree on one surface (best). "
    "silhouette: each view by what the masks of the others allow. minmax: as in the MIRROR paper. none: only for maps "
    "that are metric already{extra}."
)


def _outputs() -> list:
    return [
        DepthType.Output(display_name="depth", tooltip="Metric depth of each view along its axis, with a confidence."),
        io.Image.Output(display_name="preview", tooltip="The depth to look at: near is white, nothing is black."),
        io.String.Output(display_name="report", tooltip="How far neighbouring views disagree, in world units and "
                         "pixels, and what else is worth knowing."),
    ]


def _percentiles() -> list:
    return [
        advanced(io.Float.Input, "far_percentile", default=2.0, min=0.0, max=49.0, step=0.5,
                 tooltip="This share of the object's pixels, in percent, may be further away than what counts as far."),
        advanced(io.Float.Input, "near_percentile", default=98.0, min=51.0, max=100.0, step=0.5,
                 tooltip="The pixels above this percentile may be nearer than what counts as near."),
        advanced(io.Float.Input, "object_radius", default=0.0, min=0.0, max=100.0, step=0.01,
                 tooltip="For minmax: how far the object reaches from its axis, in world units. 0 = measured in the "
                 "masks."),
    ]


class DepthEstimate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVDepthEstimate",
            display_name="Estimate Depth (Multi-View)",
            category=CATEGORY,
            description="Metric depth of views from known cameras: a depth network looks at each view, and the cameras "
            "give its answers their scale.",
            search_aliases=["depth anything", "midas", "dpt", "mirror"],
            inputs=[
                io.Image.Input("views", tooltip="The views, one for each camera and in the same order."),
                CamerasType.Input("cameras", tooltip="The cameras of the views."),
                io.Combo.Input("model", options=[DEMO_NET, *host.depth_models()], default=DEMO_NET,
                               tooltip="demo depth net: part of this pack, for its own toys. Else a file or folder in "
                               "models/depthanything: Depth-Anything-V2 (.safetensors), or a Hugging Face folder of "
                               "Depth Anything, MiDaS or DPT."),
                io.Combo.Input("calibration", options=list(METHODS), default="joint",
                               tooltip=CALIBRATION_TIP.format(extra=" (the demo net's)")),
                advanced(io.Int.Input, "resolution", default=0, min=0, max=2044, step=14,
                         tooltip="Side of the pictures the network sees. 0 = what it was trained on (518 for "
                         "Depth-Anything, 384 for MiDaS). Not used by the demo net."),
                advanced(io.Int.Input, "batch", default=4, min=1, max=64,
                         tooltip="Views at a time. Less takes less memory."),
                *_percentiles(),
                io.Mask.Input("masks", optional=True,
                              tooltip="Where the object is (white = object), one for each view. Left out: the views' "
                              "alpha, or estimated from the background colour."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, model) -> bool | str:
        # Taking `model` here also stops the host from refusing files that were put there after the list was made.
        return True if model == DEMO_NET or host.depth_model_path(model) else (
            f"There is no depth model '{model}' in models/depthanything; put it there, or choose another."
        )

    @classmethod
    def execute(cls, views, cameras: Cameras, model, calibration, resolution, batch, far_percentile, near_percentile,
                object_radius, masks=None) -> io.NodeOutput:
        images = check_images(views, "views")
        check_view_count(images.shape[0], cameras, "views")
        if calibration == "none" and model != DEMO_NET:
            raise ValueError(
                f"{model} gives depth without a scale, so calibration 'none' has no meaning; choose joint, silhouette "
                "or minmax."
            )
        masks = object_masks(views, masks)
        check_view_count(masks.shape[0], cameras, "masks")
        progress = host.Progress(len(cameras) + 1)

        def on_step(done: int, total: int) -> None:
            progress.step(done)

        metric = model == DEMO_NET
        if metric:
            raw, _ = estimate_depth(load_depth_net(), images, cameras, batch, on_step)
            masks, kind = masks * (raw > 0), "depth"
        else:
            loaded = load_depth_model(host.depth_model_path(model) or model)
            kind = loaded.kind
            host.place_network(loaded.network)
            raw = estimate(loaded, images, resolution, batch, on_step)
        result = calibrate(
            raw, masks, cameras, kind=kind, method=calibration, metric=metric,
            percentiles=(far_percentile, near_percentile), radius=object_radius,
        )  # fmt: skip
        progress.step(len(cameras) + 1)
        return io.NodeOutput(result.maps, result.maps.picture(), f"{model}, {calibration}.\n{result.report()}")


class DepthFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        geometry = [
            io.Custom(kind).Input(name, optional=True, tooltip=tip)
            for there, kind, name, tip in (
                (host.has_depth_anything_3(), "DA3_GEOMETRY", "da3_geometry",
                 "Output of core's Depth Anything 3. Calibration 'none' needs its multi-view mode."),
                (host.has_moge(), "MOGE_GEOMETRY", "moge_geometry", "Output of core's MoGe node."),
            )
            if there
        ]  # fmt: skip
        return schema(
            node_id="MVDepthFromImage",
            display_name="Depth from Elsewhere (Multi-View)",
            category=CATEGORY,
            description="Takes depth that something else has made and turns it into metric depth of the views: depth "
            "or disparity maps as pictures, a splat, and core's Depth Anything 3 and MoGe where they exist. Connect "
            "exactly one of them.",
            search_aliases=["depth map", "disparity", "da3", "moge", "depth from splat"],
            inputs=[
                CamerasType.Input("cameras", tooltip="The cameras of the views."),
                io.Combo.Input("map_is", options=["disparity", "depth"], default="disparity",
                               tooltip="For pictures: whether their brightness goes with 1 / distance (Depth-Anything, "
                               "MiDaS, most preprocessors) or with distance."),
                io.Combo.Input("near_is", options=["bright", "dark"], default="bright",
                               tooltip="For pictures: what is near is bright (usual) or dark."),
                io.Combo.Input("calibration", options=list(METHODS), default="joint",
                               tooltip=CALIBRATION_TIP.format(extra=" (Depth Anything 3 in multi-view mode). A splat "
                                                              "needs none and ignores this")),
                advanced(io.Int.Input, "width", default=512, min=8, max=4096, step=8,
                         tooltip="For a splat without masks: width of the depth maps in pixels."),
                advanced(io.Int.Input, "height", default=512, min=8, max=4096, step=8,
                         tooltip="For a splat without masks: height of the depth maps in pixels."),
                *_percentiles(),
                io.Image.Input("image", optional=True, tooltip="Depth or disparity maps, one for each camera."),
                SplatType.Input("splat", optional=True, tooltip="Its depth is rendered from the cameras."),
                *geometry,
                io.Mask.Input("masks", optional=True,
                              tooltip="Where the object is (white = object), one for each view. Left out: estimated "
                              "from the background colour of the maps or of the pictures in the geometry."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, cameras: Cameras, map_is, near_is, calibration, width, height, far_percentile, near_percentile,
                object_radius, image=None, splat=None, da3_geometry=None, moge_geometry=None,
                masks=None) -> io.NodeOutput:
        sources = {"image": image, "splat": splat, "da3_geometry": da3_geometry, "moge_geometry": moge_geometry}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"Depth must come from exactly one source, got {' and '.join(given) or 'none'}; connect one of "
                f"{', '.join(name for name in sources)}."
            )
        if splat is not None:
            maps, report = _splat_depth(splat, cameras, width, height, masks)
            return io.NodeOutput(maps, maps.picture(), report)
        if image is not None:
            source = from_picture(image, cameras, masks, map_is, near_is == "bright")
        elif da3_geometry is not None:
            source = from_da3_geometry(da3_geometry, cameras, masks)
        else:
            source = from_moge_geometry(moge_geometry, cameras, masks)
        result = calibrate(
            source.maps, source.masks, cameras, kind=source.kind, method=calibration, metric=source.metric,
            near_is_large=source.near_is_large, percentiles=(far_percentile, near_percentile), radius=object_radius,
        )  # fmt: skip
        host.check_cancelled()
        return io.NodeOutput(result.maps, result.maps.picture(), f"From {given[0]}, {calibration}.\n{result.report()}")


@torch.no_grad()
def _splat_depth(splat, cameras: Cameras, width: int, height: int, masks) -> tuple[DepthMaps, str]:
    """Depth where the splat covers at least half a pixel; confidence also falls with coverage."""
    if masks is not None:
        check_view_count(masks.shape[0], cameras, "masks")
        height, width = masks.shape[1:]
    else:
        check_size(width, height)
    gaussians = host.from_splat(splat).to(host.fit_device())
    progress = host.Progress(len(cameras))
    alphas, depths = [], []
    for i in range(len(cameras)):
        out = render_gaussians(gaussians, cameras.subset([i]), width, height)
        alphas.append(out.alpha[..., 0].clamp(0, 1).cpu())
        depths.append(out.depth[..., 0].cpu())
        progress.step(i + 1)
    alpha, depth = torch.cat(alphas), torch.cat(depths)
    inside = alpha > 0.5 if masks is None else (alpha > 0.5) & (masks.cpu() > 0.5)
    if not bool(inside.any()):
        raise ValueError(
            "The cameras see nothing of the splat (or nothing inside the masks); check the cameras, or fit it again."
        )
    depth = torch.where(inside, depth, torch.zeros_like(depth))
    extent = silhouette_radii(inside, cameras)[1]
    maps = DepthMaps(depth, confidence(depth, cameras, extent) * alpha)
    return maps, f"From splat.\nDisagreement of neighbouring views: {disagreement(depth, cameras)}."


NODES = [DepthEstimate, DepthFromImage]
