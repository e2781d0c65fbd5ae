"""MIRROR's two stages (the paper's Algorithm 1): draw the views, estimate their depth, draw them again, rectified."""

from __future__ import annotations

from workflow_graph import Graph, Slot
from workflow_parts import (
    BLUE,
    BROWN,
    GREEN,
    PICTURE,
    WIDE,
    contact_sheet,
    contradicting_toy,
    fitted,
    measured,
    sv3d_conditioning,
    sv3d_guided,
    sv3d_loaded,
    sv3d_picture,
)

PURPLE = "#6b4f8f"
DEMO_NOTE = """
## MIRROR: views that contradict each other are made to agree

Press **Run**. It needs no download and no graphics card: a few minutes on two CPU cores.

1. **Stage 1**: a near-sighted demo model draws 16 views around a toy. Each looks right by itself, but the back
   changes from view to view, and now and then a second face appears.
2. **Depth** of these views, and with it: which points of neighbouring views are the same point of the toy. *Which
   points match* draws them.
3. **Stage 2**: *MIRROR Rectify* patches the model, and the views are drawn again from **the same noise**. At every
   step each view is pulled toward what its neighbours show of the same point. The first 10 of the 30 steps decide
   nothing yet, so both stages share them: three samplers, and two thirds more work instead of twice as much.
4. **Look** at the rows *before* and *after*, and **measure**: *agreement* is the share of views that show the same
   toy (1 = all).

**Other views than these?** Pictures that were not made in this graph have no seed to start from again: *DDIM
Invert* finds their noise (workflow *invert_demo*).

How much it helps varies: with some seeds all views agree, with others two versions remain.

**Try** another seed (the same in all three samplers), *strength* 0 (nothing changes), the presets *paper*, or another
*Which toy*. What each setting does is in the help page of *MIRROR Rectify*: right-click, *Node Info*.
"""
SV3D_NOTE = """
## MIRROR with SV3D: views that agree, then a splat

**You need** `sv3d_p.safetensors` in `models/checkpoints` (mind its licence), a depth network in
`models/depthanything`, such as `depth_anything_v2_vits_fp32.safetensors`, and a graphics card.

1. Choose your picture: **one object, centred, filling about two thirds of the frame**, and its *elevation*.
2. **Stage 1** draws 21 views on the orbit SV3D was trained on. **Depth** is estimated for each and brought to one
   scale with the cameras.
3. **Stage 2** draws them again from the same noise with *MIRROR Rectify* on the model. Both stages share the first
   10 of 30 steps, which saves a third of the time. If you change *steps*, change it in all three samplers.
4. Compare the rows *before* and *after*, and the tables under *Measure*. The splat is fitted to *after*.

Views too soft? Lower *strength*, or set *end_percent* to 0.8. Too little effect? Preset *custom*, *guidance* 3.
This workflow was not run with real SV3D weights where it was written, only with random ones of the same layout.
"""


STEPS, SHARED = 30, 10


class TwoStages:
    """Both stages: the same noise and settings, and the first steps, where nothing is decided yet, done only once."""

    def __init__(self, graph: Graph, conditioning, vae: Slot, cfg: float, seed: int = 0):
        self.graph, self.vae = graph, vae
        self.settings = {
            "positive": conditioning["positive"], "negative": conditioning["negative"], "noise_seed": seed,
            "steps": STEPS, "cfg": cfg, "sampler_name": "euler", "scheduler": "karras",
        }  # fmt: skip
        self.latent = conditioning["latent"]

    def begin(self, model: Slot) -> None:
        self.latent = self.graph.node(
            "KSamplerAdvanced", "The first steps, for both", model=model, latent_image=self.latent, start_at_step=0,
            end_at_step=SHARED, return_with_leftover_noise="enable", **self.settings,
        )["LATENT"]  # fmt: skip

    def finish(self, title: str, model: Slot) -> Slot:
        drawn = self.graph.node(
            "KSamplerAdvanced", title, model=model, latent_image=self.latent, add_noise="disable",
            start_at_step=SHARED, end_at_step=10000, return_with_leftover_noise="disable", **self.settings,
        )["LATENT"]  # fmt: skip
        return self.graph.node("VAEDecode", samples=drawn, vae=self.vae)["IMAGE"]


