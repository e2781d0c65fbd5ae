"""3D feedback's workflows in the real ComfyUI."""

from __future__ import annotations

import re

import numpy as np
import pytest
from comfy_host import workflow_to_prompt
from ouroboros_files import write_lgm
from plyfile import PlyData
from running_workflows import FRAMES, SIDE, find, pictures, read, reduced, text_of, the_file, watch


def without_the_patch(prompt: dict) -> None:
    """The same sampling without it, beside it; both are watched, as "with" and "without"."""
    watch(prompt, "with", [find(prompt, "VAEDecode"), 0])
    guided = find(prompt, "VideoTriangleCFGGuidance")
    model = prompt[find(prompt, "MV3DFeedback")]["inputs"]["model"]
    prompt["plain guided"] = {**prompt[guided], "inputs": {**prompt[guided]["inputs"], "model": model}}
    sampler, decode = find(prompt, "KSampler"), find(prompt, "VAEDecode")
    prompt["plain"] = {**prompt[sampler], "inputs": {**prompt[sampler]["inputs"], "model": ["plain guided", 0]}}
    prompt["decoded"] = {**prompt[decode], "inputs": {**prompt[decode]["inputs"], "samples": ["plain", 0]}}
    watch(prompt, "without", ["decoded", 0])


@pytest.mark.slow  # two runs of 16 views and a dozen short fits, half a minute: the method as users see it
def test_feedback_makes_the_views_agree(host, object_info):
    prompt = workflow_to_prompt(read("feedback_demo"), object_info)
    prompt[find(prompt, "MVGaussianReconstruct")]["inputs"] |= {"iterations": 20, "points": 800, "max_points": 800}
    result = host.run(prompt, timeout=1500)
    agreement = [
        float(re.search(r"agreement ([\d.]+)", text_of(result, find(prompt, "MVDemoJudge", title)))[1])
        for title in ("Which toy is it, without?", "Which toy is it, with?")
    ]
    assert agreement[0] < 0.7
    assert agreement[1] > agreement[0] + 0.2
    assert pictures(host, result, find(prompt, "MVContactSheet")).size > 0


@pytest.mark.slow  # loads 1.9 GB of random weights: decoding, fitting and encoding between steps of a real UNet and VAE
def test_sv3d_workflow_runs_on_random_weights(host, object_info, sv3d_checkpoint, input_picture):
    prompt = reduced(workflow_to_prompt(read("feedback_sv3d"), object_info))
    patch = find(prompt, "MV3DFeedback")
    prompt[patch]["inputs"] |= {"first_iterations": 4, "iterations": 2, "points": 200}
    without_the_patch(prompt)
    result = host.run(prompt, timeout=1500)
    views = [pictures(host, result, name) for name in ("with", "without")]
    assert views[0].shape == views[1].shape == (FRAMES, SIDE, SIDE, 3)
    assert np.abs(views[0] - views[1]).max() > 0.01, "the patch did nothing"
    assert len(PlyData.read(str(the_file(host, result, find(prompt, "MVSaveSplat"))))["vertex"]) > 0


@pytest.mark.slow  # the same UNet and VAE, and an LGM between two steps in place of the fit
def test_sv3d_with_lgm_runs_on_random_weights(host, object_info, sv3d_checkpoint, input_picture):
    lgm = write_lgm(host.base / "models" / "lgm" / "model_fp16_fixrot.safetensors")
    prompt = reduced(workflow_to_prompt(read("feedback_sv3d_lgm"), object_info))
    patch = prompt[find(prompt, "MV3DFeedback")]["inputs"]
    assert patch["preset"] == "VideoMV (three steps)" and patch["lgm"] == [find(prompt, "MVLoadLGM"), 0]
    views = 8  # at 0, 45, 90 ... degrees; six would miss two of the four that LGM reads
    prompt[find(prompt, "MVOrbitCameras")]["inputs"]["views"] = views
    without_the_patch(prompt)
    try:
        result = host.run(prompt, timeout=1500)
    finally:
        lgm.unlink()
    led, plain = (pictures(host, result, name) for name in ("with", "without"))
    assert led.shape == plain.shape == (views, SIDE, SIDE, 3)
    assert np.abs(led - plain).max() > 0.01, "the patch did nothing"
    assert text_of(result, find(prompt, "PreviewAny", "Which views")).endswith("view 5 (270.0 degrees)")
    assert len(PlyData.read(str(the_file(host, result, find(prompt, "MVSaveSplat"))))["vertex"]) > 0
