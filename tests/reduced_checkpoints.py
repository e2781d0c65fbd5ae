"""Random-weight checkpoints of true architectures, to run workflows for weights that nobody can ship.

    with PYTHONPATH = a ComfyUI folder:  python tests/reduced_checkpoints.py sv3d_p FOLDER

writes FOLDER/sv3d_p.safetensors. Names and shapes of the tensors come from ComfyUI's own classes (on the meta device),
put into the layout of the published file; ComfyUI's own detection must recognise the result before anything is drawn.
What the detection leaves open is reduced: the UNet's channel_mult is 1,1,1,1 instead of 1,2,4,4 (sv3d_p: 0.2 instead
of 1.5 billion parameters; sd15 and stable_zero123: 0.1 instead of 0.9). CLIP and the VAE are of full size, because
ComfyUI builds them so whatever the file holds.

Tests call `write` below, which does this in a process of its own: the test process must not import comfy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "conditioner.embedders.1.encoder."
CLIP_PREFIX = "conditioner.embedders.0.open_clip.model.visual."
# The same in SD 1.5 and in Stable Zero123.
SD15_VAE_PREFIX = "first_stage_model."
SD15_TEXT_PREFIX = "cond_stage_model.transformer."
ZERO123_CLIP_PREFIX = "cond_stage_model.model.visual."
# Sizes of sv3d_p's UNet as model_detection.detect_unet_config would name them.
SV3D_P_UNET = {
    "image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 1, 1], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "context_dim": 1024, "adm_in_channels": 1280, "num_classes": "sequential", "num_heads": -1, "num_head_channels": 64,
    "use_linear_in_transformer": True, "use_spatial_transformer": True, "legacy": False, "extra_ff_mix_layer": True,
    "use_spatial_context": True, "merge_strategy": "learned_with_images", "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True, "use_temporal_attention": True,
    "disable_temporal_crossattention": False,
}  # fmt: skip
SD15_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 1, 1], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "context_dim": 768, "num_heads": 8, "use_linear_in_transformer": False, "use_spatial_transformer": True,
    "legacy": False,
}  # fmt: skip
SD_VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
# The transformers names that ComfyUI uses inside -> the open_clip names of the file.
CLIP_NAMES = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm.": "ln_pre.",
    "vision_model.post_layernorm.": "ln_post.",
    "vision_model.encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".self_attn.q_proj.": ".attn.in_proj_",
}


def write(kind: str, folder: Path, comfyui: Path, python: str = sys.executable) -> Path:
    """Make FOLDER/kind.safetensors in a process of its own and return its path. Raises RuntimeError with its output."""
    env = {**os.environ, "PYTHONPATH": str(comfyui), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, __file__, kind, str(folder)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the reduced checkpoint could not be written:\n{done.stdout}{done.stderr}")
    return Path(folder) / f"{kind}.safetensors"


# --- what follows runs in that process ------------------------------------------------------------------------------


def _open_clip_names(state: dict) -> dict:
    """ComfyUI's CLIP vision state in open_clip's layout: q, k and v are one matrix, the projection is transposed."""
    import torch

    found = {}
    for key, value in state.items():
        if ".self_attn.k_proj." in key or ".self_attn.v_proj." in key:
            continue
        if ".self_attn.q_proj." in key:
            value = torch.cat([state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
        if key == "visual_projection.weight":
            found["proj"] = value.T
            continue
        for name, renamed in CLIP_NAMES.items():
            key = key.replace(name, renamed)
        found[key] = value
    return found


def _sv3d_p_layout() -> dict:
    """Name -> meta tensor of the whole file, checked against ComfyUI's detection and conversion."""
    import json

    import comfy.clip_model
    import comfy.clip_vision
    import comfy.model_detection
    import comfy.ops
    import comfy.supported_models
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    layers = comfy.ops.disable_weight_init
    with torch.device("meta"):
        unet = UNetModel(**SV3D_P_UNET, operations=layers).state_dict()
        vae = AutoencoderKL(ddconfig=SD_VAE, embed_dim=4).state_dict()
        config = json.loads(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_h.json").read_text())
        clip = comfy.clip_model.CLIPVisionModelProjection(config, torch.float16, "meta", layers).state_dict()
    layout = {UNET_PREFIX + name: value for name, value in unet.items()}
    layout |= {VAE_PREFIX + name: value for name, value in vae.items()}
    layout |= {CLIP_PREFIX + name: value for name, value in _open_clip_names(clip).items()}

    detected = comfy.model_detection.model_config_from_unet(layout, UNET_PREFIX)
    if not isinstance(detected, comfy.supported_models.SV3D_p):
        raise RuntimeError(f"ComfyUI detects {type(detected).__name__}, not SV3D_p")
    if detected.vae_key_prefix != [VAE_PREFIX] or detected.clip_vision_prefix != CLIP_PREFIX:
        raise RuntimeError("this ComfyUI looks for SV3D's VAE or CLIP vision under other names")
    back = comfy.clip_vision.convert_to_transformers(
        {name: value for name, value in layout.items() if name.startswith(CLIP_PREFIX)}, CLIP_PREFIX
    )
    if {name: value.shape for name, value in back.items()} != {name: value.shape for name, value in clip.items()}:
        raise RuntimeError("ComfyUI does not turn our open_clip names back into its own")
    return layout


def _sd15_parts(**unet) -> dict:
    """Name -> meta tensor of UNet and VAE as SD 1.5 has them."""
    import comfy.ops
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        network = UNetModel(**(SD15_UNET | unet), operations=comfy.ops.disable_weight_init).state_dict()
        vae = AutoencoderKL(ddconfig=SD_VAE, embed_dim=4).state_dict()
    layout = {UNET_PREFIX + name: value for name, value in network.items()}
    return layout | {SD15_VAE_PREFIX + name: value for name, value in vae.items()}


def _sd15_layout() -> dict:
    """SD 1.5: UNet, VAE and CLIP's text model."""
    import json

    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip
    import comfy.supported_models
    import torch

    layout = _sd15_parts()
    config = json.loads(Path(comfy.sd1_clip.__file__).with_name("sd1_clip_config.json").read_text())
    with torch.device("meta"):
        text = comfy.clip_model.CLIPTextModel(config, torch.float16, "meta", comfy.ops.disable_weight_init).state_dict()
    layout |= {SD15_TEXT_PREFIX + name: value for name, value in text.items() if name.startswith("text_model.")}
    _check_detected(layout, comfy.supported_models.SD15)
    return layout


def _stable_zero123_layout() -> dict:
    """Stable Zero123: SD 1.5's UNet with the picture's latent as four more channels, and CLIP's vision model."""
    import json

    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops
    import comfy.supported_models
    import torch

    layout = _sd15_parts(in_channels=8)
    config = json.loads(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json").read_text())
    layers = comfy.ops.disable_weight_init
    with torch.device("meta"):
        clip = comfy.clip_model.CLIPVisionModelProjection(config, torch.float16, "meta", layers).state_dict()
        # From the CLIP embedding and four numbers of the camera to the width of cross-attention.
        layout |= {"cc_projection.weight": torch.empty(768, 772), "cc_projection.bias": torch.empty(768)}
    layout |= {ZERO123_CLIP_PREFIX + name: value for name, value in _open_clip_names(clip).items()}
    detected = _check_detected(layout, comfy.supported_models.Stable_Zero123)
    if detected.clip_vision_prefix != ZERO123_CLIP_PREFIX:
        raise RuntimeError("this ComfyUI looks for Stable Zero123's CLIP vision under another name")
    return layout


def _check_detected(layout: dict, expected: type):
    import comfy.model_detection

    detected = comfy.model_detection.model_config_from_unet(layout, UNET_PREFIX)
    if type(detected) is not expected:
        raise RuntimeError(f"ComfyUI detects {type(detected).__name__}, not {expected.__name__}")
    if detected.vae_key_prefix[0] != SD15_VAE_PREFIX:
        raise RuntimeError("this ComfyUI looks for the VAE under another name")
    return detected


LAYOUTS = {"sv3d_p": _sv3d_p_layout, "sd15": _sd15_layout, "stable_zero123": _stable_zero123_layout}


def _random(name: str, shape, generator):
    """A tensor that keeps activations of order one: norms are the identity, matrices scale with their inputs."""
    import torch

    if len(shape) >= 2:
        fan_in = shape[0] if name.endswith("visual.proj") else shape[1:].numel()
        return torch.randn(shape, generator=generator).div_(fan_in**0.5).half()
    if name.endswith("class_embedding"):
        return torch.randn(shape, generator=generator).half()
    return torch.full(shape, 1.0 if name.endswith(".weight") else 0.0, dtype=torch.float16)


def _write_here(kind: str, folder: Path, seed: int = 0) -> None:
    import torch
    from comfy.cli_args import args
    from safetensors.torch import save_file

    args.cpu = True
    torch.set_num_threads(1)
    layout = LAYOUTS[kind]()
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, value.shape, generator) for name, value in layout.items()}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{kind}.safetensors"
    temporary = target.with_suffix(".part")
    try:
        save_file(tensors, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    _write_here(sys.argv[1], Path(sys.argv[2]))
