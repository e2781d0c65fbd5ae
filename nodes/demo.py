"""Nodes of the embedded default: demo objects with ground truth and the models that draw them."""

from __future__ import annotations

import logging
import os

import torch
from comfy_api.latest import io, ui

from ..multiview.camera_presets import preset
from ..multiview.cameras import Cameras
from ..multiview.checks import check_images, check_size, check_view_count
from ..multiview.demo import video_unet
from ..multiview.demo.analytic import AnalyticOptions
from ..multiview.demo.bank import Bank, bank_key, bank_path, build_bank, load_bank, reference_camera, save_bank
from ..multiview.demo.measure import Verdict, judge
from ..multiview.demo.objects import MAX_VARIANTS, make_object
from ..multiview.demo.raycast import render_object
from ..multiview.depth import DepthMaps
from . import host
from .host import BACKGROUNDS, CamerasType, DepthType, advanced, schema

CATEGORY = "multiview/demo"
# A family whose bank looks good (docs/analytic_model.md).
DEFAULT_SEED = 23
BANK_BYTES = 1 << 30


class DemoObject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVDemoObject",
            display_name="Demo Object (Multi-View)",
            category=CATEGORY,
            description="A generated toy with an input picture, its true views, depth and cameras: something to try "
            "workflows on, with the right answer known.",
            inputs=[
                io.Int.Input("seed", default=DEFAULT_SEED, min=0, max=2**31 - 1, control_after_generate=False,
                             tooltip="Which toy. The same seed always has the same front."),
                io.Int.Input("variant", default=0, min=0, max=MAX_VARIANTS - 1,
                             tooltip="Which of its backs; the front does not tell them apart."),
                io.Int.Input("variants", default=6, min=1, max=MAX_VARIANTS,
                             tooltip="How many backs the toy has. Use the number the demo model was loaded with."),
                io.Int.Input("size", default=128, min=16, max=1024, step=8,
                             tooltip="Side of the pictures in pixels, a multiple of 8."),
                io.Combo.Input("background", options=list(BACKGROUNDS), default="white",
                               tooltip="Colour behind the toy. The demo models expect white."),
                CamerasType.Input("cameras", optional=True,
                                  tooltip="Where to look from. Left out: the demo orbit of 16 views."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The input picture: the front."),
                io.Image.Output(display_name="views", tooltip="The true picture from every camera."),
                io.Mask.Output(display_name="masks", tooltip="Where the object is in each view (1 = object)."),
                DepthType.Output(display_name="depth", tooltip="The true metric depth of each view."),
                CamerasType.Output(display_name="cameras", tooltip="The cameras of the views."),
            ],
        )

    @classmethod
    def execute(cls, seed, variant, variants, size, background, cameras=None) -> io.NodeOutput:
        check_size(size, size)
        cameras = cameras or preset("demo")
        spec = make_object(seed, variant, variants)
        colour = BACKGROUNDS[background]
        progress = host.Progress(len(cameras))
        parts = []
        for i in range(len(cameras)):
            parts.append(render_object(spec, cameras.subset([i]), size, background=colour))
            progress.step(i + 1)
        rgb, alpha, depth = (torch.cat([getattr(p, name) for p in parts]) for name in ("rgb", "alpha", "depth"))
        front = render_object(spec, reference_camera(cameras), size, background=colour).rgb
        return io.NodeOutput(front, rgb, alpha, DepthMaps(depth, (depth > 0).float()), cameras)


class LoadDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVLoadDemoModel",
            display_name="Load Demo Model (Multi-View)",
            category=CATEGORY,
            description="A small multi-view diffusion model that needs no download. 'analytic' is computed, not "
            "trained: the exact denoiser of a bank of generated toys, made as local and as forgetful as you like, so "
            "that its views contradict each other the way real models' views do.",
            search_aliases=["example model", "test model", "analytic"],
            inputs=[
                io.Combo.Input("kind", options=["analytic", "trained"], default="analytic",
                               tooltip="analytic: always there. trained: the small video UNet, if its weights are "
                               "there (docs/trained_model.md)."),
                io.Int.Input("resolution", default=128, min=32, max=512, step=8,
                             tooltip="Side of the views in pixels, a multiple of 8. Time grows with its square."),
                io.Int.Input("window", default=0, min=0, max=1023,
                             tooltip="How far the model looks around a pixel, in pixels. 0 = the whole picture: every "
                             "view is one toy. Small: each patch may be from another toy."),
                io.Float.Input("kappa", default=1.0, min=0.0, max=1.0, step=0.01, round=0.0001,
                               tooltip="How much each view heeds the others. 1 = all views count as one picture; 0 = "
                               "every view is on its own, and they contradict each other."),
                io.Float.Input("front_bias", default=0.0, min=0.0, max=0.95, step=0.01,
                               tooltip="How readily a view shows the front although it should not: the habit that "
                               "gives generated objects a second face."),
                io.Int.Input("seed", default=DEFAULT_SEED, min=0, max=2**31 - 1, control_after_generate=False,
                             tooltip="Which toys the model knows. The toy of MVDemoObject with the same seed is one."),
                advanced(io.Int.Input, "families", default=4, min=1, max=32,
                         tooltip="How many different fronts the model knows."),
                advanced(io.Int.Input, "variants", default=6, min=1, max=MAX_VARIANTS,
                         tooltip="How many backs each front has; the input picture does not tell them apart."),
                CamerasType.Input("cameras", optional=True,
                                  tooltip="The cameras of the views it draws. Left out: the demo orbit of 16 views."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For any sampler and guider, like any other model."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE (analytic: pixels, nothing is lost)."),
                CamerasType.Output(display_name="cameras", tooltip="The cameras of its views."),
            ],
        )

    @classmethod
    def execute(cls, kind, resolution, window, kappa, front_bias, seed, families, variants,
                cameras=None) -> io.NodeOutput:
        check_size(resolution, resolution)
        cameras = cameras or preset("demo")
        if kind == "trained":
            from .trained_model import load_demo_model_for

            model, vae = load_demo_model_for(_trained_weights(), cameras)
        else:
            from .analytic_model import make_analytic_model

            bank = _bank(cameras, resolution, families, variants, seed)
            model, vae = make_analytic_model(bank, AnalyticOptions(window=window, kappa=kappa, front_bias=front_bias))
        return io.NodeOutput(model, vae, cameras)


class DemoJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVDemoJudge",
            display_name="Judge Demo Views (Multi-View)",
            category=CATEGORY,
            description="Because the analytic model's toys are known, its views can be judged exactly: which toy does "
            "each view show, do the views agree, how many faces are there, how close is the nearest true object.",
            inputs=[
                io.Model.Input("model", tooltip="The analytic demo model that drew the views."),
                io.Image.Input("views", tooltip="The views, one for each of the model's cameras."),
            ],
            outputs=[
                io.Image.Output(display_name="truth", tooltip="The true views of the one toy nearest to all views."),
                io.String.Output(display_name="report", tooltip="The verdict in words and numbers."),
                io.Float.Output(display_name="agreement", tooltip="Of the views in which the backs differ, the share "
                                "that shows the most common one. 1 = one toy."),
                io.Int.Output(display_name="second_faces", tooltip="Views away from the front that show the front."),
                io.Float.Output(display_name="fidelity", tooltip="PSNR of all views to the nearest single toy, in dB."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, views) -> io.NodeOutput:
        from .analytic_model import bank_of

        bank = bank_of(model)
        views = check_images(views, "views")
        check_view_count(views.shape[0], bank.cameras, "views")
        verdict = judge(views, bank)
        truth = bank.views[verdict.nearest].float() / 255.0
        report = _report(verdict, bank)
        return io.NodeOutput(
            truth, report, verdict.agreement, verdict.second_faces, verdict.object_psnr, ui=ui.PreviewText(report)
        )


def _trained_weights() -> str:
    """The newest file in ComfyUI's models/multiview/trained, else the one the pack ships, if it ships one."""
    folder = host.cache_folder("trained")
    own = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".safetensors")]
    if own:
        return max(own, key=os.path.getmtime)
    shipped = os.path.join(os.path.dirname(video_unet.__file__), "weights", "trained_model.safetensors")
    if os.path.exists(shipped):
        return shipped
    raise ValueError(
        f"There are no weights of the trained demo model: none are shipped with this version and {folder} is empty; "
        "train them (docs/trained_model.md) or choose kind 'analytic'."
    )


def _report(verdict: Verdict, bank: Bank) -> str:
    nearest = verdict.nearest
    variants = bank.variant[verdict.members].tolist()
    shown = [f"{v}{'!' if face else ''}" for v, face in zip(variants, verdict.faces.tolist(), strict=True)]
    return "\n".join(
        [
            f"- nearest toy: seed {int(bank.seeds[nearest])}, variant {int(bank.variant[nearest])}",
            f"- variant nearest to each view ('!' = a second face): {' '.join(shown)}",
            f"- agreement {verdict.agreement:.2f} over {int(verdict.telling.sum())} views in which the backs differ",
            f"- second faces: {verdict.second_faces}",
            f"- PSNR to the nearest toy {verdict.object_psnr:.2f} dB; of each view to its own nearest "
            f"{verdict.view_psnr:.2f} dB",
        ]
    )


def _bank(cameras: Cameras, size: int, families: int, variants: int, seed: int) -> Bank:
    """The bank from ComfyUI's models folder; drawn, with a progress bar, on first use. A damaged file is drawn anew."""
    if families * variants * len(cameras) * size**2 * 3 > BANK_BYTES:
        raise ValueError(
            f"A bank of {families * variants} toys in {len(cameras)} views of {size} x {size} pixels "
            f"would take more than {BANK_BYTES >> 20} MB; lower resolution, families or variants."
        )
    path = bank_path(host.cache_folder("banks"), bank_key(cameras, size, families, variants, seed))
    if path.exists():
        try:
            return load_bank(path)
        except ValueError as error:
            logging.warning("Drawing the demo bank again: %s", error)
    progress = host.Progress(families * variants)
    bank = build_bank(cameras, size, families, variants, seed, on_step=lambda done, total: progress.step(done, total))
    save_bank(bank, path)
    return bank


NODES = [DemoObject, LoadDemoModel, DemoJudge]
