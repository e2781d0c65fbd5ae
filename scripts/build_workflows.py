"""Writes workflows/*.json. The graphs are described here, in Python; the files are never edited by hand.

    python scripts/build_workflows.py            write them
    python scripts/build_workflows.py --check    exit 1 when a file differs from its description or the nodes changed

Both start ComfyUI (see comfy_host) and ask it for its node definitions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from comfy_host import ComfyHost
from workflow_graph import Graph, Slot
from workflow_parts import (
    BLUE,
    BROWN,
    GREEN,
    PICTURE,
    PURPLE,
    WIDE,
    contact_sheet,
    fitted,
    numbers,
    sv3d_conditioning,
    sv3d_loaded,
    sv3d_picture,
    sv3d_sampled,
    turntable,
    views_and_splat,
)
from workflows_attention import cross_frame_sd15, cross_frame_zero123
from workflows_consistency import measure_consistency
from workflows_depth import depth_demo
from workflows_feedback import feedback_demo, feedback_sv3d, feedback_sv3d_lgm
from workflows_harmony import harmonyview_demo, harmonyview_sv3d
from workflows_inversion import invert_demo
from workflows_mesh import views_to_mesh
from workflows_mirror import mirror_two_stages_demo, mirror_two_stages_sv3d
from workflows_ouroboros import ouroboros3d, sv3d_lgm_splat
from workflows_poses import cluster_poses, mirage_generate, quality_scores
from workflows_refine import mirror_refine_demo, refine_demo, refine_sv3d

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"

# --- the demo -----------------------------------------------------------------------------------------------------

DEMO_NOTE = """
## {title}

Press **Run**. It needs no download and no graphics card: on two CPU cores it takes a minute or two, the first
time longer, because the demo model's toys are drawn.

1. **Input**: *Demo Object* draws a toy and its picture from the front. The model sees only that picture. *Load
   Demo Model* is a real diffusion model, but computed instead of trained: it knows a few toys, and several backs
   for each front.
2. **Views**: an ordinary KSampler turns noise into 16 views around the toy.
3. **Splat**: Gaussians are fitted to the views and saved as a `.ply` that 3D viewers open; then a turntable.
4. **Look** and **Measure**: the splat to turn with the mouse; rows *views*, *truth* (the toy that the views come
   closest to) and *splat*.

{remark}
"""
CONSISTENT = """**Try** *window* 33 and *kappa* 0 in *Load Demo Model*: every view is then drawn by itself, from
patches. The views contradict each other, as real models' views do, and the back of the splat turns to mush
(workflow *contradicting_views_demo*). Another *Which toy* gives another toy, another seed in the KSampler another
back.

With your own SV3D checkpoint: workflow *sv3d_image_to_splat*."""
CONTRADICTING = """The same as *image_to_splat_demo*, but the model is **near-sighted** (*window* 33) and its
views **do not heed each other** (*kappa* 0). Each view looks right by itself, but shows parts of different toys,
and the splat cannot reconcile them. Real models fail like this. *The verdict* says which toy each view shows.

Compare the tables: the splat is further from its views, and far from any true toy. *front_bias* 0.5 gives second
faces."""
# How the model sees: as it is by default (its views agree), and so that its views contradict each other.
FAR_SIGHTED, NEAR_SIGHTED = {}, {"window": 33, "kappa": 0.0}


def image_to_splat_demo(graph: Graph) -> None:
    demo(graph, "multiview/demo", "One picture to 16 views to a splat", CONSISTENT, FAR_SIGHTED)


def contradicting_views_demo(graph: Graph) -> None:
    demo(
        graph,
        "multiview/contradicting",
        "What goes wrong: views that contradict each other",
        CONTRADICTING,
        NEAR_SIGHTED,
    )


def demo(graph: Graph, prefix: str, title: str, remark: str, sight: dict) -> None:
    with graph.group("Read me", BROWN):
        graph.note(DEMO_NOTE.format(title=title, remark=remark), (480, 560))
    with graph.group("1 Input", BLUE):
        seed = graph.node("PrimitiveInt", "Which toy", value=graph.default("MVDemoObject", "seed"))["INT"]
        toy = graph.node("MVDemoObject", seed=seed, size=128)
        graph.node("PreviewImage", "The input picture", images=toy["image"]).shows(340)
        graph.column()
        model = graph.node("MVLoadDemoModel", resolution=128, seed=seed, **sight)
    cameras = model["cameras"]
    with graph.group("2 Views", BLUE):
        conditioning = graph.node(
            "MVViewConditioning", image=toy["image"], vae=model["vae"], cameras=cameras, width=128, height=128
        )
        sampled = graph.node(
            "KSampler", "Make the views", model=model["model"], positive=conditioning["positive"],
            negative=conditioning["negative"], latent_image=conditioning["latent"], seed=0, steps=30, cfg=1.0,
            sampler_name="euler", scheduler="karras",
        )  # fmt: skip
        views = graph.node("VAEDecode", samples=sampled["LATENT"], vae=model["vae"])["IMAGE"]
    fit = fitted(graph, views, cameras, prefix)
    turntable(graph, fit["splat"], prefix, 256, 15.0, 1.5, 49.13)
    graph.row()
    with graph.group("Look", BROWN):
        graph.node("MVSplatPreview", "Drag me: the splat", splat=fit["splat"], cameras=cameras).shows(420, 400)
        graph.column()
        judged = graph.node("MVDemoJudge", "Which toy is it?", model=model["model"], views=views)
        graph.node("PreviewAny", "The verdict", source=judged["report"]).shows(200, 400)
        graph.column()
        contact_sheet(graph, prefix, cameras, 8, {"views": views, "truth": judged["truth"], "splat": fit["renders"]})
    with graph.group("Measure", BROWN):
        numbers(graph, "views against the truth", views, judged["truth"], cameras)
        graph.column()
        numbers(graph, "splat against its views", fit["renders"], views, cameras)
        graph.column()
        numbers(graph, "splat against the truth", fit["renders"], judged["truth"], cameras)


# --- a real SV3D checkpoint -------------------------------------------------------------------------------------------

SV3D_NOTE = """
## One picture to 21 views to a splat, with SV3D

