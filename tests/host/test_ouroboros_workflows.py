"""LGM and Ouroboros3D in the real ComfyUI: their workflows on random weights of reduced width, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from comfy_host import NodeFailed, workflow_to_prompt
from ouroboros_files import write_lgm, write_view_model
from running_workflows import SIDE, find, pictures, read, reduced, text_of, watch, with_defaults

VIEWS = 8


@pytest.fixture(scope="module")
def files(host):
    """The files that the workflows ask for, where the host looks for them."""
    models = host.base / "models"
    made = [
        write_lgm(models / "lgm" / "model_fp16_fixrot.safetensors"),
        write_lgm(models / "lgm" / "recon_model.pth", timed=True),
        write_view_model(models / "ouroboros3d" / "mv_model_unet.pth"),
    ]
    yield
    for path in made:
        path.unlink()


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def from_toy(file: str = "model_fp16_fixrot.safetensors", views: int = 16, sigma: float = 0.0) -> dict:
    """The true views of a demo toy through an LGM."""
    return {
        "cameras": node("MVOrbitCameras", preset="demo", views=views, preset_elevation=True, elevation=0.0,
                        start_azimuth=0.0, span=360.0, radius=1.5, fov=49.13, aspect=1.0),
        "toy": node("MVDemoObject", seed=3, variant=0, variants=6, size=64, background="white", cameras=["cameras", 0]),
        "lgm": node("MVLoadLGM", file=file, rotations="auto"),
        "made": node("MVLGMReconstruct", lgm=["lgm", 0], images=["toy", 1], cameras=["cameras", 0], tolerance=12.0,
                     min_opacity=0.005, sigma=sigma),
        "views": node("SaveImage", images=["made", 1], filename_prefix="watched/lgm"),
        "said": node("PreviewAny", source=["made", 2]),
        "kind": node("PreviewAny", source=["lgm", 1]),
        "maps": node("MVCoordinateMaps", splat=["made", 0], cameras=["cameras", 0], width=64, height=64,
                     definition="canonical", cube=1.0),
        "drawn": node("MVGaussianRender", splat=["made", 0], cameras=["cameras", 0], width=64, height=64,
                      background="white"),
        "same": node("MVCompareViews", views=["maps", 1], reference=["drawn", 0], title="maps"),
        "told": node("PreviewAny", source=["same", 0]),
    }  # fmt: skip


def test_lgm_makes_a_splat_of_four_of_sixteen_views(host, files):
    result = host.run(from_toy(), timeout=600)
    assert text_of(result, "said").endswith(
        "from view 0 (0.0 degrees), view 4 (90.0 degrees), view 8 (180.0 degrees), view 12 (270.0 degrees)"
    )
    assert "an LGM" in text_of(result, "kind") and "rotations: as predicted" in text_of(result, "kind")
    views = pictures(host, result, "views")
    assert views.shape == (16, 64, 64, 3) and views.std() > 0.02
    # The colours beside the coordinate maps are the ordinary render: 99 stands for equal pictures.
    assert "| all | 99.00 |" in text_of(result, "told")


def test_time_and_kind_of_file_matter(host, files):
    finished = pictures(host, host.run(from_toy("recon_model.pth"), timeout=600), "views")
    result = host.run(from_toy("recon_model.pth", sigma=100.0), timeout=600)
    assert np.abs(pictures(host, result, "views") - finished).max() > 0.02
    assert "recon_model" in text_of(result, "kind") and "rotations: all the identity" in text_of(result, "kind")


def refused(host, prompt: dict) -> str:
    with pytest.raises(NodeFailed) as caught:
        host.run(prompt, timeout=600)
    assert caught.value.exception_type == "ValueError"
    return caught.value.exception_message


def test_bad_input_is_refused(host, object_info, files):
    said = refused(host, from_toy(views=6))
    assert "none within 12 degrees of 90 and 270" in said and "MVGaussianReconstruct" in said
    said = refused(host, from_toy(views=3))
    assert "these 3 cameras" in said and "none within 12 degrees of 90 and 180 and 270" in said
    toy = from_toy(views=6)
    feedback = {name: toy[name] for name in ("cameras", "lgm")} | {
        "model": node("MVLoadDemoModel", kind="analytic", resolution=32, window=0, kappa=1.0, front_bias=0.0, seed=3,
                      families=1, variants=2),
        "patch": with_defaults(object_info, "MV3DFeedback", model=["model", 0], vae=["model", 1],
                               cameras=["cameras", 0], lgm=["lgm", 0]),
        "shown": node("TestInspect", value=["patch", 0]),
    }  # fmt: skip
    said = refused(host, feedback)
    assert "these 6 cameras" in said and "none within 12 degrees of 90 and 270" in said
    assert said.endswith("or use Fit Gaussian Splat (MVGaussianReconstruct), which takes any cameras.")
    cameras = {"model": node("MVLoadDemoModel", kind="analytic", resolution=32, window=0, kappa=1.0, front_bias=0.0,
                             seed=3, families=1, variants=2)}  # fmt: skip
    cameras["told"] = node("MVOuroboros3DCameras", model=["model", 0], cameras=["model", 2])
    cameras["shown"] = node("TestInspect", value=["told", 0])
    assert "has no feedback encoders" in refused(host, cameras)


def test_files_in_the_wrong_folder_are_named(host, files):
    """Each loader with the other's files, as a user may put them."""
    models = host.base / "models"
    (models / "checkpoints").mkdir(exist_ok=True)
    # The view model's file is read first, so this one is never opened.
    checkpoint = models / "checkpoints" / "unread.safetensors"
    checkpoint.touch()
    lgm, views = "an LGM is", "Ouroboros3D's view model is"
    cases = [
        ("ouroboros3d", "mv_model_unet.pth", "lgm", f"Ouroboros3D's view model (mv_model_unet), but {lgm}"),
        ("lgm", "recon_model.pth", "ouroboros3d", f"Ouroboros3D's reconstruction model (recon_model), but {views}"),
        ("lgm", "model_fp16_fixrot.safetensors", "ouroboros3d", f"an LGM, but {views}"),
    ]
    try:
        for source, name, folder, words in cases:
            wrong = models / folder / name
            wrong.write_bytes((models / source / name).read_bytes())
            prompt = {"views": node("MVLoadOuroboros3D", file=name, checkpoint=checkpoint.name),
                      "shown": node("TestInspect", value=["views", 0])}  # fmt: skip
            try:
                said = refused(host, from_toy(name) if folder == "lgm" else prompt)
            finally:
                wrong.unlink()
            assert said.startswith(f"This file is {words}") and said.endswith("."), said
    finally:
        checkpoint.unlink()


