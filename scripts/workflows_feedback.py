"""3D-aware feedback without training: the views are led by a splat of themselves while they are drawn."""

from __future__ import annotations

from workflow_graph import Graph, Slot
from workflow_parts import (
    BLUE,
    BROWN,
    GREEN,
    PICTURE,
    contact_sheet,
    contradicting_toy,
    fitted,
    lgm_splat,
    loaded_lgm,
    sv3d_conditioning,
    sv3d_loaded,
    sv3d_picture,
    sv3d_sampled,
    views_and_splat,
)

DEMO_NOTE = """
## 3D feedback: views that are led by a splat of themselves

Press **Run**. It needs no download and no graphics card: a few minutes on two CPU cores.

1. **Without**: a near-sighted demo model draws 16 views around a toy. Each looks right by itself, but they
   contradict each other behind.
2. **With**: *3D Feedback* patches the model. At some steps of the sampling a splat is fitted to what the views show
   so far; its renders, which can contradict nothing, lead the views. Same seed, same settings.
3. **Look** at the rows, and **compare** the verdicts: *agreement* is the share of views that show the same toy
   (1 = all).

How much it helps varies: **try** other seeds (in both samplers) and other toys. **Try** the other presets: *short*
leads only while the views decide, *VideoMV* three times and is the quickest, *Cycle3D* at every step.
"""
SV3D_NOTE = """
## 3D feedback with SV3D, then a splat

**You need** `sv3d_p.safetensors` in `models/checkpoints` (mind its licence) and a graphics card.

1. Choose your picture: **one object, centred, filling about two thirds of the frame**, and its *elevation*.
2. *3D Feedback* leads the 21 views at 12, 18 and 24 of 30 steps: a splat is fitted to them, and its renders take
   their place for that step. Each time costs one decoding, one encoding and a short fit.
3. The splat of the result is fitted and saved.

Views too soft? Lower *strength* to 0.7. Still contradicting? Preset *default*, which leads at every second step
until the views are nearly done.
This workflow was not run with real SV3D weights where it was written, only with random ones of the same layout.
"""
LGM_NOTE = """
## 3D feedback with SV3D and LGM, as VideoMV does it

**You need** two files and a graphics card:

- `sv3d_p.safetensors` in `ComfyUI/models/checkpoints` (huggingface.co/stabilityai/sv3d; mind its licence)
- `model_fp16_fixrot.safetensors` in `ComfyUI/models/lgm` (huggingface.co/ashawkey/LGM)

1. Choose your picture: **one object, centred, filling about two thirds of the frame**, and its *elevation*.
2. *3D Feedback* leads the 21 views at 12, 18 and 24 of 30 steps: LGM makes a splat of them in one pass, and its
   renders take their place for that step.
3. LGM makes the splat of the finished views.

LGM reads the four views at right angles only. SV3D has none at exactly 90, 180 and 270 degrees from your picture; those
at 86, 171 and 274 are taken, with their true rays. With fewer than 16 views one may be further off than LGM allows, and
the node says which: *feedback_sv3d* does the same with a fit, which takes any cameras.

VideoMV's LGM was trained on unfinished views together with its own view model; yours was not, and SV3D's lens is longer
than LGM's. Run on random weights only: how good it gets with the real ones is not measured.
"""


def drawn(graph: Graph, title: str, model: Slot, conditioning, vae: Slot) -> Slot:
    latent = graph.node(
        "KSampler", title, model=model, positive=conditioning["positive"], negative=conditioning["negative"],
        latent_image=conditioning["latent"], seed=4, steps=24, cfg=1.0, sampler_name="euler", scheduler="karras",
    )["LATENT"]  # fmt: skip
    return graph.node("VAEDecode", samples=latent, vae=vae)["IMAGE"]


def feedback_demo(graph: Graph) -> None:
    prefix = "multiview/feedback"
    with graph.group("Read me", BROWN):
        graph.note(DEMO_NOTE, (480, 520))
    model, cameras, conditioning = contradicting_toy(graph, 64)
    with graph.group("Without", BLUE):
        before = drawn(graph, "Draw the views", model["model"], conditioning, model["vae"])
    with graph.group("With", GREEN):
        patched = graph.node(
            "MV3DFeedback", model=model["model"], vae=model["vae"], cameras=cameras, first_iterations=30,
            iterations=12, points=800,
        )["model"]  # fmt: skip
        graph.column()
        after = drawn(graph, "Draw them with feedback", patched, conditioning, model["vae"])
    fit = fitted(graph, after, cameras, prefix)
    graph.row()
    with graph.group("Look", BROWN):
        verdicts = {}
        for title, views in (("without", before), ("with", after)):
            verdicts[title] = graph.node("MVDemoJudge", f"Which toy is it, {title}?", model=model["model"], views=views)
            graph.node("PreviewAny", f"The verdict {title}", source=verdicts[title]["report"]).shows(200, 400)
        graph.column()
        rows = {"without": before, "with": after, "toy": verdicts["with"]["truth"], "splat": fit["renders"]}
        contact_sheet(graph, prefix, cameras, 8, rows)


def sv3d_led(graph: Graph, note: str, height: int, lgm_file: str | None = None, **feedback):
    """(SV3D's views, led at VideoMV's steps; their cameras; the LGM or None). feedback: more inputs of the node."""
    with graph.group("Read me", BROWN):
        graph.note(note, (480, height))
    with graph.group("Your picture", BLUE):
        picture, elevation = sv3d_picture(graph)
    with graph.group("Views", BLUE):
        loader, cameras = sv3d_loaded(graph, elevation)
        lgm = loaded_lgm(graph, lgm_file) if lgm_file else None
        if lgm:
            feedback["lgm"] = lgm
        graph.column()
        conditioning = sv3d_conditioning(graph, picture, loader, cameras)
        patched = graph.node(
            "MV3DFeedback", model=loader["MODEL"], vae=loader["VAE"], cameras=cameras, preset="VideoMV (three steps)",
            **feedback,
        )["model"]  # fmt: skip
        graph.column()
        views = sv3d_sampled(graph, loader, conditioning, patched)
        graph.node("PreviewImage", "The views", images=views).shows(PICTURE, 400)
    return views, cameras, lgm


def feedback_sv3d(graph: Graph) -> None:
    prefix = "multiview/feedback_sv3d"
    views, cameras, _ = sv3d_led(graph, SV3D_NOTE, 560, first_iterations=150, iterations=80, points=8000)
    fit = fitted(graph, views, cameras, prefix, iterations=1000, points=5000, max_points=50000)
    views_and_splat(graph, prefix, cameras, views, fit["renders"])


def feedback_sv3d_lgm(graph: Graph) -> None:
    prefix = "multiview/feedback_sv3d_lgm"
    views, cameras, lgm = sv3d_led(graph, LGM_NOTE, 640, "model_fp16_fixrot.safetensors")
    made = lgm_splat(graph, lgm, views, cameras, prefix)
    views_and_splat(graph, prefix, cameras, views, made["renders"])