**You need** `sv3d_p.safetensors` in `ComfyUI/models/checkpoints` (huggingface.co/stabilityai/sv3d; mind its
licence) and a graphics card: 21 views of 576 x 576 are drawn at once.

1. Choose your picture: **one object, centred, filling about two thirds of the frame**. Transparent parts are
   painted white.
2. Set the *elevation*: how many degrees the picture looks down on the object (0 = from the side).
3. Run. You get the views, the splat as a `.ply` that 3D viewers open, its renders under the views, and a
   turntable.

{cameras}

**The splat is mush?** Compare the rows *views* and *splat* of the contact sheet. Views that contradict each other
cannot be fitted: try another seed or elevation.
"""
SV3D_COMFYUI = """This version uses ComfyUI's own *SV3D_Conditioning*. That node spreads the views over 0 to 360
degrees, first and last the same, and the fit uses the same cameras (preset *sv3d_comfyui*). SV3D was trained on
another table: see the workflow *sv3d_stability_cameras_to_splat*."""
SV3D_STABILITY = """This version feeds SV3D the orbit it was trained on: steps of 360/21 degrees, your picture is
the **last** view. *Orbit View Conditioning* and the fit share one set of cameras (preset *sv3d_stability*), so
they cannot disagree."""


def sv3d_results(graph: Graph, prefix: str, views: Slot, cameras: Slot, elevation) -> None:
    fit = fitted(graph, views, cameras, prefix, iterations=1000, points=5000, max_points=50000)
    turntable(graph, fit["splat"], prefix, 512, elevation, 2.0, 33.8)
    views_and_splat(graph, prefix, cameras, views, fit["renders"])
    with graph.group("Measure", BROWN):
        numbers(graph, "splat against its views", fit["renders"], views, cameras)


def sv3d_image_to_splat(graph: Graph) -> None:
    prefix = "multiview/sv3d"
    with graph.group("Read me", BROWN):
        graph.note(SV3D_NOTE.format(cameras=SV3D_COMFYUI), (460, 640))
    with graph.group("Your picture", BLUE):
        picture, elevation = sv3d_picture(graph)
        count = graph.node("PrimitiveInt", "Number of views", value=21)["INT"]
    with graph.group("Views", BLUE):
        loader = graph.node("ImageOnlyCheckpointLoader", "SV3D", ckpt_name="sv3d_p.safetensors")
        cameras = graph.node(
            "MVOrbitCameras", "Cameras that SV3D_Conditioning feeds", preset="sv3d_comfyui", views=count,
            preset_elevation=False, elevation=elevation,
        )  # fmt: skip
        graph.column()
        conditioning = graph.node(
            "SV3D_Conditioning", clip_vision=loader["CLIP_VISION"], init_image=picture, vae=loader["VAE"], width=576,
            height=576, video_frames=count, elevation=elevation,
        )  # fmt: skip
        views = sv3d_sampled(graph, loader, conditioning)
    sv3d_results(graph, prefix, views, cameras["cameras"], elevation)


def sv3d_stability_cameras_to_splat(graph: Graph) -> None:
    prefix = "multiview/sv3d_stability"
    with graph.group("Read me", BROWN):
        graph.note(SV3D_NOTE.format(cameras=SV3D_STABILITY), (460, 640))
    with graph.group("Your picture", BLUE):
        picture, elevation = sv3d_picture(graph)
    with graph.group("Views", BLUE):
        loader, cameras = sv3d_loaded(graph, elevation)
        graph.column()
        conditioning = sv3d_conditioning(graph, picture, loader, cameras)
        views = sv3d_sampled(graph, loader, conditioning)
    sv3d_results(graph, prefix, views, cameras, elevation)


# --- splat files ------------------------------------------------------------------------------------------------------

FILES_NOTE = """
## Splat files and cameras

