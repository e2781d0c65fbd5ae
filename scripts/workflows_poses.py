"""Workflows for poses of a category (MIRAGE), and the one that scores views by CLIP and optical flow."""

from __future__ import annotations

from workflow_graph import Graph
from workflow_parts import BLUE, BROWN, GREEN, PURPLE

SIZE = 64

CLUSTER_NOTE = """
## Sort pictures by pose

Step 1 of 3 of MIRAGE: many pictures of **one kind of object** go in, and come out sorted by the side they show.
Nobody has to label anything.

**You need** a DINOv2 model: `config.json` and `model.safetensors` of `facebook/dinov2-small` (90 MB; mind its
licence) in `ComfyUI/models/dinov2/dinov2-small`. No graphics card for a few hundred pictures.

1. Run it as it is: the pictures are views of three toys of one family.
2. Look at the sheet: every row is a pose. A row that shows two sides wants more *clusters*.
3. Use your own: connect hundreds of pictures instead of the toys (*Load Image Dataset from Folder* in newer
   ComfyUI), one object in each.

Cut-outs and labels are saved below `output/multiview/category`. **Step 2**: train on that folder, on a graphics
card:

    python training pose --folder FOLDER --device cuda

(docs/pose_model.md). **Step 3**: workflow *mirage_generate*.
"""

GENERATE_NOTE = """
## One picture to all poses, with your own pose model

Step 3 of 3 of MIRAGE. **You need** a pose model in `ComfyUI/models/multiview/pose`, trained on pictures of one kind
of object: workflow *cluster_poses* sorts them, `python training pose` trains (docs/pose_model.md).

1. Choose a **picture** of that kind, centred and cut out like the training pictures. Best is one that *cluster_poses*
   saved.
2. Say which **pose** it shows: find its number in the pose sheet.
3. Run. The picture is turned back into the noise that the model would draw it from; from this **same noise** all
   poses are drawn, while they look at the picture (*Cross-Frame Attention*).

*gamma* in *Hard-Attention Guidance*: 1.5 as in the paper; 1 = off. It helped with cars and harmed with armchairs and
mugs. View 0 is your picture, drawn again: if it does not look like it, the rest will not either. Then raise *steps*,
or train longer.
"""

QUALITY_NOTE = """
## Score views as HarmonyView does

The demo model draws 16 views; two measures of the HarmonyView paper judge them.

- **Flow error** (E_flow): does everything move from view to view as in the true views? Needs the truth. **You need**
  `raft_large_C_T_V2-1bb1363a.pth` (torchvision's) in `ComfyUI/models/raft`. Lower is better, 0 is perfect.
- **CD score**: how different the views are from the input, divided by how much they change what they seem to show.
  Needs no truth. **You need** CLIP ViT-L/14: its vision part in `models/clip_vision`, and its text part **with the
  projection** in `models/text_encoders` (the CLIP inside SD checkpoints lacks it). `model.safetensors` of
  `openai/clip-vit-large-patch14` is both. Higher is said to be better.

Write what the object is into *object_name*. Compare CD scores only within one *reading*: the released code and the
paper's equations differ a thousandfold.
"""


def cluster_poses(graph: Graph) -> None:
    with graph.group("Read me", BROWN):
        graph.note(CLUSTER_NOTE, (460, 640))
    with graph.group("Pictures of one kind of object", BLUE):
        toys = [
            graph.node("MVDemoObject", f"Toy {variant + 1}", seed=17, variant=variant, size=128) for variant in range(3)
        ]
        graph.column()
        pictures = toys[0]["views"]
        for toy in toys[1:]:
            pictures = graph.node("ImageBatch", image1=pictures, image2=toy["views"])["IMAGE"]
    with graph.group("Poses", GREEN):
        found = graph.node(
            "MVPoseClusters", images=pictures, dinov2="dinov2-small/model.safetensors", clusters=6, crop_size=SIZE,
            save_folder="multiview/category",
        ).shows(420, 460)  # fmt: skip
        graph.column()
        graph.node("PreviewAny", "What was found", source=found["report"]).shows(160, 460)
        graph.node("SaveImage", "Save the sheet", images=found["sheet"], filename_prefix="multiview/poses/sheet").shows(
            360, 460
        )
        graph.column()
        masks = graph.node("MaskToImage", mask=found["masks"])
        graph.node("MVContactSheet", "Masks and cut-outs", views=pictures, views_title="pictures",
                   second=masks["IMAGE"], second_title="masks", third=found["crops"], third_title="cut-outs",
                   columns=16).shows(420, 900)  # fmt: skip


