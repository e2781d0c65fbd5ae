"""The key map from diffusers' Stable Video Diffusion UNet to ComfyUI's, by name and by numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfy_host import find_comfyui
from mvpack.multiview.ouroboros_keys import comfy_name, to_comfy, unet_arguments
from ouroboros_files import diffusers_unet
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ("diffusers", "comfy"),
    [
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("add_embedding.linear_2.bias", "label_emb.0.2.bias"),
        ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("down_blocks.1.resnets.0.spatial_res_block.conv_shortcut.bias", "input_blocks.4.0.skip_connection.bias"),
        ("down_blocks.3.resnets.1.temporal_res_block.conv2.weight", "input_blocks.11.0.time_stack.out_layers.3.weight"),
        ("down_blocks.2.attentions.1.time_mixer.mix_factor", "input_blocks.8.1.time_mixer.mix_factor"),
        ("mid_block.attentions.0.time_pos_embed.linear_2.weight", "middle_block.1.time_pos_embed.2.weight"),
        ("mid_block.resnets.1.time_mixer.mix_factor", "middle_block.2.time_mixer.mix_factor"),
        ("up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
        ("up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        (
            "up_blocks.3.attentions.2.temporal_transformer_blocks.0.ff_in.net.2.weight",
            "output_blocks.11.1.time_stack.0.ff_in.net.2.weight",
        ),
    ],
)
def test_names(diffusers, comfy):
    """Some names of the published checkpoints (svd.safetensors, and its diffusers folder)."""
    assert comfy_name(diffusers, 2, {1: True, 2: True, 3: True}) == comfy


def test_foreign_names():
    with pytest.raises(ValueError, match="has no tensor 'text_model.x'"):
        to_comfy({"text_model.x": None})
    with pytest.raises(ValueError, match="conv_in.weight.*missing"):
        unet_arguments({"down_blocks.0.resnets.0.x": (1,)})


def test_sizes_of_the_published_unet():
    from diffusers import UNetSpatioTemporalConditionModel

    with torch.device("meta"):
        state = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20)).state_dict()
    found = unet_arguments({k: tuple(v.shape) for k, v in state.items()})
    assert found["model_channels"] == 320 and found["channel_mult"] == [1, 2, 4, 4]
    assert found["transformer_depth"] == [1, 1, 1, 1, 1, 1, 0, 0] and found["context_dim"] == 1024
    assert found["transformer_depth_output"] == [1] * 9 + [0] * 3 and found["adm_in_channels"] == 768
    assert (found["in_channels"], found["out_channels"], found["num_head_channels"]) == (8, 4, 64)
    assert len(set(to_comfy(state))) == len(state)  # no two names fall together


@pytest.fixture(scope="module")
def found(tmp_path_factory, repo):
    """ouroboros_check.py, once for all: ComfyUI's networks need a process of their own."""
    network = diffusers_unet()
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 5, 8, 16, 16, generator=generator)
    context = torch.randn(1, 1, 48, generator=generator)
    time, ids = torch.tensor([1.3]), torch.tensor([[6.0, 127.0, 0.02]])
    with torch.no_grad():
        out = network(sample, time, context, ids, return_dict=False)[0]
    data = {"data.sample": sample, "data.context": context, "data.time": time, "data.ids": ids, "data.out": out}
    path = tmp_path_factory.mktemp("unet") / "unet.safetensors"
    save_file({k: v.contiguous() for k, v in (network.state_dict() | data).items()}, path)
    environment = {**os.environ, "PYTHONPATH": str(find_comfyui()), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("ouroboros_check.py")
    run = subprocess.run([sys.executable, str(script), str(repo), str(path)], env=environment, capture_output=True,
                         text=True)  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.split("FOUND ")[1])


@pytest.mark.slow  # imports ComfyUI and diffusers: 20 CPU-seconds
def test_both_networks_give_the_same_output(found):
    assert not found["missing"] and not found["extra"]
    assert found["off"] < 1e-4 < 0.1 < found["size"], found


@pytest.mark.slow  # needs the same
def test_injector_that_starts_at_zero_is_the_unpatched_model(found):
    """Bit for bit, through ComfyUI's sampler with CFG; one with random weights changes the views."""
    assert found["zero_start_is_unpatched"] and found["injector_changes"] > 0.01


@pytest.mark.slow  # needs the same
def test_features_are_added_where_the_released_network_adds_them(found):
    """Against a run of ComfyUI's blocks one by one; both halves of CFG get them; without a map both are black."""
    assert found["by_hand_off"] < 1e-4 < 0.01 < found["fed_maps_matter"], found
    assert found["halves_off"] < 1e-4 and found["nothing_fed_is_black"] and found["maps_of_the_node"]
    assert found["loaded_with_the_model"]


@pytest.mark.slow  # needs the same
def test_bad_input_is_refused(found):
    assert found["refusals"] == [""] * 4
