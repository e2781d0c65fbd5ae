"""Several views from a model of single pictures: cross-frame attention with SD 1.5 and with Stable Zero123."""

from __future__ import annotations

from workflow_graph import Graph
from workflow_parts import BLUE, BROWN, GREEN, PICTURE, WIDE, WIDE_PICTURE, contact_sheet, white_background

SD15_NOTE = """
## A sheet of views with the SD 1.5 you have

**You need** an SD 1.5 checkpoint in `ComfyUI/models/checkpoints`; any fine-tune will do. SDXL works too: choose it,
set the size to 1024, and lower the number of views if memory runs out.

1. **Prompts**: describe the object once, with `{view}` where the words of a view belong. One line for each view.
   The first line is view 0.
2. **Model**: *Cross-Frame Attention* lets all other views look at view 0, so they show the same object.
   *Hard-Attention Guidance* keeps them from copying single spots; it costs half as much again. Set *gamma* to 1 to
   do without.
3. **Sample**: all views start from the same noise.

**What to expect**: the same colours, materials and style in all views. Pose comes from the words alone, and SD 1.5
follows words like *back view* only now and then. If the views all look the same, lower *strength* to 0.7, or give each
view its pose with a ControlNet (*Apply ControlNet* on both outputs of *View Prompts*, one picture for each view).

The picture beside this workflow shows the graph only: the pack is tested with random weights of this architecture.
"""
ZERO123_NOTE = """
## Stable Zero123, whose views heed each other

**You need** `stable_zero123.ckpt` in `ComfyUI/models/checkpoints` (huggingface.co/stabilityai/stable-zero123; mind
its licence).

1. **Your picture**: one object on a plain or transparent background, seen from the front.
2. **Views**: Stable Zero123 draws each view by itself, from your picture and an angle; that is why its views disagree.
   Here 8 of them are one batch that starts from the same noise, and *Cross-Frame Attention* lets all look at view 0,
   which has the pose of your picture.
3. **Look**: the lower row is the same without cross-frame attention. Keep what you like better.

For a splat, connect the views and *Cameras* to *Fit Gaussian Splat*.

The picture beside this workflow shows the graph only: the pack is tested with random weights of this architecture.
"""


def cross_frame_sd15(graph: Graph) -> None:
    prefix = "multiview/cross_frame_sd15"
    with graph.group("Read me", BROWN):
        graph.note(SD15_NOTE, (460, 720))
    with graph.group("Model", BLUE):
        loader = graph.node("CheckpointLoaderSimple", "SD 1.5", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
        crossed = graph.node("MVCrossFrameAttention", "All views look at view 0", model=loader["MODEL"])
        model = graph.node("MVHardAttentionGuidance", model=crossed["model"])["model"]
    with graph.group("Prompts", GREEN):
        prompts = graph.node("MVViewPrompts", clip=loader["CLIP"])
        graph.node("PreviewAny", "What is encoded", source=prompts["prompts"]).shows(120)
    with graph.group("Sample", BLUE):
        noise = graph.node("MVSameNoise")
        guider = graph.node(
            "CFGGuider", model=model, positive=prompts["positive"], negative=prompts["negative"], cfg=7.0
        )
        sampler = graph.node("KSamplerSelect", sampler_name="euler")
        sigmas = graph.node("BasicScheduler", model=model, scheduler="normal", steps=30, denoise=1.0)
        latent = graph.node("EmptyLatentImage", width=512, height=512, batch_size=prompts["count"])
        graph.column()
        sampled = graph.node(
            "SamplerCustomAdvanced", "Make the views", noise=noise["noise"], guider=guider["GUIDER"],
            sampler=sampler["SAMPLER"], sigmas=sigmas["SIGMAS"], latent_image=latent["LATENT"],
        )  # fmt: skip
        views = graph.node("VAEDecode", samples=sampled["output"], vae=loader["VAE"])["IMAGE"]
    with graph.group("Look", BROWN):
        sheet = graph.node("MVContactSheet", "Views side by side", columns=4, views=views).shows(WIDE_PICTURE, WIDE)
        graph.column()
        graph.node(
            "SaveImage", "Save the contact sheet", images=sheet["sheet"], filename_prefix=f"{prefix}/contact_sheet"
        ).shows(PICTURE, 400)


def cross_frame_zero123(graph: Graph) -> None:
    prefix = "multiview/cross_frame_zero123"
    with graph.group("Read me", BROWN):
        graph.note(ZERO123_NOTE, (460, 520))
    with graph.group("Your picture", BLUE):
        picture = white_background(graph)
        count = graph.node("PrimitiveInt", "Number of views", value=8)["INT"]
    with graph.group("Views", BLUE):
        loader = graph.node("ImageOnlyCheckpointLoader", "Stable Zero123", ckpt_name="stable_zero123.ckpt")
        cameras = graph.node("MVOrbitCameras", "Cameras", preset="stable_zero123", views=count)["cameras"]
        crossed = graph.node(
            "MVCrossFrameAttention", "All views look at view 0", model=loader["MODEL"], cameras=cameras
        )
        graph.column()
        conditioning = graph.node(
            "StableZero123_Conditioning_Batched", "Steps of 45 degrees, same noise", clip_vision=loader["CLIP_VISION"],
            init_image=picture, vae=loader["VAE"], width=256, height=256, batch_size=count, elevation=0.0, azimuth=0.0,
            elevation_batch_increment=0.0, azimuth_batch_increment=45.0,
        )  # fmt: skip
        views = []
        for title, model in (("Make the views", crossed["model"]), ("Make them without", loader["MODEL"])):
            graph.column()
            sampled = graph.node(
                "KSampler", title, model=model, positive=conditioning["positive"], negative=conditioning["negative"],
                latent_image=conditioning["latent"], seed=0, steps=20, cfg=4.0, sampler_name="euler",
                scheduler="sgm_uniform",
            )  # fmt: skip
            views.append(graph.node("VAEDecode", samples=sampled["LATENT"], vae=loader["VAE"])["IMAGE"])
    graph.row()
    with graph.group("Look", BROWN):
        rows = {"looking at view 0": views[0], "each by itself": views[1]}
        contact_sheet(graph, prefix, cameras, 8, rows)
