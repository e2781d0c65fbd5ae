"""Every shipped workflow is run in the real ComfyUI, and what comes out is looked at.

The demo workflows run as they are shipped. The SV3D ones run on a random-weight checkpoint of the true layout
(tests/reduced_checkpoints.py) with fewer and smaller views: what is tested is that loaders, conditioning, sampler and
fit work together, not what the pictures show.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import build_workflows
import demo
import numpy as np
import pytest
from comfy_host import workflow_to_prompt
from plyfile import PlyData
from running_workflows import (
    FRAMES,
    ROOT,
    SIDE,
    find,
    frames,
    halved,
    pictures,
    psnr,
    read,
    reduced,
    run_demo,
    text_of,
    the_file,
    watch,
)

# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_what_the_descriptions_give(object_info):
    """`python scripts/build_workflows.py` after every change of a node. On another ComfyUI its own nodes may have other
    inputs than ours was written for: there only our nodes are compared."""
    if not os.environ.get("COMFYUI_PATH"):
        assert build_workflows.outdated(object_info) == []
    for name, text in build_workflows.build_all(object_info).items():
        assert our_nodes(json.loads(text)) == our_nodes(read(name.removesuffix(".json")))


def our_nodes(workflow: dict) -> list:
    """Without the sockets that only hosts with these types have."""
    keys = ("id", "type", "outputs", "widgets_values")
    newer = ("DA3_GEOMETRY", "MOGE_GEOMETRY")
    return [
        {key: node[key] for key in keys} | {"inputs": [i for i in node["inputs"] if i["type"] not in newer]}
        for node in workflow["nodes"]
        if node["type"].startswith("MV")
    ]


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_demo_makes_16_different_views_of_one_toy(host, demo_run):
    prompt, result, _ = demo_run
    views = pictures(host, result, "views")
    assert views.shape == (16, 128, 128, 3)
    difference = np.abs(views[:, None] - views[None]).mean((2, 3, 4)) + np.eye(16)
    assert difference.min() > 0.003
    assert (views.min((1, 2, 3)) < 0.5).all(), "a view is blank"
    verdict = text_of(result, find(prompt, "MVDemoJudge"))
    assert "agreement 1.00" in verdict
    assert "second faces: 0" in verdict
    assert f"seed {prompt[find(prompt, 'PrimitiveInt')]['inputs']['value']}," in verdict, "another toy than asked for"


def test_demo_splat_shows_the_views(host, demo_run):
    """The figure is measured at 36.8 dB; the tables say the same as the saved pictures."""
    prompt, result, _ = demo_run
    ours = psnr(*(pictures(host, result, name).reshape(1, -1, 128, 3) for name in ("renders", "views")))[0]
    assert ours > 33
    lines = demo.figures(prompt, result)
    told = float(next(line for line in lines if "splat against its views" in line).split()[-2])
    assert told == pytest.approx(ours, abs=0.2)


def test_demo_saves_a_ply_that_another_reader_opens(host, demo_run):
    prompt, result, _ = demo_run
    saver = find(prompt, "MVSaveSplat")
    vertices = PlyData.read(str(the_file(host, result, saver)))["vertex"]
    assert f"{len(vertices)} Gaussians" in text_of(result, saver)
    assert len(vertices) > 500
    assert all(np.isfinite(vertices[p.name]).all() for p in vertices.properties)
    centre = np.stack([vertices[axis] for axis in "xyz"])
    assert np.abs(np.median(centre, axis=1)).max() < 0.2, "the toy is not at the origin"


def test_demo_turntable_goes_the_way_of_the_views(host, demo_run):
    """48 frames over the same orbit: every third one is a view, seen by the splat at twice the size."""
    prompt, result, _ = demo_run
    turntable = frames(the_file(host, result, find(prompt, "SaveAnimatedWEBP")))
    assert turntable.shape == (48, 256, 256, 3)
    same = psnr(halved(turntable[::3]), pictures(host, result, "views"))
    backwards = psnr(halved(turntable[::-3]), pictures(host, result, "views"))
    assert same.min() > 24
    assert same.mean() > backwards.mean() + 5


def test_demo_contact_sheet_and_camera_plan(host, demo_run):
    prompt, result, _ = demo_run
    sheet = pictures(host, result, find(prompt, "SaveImage", "Save the contact sheet"))[0]
    # Two blocks of 8 columns and 3 rows of 128 px, and the labels.
    assert sheet.shape[0] > 2 * 3 * 128
    assert sheet.shape[1] > 8 * 128
    assert pictures(host, result, find(prompt, "MVCamerasPreview")).shape[2] >= 1024


def test_demo_script_finds_its_results(host, demo_run):
    """What `python run.py demo` prints at its end."""
    prompt, result, reporter = demo_run
    shipped = {node_id: node for node_id, node in prompt.items() if node_id.isdigit()}
    files = demo.saved_files(host, shipped, result)
    assert [path.suffix for _, path in files] == [".png", ".ply", ".webp"]
    assert all(path.is_absolute() and path.stat().st_size > 1000 for _, path in files)
    assert set(reporter.seconds) == {reporter.title(node_id) for node_id in result.executed}
    assert "Fit the splat" in reporter.seconds


def test_demo_script_tells_a_missing_result(host, demo_run):
    prompt, result, _ = demo_run
    saver = find(prompt, "MVSaveSplat")
    kept = result.outputs.pop(saver)
    try:
        with pytest.raises(demo.HostError, match="splat, for any 3DGS viewer is missing"):
            demo.saved_files(host, prompt, result)
    finally:
        result.outputs[saver] = kept


def test_demo_script_fails_readably_without_a_comfyui(tmp_path):
    env = {**os.environ, "COMFYUI_PATH": str(tmp_path), "PYTHONUTF8": "1"}
    answer = subprocess.run([sys.executable, ROOT / "scripts" / "demo.py"], env=env, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "The demo failed: COMFYUI_PATH is" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow  # a second full run, 40 s
def test_contradicting_views_make_a_worse_splat(host, object_info, demo_run):
    """What the pack is about, in one comparison: same toy, same settings of the fit."""
    _, good, _ = demo_run
    prompt, bad, _ = run_demo(host, object_info, "contradicting_views_demo")
    verdict = text_of(bad, find(prompt, "MVDemoJudge"))
    assert float(re.search(r"agreement ([\d.]+)", verdict)[1]) < 0.7
    fits = [psnr(pictures(host, r, "renders"), pictures(host, r, "views")) for r in (good, bad)]
    assert fits[1].mean() < fits[0].mean() - 4
    # The front is known to the model, and suffers less than the back.
    assert fits[1][0] > fits[1][6:11].mean() + 3


# --- splat files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files_run(host, object_info, demo_run):
    prompt, result, _ = demo_run
    saved = the_file(host, result, find(prompt, "MVSaveSplat"))
    prompt = workflow_to_prompt(read("splat_files_and_cameras"), object_info)
    loader = find(prompt, "MVLoadSplat")
    named = host.base / "output" / prompt[loader]["inputs"]["file"].removesuffix(" [output]")
    if not named.exists():
        shutil.copyfile(saved, named)
    orbit, single = (k for k, n in prompt.items() if n["class_type"] == "MVGaussianRender")
    prompt[single]["inputs"] |= {"width": 256, "height": 256}
    watch(prompt, "orbit", [orbit, 0])
    watch(prompt, "single", [single, 0])
    watch(prompt, "coordinates", [orbit, 3])
    return prompt, host.run(prompt), named


def test_demo_saves_where_the_next_workflow_loads():
    """On a fresh ComfyUI the first run of the demo makes the file that splat_files_and_cameras names."""
    saver = next(n for n in read("image_to_splat_demo")["nodes"] if n["type"] == "MVSaveSplat")
    loader = next(n for n in read("splat_files_and_cameras")["nodes"] if n["type"] == "MVLoadSplat")
    assert loader["widgets_values"] == [f"{saver['widgets_values'][0]}_00001_.ply [output]"]


def test_a_loaded_splat_is_saved_unchanged(host, files_run):
    prompt, result, source = files_run
    before = PlyData.read(str(source))["vertex"]
    after = PlyData.read(str(the_file(host, result, find(prompt, "MVSaveSplat"))))["vertex"]
    assert [p.name for p in before.properties] == [p.name for p in after.properties]
    for one in before.properties:
        np.testing.assert_allclose(after[one.name], before[one.name], atol=1e-4, err_msg=one.name)


def test_a_camera_survives_comfyuis_3d_camera(host, files_run):
    """View 1 of the orbit, through LOAD3D_CAMERA and back, renders the same picture."""
    prompt, result, _ = files_run
    view = prompt[find(prompt, "MVCameraToLoad3D")]["inputs"]["view"]
    orbit, single = pictures(host, result, "orbit"), pictures(host, result, "single")
    assert orbit.shape == (8, 256, 256, 3)
    assert psnr(single, orbit[view : view + 1])[0] > 45
    assert psnr(single, orbit[view + 1 : view + 2])[0] < 30


def test_coordinates_are_where_the_surface_is(host, files_run):
    """Left of the picture is -x from the front and +x from behind (r = x + 0.5, y and z in g and b)."""
    _, result, _ = files_run
    seen = pictures(host, result, "coordinates")
    for view, sign in ((0, 1), (4, -1)):
        surface = np.abs(seen[view] - 0.5).max(-1) > 0.06
        _, columns = np.nonzero(surface)
        x = seen[view][surface][:, 0]
        assert np.sign(x[columns > 140].mean() - x[columns < 116].mean()) == sign


# --- SV3D -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # writes and loads 1.9 GB of weights, then runs a 0.2 billion parameter UNet and CLIP H on the CPU
@pytest.mark.parametrize(
    ("name", "conditioning", "preset"),
    [
        ("sv3d_image_to_splat", "SV3D_Conditioning", "sv3d_comfyui"),
        ("sv3d_stability_cameras_to_splat", "MVViewConditioning", "sv3d_stability"),
    ],
)
def test_sv3d_workflow_runs(host, object_info, sv3d_checkpoint, input_picture, name, conditioning, preset):
    from mvpack.multiview.camera_presets import preset as cameras_of

    prompt = reduced(workflow_to_prompt(read(name), object_info))
    elevation = find(prompt, "PrimitiveFloat")
    prompt[elevation]["inputs"]["value"] = 10.0
    node = find(prompt, conditioning)
    watch(prompt, "positive", [node, 0], "TestInspect")
    watch(prompt, "latent", [find(prompt, "KSampler"), 0], "TestInspect")
    watch(prompt, "views", [find(prompt, "VAEDecode"), 0])
    watch(prompt, "input", [find(prompt, "ImageCompositeMasked"), 0])
    log = len(host.log_text())
    result = host.run(prompt, timeout=1500)

    said = host.log_text()[log:].lower()
    assert not re.search(r"missing (clip|vae)|unet (missing|unexpected)|clip missing|no match", said), said

    _, told = result.outputs["positive"]["report"][0][0]
    cameras = cameras_of(preset, 10.0, FRAMES)
    assert told["elevation"] == pytest.approx([10.0] * FRAMES)
    turn = np.asarray(told["azimuth"]) - cameras.azimuths().numpy()
    np.testing.assert_allclose((turn + 180) % 360 - 180, 0, atol=1e-3, err_msg="the fit's cameras are not the model's")

    latent = result.outputs["latent"]["report"][0]["samples"]
    assert latent["shape"] == [FRAMES, 4, SIDE // 8, SIDE // 8]
    assert np.isfinite([latent["min"], latent["max"], latent["mean"]]).all()
    assert latent["max"] - latent["min"] > 0.1
    views = pictures(host, result, "views")
    assert views.shape == (FRAMES, SIDE, SIDE, 3)
    assert np.abs(views[0] - views[1]).mean() > 1e-3
    given = pictures(host, result, "input")[0]
    assert given[0, 0] == pytest.approx([1, 1, 1], abs=0.01), "transparent parts are not white"
    assert given[48, 48] == pytest.approx([1, 0.5, 0], abs=0.01)

    assert len(PlyData.read(str(the_file(host, result, find(prompt, "MVSaveSplat"))))["vertex"]) > 0
    assert frames(the_file(host, result, find(prompt, "SaveAnimatedWEBP"))).shape == (4, SIDE, SIDE, 3)