Loads a splat and looks at it from two places.

1. Run *image_to_splat_demo* first: it saves the file that is loaded here. Or choose another `.ply`: everything in
   ComfyUI's *input* folder and what was saved to *output* is listed (reload the page after adding files).
2. *From an orbit*: cameras of your own, and the splat as colour, depth and world coordinates.
3. *From ComfyUI's 3D camera*: one of these cameras becomes a ComfyUI 3D camera, and comes back. Instead you can
   use a **Load 3D** node: turn the object there with the mouse and feed its *camera_info* to *Camera from Load3D
   Camera*.
"""


def splat_files_and_cameras(graph: Graph) -> None:
    prefix = "multiview/files"
    with graph.group("Read me", BROWN):
        graph.note(FILES_NOTE, (420, 420))
    with graph.group("Load and save", GREEN):
        splat = graph.node("MVLoadSplat", "Load the splat", file="multiview/demo/splat_00001_.ply [output]")["splat"]
        graph.node("MVSaveSplat", "Save it again", splat=splat, filename_prefix=f"{prefix}/copy")
    with graph.group("From an orbit", BLUE):
        cameras = graph.node(
            "MVOrbitCameras",
            "Cameras",
            preset="custom orbit",
            views=8,
            preset_elevation=False,
            elevation=30.0,
            radius=1.5,
        )["cameras"]
        graph.node("MVCamerasPreview", "Where the cameras stand", cameras=cameras).shows(PICTURE, 520)
        graph.column()
        render = graph.node("MVGaussianRender", "Render", splat=splat, cameras=cameras, width=256, height=256)
        graph.node(
            "MVContactSheet", "Colour, world coordinates, depth", columns=8, cameras=cameras, views=render["images"],
            views_title="colour", second=render["coordinates"], second_title="coordinates",
            third=render["depth_picture"], third_title="depth",
        ).shows(PICTURE, WIDE)  # fmt: skip
    with graph.group("From ComfyUI's 3D camera", PURPLE):
        chosen = graph.node("MVCameraToLoad3D", "View 1 as a 3D camera", cameras=cameras, view=1)
        camera = graph.node("MVCameraFromLoad3D", "... and back", camera_info=chosen["camera_info"])
        graph.column()
        view = graph.node("MVGaussianRender", "Render", splat=splat, cameras=camera["cameras"], width=512, height=512)
        graph.node("SaveImage", images=view["images"], filename_prefix=f"{prefix}/view").shows(360, 400)


DESCRIPTIONS = [
    image_to_splat_demo,
    contradicting_views_demo,
    sv3d_image_to_splat,
    sv3d_stability_cameras_to_splat,
    splat_files_and_cameras,
    views_to_mesh,
    depth_demo,
    invert_demo,
    mirror_two_stages_demo,
    mirror_two_stages_sv3d,
    refine_demo,
    refine_sv3d,
    mirror_refine_demo,
    feedback_demo,
    feedback_sv3d,
    feedback_sv3d_lgm,
    cross_frame_sd15,
    cross_frame_zero123,
    measure_consistency,
    harmonyview_demo,
    harmonyview_sv3d,
    cluster_poses,
    mirage_generate,
    quality_scores,
    sv3d_lgm_splat,
    ouroboros3d,
]


# --- writing and checking ---------------------------------------------------------------------------------------------


def build_all(object_info: dict) -> dict[str, str]:
    """File name -> text of every workflow, for the nodes that a host has."""
    texts = {}
    for describe in DESCRIPTIONS:
        graph = Graph(describe.__name__, object_info)
        describe(graph)
        texts[f"{describe.__name__}.json"] = json.dumps(graph.to_json(), indent=1) + "\n"
    return texts


def outdated(object_info: dict) -> list[str]:
    """Names of the files in workflows/ that are missing or differ from their description."""
    found = []
    for name, text in build_all(object_info).items():
        path = WORKFLOWS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            found.append(name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the files are up to date")
    arguments = parser.parse_args()
    with ComfyHost() as host:
        object_info = host.object_info()
    old = outdated(object_info)
    if arguments.check:
        print("out of date: " + ", ".join(old) if old else "all workflows are up to date")
        return 1 if old else 0
    for name, text in build_all(object_info).items():
        (WORKFLOWS / name).write_text(text, encoding="utf-8", newline="\n")
    print("written: " + ", ".join(old) if old else "nothing has changed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
