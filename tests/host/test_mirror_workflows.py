"""MIRROR's two-stage workflows in the real ComfyUI."""

from __future__ import annotations

import re

import numpy as np
import pytest
from comfy_host import workflow_to_prompt
from depth_layout import REDUCED, original_layout, transformers_network
from plyfile import PlyData
from running_workflows import FRAMES, SIDE, find, pictures, read, reduced, text_of, the_file, watch
from safetensors.torch import save_file


def stages(prompt: dict) -> list[str]:
    """The two VAE Decode nodes: stage 1, then stage 2."""
    depth = prompt[find(prompt, "MVDepthEstimate")]["inputs"]["views"][0]
    return [depth, next(k for k, n in prompt.items() if n["class_type"] == "VAEDecode" and k != depth)]


@pytest.mark.slow  # two runs of 16 views of 128 px and their splats, a minute: what MIRROR is for, as users see it
def test_second_stage_makes_the_views_agree(host, object_info):
    prompt = workflow_to_prompt(read("mirror_two_stages_demo"), object_info)
    prompt[find(prompt, "MVGaussianReconstruct")]["inputs"] |= {"iterations": 20, "points": 800, "max_points": 800}
    for name, node in zip(("before", "after"), stages(prompt), strict=True):
        watch(prompt, name, [node, 0])
    result = host.run(prompt, timeout=1500)
    agreement = [
        float(re.search(r"agreement ([\d.]+)", text_of(result, find(prompt, "MVDemoJudge", title)))[1])
        for title in ("Which toy is it, before?", "Which toy is it, after?")
    ]
    assert agreement[0] < 0.7
    assert agreement[1] > agreement[0] + 0.2
    before, after = (pictures(host, result, name) for name in ("before", "after"))
    assert before.shape == after.shape == (16, 128, 128, 3)
    # The input view is the same toy before and after, the sides differ.
    change = np.abs(before - after).mean((1, 2, 3))
    assert change[4:13].mean() > 3 * change[0]
    tables = [text_of(result, find(prompt, "PreviewAny", f"In numbers, {t}")) for t in ("before", "after")]
    decibels = [float(re.search(r"odd/even[^|]*\|\s*([\d.]+)", t)[1]) for t in tables]
    assert decibels[1] > decibels[0] + 1
    for kind in ("MVContactSheet", "MVCorrespondencePreview"):
        assert pictures(host, result, find(prompt, kind)).size > 0


@pytest.mark.slow  # loads 1.9 GB of random weights and draws the views twice
def test_sv3d_workflow_runs_on_random_weights(host, object_info, sv3d_checkpoint, input_picture):
    """Loaders, conditioning, depth network, patch, sampler and fit go together; the pictures show nothing."""
    folder = host.base / "models" / "depthanything"
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / "depth_anything_v2_vits_fp32.safetensors"
    save_file(original_layout(transformers_network(**REDUCED).state_dict()), str(network))
    try:
        prompt = reduced(workflow_to_prompt(read("mirror_two_stages_sv3d"), object_info))
        # minmax: a network of random weights sees nothing that the other ways of calibrating could bring together.
        prompt[find(prompt, "MVDepthEstimate")]["inputs"] |= {"resolution": 70, "calibration": "minmax"}
        before, after = stages(prompt)
        for name, node in (("before", before), ("after", after)):
            watch(prompt, name, [node, 0])
        result = host.run(prompt, timeout=1500)
    finally:
        network.unlink()
    views = [pictures(host, result, name) for name in ("before", "after")]
    assert views[0].shape == views[1].shape == (FRAMES, SIDE, SIDE, 3)
    assert np.abs(views[0] - views[1]).max() > 0.01, "the patch did nothing"
    assert len(PlyData.read(str(the_file(host, result, find(prompt, "MVSaveSplat"))))["vertex"]) > 0