def mirage_generate(graph: Graph) -> None:
    with graph.group("Read me", BROWN):
        graph.note(GENERATE_NOTE, (460, 620))
    with graph.group("Picture and its pose", BLUE):
        loaded = graph.node("MVLoadPoseModel", file="pose_model.safetensors")
        graph.node("PreviewImage", "The poses", images=loaded["sheet"]).shows(300, 400)
        graph.column()
        picture = graph.node("LoadImage", "Your picture", image="example.png").shows(300)
        own = graph.node("PrimitiveInt", "Its pose", value=0)["INT"]
        steps = graph.node("PrimitiveInt", "Steps", value=50)["INT"]
    with graph.group("The noise it comes from", BLUE):
        scaled = graph.node(
            "ImageScale", image=picture["IMAGE"], width=loaded["size"], height=loaded["size"], upscale_method="area",
            crop="center",
        )["IMAGE"]  # fmt: skip
        clean = graph.node("VAEEncode", pixels=scaled, vae=loaded["vae"])["LATENT"]
        alone = graph.node("MVPoseConditioning", "Only its own pose", model=loaded["model"], poses="", first=own)
        graph.column()
        inverted = graph.node(
            "MVDDIMInvert", model=loaded["model"], positive=alone["positive"], negative=alone["negative"],
            latent=clean, steps=steps, scheduler="normal", method="fixed_point",
        )  # fmt: skip
        graph.node("PreviewAny", "How well it comes back", source=inverted["report"]).shows(120)
    graph.row()
    with graph.group("All poses from the same noise", GREEN):
        poses = graph.node("MVPoseConditioning", "Its own pose, then all others", model=loaded["model"], poses="all",
                           first=own)  # fmt: skip
        noise = graph.node("RepeatLatentBatch", samples=inverted["latent"], amount=poses["count"])["LATENT"]
        graph.column()
        model = graph.node("MVCrossFrameAttention", model=loaded["model"], reference_views="0")["model"]
        model = graph.node("MVHardAttentionGuidance", model=model, gamma=1.5)["model"]
        graph.column()
        sampled = graph.node(
            "KSamplerAdvanced", "Draw the poses", model=model, add_noise="disable", noise_seed=0, steps=steps, cfg=1.0,
            sampler_name="euler", scheduler="normal", positive=poses["positive"], negative=poses["negative"],
            latent_image=noise, start_at_step=0, end_at_step=10000, return_with_leftover_noise="disable",
        )  # fmt: skip
        views = graph.node("VAEDecode", samples=sampled["LATENT"], vae=loaded["vae"])["IMAGE"]
    with graph.group("Look", BROWN):
        graph.node("MVContactSheet", "The picture, and its poses", views=scaled, views_title="picture", second=views,
                   second_title="poses", columns=10).shows(420, 900)  # fmt: skip
        graph.node("SaveImage", "Save the views", images=views, filename_prefix="multiview/mirage/view").shows(300)


def quality_scores(graph: Graph) -> None:
    with graph.group("Read me", BROWN):
        graph.note(QUALITY_NOTE, (460, 560))
    with graph.group("Views", BLUE):
        toy = graph.node("MVDemoObject", size=128)
        loaded = graph.node("MVLoadDemoModel", resolution=128, window=33, kappa=0.5)
        graph.column()
        conditioning = graph.node(
            "MVViewConditioning", image=toy["image"], vae=loaded["vae"], cameras=loaded["cameras"], width=128,
            height=128,
        )  # fmt: skip
        sampled = graph.node(
            "KSampler", "Make the views", model=loaded["model"], positive=conditioning["positive"],
            negative=conditioning["negative"], latent_image=conditioning["latent"], seed=0, steps=20, cfg=1.0,
            sampler_name="euler", scheduler="karras",
        )  # fmt: skip
        views = graph.node("VAEDecode", samples=sampled["LATENT"], vae=loaded["vae"])["IMAGE"]
    with graph.group("Flow error", GREEN):
        flow = graph.node(
            "MVFlowError", views=views, truth=toy["views"], weights="raft_large_C_T_V2-1bb1363a.pth"
        )
        graph.node("PreviewAny", "E_flow", source=flow["table"]).shows(420)
    with graph.group("CD score", PURPLE):
        vision = graph.node("CLIPVisionLoader", clip_name="clip_vit_large_patch14.safetensors")
        text = graph.node("CLIPLoader", clip_name="clip_vit_large_patch14.safetensors", type="stable_diffusion")
        graph.column()
        score = graph.node(
            "MVCDScore", views=views, clip_vision=vision["CLIP_VISION"], clip=text["CLIP"], reference=toy["image"]
        )
        graph.node("PreviewAny", "CD score", source=score["table"]).shows(420)
