"""MVGaussianReconstruct in the real ComfyUI: presets, corrected cameras, and what it says to what cannot be."""

from __future__ import annotations

import re

import pytest
from comfy_host import NodeFailed, PromptRejected

SIZE = 48
OBJECT = {"seed": 3, "variant": 1, "variants": 3, "size": SIZE, "background": "grey"}
# As workflows were saved before the newer inputs came: none of them may be required.
OLD = {
    "iterations": 10, "seed": 5, "start": "hull", "background": "auto", "points": 200, "max_points": 400,
    "sh_degree": 0, "weight_l1": 1.0, "weight_ms_ssim": 0.2, "weight_mask": 0.2,
}  # fmt: skip


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def orbit(elevation):
    return node(
        "MVOrbitCameras", preset="demo", views=8, preset_elevation=False, elevation=elevation, start_azimuth=0.0,
        span=360.0, radius=1.5, fov=49.13, aspect=1.0,
    )  # fmt: skip


def prompt(given=15.0, **settings):
    return {
        "c": orbit(15.0),
        "g": orbit(given),
        "o": node("MVDemoObject", cameras=["c", 0], **OBJECT),
        "r": node("MVGaussianReconstruct", images=["o", 1], cameras=["g", 0], masks=["o", 2], **{**OLD, **settings}),
        "t": node("PreviewAny", source=["r", 3]),
        "i": node("TestInspect", value=["r", 4]),
    }


def report(result) -> str:
    return result.outputs["t"]["text"][0]


def said(host, graph) -> str:
    with pytest.raises((NodeFailed, PromptRejected)) as caught:
        host.run(graph)
    assert host.alive()
    error = caught.value
    return error.exception_message if isinstance(error, NodeFailed) else str(error)


def test_an_old_prompt_still_runs_and_hands_its_cameras_on(host):
    result = host.run(prompt())
    assert "10 iterations" in report(result) and "l1 " in report(result) and "\n" not in report(result)
    cameras = result.outputs["i"]["report"][0]
    assert cameras["c2w"]["shape"] == [8, 4, 4]


def test_without_lpips_weights_it_says_which_file_goes_where(host):
    """No weights in this host's folders: the report names files and folder, and what was used instead."""
    text = report(host.run(prompt(losses="IM-3D", stop_after=2)))
    assert "vgg16-397923af.pth" in text and re.search(r"vgg\.pth .* into .*models.lpips", text)
    assert "Used instead: the losses 'IM-3D without LPIPS' (l1 0.2, msssim 1, mask 1)" in text
    assert "lpips 0" not in text.splitlines()[0] and "msssim" in text.splitlines()[0]


def test_options_together(host):
    graph = prompt(
        given=11.0, strategy="mcmc", densify_every=3, antialiased=True, losses="L2", view_weights="1 1 1 1 1 1 1 0",
        refine_cameras="elevation and azimuths", search_elevation=False, background_colour="#808080", iterations=20,
        stop_after=100,
    )  # fmt: skip
    text = report(host.run(graph))
    assert "l2 " in text and "mcmc " in text and "l1 " not in text
    assert re.search(r"cameras corrected during the fit: elevation \+?-?\d", text) and "azimuths" in text


def test_starts_from_depth_and_from_a_splat(host):
    graph = prompt()
    graph["g8"] = node(
        "MVGaussianRender", splat=["r", 0], cameras=["r", 4], width=SIZE, height=SIZE, background="white",
        antialiased=True,
    )  # fmt: skip
    graph["r2"] = node("MVGaussianReconstruct", **{**graph["r"]["inputs"], "start": "depth", "depth": ["g8", 2]})
    graph["t2"] = node("PreviewAny", source=["r2", 3])
    assert "Gaussians after 10 iterations" in host.run(graph).outputs["t2"]["text"][0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"iterations": 0}, "iterations"),
        ({"start": "depth"}, "needs depth maps"),
        ({"view_weights": "1, 2"}, "8 views but 2 view weights"),
        ({"background_colour": "red"}, "six hexadecimal digits"),
        ({"view_weights": "0 0 0 0 0 0 0 0"}, "not all 0"),
    ],
)
def test_bad_input_is_answered(host, settings, words):
    assert words in said(host, prompt(**settings))


def test_masks_all_white_or_black(host):
    for value, words in ((0.0, "Every mask is empty"), (1.0, "covers its whole picture")):
        graph = prompt()
        graph["m"] = node("SolidMask", value=value, width=SIZE, height=SIZE)
        graph["b"] = node("RepeatImageBatch", image=["mi", 0], amount=8)
        graph["mi"] = node("MaskToImage", mask=["m", 0])
        graph["bm"] = node("ImageToMask", image=["b", 0], channel="red")
        graph["r"]["inputs"]["masks"] = ["bm", 0]
        assert words in said(host, graph)
