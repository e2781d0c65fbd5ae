"""The cross-frame workflows on random-weight checkpoints of true layout (tests/reduced_checkpoints.py), small and with
two steps. What is tested is that loaders, prompts, patches, noise and sampler work together, not what pictures show."""

import re

import numpy as np
import pytest
from comfy_host import NodeFailed, workflow_to_prompt
from running_workflows import find, pictures, read, reduced_checkpoints, text_of, watch

SIDE, VIEWS = 64, 3


@pytest.fixture(params=["sd15", "stable_zero123"])
def checkpoint(request, host):
    """A checkpoint where the host looks for it, 0.6 or 1 GB, deleted afterwards."""
    folder = host.base / "models" / "checkpoints"
    path = reduced_checkpoints().write(request.param, folder, host.comfyui, host.python)
    yield path
    host.free()
    path.unlink()


def small(prompt: dict, checkpoint) -> dict:
    for node in prompt.values():
        values = node["inputs"]
        if "ckpt_name" in values:
            values["ckpt_name"] = checkpoint.name
        if "steps" in values:
            values["steps"] = 2
        if "width" in values and node["class_type"] in ("EmptyLatentImage", "StableZero123_Conditioning_Batched"):
            values |= {"width": SIDE, "height": SIDE}
        if node["class_type"] == "PrimitiveInt":
            values["value"] = VIEWS
        if node["class_type"] == "MVViewPrompts":
            # The third is longer than CLIP's 77 tokens.
            values["views"] = f"front view\nback view\nside view {'very detailed ' * 50}"
    return prompt


@pytest.mark.slow  # writes and loads 0.6 and 1 GB of weights, and runs CLIP and a 0.1 billion parameter UNet on the CPU
def test_cross_frame_workflow_runs(host, object_info, checkpoint, input_picture):
    """One test for both, so that a checkpoint exists no longer than it is needed."""
    log = len(host.log_text())
    if checkpoint.stem == "sd15":
        check_sd15(host, object_info, checkpoint)
    else:
        check_zero123(host, object_info, checkpoint)
    said = host.log_text()[log:].lower()
    assert not re.search(r"missing (clip|vae)|unet (missing|unexpected)|clip missing|no match", said), said


def check_sd15(host, object_info, checkpoint):
    prompt = small(workflow_to_prompt(read("cross_frame_sd15"), object_info), checkpoint)
    prompts, sampler = find(prompt, "MVViewPrompts"), find(prompt, "SamplerCustomAdvanced")
    watch(prompt, "positive", [prompts, 0], "TestInspect")
    watch(prompt, "views", [find(prompt, "VAEDecode"), 0])
    # The same without the patches: view 0 must be the same picture, the others not.
    loader = find(prompt, "CheckpointLoaderSimple")
    guider = prompt[prompt[sampler]["inputs"]["guider"][0]]
    prompt["plain_guider"] = {**guider, "inputs": {**guider["inputs"], "model": [loader, 0]}}
    prompt["plain"] = {**prompt[sampler], "inputs": {**prompt[sampler]["inputs"], "guider": ["plain_guider", 0]}}
    prompt["rows"] = {"class_type": "TestCompareRows", "inputs": {"a": [sampler, 0], "b": ["plain", 0]}}
    result = host.run(prompt, timeout=1500)

    embedding, told = result.outputs["positive"]["report"][0][0]
    assert embedding["shape"] == [VIEWS, 154, 768]
    assert told["pooled_output"]["shape"] == [VIEWS, 768]
    lines = text_of(result, find(prompt, "PreviewAny")).split("\n")
    assert lines[0] == "a wooden toy robot, front view, full body, plain white background"
    assert len(lines) == VIEWS
    (rows,) = result.outputs["rows"]["report"]
    assert rows["equal"] == [True, False, False]
    views = pictures(host, result, "views")
    assert views.shape == (VIEWS, SIDE, SIDE, 3)
    assert np.abs(views[0] - views[1]).mean() > 1e-4

    # Same noise, same prompt and no patches: then the views are one picture.
    prompt[prompts]["inputs"]["views"] = "front view\nfront view\nfront view"
    first = {"samples": ["plain", 0], "batch_index": 0, "length": 1}
    prompt["first"] = {"class_type": "LatentFromBatch", "inputs": first}
    prompt["three"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["first", 0], "amount": VIEWS}}
    prompt["rows"]["inputs"] = {"a": ["plain", 0], "b": ["three", 0]}
    (rows,) = host.run(prompt, timeout=1500).outputs["rows"]["report"]
    assert max(rows["apart"]) < 1e-4 * rows["largest"]

    # Without the comparison, which fails at 4 rows against 3 if the host comes to it first.
    for key in ("rows", "three", "first", "plain", "plain_guider"):
        del prompt[key]
    prompt[find(prompt, "EmptyLatentImage")]["inputs"]["batch_size"] = VIEWS + 1
    with pytest.raises(NodeFailed) as caught:
        host.run(prompt, timeout=1500)
    assert caught.value.exception_message.strip() == (
        "There are prompts for 3 views but 4 views in the latent; connect the count of View Prompts to the batch size "
        "of the empty latent."
    )


def check_zero123(host, object_info, checkpoint):
    prompt = small(workflow_to_prompt(read("cross_frame_zero123"), object_info), checkpoint)
    crossed, plain = (find(prompt, "KSampler", title) for title in ("Make the views", "Make them without"))
    watch(prompt, "positive", [find(prompt, "StableZero123_Conditioning_Batched"), 0], "TestInspect")
    prompt["rows"] = {"class_type": "TestCompareRows", "inputs": {"a": [crossed, 0], "b": [plain, 0]}}
    result = host.run(prompt, timeout=1500)
    embedding, told = result.outputs["positive"]["report"][0][0]
    assert embedding["shape"] == [VIEWS, 1, 772]
    (rows,) = result.outputs["rows"]["report"]
    assert rows["equal"] == [True, False, False]
    sheet = pictures(host, result, find(prompt, "SaveImage", "Save the contact sheet"))[0]
    assert sheet.shape[1] > VIEWS * SIDE
