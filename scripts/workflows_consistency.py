"""The workflow that measures whether views agree; see build_workflows.py, which writes its file."""

from __future__ import annotations

from workflow_graph import Graph, Slot

GREEN, BLUE, BROWN = "#3f6f4a", "#3f789e", "#8a6642"
SIZE = 64
NOTE = """
## Do the views agree?

Press **Run**. It needs no download and no graphics card: about a minute on two CPU cores.

The same model draws 16 views of the same toy twice, from the same noise. In the upper row it sees the whole
picture and its views **heed each other**; in the lower one it is near-sighted and every view is drawn by itself,
so they **contradict each other**. By themselves all of them look fine.

*Consistency Metrics* tells them apart without knowing the toy:

- **odd/even**: a splat of every second view against a splat of the others.
- **neighbours**: each view against what the views beside it show of the same points.
- **held out**: views against a splat that was made without them.

Higher is better; compare numbers only with numbers of the same quality, size and orbit. Bright spots in the
pictures are where the views disagree. *truth* is there because this is a demo: the toy that the views come closest
to.

**With your own views**: connect them and their cameras, leave *truth* open. Set *quality* to full for final
numbers.
"""


def measure_consistency(graph: Graph) -> None:
    with graph.group("Read me", BROWN):
        graph.note(NOTE, (480, 620))
    with graph.group("Input", BLUE):
        seed = graph.node("PrimitiveInt", "Which toy", value=graph.default("MVDemoObject", "seed"))["INT"]
        toy = graph.node("MVDemoObject", seed=seed, size=SIZE)
        graph.node("PreviewImage", "The input picture", images=toy["image"]).shows(340)
    agreeing = _measured(graph, "Views that heed each other", toy["image"], seed, {})
    graph.row()
    contradicting = _measured(graph, "Views that do not", toy["image"], seed, {"window": 17, "kappa": 0.0})
    graph.row()
    with graph.group("Look", BROWN):
        both = graph.node("ImageBatch", "Both pictures", image1=agreeing, image2=contradicting)
        graph.node(
            "MVContactSheet", "Side by side", views=both["IMAGE"], columns=2, views_title="heed each other / do not"
        ).shows(700, 900)


def _measured(graph: Graph, title: str, picture: Slot, seed: Slot, sight: dict) -> Slot:
    """Views from a model that sees so, and their measures; returns the picture of the measures."""
    with graph.group(title, BLUE):
        model = graph.node("MVLoadDemoModel", resolution=SIZE, seed=seed, **sight)
        conditioning = graph.node(
            "MVViewConditioning", image=picture, vae=model["vae"], cameras=model["cameras"], width=SIZE, height=SIZE
        )
        graph.column()
        sampled = graph.node(
            "KSampler", "Make the views", model=model["model"], positive=conditioning["positive"],
            negative=conditioning["negative"], latent_image=conditioning["latent"], seed=0, steps=20, cfg=1.0,
            sampler_name="euler", scheduler="karras",
        )  # fmt: skip
        views = graph.node("VAEDecode", samples=sampled["LATENT"], vae=model["vae"])["IMAGE"]
        judged = graph.node("MVDemoJudge", "Which toy is it?", model=model["model"], views=views)
    with graph.group(f"{title}: measured", GREEN):
        metrics = graph.node(
            "MVConsistencyMetrics", title, views=views, cameras=model["cameras"], truth=judged["truth"], title=title
        ).shows(500, 900)
        graph.column()
        graph.node("PreviewAny", "In numbers", source=metrics["table"]).shows(600, 480)
    return metrics["picture"]
