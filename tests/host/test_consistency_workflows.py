"""Consistency Metrics and its workflow in the real ComfyUI."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_host import NodeFailed, workflow_to_prompt
from running_workflows import find, pictures, read, text_of, watch
from safetensors.torch import save_file

ORBIT = {
    "preset": "custom orbit", "views": 8, "preset_elevation": False, "elevation": 15.0, "start_azimuth": 0.0,
    "span": 360.0, "radius": 1.5, "fov": 49.13, "aspect": 1.0,
}  # fmt: skip
TOY = {"seed": 3, "variant": 1, "variants": 3, "size": 48, "background": "white"}
FIT = {
    "iterations": 10, "seed": 5, "start": "hull", "background": "auto", "points": 300, "max_points": 300,
    "sh_degree": 0, "weight_l1": 1.0, "weight_ms_ssim": 0.0, "weight_mask": 0.2,
}  # fmt: skip
METRICS = {
    "quality": "quick", "title": "toy", "odd_even": True, "neighbours": True, "held_out": True, "lpips": True, "seed": 0
}  # fmt: skip


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def scene(**metrics) -> dict:
    """A toy's true views measured against themselves, with a splat of them as the true one."""
    return {
        "c": node("MVOrbitCameras", **ORBIT),
        "o": node("MVDemoObject", cameras=["c", 0], **TOY),
        "m": node("MVConsistencyMetrics", views=["o", 1], cameras=["c", 0], **{**METRICS, **metrics}),
    }


def said(host, prompt: dict) -> str:
    with pytest.raises(NodeFailed) as caught:
        host.run(prompt)
    assert host.alive()
    assert caught.value.exception_type == "ValueError", caught.value.exception_message
    return caught.value.exception_message


@pytest.fixture
def random_lpips(host):
    """LPIPS files of the true layout with random weights, where the node looks for them."""
    import torchvision

    folder = host.base / "models" / "lpips"
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    state = torchvision.models.alexnet(weights=None).features.state_dict()
    save_file(
        {f"features.{k}": torch.randn(v.shape, generator=generator) / 30 for k, v in state.items()},
        folder / "alexnet.safetensors",
    )
    heads = enumerate((64, 192, 384, 256, 256))
    save_file(
        {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for i, c in heads},
        folder / "lpips_alex.safetensors",
    )
    yield
    for file in folder.iterdir():
        file.unlink()


def test_everything_is_measured_and_other_nodes_can_use_it(host, random_lpips):
    prompt = scene(truth=["o", 1], depth=["o", 3], splat=["f", 0], true_splat=["f", 0], masks=["o", 2])
    prompt["f"] = node("MVGaussianReconstruct", images=["o", 1], cameras=["c", 0], **FIT)
    prompt |= {f"p{i}": node("PreviewAny", source=["m", i]) for i in range(2, 7)}
    prompt["i"] = node("TestInspect", value=["m", 1])
    result = host.run(prompt)
    table = text_of(result, "m")
    assert "**toy** (8 views, measured at 48 x 48)" in table
    assert "Chamfer 0.0000, volume IoU 1.000" in table
    odd_even, neighbours, held_out, truth = (float(text_of(result, f"p{i}")) for i in range(2, 6))
    assert truth == 99
    assert 10 < held_out < 40 and 10 < odd_even < 40 and 15 < neighbours < 60
    numbers = json.loads(text_of(result, "p6"))
    assert numbers["odd_even"]["psnr"] == pytest.approx(odd_even)
    assert len(numbers["held_out"]["view_psnr"]) == 8
    assert numbers["truth"]["lpips"] == 0 and numbers["odd_even"]["lpips"] > 0
    assert "LPIPS was" not in table


def test_what_is_switched_off_is_zero_and_null(host):
    prompt = scene(odd_even=False, held_out=False, neighbours=True, depth=["o", 3], truth=["o", 1])
    prompt |= {f"p{i}": node("PreviewAny", source=["m", i]) for i in range(2, 7)}
    result = host.run(prompt)
    assert [float(text_of(result, f"p{i}")) for i in (2, 4)] == [0, 0]
    assert float(text_of(result, "p3")) > 15
    numbers = json.loads(text_of(result, "p6"))
    assert "odd_even" not in numbers and numbers["truth"]["lpips"] is None
    assert "LPIPS was left out: its weights were not found" in text_of(result, "m")


def test_bad_input_in_one_sentence(host):
    few = scene()
    few["c"]["inputs"] |= {"views": 3}
    assert "at least 4 views, got 3" in said(host, few)
    assert "nothing to measure" in said(host, scene(odd_even=False, neighbours=False, held_out=False))
    other = scene()
    other["d"] = node("MVOrbitCameras", **{**ORBIT, "views": 6})
    other["m"]["inputs"]["cameras"] = ["d", 0]
    assert "8 views but the cameras describe 6" in said(host, other)
    empty = scene(masks=["e", 0])
    empty["e"] = node("SolidMask", value=0.0, width=48, height=48)
    empty["r"] = node("RepeatImageBatch", image=["n", 0], amount=8)
    empty["n"] = node("MaskToImage", mask=["e", 0])
    empty["b"] = node("ImageToMask", image=["r", 0], channel="red")
    empty["m"]["inputs"]["masks"] = ["b", 0]
    assert "Every mask is empty" in said(host, empty)


# Runs the workflow as it is shipped: 2 x 16 views of 64 px are drawn and 6 short splats fitted.
@pytest.mark.slow
def test_workflow_tells_the_two_sets_of_views_apart(host, object_info):
    prompt = workflow_to_prompt(read("measure_consistency"), object_info)
    both = [
        find(prompt, "MVConsistencyMetrics", title) for title in ("Views that heed each other", "Views that do not")
    ]
    names = ("odd_even", "neighbour", "held_out", "truth")
    for k, metrics in enumerate(both):
        for slot, name in enumerate(names):
            watch(prompt, f"{name}{k}", [metrics, 2 + slot], "PreviewAny")
            prompt[f"{name}{k}"]["inputs"] = {"source": [metrics, 2 + slot]}
    result = host.run(prompt, timeout=1500)
    agree, disagree = ([float(text_of(result, f"{name}{k}")) for name in names] for k in (0, 1))
    assert all(a > d + 1 for a, d in zip(agree, disagree, strict=True)), (agree, disagree)
    assert pictures(host, result, find(prompt, "MVContactSheet")).shape[2] > 1000
