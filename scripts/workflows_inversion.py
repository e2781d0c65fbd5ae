"""The noise of given views, and the views drawn from it again."""

from __future__ import annotations

from workflow_graph import Graph
from workflow_parts import BLUE, BROWN, contact_sheet, numbers

NOTE = """
## The noise of given views, found and drawn from again

Press **Run**. It needs no download and no graphics card: under a minute on two CPU cores.

1. **Given views**: true pictures of a toy. They come from no sampler, so there is no seed to start from again.
   Your own pictures can stand here: *Load Image*, then *VAE Encode*.
2. **Invert**: *DDIM Invert* carries them up to pure noise, step by step. Its *report* gives the spread of the noise
   (1 is right) and how far off the way back ends.
3. **Draw again**: an ordinary sampler starts from this noise, with the same steps and an empty latent, and returns
   the views. Rows *before* and *after*; the table says how close they are.

Here nothing was changed in between, so the rows should look the same. The use of it is to change something: put
*MIRROR Rectify* or a LoRA between the model and *Guidance*, or another conditioning.

**Try** *method* ddim (fast, inexact) and *iterations* 1 to 8. For views that a KSampler of the same graph made you
do not need all this: use its seed again, as *mirror_two_stages_demo* does.
"""


def invert_demo(graph: Graph) -> None:
    prefix = "multiview/inversion"
    with graph.group("Read me", BROWN):
        graph.note(NOTE, (460, 560))
    with graph.group("Given views", BLUE):
        toy = graph.node("MVDemoObject", size=64)
        model = graph.node("MVLoadDemoModel", resolution=64, window=33, kappa=0.0)
        graph.column()
        conditioning = graph.node(
            "MVViewConditioning", image=toy["image"], vae=model["vae"], cameras=model["cameras"], width=64, height=64
        )
        given = graph.node("VAEEncode", "The views as a latent", pixels=toy["views"], vae=model["vae"])
    prompts = {name: conditioning[name] for name in ("positive", "negative")}
    with graph.group("Invert", BLUE):
        found = graph.node(
            "MVDDIMInvert", model=model["model"], latent=given["LATENT"], steps=20, start_noise=True, **prompts
        )
        graph.node("PreviewAny", "What the inversion reports", source=found["report"]).shows(180, 400)
    with graph.group("Draw again", BLUE):
        guider = graph.node("CFGGuider", "Guidance", model=model["model"], cfg=1.0, **prompts)
        sampler = graph.node("KSamplerSelect", sampler_name="euler")
        graph.column()
        again = graph.node(
            "SamplerCustomAdvanced", noise=found["noise"], guider=guider["GUIDER"], sampler=sampler["SAMPLER"],
            sigmas=found["sigmas"], latent_image=conditioning["latent"],
        )  # fmt: skip
        views = graph.node("VAEDecode", samples=again["output"], vae=model["vae"])["IMAGE"]
    graph.row()
    with graph.group("Look", BROWN):
        contact_sheet(graph, prefix, model["cameras"], 8, {"before": toy["views"], "after": views})
    with graph.group("Measure", BROWN):
        numbers(graph, "after against before", views, toy["views"], model["cameras"])
