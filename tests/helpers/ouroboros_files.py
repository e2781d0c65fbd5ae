"""Ouroboros3D's and LGM's files with random weights and reduced widths, and small UNets of diffusers for comparison."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file


def diffusers_unet(width: int = 32, heads=(1, 2, 4, 4), context: int = 48, seed: int = 0, mult=(1, 2, 4, 4)):
    """A Stable Video Diffusion UNet of diffusers, its widths divided by 320 / width."""
    from diffusers import UNetSpatioTemporalConditionModel

    network = UNetSpatioTemporalConditionModel(
        block_out_channels=tuple(width * m for m in mult), num_attention_heads=heads, cross_attention_dim=context,
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=768, layers_per_block=2,
    )  # fmt: skip
    fill(network, seed)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def fill(network: torch.nn.Module, seed: int = 0, spread: float = 1.0) -> None:
    """Random weights in which every part counts: nothing is zero, and activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "mix_factor" in name:
            value.copy_(noise)
        elif value.ndim < 2:
            value.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        else:
            value.copy_(noise * spread * value[0].numel() ** -0.5)


def write_lgm(path: Path, timed: bool = False) -> Path:
    """An LGM of the published depth and 32 channels: 4 x 32 x 32 Gaussians."""
    from mvpack.multiview.lgm import LGM, LGMConfig

    network = LGM(LGMConfig((32,) * 6, (False,) * 4 + (True,) * 2, (32,) * 3, (True, False, False), timed=timed))
    fill(network)
    return save(dict(network.state_dict()), path)


def write_view_model(path: Path) -> Path:
    """mv_model_unet.pth with a tenth of the channels, for CLIP embeddings of the published width."""
    from mvpack.multiview.ouroboros import Injector, InjectorConfig

    injector = Injector(InjectorConfig((32, 64, 128, 128)))
    fill(injector, 8, 0.5)
    unet = diffusers_unet(context=1024).state_dict()
    return save({f"unet.{name}": value for name, value in unet.items()} | dict(injector.state_dict()), path)


def save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path
