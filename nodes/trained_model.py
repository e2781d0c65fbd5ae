"""The trained demo model in ComfyUI's own classes: SV3D_p with a small UNetModel, and a small AutoencoderKL.

Conditioning keys are those of core's SV3D_Conditioning (concat_latent_image, elevation, azimuth). Two things differ
from SV3D: cross-attention sees patches of the input view's latent instead of a CLIP embedding
(multiview/demo/video_unet.py), so whatever embedding arrives is ignored, and latents need no scale because the
autoencoder normalises them.
"""

from __future__ import annotations

from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch

from ..multiview.cameras import Cameras
from ..multiview.demo.joint_files import read_injector
from ..multiview.demo.video_unet import (
    VideoConfig,
    check_weights,
    context_tokens,
    read_checkpoint,
    unet_config,
    vae_params,
)


class TrainedFormat(comfy.latent_formats.LatentFormat):
    """Latents of the small autoencoder: already mean 0 and spread 1, so the scale is 1."""


class TrainedConfig(comfy.supported_models.SV3D_p):
    """What ComfyUI wants to know of a model, filled from the file's configuration instead of guessed from its keys."""

    unet_extra_config: dict = {}
    memory_usage_factor = 2.0

    def __init__(self, config: VideoConfig):
        self.sampling_settings = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
        super().__init__(unet_config(config))
        self.latent_format = TrainedFormat()
        self.latent_format.latent_channels = config.latent_channels
        self.latent_format.spacial_downscale_ratio = config.factor
        self.video_config = config

    def get_model(self, state_dict, prefix="", device=None):
        return TrainedModel(self, device=device)


class TrainedModel(comfy.model_base.SV3D_p):
    """SV3D_p whose context is made of the input view's latent."""

    def extra_conds(self, **kwargs):
        given = {key: value for key, value in kwargs.items() if key != "cross_attn"}
        out = super().extra_conds(**given)
        latent = out["c_concat"].cond
        # All frames get the same input view; one row is enough, ComfyUI repeats it.
        if bool((latent == latent[:1]).all()):
            latent = latent[:1]
        tokens = context_tokens(latent.float(), self.model_config.video_config.patch)
        out["c_crossattn"] = comfy.conds.CONDCrossAttn(tokens)
        return out


def load_trained_demo_model(path: str | Path) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE]:
    """A trained model's file -> MODEL and VAE. ValueError in one sentence for damaged, foreign or incomplete files.

    The MODEL's .model.model_config.video_config says which size, views and elevation it was trained for.
    """
    config, unet, vae, _ = read_checkpoint(path)
    return build_model(TrainedConfig(config), unet), _build_vae(config, vae)


def load_demo_model_for(path: str | Path, cameras: Cameras) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE]:
    """load_trained_demo_model for views from these cameras: with its injector, where it was trained with one.

    Then it draws as in the first step of Ouroboros3D's loop until a 3D Feedback node tells it of a splat.
    """
    # Not at the top: that module builds its models with this one.
    from .ouroboros_model import attach, with_injection

    model, vae = load_trained_demo_model(path)
    injector = read_injector(path, comfy.ops.manual_cast)
    if injector is not None:
        model = with_injection(attach(model, injector), cameras)
    return model, vae


def build_model(described, weights: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    """The model that a host's configuration object (supported_models_base.BASE) describes, with these weights.

    ValueError unless they are exactly its own."""
    management = comfy.model_management
    device = management.get_torch_device()
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights), supported_dtypes=described.supported_inference_dtypes
    )
    described.set_inference_dtype(
        dtype, management.unet_manual_cast(dtype, device, described.supported_inference_dtypes)
    )
    offload = management.unet_offload_device()
    model = described.get_model(weights, device=offload)
    check_weights("UNet", weights, model.diffusion_model.state_dict())
    model.diffusion_model.load_state_dict(weights)
    model.diffusion_model.to(dtype).requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=offload)


def _build_vae(config: VideoConfig, weights: dict[str, torch.Tensor]) -> comfy.sd.VAE:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    # VAE() itself only logs wrong keys, and then decodes noise.
    with torch.device("meta"):
        check_weights("autoencoder", weights, AutoencoderKL(**vae_params(config)).state_dict())
    vae = comfy.sd.VAE(sd=weights, config={"params": vae_params(config)})
    vae.first_stage_model.requires_grad_(False)
    vae.latent_channels = config.latent_channels
    vae.downscale_ratio = vae.upscale_ratio = config.factor
    return vae
