"""Depth-Anything-V2 networks with random weights, and their tensors in the original repository's layout."""

from __future__ import annotations

import torch

# The four sizes that differ between Small and a reduced network with the same 12 layers.
SMALL = {"width": 384, "features": 64, "channels": [48, 96, 192, 384], "cells": 37}
REDUCED = {"width": 64, "features": 16, "channels": [8, 8, 16, 16], "cells": 5}


def transformers_network(width, features, channels, cells, layers=12, tapped=(3, 6, 9, 12)):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    encoder = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, image_size=14 * cells,
        patch_size=14, out_indices=list(tapped), apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=encoder, patch_size=14, reassemble_hidden_size=width, neck_hidden_sizes=channels,
        fusion_hidden_size=features,
    )  # fmt: skip
    torch.manual_seed(0)
    network = DepthAnythingForDepthEstimation(config).eval()
    chance = torch.Generator().manual_seed(1)
    for name, weight in network.named_parameters():
        fan = weight[0].numel() if weight.ndim > 1 else 400
        weight.data.normal_(std=0.7 / fan**0.5, generator=chance)
        if weight.ndim == 1 and ("norm" in name or "lambda" in name):
            weight.data.add_(1.0)
    network.head.conv3.bias.data.fill_(2.0)  # above the ReLU, or every answer would be 0
    return network


def original_layout(state: dict, layers: int = 12) -> dict:
    """transformers' tensors under the names of the original repository, written down module by module."""
    out = {
        "pretrained.cls_token": state["backbone.embeddings.cls_token"],
        "pretrained.mask_token": state["backbone.embeddings.mask_token"],
        "pretrained.pos_embed": state["backbone.embeddings.position_embeddings"],
    }

    def both(there: str, here: str, kinds=("weight", "bias")) -> None:
        for kind in kinds:
            out[f"{there}.{kind}"] = state[f"{here}.{kind}"]

    both("pretrained.patch_embed.proj", "backbone.embeddings.patch_embeddings.projection")
    both("pretrained.norm", "backbone.layernorm")
    for i in range(layers):
        block, layer = f"pretrained.blocks.{i}", f"backbone.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            parts = [state[f"{layer}.attention.attention.{p}.{kind}"] for p in ("query", "key", "value")]
            out[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
        both(f"{block}.attn.proj", f"{layer}.attention.output.dense")
        for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            both(f"{block}.{part}", f"{layer}.{part}")
        for n in (1, 2):
            out[f"{block}.ls{n}.gamma"] = state[f"{layer}.layer_scale{n}.lambda1"]
    for i in range(4):
        stage = f"neck.reassemble_stage.layers.{i}"
        both(f"depth_head.projects.{i}", f"{stage}.projection")
        if i != 2:  # the third needs no resizing
            both(f"depth_head.resize_layers.{i}", f"{stage}.resize")
        both(f"depth_head.scratch.layer{i + 1}_rn", f"neck.convs.{i}", ("weight",))
    # refinenet4 works on the deepest features and comes first.
    for there, here in ((4, 0), (3, 1), (2, 2), (1, 3)):
        block, layer = f"depth_head.scratch.refinenet{there}", f"neck.fusion_stage.layers.{here}"
        both(f"{block}.out_conv", f"{layer}.projection")
        for unit in (1, 2):
            for conv in (1, 2):
                both(f"{block}.resConfUnit{unit}.conv{conv}", f"{layer}.residual_layer{unit}.convolution{conv}")
    both("depth_head.scratch.output_conv1", "head.conv1")
    both("depth_head.scratch.output_conv2.0", "head.conv2")
    both("depth_head.scratch.output_conv2.2", "head.conv3")
    return {key: tensor.contiguous() for key, tensor in out.items()}
