"""Nodes to look at views and to put numbers on them."""

from __future__ import annotations

import comfy.utils
from comfy_api.latest import io, ui

from ..multiview.checks import check_images
from ..multiview.draw import contact_sheet, from_pil
from ..multiview.splats.losses import psnr, ssim
from .host import CamerasType, schema

CATEGORY = "multiview/look"
ROWS = ("views", "second", "third", "fourth")
BEST_DB = 99.0  # written for equal pictures, whose PSNR is infinite


class ContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        optional = [
            item
            for row in ROWS[1:]
            for item in (
                io.Image.Input(row, optional=True, tooltip=f"The {row} row of pictures, below the one before."),
                io.String.Input(f"{row}_title", default=row, tooltip=f"Title of the {row} row."),
            )
        ]
        return schema(
            node_id="MVContactSheet",
            display_name="Contact Sheet (Multi-View)",
            category=CATEGORY,
            description="Puts views side by side, up to four batches under each other: generated views, ground truth, "
            "renders of the splat.",
            search_aliases=["grid", "compare views"],
            inputs=[
                io.Image.Input("views", tooltip="The first row of pictures."),
                io.String.Input("views_title", default="views", tooltip="Title of the first row."),
                io.Int.Input("columns", default=8, min=1, max=64, tooltip="Pictures side by side before a new block."),
                *optional,
                CamerasType.Input("cameras", optional=True, tooltip="For labels with the azimuth of each view."),
            ],
            outputs=[io.Image.Output(display_name="sheet", tooltip="One picture with everything.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, columns: int, cameras=None, **rows) -> io.NodeOutput:
        batches = [
            (rows[f"{row}_title"], check_images(rows[row], f"pictures of the row '{row}'"))
            for row in ROWS
            if rows.get(row) is not None
        ]
        count = max(images.shape[0] for _, images in batches)
        labels = [str(i) for i in range(count)]
        if cameras is not None:
            for i, azimuth in enumerate(cameras.azimuths().tolist()[:count]):
                labels[i] = f"{azimuth:.1f}".removesuffix(".0") + "\u00b0"
        picture = from_pil(contact_sheet(batches, labels, columns))
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


class CompareViews(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCompareViews",
            display_name="Compare Views (Multi-View)",
            category=CATEGORY,
            description="PSNR and SSIM of views against others of the same poses: ground truth, renders of a splat, "
            "another run.",
            search_aliases=["psnr", "ssim", "metrics"],
            inputs=[
                io.Image.Input("views", tooltip="The views to measure."),
                io.Image.Input("reference", tooltip="What they should look like: the same number of pictures. Another "
                               "size is scaled to that of the views."),
                io.String.Input("title", default="views against reference", tooltip="First line of the table."),
                CamerasType.Input("cameras", optional=True, tooltip="To name the views by azimuth in the table."),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="PSNR and SSIM, each view and all, as Markdown."),
                io.Float.Output(display_name="psnr", tooltip="PSNR of all views together in dB; 99 if equal."),
                io.Float.Output(display_name="ssim", tooltip="Mean SSIM; 1 is equal."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, views, reference, title: str, cameras=None) -> io.NodeOutput:
        views, reference = check_images(views, "views"), check_images(reference, "reference views")
        if views.shape[0] != reference.shape[0]:
            raise ValueError(
                f"There are {views.shape[0]} views but {reference.shape[0]} reference views; compare the same poses."
            )
        if views.shape[1:3] != reference.shape[1:3]:
            height, width = views.shape[1:3]
            reference = comfy.utils.common_upscale(
                reference.movedim(-1, 1), width, height, "area", "disabled"
            ).movedim(1, -1)
        decibels = psnr(views, reference).clamp(max=BEST_DB)
        similarity = ssim(views, reference)
        # All views as one picture: a mean of decibels would count a view that happens to be equal far too much.
        overall = float(psnr(views.flatten(0, 1)[None], reference.flatten(0, 1)[None]).clamp(max=BEST_DB))
        overall_ssim = float(similarity.mean())
        names = range(len(views)) if cameras is None else [f"{a:.1f} deg" for a in cameras.azimuths().tolist()]
        # Markdown, which core's Preview as Text draws as a table.
        lines = [f"**{title}**", "", "| view | PSNR dB | SSIM |", "|---|---|---|"]
        for name, d, s in zip(names, decibels.tolist(), similarity.tolist(), strict=False):
            lines.append(f"| {name} | {d:.2f} | {s:.4f} |")
        lines.append(f"| all | {overall:.2f} | {overall_ssim:.4f} |")
        table = "\n".join(lines)
        return io.NodeOutput(table, overall, overall_ssim, ui=ui.PreviewText(table))


NODES = [ContactSheet, CompareViews]
