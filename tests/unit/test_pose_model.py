"""The pose model from labelled pictures to ComfyUI's sampler: MIRAGE's training stage in the smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfy_host import find_comfyui
from mvpack.multiview.pose_folder import labels_json, read_pose_folder, write_pose_folder
from mvpack.multiview.pose_unet import PoseConfig, noise_levels, pose_unet_config, pose_vectors

# --- folders and descriptions -----------------------------------------------------------------------------------------


def test_folder_comes_back_as_it_was_written(tmp_path):
    crops = torch.randint(256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0)).float() / 255
    write_pose_folder(tmp_path / "cars", crops, torch.tensor([1, 0, 1]), 2)
    images, labels, poses = read_pose_folder(tmp_path / "cars")
    assert torch.equal(images.float() / 255, crops) and labels.tolist() == [1, 0, 1] and poses == 2
    assert read_pose_folder(tmp_path / "cars", 8)[0].shape == (3, 8, 8, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["cars"]
    with pytest.raises(FileExistsError):
        write_pose_folder(tmp_path / "cars", crops, torch.tensor([1, 0, 1]), 2)


def test_folders_that_cannot_be_read_are_named(tmp_path):
    write_pose_folder(tmp_path / "a", torch.rand(2, 16, 16, 3), torch.tensor([0, 1]), 2)
    labels = tmp_path / "a" / "labels.json"
    for text, words in (
        (labels_json(torch.tensor([0, 5]), 2), "has the label 5, but there are 2 poses"),
        (labels_json(torch.tensor([0, 1, 1]), 2), "lacks the picture 00002.png"),
        (labels_json(torch.tensor([0, 1]), 2).replace("00000.png", "../b/00000.png"), "lacks the picture"),
        ('{"labels": {}}', "has no labels.json"),
        ("[]", "has no labels.json"),
    ):
        labels.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_pose_folder(tmp_path / "a")


def test_pose_vectors_name_one_pose_or_none():
    assert pose_vectors(torch.tensor([2, -1, 0]), 3).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    for wrong in (3, -2):
        with pytest.raises(ValueError, match="numbered from 0 to 2"):
            pose_vectors(torch.tensor([wrong]), 3)


def test_noise_levels_are_ddims():
    """beta from 1e-4 to 0.02 in 1000 even steps: 1 - a of the first step is 1e-4; product of the last by hand."""
    sigma = noise_levels()
    assert float(sigma[0]) == pytest.approx((1e-4 / (1 - 1e-4)) ** 0.5)
    product = 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
    assert float(sigma[-1]) == pytest.approx(((1 - product) / product) ** 0.5, rel=1e-6)


def test_configuration_is_checked_and_attends_where_the_decoder_is_coarse():
    config = PoseConfig(5, channel_mult=[1, 2, 4])
    assert PoseConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    unet = pose_unet_config(config)
    assert unet["transformer_depth"] == [0, 0, 1, 1, 1, 1] and sum(unet["transformer_depth_output"]) == 6
    for wrong, words in (({"poses": 0}, "at least one"), ({"poses": 2, "model_channels": 48}, "multiple of 32"),
                         ({"poses": 2, "size": 30}, "multiple of 4"),
                         ({"poses": 2, "prediction": "x"}, "one of")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            PoseConfig(**wrong)


# --- training and sampling, in a process of its own -------------------------------------------------------------------

in_comfyui = pytest.mark.slow  # half a minute: ComfyUI's classes are imported and trained, once for all of these tests


@pytest.fixture(scope="module")
def found(tmp_path_factory, repo):
    comfy = find_comfyui()
    environment = {**os.environ, "PYTHONPATH": str(comfy), "COMFYUI_PATH": str(comfy), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("pose_check.py")
    run = subprocess.run(
        [sys.executable, str(script), str(repo), str(tmp_path_factory.mktemp("pose"))],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    lines = [line for line in run.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads(lines[-1][6:])


@in_comfyui
def test_training_takes_the_clustered_folder_and_continues_exactly(found):
    assert found["purity"] > 0.97
    assert found["folder"] == [[120, 16, 16, 3], True, 4]
    assert found["resumes"] and found["exit"] == 0


@in_comfyui
def test_loss_falls(found):
    assert found["fresh_loss"] == pytest.approx(1, abs=0.05)  # an untrained model predicts 0; noise has variance 1
    assert found["trained_loss"] < 0.2


@in_comfyui
def test_comfyui_computes_what_was_trained(found):
    assert found["levels"] < 1e-5 and max(found["host_difference"]) < 1e-4


@in_comfyui
def test_asked_for_poses_are_drawn_from_the_same_noise(found):
    assert found["count"] == [4, [4, 3, 16, 16]] and found["drawn"] == [3, 4, 16, 16, 3]
    assert found["same_noise_spread"] > 0.02 and found["guidance_acts"] > 0.002
    assert found["right_pose"] >= 0.75  # guessing gives a quarter


@in_comfyui
def test_poses_are_read_as_written(found):
    assert found["first"] == [2, 0, 1, 3] and found["listed"] == [3, 0] and found["alone"] == [1]


@in_comfyui
def test_what_does_not_fit_is_said_in_a_sentence(found):
    words = {
        "pose": "from 0 to 3",
        "text": "write numbers separated by commas",
        "nothing": "No pose is named",
        "count": "names 4 poses but the latent holds 3",
        "prompt": "takes its conditioning from Pose Conditioning",
        "absent": "no pose model at",
        "cut": "not a readable safetensors file",
        "foreign": "not a pose model of this pack",
        "folder": "has no labels.json",
        "resumed": "written for another 'unet' model",
    }
    for name, text in words.items():
        assert text in found["sentences"][name], (name, found["sentences"].get(name))
        assert found["sentences"][name].endswith(".")
