"""The HarmonyView workflows in the real ComfyUI: the demo as shipped, SV3D on random weights of the true layout."""

from __future__ import annotations

import re

import numpy as np
import pytest
from comfy_host import workflow_to_prompt
from running_workflows import FRAMES, SIDE, find, pictures, read, reduced, text_of, watch


def agreement(result, prompt: dict, title: str) -> float:
    return float(re.search(r"agreement ([\d.]+)", text_of(result, find(prompt, "MVDemoJudge", title)))[1])


def test_demo_shows_more_agreement(host, object_info):
    """Same toy and noise in both rows; smaller than shipped, to be quicker."""
    prompt = workflow_to_prompt(read("harmonyview_demo"), object_info)
    for node in prompt.values():
        if node["class_type"] == "MVLoadDemoModel":
            node["inputs"] |= {"resolution": 64, "window": 31, "kappa": 0.1}
        if node["class_type"] == "MVViewConditioning":
            node["inputs"] |= {"width": 64, "height": 64}
        if node["class_type"] == "BasicScheduler":
            node["inputs"]["steps"] = 16
    plain = find(prompt, "SamplerCustomAdvanced", "Views without guidance")
    guided = find(prompt, "SamplerCustomAdvanced", "Views with HarmonyView")
    assert prompt[plain]["inputs"]["noise"] == prompt[guided]["inputs"]["noise"]
    for name, sampler in (("plain", plain), ("guided", guided)):
        decoder = next(k for k, n in prompt.items() if n["inputs"].get("samples") == [sampler, 0])
        watch(prompt, name, [decoder, 0])
    result = host.run(prompt, timeout=900)
    views = {name: pictures(host, result, name) for name in ("plain", "guided")}
    assert views["plain"].shape == views["guided"].shape == (16, 64, 64, 3)
    assert np.abs(views["plain"] - views["guided"]).mean() > 1e-3
    assert agreement(result, prompt, "Judge: HarmonyView") > agreement(result, prompt, "Judge: no guidance")


@pytest.mark.slow  # loads 1.9 GB of weights, then runs a 0.2 billion parameter UNet and CLIP H on the CPU
def test_sv3d_runs(host, object_info, sv3d_checkpoint, input_picture):
    prompt = reduced(workflow_to_prompt(read("harmonyview_sv3d"), object_info))
    prompt[find(prompt, "BasicScheduler")]["inputs"]["steps"] = 2
    watch(prompt, "views", [find(prompt, "VAEDecode"), 0])
    watch(prompt, "latent", [find(prompt, "SamplerCustomAdvanced"), 0], "TestInspect")
    result = host.run(prompt, timeout=1500)
    latent = result.outputs["latent"]["report"][0]["samples"]
    assert latent["shape"] == [FRAMES, 4, SIDE // 8, SIDE // 8]
    assert np.isfinite([latent["min"], latent["max"], latent["mean"]]).all()
    assert latent["max"] - latent["min"] > 0.1
    views = pictures(host, result, "views")
    assert views.shape == (FRAMES, SIDE, SIDE, 3)
    assert np.abs(views[0] - views[1]).mean() > 1e-3