@pytest.mark.slow  # loads 1.9 GB of weights, then runs a 0.2 billion parameter UNet and CLIP H on the CPU
def test_sv3d_then_lgm(host, object_info, files, sv3d_checkpoint, input_picture):
    prompt = reduced(workflow_to_prompt(read("sv3d_lgm_splat"), object_info))
    prompt[find(prompt, "MVOrbitCameras", "Cameras SV3D was trained on")]["inputs"]["views"] = VIEWS
    watch(prompt, "renders", [find(prompt, "MVLGMReconstruct"), 1])
    result = host.run(prompt, timeout=1500)
    # Steps of 45 degrees; the input picture is the last view.
    assert text_of(result, find(prompt, "PreviewAny", "Which views")).endswith(
        "from view 7 (0.0 degrees), view 1 (90.0 degrees), view 3 (180.0 degrees), view 5 (270.0 degrees)"
    )
    assert pictures(host, result, "renders").shape == (VIEWS, SIDE, SIDE, 3)
    assert result.files(find(prompt, "SaveAnimatedWEBP"))


@pytest.mark.slow  # CLIP H and a full-size VAE on the CPU
def test_ouroboros3d_with_and_without_feedback(host, object_info, files, sv3d_checkpoint, input_picture):
    """SVD's VAE and CLIP vision are SV3D's, under the same names, so the one reduced checkpoint serves for both."""
    prompt = workflow_to_prompt(read("ouroboros3d"), object_info)
    for one in prompt.values():
        if one["class_type"] == "KSampler":
            assert (one["inputs"]["steps"], one["inputs"]["cfg"], one["inputs"]["sampler_name"]) == (25, 3.0, "euler")
            one["inputs"]["steps"] = 3
        for side in ("width", "height"):
            if one["inputs"].get(side) == 512:
                one["inputs"][side] = SIDE
    prompt[find(prompt, "MVLoadOuroboros3D")]["inputs"]["checkpoint"] = "sv3d_p.safetensors"
    runs = ("Without feedback", "With feedback")
    for name in runs:
        watch(prompt, name, [find(prompt, "VAEDecode", f"{name}: views"), 0])
    watch(prompt, "maps", [find(prompt, "MVCoordinateMaps"), 0])
    result = host.run(prompt, timeout=1500)
    first, second = (pictures(host, result, name) for name in runs)
    assert first.shape == second.shape == (VIEWS, SIDE, SIDE, 3)
    # Same noise: what differs is what was fed back.
    assert np.abs(first - second).mean() > 1e-3 and np.abs(first[0] - first[1]).mean() > 1e-3
    assert pictures(host, result, "maps").shape == (VIEWS, SIDE, SIDE, 3)
