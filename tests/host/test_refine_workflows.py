"""The workflows of renoise-restart in the real ComfyUI."""

from __future__ import annotations

import re

import numpy as np
import pytest
from comfy_host import workflow_to_prompt
from plyfile import PlyData
from running_workflows import FRAMES, SIDE, find, pictures, read, reduced, text_of, the_file, watch


def small(prompt: dict) -> dict:
    """64 px instead of 128, with the same sight in proportion, and token fits."""
    changes = {
        "MVDemoObject": {"size": 64},
        "MVLoadDemoModel": {"resolution": 64, "window": 31},
        "MVViewConditioning": {"width": 64, "height": 64},
        "MVIterativeRefine": {"final_iterations": 40, "points": 800},
        "MVGaussianReconstruct": {"iterations": 40, "points": 800, "max_points": 3000},
    }
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    return prompt


def agreement(result, prompt: dict, title: str) -> float:
    report = text_of(result, find(prompt, "MVDemoJudge", f"Which toy is it, {title}?"))
    return float(re.search(r"agreement ([\d.]+)", report)[1])


@pytest.mark.slow  # 16 views, five splats: what the loop is for, as users see it
def test_two_rounds_make_the_views_agree(host, object_info):
    prompt = small(workflow_to_prompt(read("refine_demo"), object_info))
    # At this size the workflow's own noise gives three camps, which no compromise unites.
    prompt[find(prompt, "RandomNoise")]["inputs"]["noise_seed"] = 2
    refine = find(prompt, "MVIterativeRefine")
    watch(prompt, "rounds", [refine, 3])
    result = host.run(prompt, timeout=1500)
    assert agreement(result, prompt, "after") > agreement(result, prompt, "before") + 0.4
    rounds = pictures(host, result, "rounds")
    assert rounds.shape == (48, 64, 64, 3)
    # The input view is the same toy in every round, the sides differ from the first views.
    change = np.abs(rounds[:16] - rounds[32:]).mean((1, 2, 3))
    assert change[4:13].mean() > 3 * change[0]
    assert len(PlyData.read(str(the_file(host, result, find(prompt, "MVSaveSplat"))))["vertex"]) > 0
    assert pictures(host, result, find(prompt, "MVContactSheet")).size > 0


@pytest.mark.slow  # 16 views drawn twice, then a round
def test_mirror_then_a_round(host, object_info):
    prompt = small(workflow_to_prompt(read("mirror_refine_demo"), object_info))
    result = host.run(prompt, timeout=1500)
    before, mirrored, after = (agreement(result, prompt, t) for t in ("before", "after MIRROR", "after the round"))
    assert mirrored > before
    assert after >= mirrored


@pytest.mark.slow  # loads 1.9 GB of random weights and draws the views, once and in two rounds
def test_sv3d_workflow_runs_on_random_weights(host, object_info, sv3d_checkpoint, input_picture):
    """Loaders, conditioning, guider, fits, VAE, renoise and sampler go together; the pictures show nothing."""
    prompt = reduced(workflow_to_prompt(read("refine_sv3d"), object_info))
    prompt[find(prompt, "BasicScheduler")]["inputs"]["steps"] = 2
    refine = find(prompt, "MVIterativeRefine")
    prompt[refine]["inputs"] |= {"iterations": 4, "final_iterations": 4, "points": 200, "values": "0.5"}
    watch(prompt, "rounds", [refine, 3])
    result = host.run(prompt, timeout=1500)
    rounds = pictures(host, result, "rounds")
    assert rounds.shape == (3 * FRAMES, SIDE, SIDE, 3)
    views = rounds.reshape(3, FRAMES, SIDE, SIDE, 3)
    assert min(np.abs(views[i] - views[j]).max() for i, j in ((0, 1), (1, 2))) > 0.01
    assert len(PlyData.read(str(the_file(host, result, find(prompt, "MVSaveSplat"))))["vertex"]) > 0
