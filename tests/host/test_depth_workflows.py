"""The depth nodes and their workflow in the real ComfyUI."""

from __future__ import annotations

import os

import numpy as np
import pytest
from comfy_host import NodeFailed, PromptRejected, workflow_to_prompt
from depth_layout import REDUCED, original_layout, transformers_network
from running_workflows import find, pictures, read, text_of, watch
from safetensors.torch import save_file

ORBIT = {
    "preset": "custom orbit", "views": 6, "preset_elevation": False, "elevation": 15.0, "start_azimuth": 0.0,
    "span": 360.0, "radius": 1.5, "fov": 49.13, "aspect": 1.0,
}  # fmt: skip
TOY = {"seed": 3, "variant": 1, "variants": 3, "size": 64, "background": "white"}
ESTIMATE = {
    "model": "demo depth net", "calibration": "joint", "resolution": 0, "batch": 4, "far_percentile": 2.0,
    "near_percentile": 98.0, "object_radius": 0.0,
}  # fmt: skip
ELSEWHERE = {
    "map_is": "disparity", "near_is": "bright", "calibration": "joint", "width": 64, "height": 64,
    "far_percentile": 2.0, "near_percentile": 98.0, "object_radius": 0.0,
}  # fmt: skip
FIT = {
    "iterations": 40, "seed": 5, "start": "hull", "background": "auto", "points": 400, "max_points": 2000,
    "sh_degree": 0, "weight_l1": 1.0, "weight_ms_ssim": 0.2, "weight_mask": 1.0,
}  # fmt: skip


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def scene() -> dict:
    return {"c": node("MVOrbitCameras", **ORBIT), "o": node("MVDemoObject", cameras=["c", 0], **TOY)}


def looked_at(prompt: dict, *sources: tuple[str, int]) -> dict:
    """The prompt with a test node behind each source, under the name of source and slot."""
    return {**prompt, **{f"{n}{i}": node("TestInspect", value=[n, i]) for n, i in sources}}


def seen(result, name: str):
    return result.outputs[name]["report"][0]


def said(host, prompt: dict) -> str:
    with pytest.raises((NodeFailed, PromptRejected)) as caught:
        host.run(prompt)
    assert host.alive()
    error = caught.value
    if isinstance(error, NodeFailed):
        assert error.exception_type == "ValueError", error.exception_type
        return error.exception_message
    return str(error)


@pytest.fixture(scope="module")
def depth_file(host):
    """A random-weight Depth-Anything-V2 of the reduced size in models/depthanything, as users put it there."""
    network = transformers_network(**REDUCED)
    folder = host.base / "models" / "depthanything"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "depth_anything_v2_vits_test.safetensors"
    save_file(original_layout(network.state_dict()), str(path))
    network.save_pretrained(str(folder / "small folder"))
    yield path.name
    for one in (path, *(folder / "small folder").iterdir()):
        one.unlink()
    (folder / "small folder").rmdir()


def test_demo_workflow_as_shipped(host, object_info):
    """Depth is where the toy is, and both sources agree on the order of near and far."""
    prompt = workflow_to_prompt(read("depth_demo"), object_info)
    estimate, elsewhere = find(prompt, "MVDepthEstimate"), find(prompt, "MVDepthFromImage")
    for name, source in (("network", estimate), ("splat", elsewhere)):
        watch(prompt, name, [source, 1])
    toy = find(prompt, "MVDemoObject")
    watch(prompt, "mask", [toy, 2], "MaskToImage")
    prompt["mask"]["inputs"] = {"mask": [toy, 2]}
    watch(prompt, "truth", ["mask", 0])
    result = host.run(prompt, timeout=600)
    truth = pictures(host, result, "truth")[..., 0] > 0.5
    network, splat = (pictures(host, result, name)[..., 0] for name in ("network", "splat"))
    assert network.shape == splat.shape == (8, 128, 128)
    for shade in (network, splat):
        assert ((shade > 0) & truth).sum() / ((shade > 0) | truth).sum() > 0.9
    both = (network > 0) & (splat > 0)
    assert np.corrcoef(network[both], splat[both])[0, 1] > 0.85
    for title in ("What it reports", "What it reports (splat)"):
        pixels = text_of(result, find(prompt, "PreviewAny", title)).split(" px")[0].split()[-1]
        assert float(pixels) < 2.0
    (sheet,) = pictures(host, result, find(prompt, "SaveImage", "Save the contact sheet"))
    assert sheet.shape[1] > 8 * 128


