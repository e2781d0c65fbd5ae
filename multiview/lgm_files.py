"""Weight files of LGM and Ouroboros3D: reading them, and telling by their keys what a file really is."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from .demo.video_unet import check_weights
from .lgm import LGM, config_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
VIDEOMV_PREFIX = "lgm_big."
# What a file is called in messages. The first kind whose keys are all there is it; patterns are fnmatch's.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    # Before the models, whose names LoRA files repeat.
    "lora": ("a LoRA", ("*lora[_.]*",)),
    "ouroboros_views": (
        "Ouroboros3D's view model (mv_model_unet)", ("unet.conv_in.weight", "cond_encoder.0.conv_in.weight")
    ),
    "demo_lgm": ("a small LGM trained with this pack", ("unet.conv_in.weight", "conv.weight", "rig")),
    "ouroboros_lgm": (
        "Ouroboros3D's reconstruction model (recon_model)",
        ("unet.conv_in.weight", "conv.weight", "unet.time_embed.0.weight"),
    ),
    "lgm": ("an LGM", ("unet.conv_in.weight", "conv.weight", "unet.mid_block.nets.0.conv1.weight")),
    "videomv": ("VideoMV's weights with an LGM inside", (VIDEOMV_PREFIX + "unet.conv_in.weight",)),
    "svd_diffusers": (
        "a Stable Video Diffusion UNet in diffusers' layout", ("down_blocks.0.resnets.0.spatial_res_block.*",)
    ),
    "svd": ("a Stable Video Diffusion or SV3D checkpoint", ("model.diffusion_model.input_blocks.1.0.time_stack.*",)),
    "syncdreamer": ("a SyncDreamer checkpoint", ("spatial_volume.*",)),
    "stable_diffusion": ("a Stable Diffusion checkpoint", ("model.diffusion_model.*",)),
    "unet_diffusers": ("an image UNet in diffusers' layout", ("down_blocks.0.resnets.0.conv1.weight", "conv_in.*")),
    "vae": ("a VAE", ("decoder.conv_in.weight",)),
}  # fmt: skip


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of a .safetensors file, or of a pickled one, of which torch reads nothing but tensors.

    ValueError in one sentence for files that cannot be read or hold no tensors by name.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"The file {path.name} is none of {', '.join(SUFFIXES)}; choose the file with the weights.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            # Files of recent years can be mapped instead of read; older ones cannot.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, _safetensors_error()) as error:
        raise ValueError(
            f"The file {path.name} cannot be read as weights ({type(error).__name__}); download it again."
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ValueError(f"The file {path.name} holds no named tensors; choose the file with the weights.")
    return tensors


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def kind_of(names) -> str | None:
    """Key of KINDS for a file with these tensor names, None if it is nothing known."""
    names = set(names)
    for kind, (_, keys) in KINDS.items():
        if all(any(fnmatchcase(n, k) for n in names) if "*" in k else k in names for k in keys):
            return kind
    return None


def require_kind(tensors: Mapping[str, Tensor], wanted: tuple[str, ...], label: str, place: str) -> str:
    """The file's kind if it is one of `wanted`; otherwise a ValueError that names what it is and what to do.

    label: what was asked for. place: what to do with a file of that kind.
    """
    found = kind_of(tensors)
    if found in wanted:
        return found
    what = KINDS[found][0] if found else f"an unknown file (its first tensor is '{next(iter(sorted(tensors)))}')"
    raise ValueError(f"This file is {what}, but {label} is needed here; {place}.")


def load_lgm(path: str | Path, operations=nn) -> tuple[LGM, str]:
    """An LGM and its kind ("lgm", "videomv", "ouroboros_lgm" or "demo_lgm"), in the file's precision, ready to run.

    ValueError for files of other kinds (named), and for missing, unknown or misshapen tensors.
    """
    return build_lgm(read_tensors(path), operations)


def build_lgm(tensors: Mapping[str, Tensor], operations=nn) -> tuple[LGM, str]:
    """load_lgm from tensors by name."""
    kind = require_kind(
        tensors, ("lgm", "videomv", "ouroboros_lgm", "demo_lgm"), "an LGM",
        "choose model_fp16_fixrot.safetensors of LGM, VideoMV's weights or Ouroboros3D's recon_model",
    )  # fmt: skip
    start = VIDEOMV_PREFIX if kind == "videomv" else ""
    own = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
    # LGM's training left the networks of its losses in some files.
    own = {k: v for k, v in own.items() if "lpips_loss" not in k}
    with torch.device("meta"):
        network = LGM(config_of({k: tuple(v.shape) for k, v in own.items()}), operations)
    check_weights("LGM", own, network.state_dict())
    network.load_state_dict(own, assign=True)
    return network.eval().requires_grad_(False), kind
