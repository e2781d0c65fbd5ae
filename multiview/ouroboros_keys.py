"""Names of a Stable Video Diffusion UNet's tensors: from diffusers' layout to the one of ComfyUI and Stability.

Ouroboros3D's `mv_model_unet.pth` holds such a UNet in diffusers' layout below `unet.` (references.md 3.1). Checked by
numbers against diffusers' own network in tests/unit/test_ouroboros_keys.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

RES_BLOCK = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TRANSFORMER = {
    "temporal_transformer_blocks": "time_stack", "time_pos_embed.linear_1": "time_pos_embed.0",
    "time_pos_embed.linear_2": "time_pos_embed.2",
}  # fmt: skip
ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
HEAD_CHANNELS = 64


def comfy_name(name: str, layers: int, attention: Mapping[int, bool]) -> str:
    """diffusers' name -> ComfyUI's. layers: blocks in a level on the way down. attention: of the levels on the way up.

    ValueError for names that such a UNet does not have.
    """
    for start, renamed in ENDS.items():
        if name.startswith(start + "."):
            return renamed + name[len(start) :]
    match = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        raise ValueError(f"A Stable Video Diffusion UNet has no tensor '{name}'; choose the file of that model.")
    side, level, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inside = _res_block(rest) if kind == "resnets" else _transformer(rest)
    if side is None:
        return f"middle_block.{2 * number + (kind == 'attentions')}.{inside}"
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        last = (layers + 1) * (level + 1) - 1
        return f"output_blocks.{last}.{2 if attention.get(level) else 1}.conv.{rest.removeprefix('conv.')}"
    block = 1 + (layers + 1) * level + number if side == "down" else (layers + 1) * level + number
    return f"{'input' if side == 'down' else 'output'}_blocks.{block}.{int(kind == 'attentions')}.{inside}"


def _res_block(rest: str) -> str:
    if rest.startswith("time_mixer."):
        return rest
    half, part, leaf = rest.split(".")
    return ("time_stack." if half == "temporal_res_block" else "") + f"{RES_BLOCK[part]}.{leaf}"


def _transformer(rest: str) -> str:
    for start, renamed in TRANSFORMER.items():
        if rest.startswith(start + "."):
            return renamed + rest[len(start) :]
    return rest


def to_comfy(tensors: Mapping) -> dict:
    """Tensors (or shapes) by diffusers' names -> by ComfyUI's, none left out. ValueError for foreign names."""
    layers = _count(tensors, r"down_blocks\.0\.resnets\.(\d+)\.")
    levels = {int(m[1]) for key in tensors if (m := re.match(r"up_blocks\.(\d+)\.attentions\.", key))}
    attention = dict.fromkeys(levels, True)
    return {comfy_name(name, layers, attention): value for name, value in tensors.items()}


def unet_arguments(shapes: Mapping[str, tuple[int, ...]], head_channels: int = HEAD_CHANNELS) -> dict:
    """What ComfyUI's UNetModel must be given to have these tensors (diffusers' names -> shapes).

    ValueError where the widths cannot be told. head_channels: width of an attention head, which no shape tells.
    """
    layers = _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\.")
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    try:
        width = shapes["conv_in.weight"][0]
        widths = [shapes[f"down_blocks.{i}.resnets.0.spatial_res_block.conv1.weight"][0] for i in range(levels)]
        context = shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1]
        adm = shapes["add_embedding.linear_1.weight"][1]
    except KeyError as error:
        raise ValueError(f"The view model's UNet is incomplete ({error} is missing); download it again.") from error
    down = [f"down_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(levels)]
    up = [f"up_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(levels)]
    return {
        "image_size": 32, "in_channels": shapes["conv_in.weight"][1], "out_channels": shapes["conv_out.weight"][0],
        "model_channels": width, "num_res_blocks": [layers] * levels, "channel_mult": [w // width for w in widths],
        "transformer_depth": [int(has) for has in down for _ in range(layers)],
        # ComfyUI takes this list from its end.
        "transformer_depth_output": [int(has) for has in reversed(up) for _ in range(layers + 1)],
        "transformer_depth_middle": 1, "context_dim": context, "adm_in_channels": adm, "num_classes": "sequential",
        "num_heads": -1, "num_head_channels": head_channels, "use_linear_in_transformer": True,
        "use_spatial_transformer": True, "legacy": False, "extra_ff_mix_layer": True, "use_spatial_context": True,
        "merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1],
        "use_temporal_resblock": True, "use_temporal_attention": True, "disable_temporal_crossattention": False,
    }  # fmt: skip


def _count(names: Mapping, pattern: str) -> int:
    return 1 + max((int(m[1]) for key in names if (m := re.match(pattern, key))), default=-1)
