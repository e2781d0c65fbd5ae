"""MIRAGE's three workflows one after the other, and the quality scores, on random weights of true architectures.

Clusters of random features mean nothing; what is tested is that each step takes what the one before gives."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import random_weights
import torch
from comfy_host import NodeFailed, workflow_to_prompt
from PIL import Image
from running_workflows import ROOT, find, pictures, psnr, read, text_of, watch
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

SIDE = 16


@pytest.fixture(scope="module")
def clustered(host, object_info):
    """cluster_poses with a DINOv2 small of random weights (80 MB) that sees pictures of 56 pixels."""
    folder = host.base / "models" / "dinov2" / "dinov2-small"
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    random_weights.write(Dinov2Model, config, folder / "model.safetensors")
    prompt = workflow_to_prompt(read("cluster_poses"), object_info)
    for node in prompt.values():
        if node["class_type"] == "MVDemoObject":
            node["inputs"]["size"] = 64
    prompt[find(prompt, "MVPoseClusters")]["inputs"]["network_size"] = 56
    source = [find(prompt, "MVPoseClusters"), 1]
    prompt["labels"] = {"class_type": "PreviewAny", "inputs": {"source": source}, "_meta": {"title": "labels"}}
    watch(prompt, "crops", [find(prompt, "MVPoseClusters"), 2])
    yield prompt, host.run(prompt, timeout=900)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def trained(host, clustered):
    """Two steps of training on the folder that the workflow saved, by the command that the documentation gives."""
    (folder,) = (host.base / "output" / "multiview").glob("category_*_poses")
    work = host.base / "work"
    options = ["--folder", folder, "--work", work, "--size", SIDE, "--channels", 32, "--mult", 1, 2, "--res-blocks", 1,
               "--batch", 4, "--steps", 2]  # fmt: skip
    done = subprocess.run([host.python, str(ROOT / "training"), "pose", *map(str, options)], capture_output=True,
                          text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    target = host.base / "models" / "multiview" / "pose" / "pose_model.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work / "pose_model.safetensors", target)
    return target


@pytest.mark.slow  # loads and runs a vision transformer on the CPU
def test_clusters_are_labelled_shown_and_saved(host, clustered):
    prompt, result = clustered
    told = json.loads(text_of(result, "labels"))
    crops = pictures(host, result, "crops")
    assert crops.shape == (48, 64, 64, 3) and told["poses"] == 6 and len(told["labels"]) == 48
    counts = np.bincount(list(told["labels"].values()), minlength=6)
    assert (np.diff(counts) <= 0).all() and counts.min() > 0
    report = text_of(result, find(prompt, "PreviewAny", "What was found"))
    assert f"48 pictures in 6 poses: {', '.join(map(str, counts))}" in report
    (folder,) = (host.base / "output" / "multiview").glob("category_*_poses")
    assert json.loads((folder / "labels.json").read_text()) == told
    with Image.open(folder / "00030.png") as saved:
        assert np.abs(np.asarray(saved) / 255 - crops[30]).max() < 1.5 / 255
    sheet = pictures(host, result, find(prompt, "SaveImage", "Save the sheet"))
    assert sheet.std() > 0.1


@pytest.mark.slow  # trains, inverts and samples a tiny model
def test_trained_on_that_folder_all_poses_come_from_one_picture(host, object_info, trained, input_picture):
    prompt = workflow_to_prompt(read("mirage_generate"), object_info)
    prompt[find(prompt, "PrimitiveInt", "Steps")]["inputs"]["value"] = 6
    prompt[find(prompt, "PrimitiveInt", "Its pose")]["inputs"]["value"] = 2
    watch(prompt, "scaled", [find(prompt, "ImageScale"), 0])
    result = host.run(prompt, timeout=900)
    views = pictures(host, result, find(prompt, "SaveImage", "Save the views"))
    assert views.shape == (6, SIDE, SIDE, 3)
    scaled = pictures(host, result, "scaled")
    assert scaled.std() > 0.05
    # View 0 is the picture itself, inverted under its own pose and drawn again.
    assert psnr(views[:1], scaled)[0] > 30
    report = text_of(result, find(prompt, "PreviewAny"))
    assert float(re.search(r"off by ([\d.e+-]+)", report)[1]) < 0.05
    prompt[find(prompt, "MVPoseConditioning", "Its own pose, then all others")]["inputs"]["poses"] = "0, 9"
    with pytest.raises(NodeFailed, match="Poses are numbered from 0 to 5"):
        host.run(prompt, timeout=300)


@pytest.mark.slow  # CLIP ViT-L/14 (0.9 GB of random weights) and RAFT on the CPU
def test_quality_scores_workflow_runs(host, object_info):
    from torchvision.models.optical_flow import raft_large

    name = "clip_vit_large_patch14.safetensors"
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 14}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)
    weights = random_weights.write(CLIPModel, config, host.base / "models" / "clip_vision" / name)
    texts = host.base / "models" / "text_encoders" / name
    texts.parent.mkdir(parents=True, exist_ok=True)
    texts.hardlink_to(weights)
    raft = host.base / "models" / "raft" / "raft_large_C_T_V2-1bb1363a.pth"
    raft.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(raft_large(weights=None).state_dict(), raft)

    prompt = workflow_to_prompt(read("quality_scores"), object_info)
    flow, score = find(prompt, "MVFlowError"), find(prompt, "MVCDScore")
    # 2 of the 16 views: a picture through CLIP takes seconds.
    for number, socket in enumerate((prompt[flow]["inputs"]["views"], prompt[flow]["inputs"]["truth"])):
        prompt[f"part{number}"] = {
            "class_type": "ImageFromBatch", "inputs": {"image": socket, "batch_index": 6, "length": 2},
            "_meta": {"title": "part"},
        }  # fmt: skip
    prompt[flow]["inputs"] |= {"views": ["part0", 0], "truth": ["part1", 0], "iterations": 2}
    prompt[score]["inputs"]["views"] = ["part0", 0]
    prompt[find(prompt, "KSampler")]["inputs"]["steps"] = 2
    try:
        log = len(host.log_text())
        result = host.run(prompt, timeout=900)
        assert not re.search(r"missing (clip|vae)|clip missing", host.log_text()[log:].lower())
        lines = text_of(result, score).splitlines()
        assert "(released code; 'An image of toy')" in lines[0]
        rows = [[float(x) for x in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]
        assert len(rows) == 2 and rows[0][1] == 1 and rows[1][1] < 1
        told = float(re.search(r"diversity ([\d.e+-]+)", lines[2])[1])
        assert told == pytest.approx(sum(1 - row[1] for row in rows), abs=1e-4)
        assert float(re.search(r"E_flow ([\d.]+) px", text_of(result, flow))[1]) > 0
        prompt[score]["inputs"] |= {"reading": "paper (Eq. 8-10)"}
        del prompt[score]["inputs"]["reference"]
        with pytest.raises(NodeFailed, match="connect it as reference"):
            host.run(prompt, timeout=300)
    finally:
        host.free()
        for path in (weights, texts, raft, weights.with_name("config.json")):
            path.unlink()
