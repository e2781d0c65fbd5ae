"""DINOv2 from a Hugging Face folder, for the patch features that pose_clusters.py works on. Nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .pose_clusters import patch_grid

FAMILIES = ("dinov2", "dinov2_with_registers", "dinov3_vit")
# ImageNet's, which all published DINO models use.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Dino:
    """network: transformers' model, eval. patch: pixels along the side of a patch."""

    network: nn.Module
    patch: int
    name: str

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B,S,S,3) in [0,1], S a multiple of the patch -> (B,S/patch,S/patch,D) of the last layer, float32."""
        weight = next(self.network.parameters())
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        pixels = ((pictures.movedim(-1, 1).float() - mean) / std).to(weight.device, weight.dtype)
        with torch.no_grad():
            return patch_grid(self.network(pixel_values=pixels).last_hidden_state).float().cpu()

    def side(self, wanted: int) -> int:
        """The nearest picture side that is a multiple of the patch; at least 4 patches."""
        return max(4, round(wanted / self.patch)) * self.patch


def load_dino(path: str | Path) -> Dino:
    """path: the .safetensors file of a folder that also holds config.json, or the folder.

    ValueError in a sentence: no folder, another model, incomplete or damaged weights.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type")
    except (OSError, ValueError, AttributeError):
        family = None
    if family not in FAMILIES:
        raise ValueError(
            f"The folder {folder.name} does not hold a DINOv2 model (model_type in config.json is {family}); put "
            "config.json and model.safetensors of facebook/dinov2-small or -base into a folder below models/dinov2."
        )
    from transformers import AutoModel

    try:
        network, report = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever transformers or safetensors raises for a damaged folder
        raise ValueError(f"The DINOv2 model in {folder.name} cannot be read ({error}); download it again.") from error
    missing = [key for key in report["missing_keys"] if "mask_token" not in key]
    if missing:
        raise ValueError(
            f"The DINOv2 model in {folder.name} is incomplete: {len(missing)} tensors are missing (such as "
            f"{sorted(missing)[0]}); download it again."
        )
    return Dino(network.float().eval().requires_grad_(False), int(network.config.patch_size), folder.name)