def mirror_two_stages_demo(graph: Graph) -> None:
    prefix = "multiview/mirror"
    with graph.group("Read me", BROWN):
        graph.note(DEMO_NOTE, (480, 640))
    model, cameras, conditioning = contradicting_toy(graph, 128)
    with graph.group("Stage 1", BLUE):
        stages = TwoStages(graph, conditioning, model["vae"], cfg=1.0, seed=1)
        stages.begin(model["model"])
        graph.column()
        before = stages.finish("Draw the views", model["model"])
    with graph.group("Depth", PURPLE):
        depth = graph.node("MVDepthEstimate", views=before, cameras=cameras)
        graph.node("PreviewImage", "The depth", images=depth["preview"]).shows(PICTURE)
        graph.column()
        matches = graph.node(
            "MVCorrespondencePreview", "Which points match", views=before, cameras=cameras, depth=depth["depth"],
            which="0, 2, 6", points=24, cell=1,
        )  # fmt: skip
        matches.shows(WIDE, PICTURE + 200)
    with graph.group("Stage 2", GREEN):
        patched = graph.node("MVMirrorRectify", model=model["model"], cameras=cameras, depth=depth["depth"])["model"]
        after = stages.finish("Draw them again, rectified", patched)
    fit = fitted(graph, after, cameras, prefix)
    graph.row()
    with graph.group("Look", BROWN):
        verdicts = {}
        for title, views in (("before", before), ("after", after)):
            verdicts[title] = graph.node("MVDemoJudge", f"Which toy is it, {title}?", model=model["model"], views=views)
            graph.node("PreviewAny", f"The verdict {title}", source=verdicts[title]["report"]).shows(200, 400)
        graph.column()
        rows = {"before": before, "after": after, "toy": verdicts["after"]["truth"], "splat": fit["renders"]}
        contact_sheet(graph, prefix, cameras, 8, rows)
    with graph.group("Measure", BROWN):
        measured(graph, {"before": before, "after": after}, cameras, PICTURE)


def mirror_two_stages_sv3d(graph: Graph) -> None:
    prefix = "multiview/mirror_sv3d"
    with graph.group("Read me", BROWN):
        graph.note(SV3D_NOTE, (480, 640))
    with graph.group("Your picture", BLUE):
        picture, elevation = sv3d_picture(graph)
    with graph.group("Stage 1", BLUE):
        loader, cameras = sv3d_loaded(graph, elevation)
        graph.column()
        conditioning = sv3d_conditioning(graph, picture, loader, cameras)
        plain = sv3d_guided(graph, loader["MODEL"])
        stages = TwoStages(graph, conditioning, loader["VAE"], cfg=2.5)
        stages.begin(plain)
        graph.column()
        before = stages.finish("Draw the views", plain)
    with graph.group("Depth", PURPLE):
        depth = graph.node(
            "MVDepthEstimate", views=before, cameras=cameras, model="depth_anything_v2_vits_fp32.safetensors"
        )
        graph.node("PreviewImage", "The depth", images=depth["preview"]).shows(PICTURE)
        graph.node("PreviewAny", "How far the views disagree", source=depth["report"]).shows(160, 400)
    with graph.group("Stage 2", GREEN):
        patched = graph.node("MVMirrorRectify", model=loader["MODEL"], cameras=cameras, depth=depth["depth"])["model"]
        after = stages.finish("Draw them again, rectified", sv3d_guided(graph, patched))
    fit = fitted(graph, after, cameras, prefix, iterations=1000, points=5000, max_points=50000)
    graph.row()
    with graph.group("Look", BROWN):
        contact_sheet(graph, prefix, cameras, 7, {"before": before, "after": after, "splat": fit["renders"]})
    with graph.group("Measure", BROWN):
        measured(graph, {"before": before, "after": after}, cameras, PICTURE)