def test_depth_anything_from_the_models_folder(host, depth_file):
    """A random network says nothing true; but the file is found, loaded, run on every view and calibrated."""
    prompt = scene()
    for key, model in (("d", depth_file), ("f", "small folder")):
        prompt[key] = node(
            "MVDepthEstimate", views=["o", 1], cameras=["c", 0], masks=["o", 2], **ESTIMATE | {"model": model,
            "calibration": "minmax", "resolution": 56},
        )  # fmt: skip
    result = host.run(looked_at(prompt, ("d", 0), ("d", 1), ("d", 2), ("f", 0), ("o", 2)))
    file, folder = seen(result, "d0"), seen(result, "f0")
    assert file["type"] == "DepthMaps"
    assert file["depth"]["shape"] == file["confidence"]["shape"] == [6, 64, 64]
    assert 1.0 < file["depth"]["max"] < 1.9
    assert file["depth"]["mean"] == pytest.approx(folder["depth"]["mean"], abs=1e-5)
    assert seen(result, "d1")["shape"] == [6, 64, 64, 3]
    assert seen(result, "d2").startswith(f"{depth_file}, minmax.\nDisagreement of neighbouring views")


def test_depth_maps_as_pictures_and_from_a_splat(host):
    """The render's depth picture goes with depth, near bright; calibrated it is the splat's depth again."""
    prompt = {
        **scene(),
        "s": node("MVGaussianReconstruct", images=["o", 1], cameras=["c", 0], masks=["o", 2], **FIT),
        "r": node("MVGaussianRender", splat=["s", 0], cameras=["c", 0], width=64, height=64, background="white"),
        "i": node(
            "MVDepthFromImage", cameras=["c", 0], image=["r", 4], masks=["o", 2], **ELSEWHERE | {"map_is": "depth"}
        ),
        "p": node("MVDepthFromImage", cameras=["c", 0], splat=["s", 0], masks=["o", 2], **ELSEWHERE),
        "u": node("MVDepthFromImage", cameras=["c", 0], splat=["s", 0], **ELSEWHERE | {"width": 96, "height": 72}),
    }
    result = host.run(looked_at(prompt, ("i", 0), ("p", 0), ("p", 2), ("u", 0)))
    picture, splat = seen(result, "i0")["depth"], seen(result, "p0")["depth"]
    assert picture["shape"] == splat["shape"] == [6, 64, 64]
    assert picture["mean"] == pytest.approx(splat["mean"], rel=0.05)
    assert picture["max"] == pytest.approx(splat["max"], abs=0.12)
    assert 0 < seen(result, "p0")["confidence"]["mean"] < seen(result, "p0")["confidence"]["max"] <= 1
    assert "From splat." in seen(result, "p2")
    assert seen(result, "u0")["depth"]["shape"] == [6, 72, 96]


def test_geometry_sockets_are_there_where_the_host_has_the_types(object_info):
    optional = object_info["MVDepthFromImage"]["input"]["optional"]
    assert ("da3_geometry" in optional) == ("DA3Inference" in object_info)
    assert ("moge_geometry" in optional) == ("MoGeInference" in object_info)
    if not os.environ.get("COMFYUI_PATH"):
        assert not {"da3_geometry", "moge_geometry"} & set(optional)


def test_what_the_nodes_say_to_bad_input(host, depth_file):
    base = {**scene(), "e": node("EmptyImage", width=64, height=64, batch_size=6, color=0)}
    few = {**base, "b": node("ImageFromBatch", image=["o", 1], batch_index=0, length=4)}
    for prompt, inputs, says in (
        (few, {"views": ["b", 0]}, "There are 4 views but the cameras describe 6 views"),
        (base, {"views": ["e", 0]}, "No object stands out from the background colour in view 0, 1"),
        (base, {"views": ["o", 1], "model": "gone.safetensors"}, "There is no depth model 'gone.safetensors'"),
        (base, {"views": ["o", 1], "model": depth_file, "calibration": "none"}, "gives depth without a scale"),
    ):
        asked = {"cameras": ["c", 0], **ESTIMATE, **inputs}
        assert says in said(host, looked_at({**prompt, "d": node("MVDepthEstimate", **asked)}, ("d", 0)))
    empty = {**base, "k": node("ImageToMask", image=["e", 0], channel="red")}
    asked = {"views": ["o", 1], "cameras": ["c", 0], "masks": ["k", 0], **ESTIMATE}
    assert "Every mask is empty" in said(host, looked_at({**empty, "d": node("MVDepthEstimate", **asked)}, ("d", 0)))
    for inputs, says in (
        ({}, "exactly one source, got none"),
        ({"image": ["e", 0], "masks": ["o", 2]}, "has the same value all over the object"),
    ):
        asked = {"cameras": ["c", 0], **ELSEWHERE, **inputs}
        assert says in said(host, looked_at({**base, "d": node("MVDepthFromImage", **asked)}, ("d", 0)))
