"""Descriptions of the workflows around LGM and Ouroboros3D."""

from __future__ import annotations

from workflow_graph import Graph
from workflow_parts import (
    BLUE,
    BROWN,
    GREEN,
    PICTURE,
    PURPLE,
    contact_sheet,
    lgm_splat,
    loaded_lgm,
    sv3d_conditioning,
    sv3d_loaded,
    sv3d_picture,
    sv3d_sampled,
    turntable,
    views_and_splat,
    white_background,
)

LGM_NOTE = """
## One picture to a splat in two passes: SV3D, then LGM

**You need** two files and a graphics card:

- `sv3d_p.safetensors` in `ComfyUI/models/checkpoints` (huggingface.co/stabilityai/sv3d; mind its licence)
- `model_fp16_fixrot.safetensors` in `ComfyUI/models/lgm` (huggingface.co/ashawkey/LGM)

SV3D draws 21 views. *LGM Reconstruct* takes the four that stand at right angles and makes the splat at once; *Fit
Gaussian Splat* would take minutes, but uses all 21. It is told the views' true places: SV3D has none at exactly 90,
180 and 270 degrees, and looks down on the object by your *elevation*.

SV3D's lens is longer than the one LGM was trained with, so its views are made smaller for LGM, and the splat comes out
a little coarser than LGM's best. Run on random weights only: how good it gets with the real ones is not measured.
"""
OUROBOROS_NOTE = """
## Ouroboros3D: views that know their own splat

**You need** three files and a graphics card:

- `mv_model_unet.pth` in `ComfyUI/models/ouroboros3d` and `recon_model.pth` in `ComfyUI/models/lgm`
  (huggingface.co/huanngzh/Ouroboros3D-SVD-LGM)
- `svd.safetensors` in `ComfyUI/models/checkpoints` (Stable Video Diffusion, 14 frames; mind its licence)

Both runs sample as the released code does: 8 frames of 512 pixels, 25 Euler steps, guidance from 1 at the first view
to 3 at the last, motion 127, noise on the picture 0.02. *fps* is 7 because the released code counts from 0.

1. **Without feedback**: the view model knows nothing of a splat.
2. **With feedback**: the same noise. After every step *3D Feedback* makes a splat of the views as they are by then,
   with Ouroboros3D's own reconstruction network, and tells the view model in the next step how it looks: colours and
   coordinate maps.

The splat of each run's finished views is made by the same network.

Run on random weights only: how good it gets with the real ones is not measured.
"""


def sv3d_lgm_splat(graph: Graph) -> None:
    prefix = "multiview/sv3d_lgm"
    with graph.group("Read me", BROWN):
        graph.note(LGM_NOTE, (460, 520))
    with graph.group("Your picture", BLUE):
        picture, elevation = sv3d_picture(graph)
    with graph.group("Views", BLUE):
        loader, cameras = sv3d_loaded(graph, elevation)
        graph.column()
        given = sv3d_conditioning(graph, picture, loader, cameras)
        views = sv3d_sampled(graph, loader, given)
    made = lgm_splat(graph, None, views, cameras, prefix)
    turntable(graph, made["splat"], prefix, 512, elevation, 2.0, 33.8)
    views_and_splat(graph, prefix, cameras, views, made["renders"])


def ouroboros3d(graph: Graph) -> None:
    prefix = "multiview/ouroboros3d"
    with graph.group("Read me", BROWN):
        graph.note(OUROBOROS_NOTE, (480, 640))
    with graph.group("Your picture", BLUE):
        picture = white_background(graph)
        cameras = graph.node("MVOrbitCameras", "Cameras it was trained on", preset="ouroboros3d", views=8)["cameras"]
    with graph.group("Models", BLUE):
        loader = graph.node("MVLoadOuroboros3D", file="mv_model_unet.pth", checkpoint="svd.safetensors")
        lgm = loaded_lgm(graph, "recon_model.pth")
        graph.column()
        given = graph.node(
            "SVD_img2vid_Conditioning", "What to draw", clip_vision=loader["clip_vision"], init_image=picture,
            vae=loader["vae"], width=512, height=512, video_frames=8, motion_bucket_id=127, fps=7,
            augmentation_level=0.02,
        )  # fmt: skip
        told = graph.node("MVOuroboros3DCameras", model=loader["model"], cameras=cameras)["model"]
    fed = graph.node(
        "MV3DFeedback", model=told, vae=loader["vae"], cameras=cameras, lgm=lgm, preset="Ouroboros3D (trained)"
    )["model"]
    rows = {}
    for title, colour, model in (("Without feedback", GREEN, told), ("With feedback", PURPLE, fed)):
        with graph.group(title, colour):
            guided = graph.node("VideoLinearCFGGuidance", "Guidance 1 to 3", model=model, min_cfg=1.0)["MODEL"]
            sampled = graph.node(
                "KSampler", f"{title}: make the views", model=guided, positive=given["positive"],
                negative=given["negative"], latent_image=given["latent"], seed=0, steps=25, cfg=3.0,
                sampler_name="euler", scheduler="karras",
            )  # fmt: skip
            graph.column()
            views = graph.node("VAEDecode", f"{title}: views", samples=sampled["LATENT"], vae=loader["vae"])["IMAGE"]
            made = graph.node("MVLGMReconstruct", f"{title}: splat", lgm=lgm, images=views, cameras=cameras)
        short = title.split()[0].lower()
        rows |= {f"{short}: views": views, f"{short}: splat": made["renders"]}
    graph.row()
    with graph.group("Splat", GREEN):
        graph.node("MVSaveSplat", "Save the splat (.ply)", splat=made["splat"], filename_prefix=f"{prefix}/splat")
        true = graph.node(
            "MVCoordinateMaps", "Where the surface is", splat=made["splat"], cameras=cameras, width=512, height=512
        )
        graph.node("PreviewImage", "Coordinate maps", images=true["coordinates"]).shows(PICTURE)
    with graph.group("Look", BROWN):
        contact_sheet(graph, prefix, cameras, 8, rows)
