"""Plain description of a pose model: MIRAGE's class-conditional image diffusion (section 3.2, references.md section 4).

One small UNet draws one picture of a category from noise, in a pose given by its number. Nothing here imports ComfyUI:
training/train_pose_unet.py trains ComfyUI's UNetModel with what this module says, nodes/pose_model.py loads it.
- Latents are pixels in [-1,1] (3 channels). Noise levels and the noise prediction are those of DDIM: 1000 steps, beta
  linear from 1e-4 to 0.02.
- The pose is a vector with one entry for each pose: 1 for the wanted one, all 0 for none. A learned layer embeds it
  into the time embedding, which scales and shifts the features in every residual block (the paper: as AdaIN). The
  transformer blocks' cross-attention, which ComfyUI's class always has, sees the same vector as its only token.
- Differences from the paper: its UNet is that of simple-diffusion; ours is ComfyUI's, with self-attention at the two
  coarser levels and in the middle, so that cross-frame attention finds it in the decoder as it does there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

FORMAT = "mv-pose-unet-1"
UNET_PREFIX = "model.diffusion_model."
MEANS = "pose_means"
STEPS, BETA_FIRST, BETA_LAST = 1000, 1e-4, 0.02
PREDICTIONS = ("noise", "v")


@dataclass(frozen=True)
class PoseConfig:
    """poses: how many there are. size: pixels of a picture. prediction: what the UNet gives, "noise" as in the paper or
    "v", which is useful after far fewer steps: at high noise, small errors in the noise are large ones in the picture.
    """

    poses: int
    size: int = 64
    model_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    head_channels: int = 32
    prediction: str = "noise"

    def __post_init__(self):
        object.__setattr__(self, "channel_mult", tuple(int(m) for m in self.channel_mult))
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"A pose model predicts one of {', '.join(PREDICTIONS)}, got '{self.prediction}'.")
        if self.poses < 1:
            raise ValueError(f"A pose model needs at least one pose, got {self.poses}.")
        if self.model_channels % 32 or self.model_channels % self.head_channels:
            raise ValueError(
                f"model_channels must be a multiple of 32 and of head_channels, got {self.model_channels} and "
                f"{self.head_channels}."
            )
        step = 2 ** (len(self.channel_mult) - 1)
        if self.size % step or self.size < 2 * step:
            raise ValueError(f"The picture size must be a multiple of {step} with these levels, got {self.size}.")

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> PoseConfig:
        """ValueError for unknown or missing entries."""
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"The model's configuration must have exactly the entries {', '.join(sorted(names))}.")
        return cls(**values)


def pose_unet_config(config: PoseConfig) -> dict:
    """Keyword arguments of ComfyUI's UNetModel, without device, dtype and operations."""
    blocks = config.num_res_blocks
    attended = [int(level > 0) for level in range(len(config.channel_mult))]
    return {
        "image_size": config.size,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": config.model_channels,
        "channel_mult": list(config.channel_mult),
        "num_res_blocks": [blocks] * len(attended),
        "transformer_depth": [a for a in attended for _ in range(blocks)],
        "transformer_depth_output": [a for a in attended for _ in range(blocks + 1)],
        "transformer_depth_middle": 1,
        "num_heads": -1,
        "num_head_channels": config.head_channels,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "use_scale_shift_norm": True,
        "context_dim": config.poses,
        "legacy": False,
        "num_classes": "sequential",
        "adm_in_channels": config.poses,
    }


def pose_vectors(labels: Tensor, poses: int) -> Tensor:
    """Numbers (N,) -> (N,poses): 1 at the pose's place; -1 = no pose, all 0. ValueError for a number beyond them."""
    if bool((labels < -1).any()) or bool((labels >= poses).any()):
        raise ValueError(
            f"Poses are numbered from 0 to {poses - 1} in this model, got {sorted(set(labels.tolist()))}; "
            "look at its pose sheet."
        )
    return torch.cat([torch.eye(poses), torch.zeros(1, poses)])[labels]


def noise_levels() -> Tensor:
    """(1000,) rising sigma = sqrt((1 - a) / a) of DDIM's schedule, a the product of 1 - beta."""
    product = torch.cumprod(1 - torch.linspace(BETA_FIRST, BETA_LAST, STEPS, dtype=torch.float64), dim=0)
    return ((1 - product) / product).sqrt()


def read_pose_checkpoint(path: str | Path) -> tuple[PoseConfig, dict[str, Tensor], Tensor, dict]:
    """A pose model's file -> configuration, UNet weights, mean picture of each pose (P,S,S,3) in [0,1], header.

    ValueError in one sentence for missing, damaged and foreign files.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no pose model at {path}; train one (docs/pose_model.md).")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        meta = json.loads(header.get("meta", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} is not a readable safetensors file ({error}); copy it again.") from None
    try:
        if meta["format"] != FORMAT:
            raise KeyError("format")
        config = PoseConfig.from_json(meta["config"])
        means = tensors.pop(MEANS).float() / 255
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path.name} is not a pose model of this pack (its header lacks the {FORMAT} description); load other "
            "checkpoints with ComfyUI's own loaders."
        ) from None
    return config, {k[len(UNET_PREFIX) :]: v for k, v in tensors.items() if k.startswith(UNET_PREFIX)}, means, meta
