"""Renoise-restart (IM-3D): views, a splat of them, its renders drawn again; alone, with SV3D, and after MIRROR."""

from __future__ import annotations

from workflow_graph import Graph, Slot
from workflow_parts import (
    BLUE,
    BROWN,
    GREEN,
    PICTURE,
    PURPLE,
    WIDE_PICTURE,
    contact_sheet,
    contradicting_toy,
    fitted,
    measured,
    sv3d_conditioning,
    sv3d_loaded,
    sv3d_picture,
)

VIEWS = 16
DEMO_NOTE = """
## Views that contradict each other, refined by their own splat

Press **Run**. It needs no download and no graphics card: a few minutes on two CPU cores.

1. **Views**: a near-sighted demo model draws 16 views around a toy. Each looks right by itself, but the back changes
   from view to view.
2. **Refine** (IM-3D): a splat is fitted to the views. It is one object, so its renders agree, but they are soft. Some
   noise is put on them, and the model draws them again from there. Two rounds, then the last splat. While it runs, the
   node shows each part of each round.
3. **Look**: the rows are the first views, those of round 1 and 2, and the last splat. *agreement* is the share of
   views that show the same toy (1 = all).

**Why the fits are short** (*iterations* 40): a short fit is one compromise of all views. A long one, say 150, shows
each side what its own view had, and the views never come together. Only the last splat is fitted to the end.

**Other seeds** (*noise_seed*; agreement before and after): 2 and 3 become one toy (0.45 and 0.36 to 1), 1 nearly (0.27
to 0.82). 0 does not (0.27 to 0.45): its views stand in three large camps, and no compromise wins. Workflow
*mirror_refine_demo* makes such views agree first.

**Try** other *values*: 0.1 stays as soft as the splat, 0.6 lets the views contradict each other again. Change only the
second number, and only the second round is computed again. More *rounds* only compute what is new.
"""
SV3D_NOTE = """
## SV3D's views, refined by their own splat

**You need** `sv3d_p.safetensors` in `models/checkpoints` (mind its licence) and a graphics card.

1. Choose your picture: **one object, centred, filling about two thirds of the frame**, and its *elevation*.
2. **Views**: SV3D draws 21 views on the orbit it was trained on.
3. **Refine**: fit a splat, render it, put noise on the renders, draw them again from there; twice. Each round costs a
   fit and as many steps as its number in *values* says: 0.3 of 30 steps are 9.
4. Compare the rows. The saved splat is that of the last views.

Details of your picture get lost? Lower *values*, or raise *iterations*. Views stay as they are? Raise *values*, or
lower *iterations*: a long fit follows every view. *losses* IM-3D forgives small contradictions (with LPIPS weights).
This workflow was not run with real SV3D weights where it was written, only with random ones of the same layout.
"""
MIRROR_NOTE = """
## MIRROR, then IM-3D's loop

Press **Run**. It needs no download and no graphics card: a few minutes on two CPU cores.

1. **Stage 1**: views that contradict each other, and their depth.
2. **Stage 2**: *MIRROR Rectify* makes the views agree while they are drawn from the same noise.
3. **One round, by hand**: a splat is fitted, its renders get noise (*Renoise for Restart*), and the views are drawn
   from there. What MIRROR left over, the splat settles. *Refine Views and Splat* does the same in one node.

Compare the verdicts: *agreement* before, after MIRROR, and after the round. The round uses the model **without**
MIRROR: the splat does that work now. Connect *Guider of stage 2* instead to use both at once.
"""


def sampling(graph: Graph, model: Slot, steps: int) -> dict[str, Slot]:
    """Sampler and schedule that drawing and refining share."""
    return {
        "sampler": graph.node("KSamplerSelect", sampler_name="euler")["SAMPLER"],
        "sigmas": graph.node("BasicScheduler", model=model, scheduler="karras", steps=steps, denoise=1.0)["SIGMAS"],
    }


def guided(graph: Graph, title: str, model: Slot, conditioning, cfg: float) -> Slot:
    return graph.node(
        "CFGGuider", title, model=model, positive=conditioning["positive"], negative=conditioning["negative"], cfg=cfg
    )["GUIDER"]  # fmt: skip


def drawn(graph: Graph, title: str, guider: Slot, how: dict[str, Slot], latent: Slot, noise: Slot, vae: Slot) -> Slot:
    sampled = graph.node("SamplerCustomAdvanced", title, noise=noise, guider=guider, latent_image=latent, **how)
    return graph.node("VAEDecode", samples=sampled["output"], vae=vae)["IMAGE"]


def refined(graph: Graph, prefix: str, views: Slot, cameras: Slot, vae: Slot, guider: Slot, how: dict, **settings):
    with graph.group("Refine", GREEN):
        node = graph.node(
            "MVIterativeRefine", "Fit, noise, draw again", images=views, cameras=cameras, vae=vae, guider=guider,
            **how, **settings,
        ).shows(PICTURE)  # fmt: skip
        graph.column()
        graph.node("MVSaveSplat", "Save the splat (.ply)", splat=node["splat"], filename_prefix=f"{prefix}/splat")
        graph.node("PreviewAny", "Where the rounds start", source=node["report"]).shows(120)
    return node


def judged(graph: Graph, model: Slot, titled: dict[str, Slot]) -> Slot:
    """Verdicts on several sets of views; what the last one comes nearest to."""
    truth = None
    for title, views in titled.items():
        verdict = graph.node("MVDemoJudge", f"Which toy is it, {title}?", model=model, views=views)
        graph.node("PreviewAny", f"The verdict {title}", source=verdict["report"]).shows(160, 400)
        truth = verdict["truth"]
    return truth


