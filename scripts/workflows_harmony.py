"""Descriptions of the workflows around the HarmonyView guider."""

from __future__ import annotations

from workflow_graph import Graph, Slot
from workflow_parts import (
    BLUE,
    BROWN,
    GREEN,
    PURPLE,
    contact_sheet,
    fitted,
    sv3d_conditioning,
    sv3d_loaded,
    sv3d_picture,
    views_and_splat,
)

DEMO_NOTE = """
## HarmonyView: two knobs instead of one CFG

Press **Run**. It needs no download and no graphics card, and takes a minute or two.

The demo model is **near-sighted**: each pixel sees only its surroundings, and the views heed each other little.
Without guidance (first row) they disagree on the back of the toy. The second row starts from the **same noise**,
but with the *HarmonyView Guider* in place of the plain one:

- **s1** asks each view to fit the input picture. Together with s2 = 0 this is ordinary CFG of 1 + s1.
- **s2** asks each view to be what only the other views can tell it.

*Which toy?* says for each view which back it shows, and how many agree. Expect more agreement in the second row
than in the first, but not always full agreement.

**Try** s2 = 0 (only CFG), s1 = 0, larger values, and another noise seed. With s1 = s2 = 0 both rows are equal, bit
for bit. What each knob does on average over 32 toys is in docs/harmonyview.md.
"""
SV3D_NOTE = """
## HarmonyView with SV3D

**You need** `sv3d_p.safetensors` in `ComfyUI/models/checkpoints` (huggingface.co/stabilityai/sv3d; mind its
licence) and a graphics card: 21 views of 576 x 576 are drawn at once.

1. Choose your picture: **one object, centred, filling about two thirds of the frame**. Transparent parts are
   painted white.
2. Set the *elevation*: how many degrees the picture looks down on the object.
3. Run. You get the views, and the splat as a `.ply`.

*HarmonyView Guider* takes the place of CFG: **s1** keeps views true to your picture, **s2** makes them heed each
other. It makes three predictions in each step where CFG makes two. If memory runs out, set its *batching* to
*split*.

The values are untried on the real weights, which were not at hand: SV3D was published with a CFG between 1 and 2.5,
which is s1 between 0 and 1.5, so the example starts with s1 = 1 and s2 = 0.5. The paper's own model took 2 and 1.
Colours that burn out mean that s1 is too high.
"""


def advanced_sampler(graph: Graph, title: str, guider: Slot, parts: dict, latent: Slot) -> Slot:
    return graph.node(
        "SamplerCustomAdvanced", title, noise=parts["noise"], guider=guider, sampler=parts["sampler"],
        sigmas=parts["sigmas"], latent_image=latent,
    )["output"]  # fmt: skip


def sampling_parts(graph: Graph, model: Slot, seed: int, steps: int) -> dict:
    """Noise, sampler and noise levels, shared by samplers that are to be compared."""
    return {
        "noise": graph.node("RandomNoise", "The starting noise", noise_seed=seed)["NOISE"],
        "sampler": graph.node("KSamplerSelect", sampler_name="euler")["SAMPLER"],
        "sigmas": graph.node("BasicScheduler", model=model, scheduler="karras", steps=steps, denoise=1.0)["SIGMAS"],
    }


def harmonyview_demo(graph: Graph) -> None:
    prefix = "multiview/harmonyview"
    with graph.group("Read me", BROWN):
        graph.note(DEMO_NOTE, (480, 560))
    with graph.group("1 Input", BLUE):
        seed = graph.node("PrimitiveInt", "Which toy", value=graph.default("MVDemoObject", "seed"))["INT"]
        toy = graph.node("MVDemoObject", seed=seed, size=128)
        graph.node("PreviewImage", "The input picture", images=toy["image"]).shows(340)
        graph.column()
        model = graph.node("MVLoadDemoModel", "A near-sighted model", resolution=128, seed=seed, window=63, kappa=0.14)
        given = graph.node(
            "MVViewConditioning", image=toy["image"], vae=model["vae"], cameras=model["cameras"], width=128, height=128
        )
    with graph.group("2 Sampling, what both share", PURPLE):
        parts = sampling_parts(graph, model["model"], 0, 24)
    views = {}
    with graph.group("3 Without guidance", BROWN):
        plain = graph.node("BasicGuider", "No guidance", model=model["model"], conditioning=given["positive"])
        sampled = advanced_sampler(graph, "Views without guidance", plain["GUIDER"], parts, given["latent"])
        views["no guidance"] = graph.node("VAEDecode", samples=sampled, vae=model["vae"])["IMAGE"]
    with graph.group("4 With HarmonyView", GREEN):
        guider = graph.node(
            "MVHarmonyViewGuider", model=model["model"], positive=given["positive"], negative=given["negative"]
        )
        sampled = advanced_sampler(graph, "Views with HarmonyView", guider["guider"], parts, given["latent"])
        views["HarmonyView"] = graph.node("VAEDecode", samples=sampled, vae=model["vae"])["IMAGE"]
    graph.row()
    with graph.group("Which toy?", BROWN):
        for name, pictures in views.items():
            judged = graph.node("MVDemoJudge", f"Judge: {name}", model=model["model"], views=pictures)
            graph.node("PreviewAny", f"Verdict: {name}", source=judged["report"]).shows(200, 400)
    with graph.group("Look", BROWN):
        rows = {**views, "nearest toy": judged["truth"]}
        contact_sheet(graph, prefix, model["cameras"], 8, rows)


def harmonyview_sv3d(graph: Graph) -> None:
    prefix = "multiview/harmonyview_sv3d"
    with graph.group("Read me", BROWN):
        graph.note(SV3D_NOTE, (460, 640))
    with graph.group("Your picture", BLUE):
        picture, elevation = sv3d_picture(graph)
    with graph.group("Views", BLUE):
        loader, cameras = sv3d_loaded(graph, elevation)
        graph.column()
        given = sv3d_conditioning(graph, picture, loader, cameras)
        guider = graph.node(
            "MVHarmonyViewGuider", model=loader["MODEL"], positive=given["positive"], negative=given["negative"],
            s1=1.0, s2=0.5,
        )  # fmt: skip
        graph.column()
        parts = sampling_parts(graph, loader["MODEL"], 0, 30)
        sampled = advanced_sampler(graph, "Make the views", guider["guider"], parts, given["latent"])
        views = graph.node("VAEDecode", samples=sampled, vae=loader["VAE"])["IMAGE"]
    fit = fitted(graph, views, cameras, prefix, iterations=1000, points=5000, max_points=50000)
    views_and_splat(graph, prefix, cameras, views, fit["renders"])
