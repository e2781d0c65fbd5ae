"""Real ComfyUI models of small width with random weights, for checks that run in a process with comfy on its path."""

from __future__ import annotations

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch

VIDEO_LAYERS = {
    "use_linear_in_transformer": True, "extra_ff_mix_layer": True, "use_spatial_context": True,
    "merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1],
    "use_temporal_resblock": True, "use_temporal_attention": True, "disable_temporal_crossattention": False,
}  # fmt: skip


def unet_config(
    in_channels: int, width: int, mult: list[int], context: int, adm: int | None, depth: list[int]
) -> dict:
    """UNetModel's arguments. depth: transformers in each of the 2 blocks of a level, in the order of the levels."""
    config = {
        "image_size": 32, "in_channels": in_channels, "out_channels": 4, "model_channels": width,
        "num_res_blocks": [2] * len(mult), "channel_mult": mult, "transformer_depth": depth,
        "transformer_depth_output": [d for d in depth[::2] for _ in range(3)], "transformer_depth_middle": 1,
        "context_dim": context, "num_heads": -1, "num_head_channels": min(width, 64), "use_spatial_transformer": True,
        "legacy": False,
    }  # fmt: skip
    if adm:
        config |= {"adm_in_channels": adm, "num_classes": "sequential"}
    return config


def sv3d_p(width: int = 32, mult=(1, 2), dtype=torch.float32) -> comfy.model_patcher.ModelPatcher:
    """SV3D_p with its temporal layers; width 320 and mult (1,2,4,4) is the published size."""
    mult = list(mult)
    depth = [1, 1] * max(1, len(mult) - 1) + ([0, 0] if len(mult) > 1 else [])
    context = 1024 if width == 320 else 64
    unet = unet_config(8, width, mult, context, 1280, depth) | VIDEO_LAYERS
    return patcher(comfy.supported_models.SV3D_p, unet, dtype)


def sd15(width: int = 32, mult=(1, 2)) -> comfy.model_patcher.ModelPatcher:
    return patcher(comfy.supported_models.SD15, unet_config(4, width, list(mult), 64, None, [1, 1, 1, 1]))


def zero123(width: int = 32, mult=(1, 2)) -> comfy.model_patcher.ModelPatcher:
    unet = unet_config(8, width, list(mult), 768, None, [1, 1, 1, 1])
    described = comfy.supported_models.Stable_Zero123(unet)
    described.set_inference_dtype(torch.float32, None)
    generator = torch.Generator().manual_seed(7)
    weight, bias = (torch.randn(s, generator=generator) * 0.1 for s in ((768, 772), (768,)))
    with torch.no_grad():
        model = comfy.model_base.Stable_Zero123(described, cc_projection_weight=weight, cc_projection_bias=bias)
    return finished(model, torch.float32)


def patcher(kind, unet: dict, dtype=torch.float32) -> comfy.model_patcher.ModelPatcher:
    described = kind(unet)
    # The class sets 64 channels a head, more than a narrow model has.
    described.unet_config["num_head_channels"] = unet["num_head_channels"]
    described.unet_config["num_heads"] = -1
    described.set_inference_dtype(dtype, None)
    return finished(described.get_model({}, ""), dtype)


def finished(model, dtype) -> comfy.model_patcher.ModelPatcher:
    fill(model.diffusion_model)
    model.diffusion_model.to(dtype).requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


@torch.no_grad()
def fill(network: torch.nn.Module, seed: int = 0) -> None:
    """Random weights that keep activations of order one; also where ComfyUI starts from zero or leaves memory as it is.

    Large networks take slices of one pool of random numbers: drawing 1.5 billion takes longer than the test.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(1 << 22, generator=generator)
    at = 0
    for name, value in network.named_parameters():
        if value.ndim < 2:
            value.fill_(1.0 if name.endswith("weight") else 0.0)
            if "mix_factor" in name:
                value.fill_(0.3)
            continue
        flat, scale = value.view(-1), (value.numel() / value.shape[0]) ** -0.5
        for start in range(0, flat.numel(), pool.numel()):
            part = flat[start : start + pool.numel()]
            at = (at + 7919) % (pool.numel() // 2)
            rolled = torch.cat([pool[at:], pool[:at]]) if part.numel() > pool.numel() - at else pool[at:]
            part.copy_(rolled[: part.numel()] * scale)
