"""Node that measures whether views show one object."""

from __future__ import annotations

import json

import comfy.model_management
from comfy_api.latest import io, ui

from ..multiview.cameras import Cameras
from ..multiview.consistency_measure import QUALITIES, Measured, Wanted, measure
from ..multiview.consistency_report import picture, table
from ..multiview.draw import from_pil, to_pil
from . import host
from .host import CamerasType, DepthType, SplatType, advanced, schema
from .lpips_weights import lpips_network

FIT_MEMORY_BYTES = 2 << 30
NOT_MEASURED = 0.0  # a number that comparisons and sums of other nodes can take, and that no measured view reaches


class ConsistencyMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVConsistencyMetrics",
            display_name="Consistency Metrics (Multi-View)",
            category="multiview/look",
            description="Do the views show one object? Compares splats of every second view, views with their "
            "neighbours, and views with a splat of the others; and with the truth where there is one.",
            search_aliases=["mvgbench", "odd even", "psnr", "ssim", "lpips", "chamfer", "iou", "reprojection error"],
            inputs=[
                io.Image.Input("views", tooltip="The views to measure, at least 4, in the order of the cameras."),
                CamerasType.Input("cameras", tooltip="The cameras the views were made from."),
                io.Combo.Input("quality", options=list(QUALITIES), default="quick",
                               tooltip="quick: views reduced to 96 pixels and short fits, seconds. full: up to 256 "
                               "pixels and whole fits, minutes. Compare only numbers of the same quality."),
                io.String.Input("title", default="consistency", tooltip="First line of the table and of the picture."),
                io.Boolean.Input("odd_even", default=True,
                                 tooltip="Fit a splat to every second view and one to the others, and compare their "
                                 "pictures."),
                io.Boolean.Input("neighbours", default=True,
                                 tooltip="Compare each view with what its neighbours show of the same surface points."),
                io.Boolean.Input("held_out", default=True,
                                 tooltip="Compare views with a splat fitted to other views. At quick quality it costs "
                                 "nothing beside odd_even."),
                advanced(io.Boolean.Input, "lpips", default=True,
                         tooltip="Also the perceptual distance LPIPS, of odd_even and against the truth, where its "
                         "weights are on this machine (models/lpips). Nothing is downloaded."),
                advanced(io.Int.Input, "seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=False,
                         tooltip="Seed of the fits."),
                io.Mask.Input("masks", optional=True,
                              tooltip="Where the object is (white = object), one for each view. Left out: the views' "
                              "alpha, or estimated from the background colour."),
                DepthType.Input("depth", optional=True,
                                tooltip="Depth of the views for the neighbours. Left out: from the splat, or from one "
                                "that is fitted to all views."),
                io.Image.Input("truth", optional=True,
                               tooltip="The true views, where they are known: PSNR, SSIM and LPIPS against them."),
                SplatType.Input("splat", optional=True,
                                tooltip="A splat of these views: its depth serves the neighbours, and it is compared "
                                "with true_splat. Left out: one is fitted where needed."),
                SplatType.Input("true_splat", optional=True,
                                tooltip="A splat of the true object: Chamfer distance and volume IoU against it."),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="All numbers, and the PSNR of each view, as Markdown."),
                io.Image.Output(display_name="picture", tooltip="PSNR over azimuth, and under it the views with their "
                                "errors: which views disagree, and where."),
                io.Float.Output(display_name="odd_even_psnr", tooltip="dB between the two splats' pictures; higher is "
                                "more consistent. 0 = not measured."),
                io.Float.Output(display_name="neighbour_psnr", tooltip="dB between views and what their neighbours "
                                "show. 0 = not measured."),
                io.Float.Output(display_name="held_out_psnr", tooltip="dB between views and a splat of other views. "
                                "0 = not measured."),
                io.Float.Output(display_name="truth_psnr", tooltip="dB against the true views, whole pictures; 99 if "
                                "equal. 0 = not measured."),
                io.String.Output(display_name="json", tooltip="Everything, each view too; null = not measured."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, views, cameras: Cameras, quality, title, odd_even, neighbours, held_out, lpips, seed, masks=None,
                depth=None, truth=None, splat=None, true_splat=None) -> io.NodeOutput:
        wanted = Wanted(odd_even, neighbours, held_out)
        if not (odd_even or neighbours or held_out) and truth is None and true_splat is None:
            raise ValueError("There is nothing to measure; switch a measure on or connect truth or true_splat.")
        given, true = (None if one is None else host.from_splat(one) for one in (splat, true_splat))
        network, note = lpips_network("alex") if lpips and (odd_even or truth is not None) else (None, "")
        device = host.fit_device()
        comfy.model_management.free_memory(FIT_MEMORY_BYTES, device)
        measured = measure(
            views, cameras, masks, quality=QUALITIES[quality], wanted=wanted, truth=truth, splat=given, true_splat=true,
            depth=None if depth is None else depth.depth, perceptual=network, seed=seed, on_step=_reporter(),
            device=device,
        )
        text = table(measured, cameras, title, (note,) if note else ())
        sheet = from_pil(picture(measured, cameras, title))
        numbers = json.dumps({"title": title, "quality": quality, **measured.numbers()}, allow_nan=False)
        # Core's page shows a node's text and pictures side by side.
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(text, sheet, *_floats(measured), numbers, ui=shown)


def _floats(measured: Measured) -> list[float]:
    found = measured.comparisons()
    return [found[n].psnr if n in found else NOT_MEASURED for n in ("odd_even", "neighbours", "held_out", "truth")]


def _reporter():
    """Reports the steps of all fits together, with a picture of the growing splat now and then."""
    progress = host.Progress(1)

    def on_step(step: int, total: int, info: dict) -> None:
        shown = step % max(1, total // 20) == 0 or step == total
        progress.step(step, total, to_pil(info["get_preview"]()) if shown else None, send=shown)

    return on_step


NODES = [ConsistencyMetrics]
