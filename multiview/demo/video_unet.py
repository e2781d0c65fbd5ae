"""Plain description of the trained demo model: an SV3D-type video UNet with its autoencoder, small enough to ship.

Nothing here imports ComfyUI. nodes/trained_model.py builds the model from ComfyUI's own classes with what this module
says, the training scripts build the same with plain torch layers, and both agree on:
- latents: autoencoder outputs normalised to zero mean and unit spread per channel (folded into the
  autoencoder's 1x1 convolutions), so sigma_data is 1 and no latent scale is needed;
- input: noisy latent divided by sqrt(sigma^2 + 1), the input view's latent concatenated along channels, as SV3D;
- pose: SV3D_p's vector: 256 sinusoids of the augmentation level, 512 of the polar angle, 512 of the azimuth;
- context: patches of the input view's latent with their position, because no CLIP vision knows these objects;
  all zeros, positions too, when the reference is dropped (an all-zero concat latent, SV3D's own "unconditional");
- output: EDM v-prediction, denoised = x / (sigma^2 + 1) - F sigma / sqrt(sigma^2 + 1), time input ln(sigma) / 4.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

FORMAT = "mv-video-unet-1"
UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
# Of a jointly trained injector (docs/ouroboros3d_training.md), where the file has one.
INJECTOR_PREFIX = "injector."
AUGMENTATION_WIDTH, ANGLE_WIDTH = 256, 512
POSITION_FREQUENCIES = 4


@dataclass(frozen=True)
class VideoConfig:
    """Sizes of the model. size: pixels of a view; views, elevation: the orbit it learned (radius 1.5, fov 49.13)."""

    size: int = 128
    views: int = 16
    elevation: float = 15.0
    latent_channels: int = 8
    model_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 3)
    num_res_blocks: int = 1
    head_channels: int = 32
    vae_channels: int = 32
    vae_mult: tuple[int, ...] = (1, 2, 2, 2)
    vae_res_blocks: int = 1
    sigma_min: float = 0.01
    sigma_max: float = 120.0

    def __post_init__(self):
        for name in ("channel_mult", "vae_mult"):
            object.__setattr__(self, name, tuple(int(m) for m in getattr(self, name)))
        if self.model_channels % 32 or self.vae_channels % 32:
            raise ValueError(
                "model_channels and vae_channels must be multiples of 32 (ComfyUI's group norms have 32 groups), "
                f"got {self.model_channels} and {self.vae_channels}."
            )
        if self.model_channels % self.head_channels:
            raise ValueError(
                f"model_channels ({self.model_channels}) must be a multiple of head_channels ({self.head_channels})."
            )
        step = self.factor * 2 ** (len(self.channel_mult) - 1)
        if self.size % step:
            raise ValueError(f"The view size must be a multiple of {step} with these multipliers, got {self.size}.")

    @property
    def factor(self) -> int:
        """Pixels per latent pixel."""
        return 2 ** (len(self.vae_mult) - 1)

    @property
    def patch(self) -> int:
        """Latent pixels along the side of a context patch: at most 8 x 8 patches."""
        return max(1, self.size // self.factor // 8)

    @property
    def context_dim(self) -> int:
        return self.latent_channels * self.patch**2 + 4 * POSITION_FREQUENCIES

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> VideoConfig:
        """ValueError for unknown or missing entries."""
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"The model's configuration must have exactly the entries {', '.join(sorted(names))}.")
        return cls(**values)


def unet_config(config: VideoConfig) -> dict:
    """Keyword arguments of ComfyUI's UNetModel (openaimodel.py), without device, dtype and operations.

    SVD's settings (temporal residual blocks and attention, mixed by learned factors that image_only_indicator
    overrides) with attention at every level. The temporal layers attend across views only: with many context tokens,
    their cross-attention would cost more than the rest of the model.
    """
    levels = len(config.channel_mult)
    return {
        "image_size": config.size // config.factor,
        "in_channels": 2 * config.latent_channels,
        "out_channels": config.latent_channels,
        "model_channels": config.model_channels,
        "channel_mult": list(config.channel_mult),
        "num_res_blocks": [config.num_res_blocks] * levels,
        "transformer_depth": [1] * (config.num_res_blocks * levels),
        "transformer_depth_output": [1] * ((config.num_res_blocks + 1) * levels),
        "transformer_depth_middle": 1,
        "num_heads": -1,
        "num_head_channels": config.head_channels,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "context_dim": config.context_dim,
        "legacy": False,
        "num_classes": "sequential",
        "adm_in_channels": AUGMENTATION_WIDTH + 2 * ANGLE_WIDTH,
        "use_temporal_resblock": True,
        "use_temporal_attention": True,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "disable_temporal_crossattention": True,
        "merge_strategy": "learned_with_images",
        "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1],
    }


def vae_params(config: VideoConfig) -> dict:
    """Keyword arguments of ComfyUI's AutoencoderKL."""
    return {
        "embed_dim": config.latent_channels,
        "ddconfig": {
            "double_z": True,
            "z_channels": config.latent_channels,
            "resolution": config.size,
            "in_channels": 3,
            "out_ch": 3,
            "ch": config.vae_channels,
            "ch_mult": list(config.vae_mult),
            "num_res_blocks": config.vae_res_blocks,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }


def sinusoids(values: Tensor, width: int) -> Tensor:
    """(N,) -> (N,width): cosines then sines at frequencies 1 to 1/10000, as SV3D embeds its scalars."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def pose_vector(elevations_deg: Tensor, azimuths_deg: Tensor, augmentation: float = 0.0) -> Tensor:
    """(N,) degrees each -> (N,1280), what SV3D_p adds to the time embedding (references.md section 6)."""
    polar = torch.deg2rad(torch.fmod(90 - elevations_deg.float(), 360.0))
    azimuth = torch.deg2rad(torch.fmod(azimuths_deg.float(), 360.0))
    level = torch.full_like(polar, augmentation)
    return torch.cat(
        [sinusoids(level, AUGMENTATION_WIDTH), sinusoids(polar, ANGLE_WIDTH), sinusoids(azimuth, ANGLE_WIDTH)], dim=1
    )


def context_tokens(latent: Tensor, patch: int) -> Tensor:
    """Input view's latent (B,C,h,w) -> tokens (B, (h/patch)(w/patch), C patch^2 + 16): the patch and where it is.

    Where: sines and cosines of its position at 1, 2, 4 and 8 half turns across the picture. Sides that are no multiple
    of `patch` are cut at the right and below. A latent that is zero everywhere (reference dropped) gives zeros.
    """
    b, _, h, w = latent.shape
    rows, columns = h // patch, w // patch
    if rows < 1 or columns < 1:
        raise ValueError(f"The latent ({h} x {w}) is smaller than one context patch ({patch}); use larger views.")
    content = F.unfold(latent[:, :, : rows * patch, : columns * patch], patch, stride=patch).transpose(1, 2)
    turns = math.pi * 2.0 ** torch.arange(POSITION_FREQUENCIES, dtype=latent.dtype, device=latent.device)
    y = ((torch.arange(rows, dtype=latent.dtype, device=latent.device) + 0.5) / rows)[:, None] * turns
    x = ((torch.arange(columns, dtype=latent.dtype, device=latent.device) + 0.5) / columns)[:, None] * turns
    y, x = y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)
    where = torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=2).reshape(1, rows * columns, -1)
    given = (latent.flatten(1).abs().amax(dim=1) > 0).to(latent.dtype)[:, None, None]
    return torch.cat([content, where.expand(b, -1, -1)], dim=2) * given


def denoised_from_output(x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """EDM v-prediction with sigma_data 1. x, output: (N,C,h,w), sigma: (N,)."""
    s = sigma.view(-1, 1, 1, 1)
    square = s * s + 1
    return x / square - output * s / square.sqrt()


def read_checkpoint(path: str | Path) -> tuple[VideoConfig, dict[str, Tensor], dict[str, Tensor], dict]:
    """A trained model's file -> its configuration, UNet weights, autoencoder weights (prefixes taken off), and header.

    ValueError in one sentence for missing, damaged and foreign files. Shapes are checked by whoever builds the model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"There is no trained demo model at {path}; train one (docs/trained_model.md) or use the analytic model."
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.name} is not a readable safetensors file ({error}); it may be truncated: copy or download it again."
        ) from None
    try:
        meta = json.loads(header.get("meta", ""))
        if meta["format"] != FORMAT:
            raise KeyError("format")
        config = VideoConfig.from_json(meta["config"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path.name} is not a trained demo model of this pack (its header lacks the {FORMAT} description); "
            "load other checkpoints with ComfyUI's own loaders."
        ) from None
    parts = [
        {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in (UNET_PREFIX, VAE_PREFIX)
    ]
    return config, parts[0], parts[1], meta


def check_weights(name: str, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """ValueError unless `given` has exactly the tensors of `wanted`, in their shapes. name: for the message."""
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        example = f"first missing: {missing[0]}" if missing else f"first unknown: {extra[0]}"
        raise ValueError(
            f"The {name} weights do not belong to this model: {len(missing)} tensors missing, {len(extra)} unknown "
            f"({example}); the file is incomplete or from another version."
        )
    for key, tensor in wanted.items():
        if given[key].shape != tensor.shape:
            raise ValueError(
                f"The {name} weights do not fit: {key} is {tuple(given[key].shape)}, expected {tuple(tensor.shape)}; "
                "the file's configuration and weights do not belong together."
            )