def round_of(graph: Graph, refine, number: int, views: int) -> Slot:
    return graph.node(
        "ImageFromBatch", f"Views of round {number}", image=refine["all_views"], batch_index=number * views,
        length=views,
    )["IMAGE"]  # fmt: skip


def refine_demo(graph: Graph) -> None:
    prefix = "multiview/refine"
    with graph.group("Read me", BROWN):
        graph.note(DEMO_NOTE, (480, 640))
    model, cameras, conditioning = contradicting_toy(graph, 128)
    with graph.group("Views", BLUE):
        guider = guided(graph, "Model and conditioning", model["model"], conditioning, 1.0)
        how = sampling(graph, model["model"], 30)
        noise = graph.node("RandomNoise", noise_seed=3)["NOISE"]
        graph.column()
        before = drawn(graph, "Draw the views", guider, how, conditioning["latent"], noise, model["vae"])
    refine = refined(graph, prefix, before, cameras, model["vae"], guider, how, rounds=2)
    graph.row()
    with graph.group("Look", BROWN):
        judged(graph, model["model"], {"before": before, "after": refine["views"]})
        first = round_of(graph, refine, 1, VIEWS)
        graph.column()
        rows = {"before": before, "round 1": first, "round 2": refine["views"], "splat": refine["renders"]}
        contact_sheet(graph, prefix, cameras, 8, rows)
    with graph.group("Measure", BROWN):
        measured(graph, {"before": before, "after": refine["views"]}, cameras, WIDE_PICTURE)


def refine_sv3d(graph: Graph) -> None:
    prefix = "multiview/refine_sv3d"
    with graph.group("Read me", BROWN):
        graph.note(SV3D_NOTE, (480, 620))
    with graph.group("Your picture", BLUE):
        picture, elevation = sv3d_picture(graph)
    with graph.group("Views", BLUE):
        loader, cameras = sv3d_loaded(graph, elevation)
        conditioning = sv3d_conditioning(graph, picture, loader, cameras)
        graph.column()
        # SV3D's own guidance runs from 1 at the input view to 2.5 behind it and back.
        model = graph.node("VideoTriangleCFGGuidance", "Guidance 1 to 2.5 to 1", model=loader["MODEL"], min_cfg=1.0)
        guider = guided(graph, "Model and conditioning", model["MODEL"], conditioning, 2.5)
        how = sampling(graph, model["MODEL"], 30)
        noise = graph.node("RandomNoise", noise_seed=0)["NOISE"]
        graph.column()
        before = drawn(graph, "Draw the views", guider, how, conditioning["latent"], noise, loader["VAE"])
    refine = refined(
        graph, prefix, before, cameras, loader["VAE"], guider, how, rounds=2, values="0.3", iterations=100,
        points=5000, final_iterations=1000,
    )  # fmt: skip
    graph.row()
    with graph.group("Look", BROWN):
        rows = {"before": before, "after": refine["views"], "splat": refine["renders"]}
        contact_sheet(graph, prefix, cameras, 7, rows)
    with graph.group("Measure", BROWN):
        measured(graph, {"before": before, "after": refine["views"]}, cameras, WIDE_PICTURE)


def mirror_refine_demo(graph: Graph) -> None:
    prefix = "multiview/mirror_refine"
    with graph.group("Read me", BROWN):
        graph.note(MIRROR_NOTE, (480, 480))
    model, cameras, conditioning = contradicting_toy(graph, 128)
    with graph.group("Stage 1", BLUE):
        plain = guided(graph, "Guider of stage 1", model["model"], conditioning, 1.0)
        how = sampling(graph, model["model"], 30)
        noise = graph.node("RandomNoise", "The same noise for both stages", noise_seed=0)["NOISE"]
        graph.column()
        before = drawn(graph, "Draw the views", plain, how, conditioning["latent"], noise, model["vae"])
        depth = graph.node("MVDepthEstimate", views=before, cameras=cameras)["depth"]
    with graph.group("Stage 2", PURPLE):
        patched = graph.node("MVMirrorRectify", model=model["model"], cameras=cameras, depth=depth)["model"]
        rectified = guided(graph, "Guider of stage 2", patched, conditioning, 1.0)
        graph.column()
        mirrored = drawn(
            graph, "Draw them again, rectified", rectified, how, conditioning["latent"], noise, model["vae"]
        )
    first = fitted(graph, mirrored, cameras, f"{prefix}/first", "First splat", iterations=40)
    with graph.group("One round, by hand", PURPLE):
        restart = graph.node(
            "MVRenoise", model=model["model"], sigmas=how["sigmas"], image=first["renders"], vae=model["vae"]
        )
        graph.node("PreviewAny", "Where the round starts", source=restart["report"]).shows(100)
        graph.column()
        quiet = graph.node("DisableNoise")["NOISE"]
        rest = {"sampler": how["sampler"], "sigmas": restart["sigmas"]}
        after = drawn(graph, "Draw from the splat", plain, rest, restart["latent"], quiet, model["vae"])
    last = fitted(graph, after, cameras, prefix, "Second splat")
    graph.row()
    with graph.group("Look", BROWN):
        judged(graph, model["model"], {"before": before, "after MIRROR": mirrored, "after the round": after})
        graph.column()
        rows = {"before": before, "MIRROR": mirrored, "then a round": after, "splat": last["renders"]}
        contact_sheet(graph, prefix, cameras, 8, rows)
    with graph.group("Measure", BROWN):
        measured(graph, {"before": before, "after": after}, cameras, WIDE_PICTURE)
