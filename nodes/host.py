"""Everything in which ComfyUI's versions differ, and the few host services every node uses.

Known hosts: 0.3.75 (no native SPLAT, no search aliases) to 0.45. Facts: shared ecosystem.md.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import uuid
from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from PIL import Image

from ..multiview.splats.gaussians import Gaussians

CamerasType = io.Custom("MV_CAMERAS")
DepthType = io.Custom("MV_DEPTH")
SplatType = io.Custom("SPLAT")
PREVIEW_MAX_SIDE = 512
DEPTH_MODELS = "depthanything"
# Colours behind an object that nodes offer by name.
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0)}


def schema(**keywords) -> io.Schema:
    """io.Schema with the keywords this host knows; newer ones (search_aliases) are dropped on older hosts."""
    known = {f.name for f in dataclasses.fields(io.Schema)}
    return io.Schema(**{k: v for k, v in keywords.items() if k in known})


def advanced(make: Callable[..., Any], *args, **keywords):
    """An input folded away under "advanced" where the host can do so."""
    if "advanced" in inspect.signature(make.__init__).parameters:
        keywords["advanced"] = True
    return make(*args, **keywords)


def has_depth_anything_3() -> bool:
    """Whether the host has core's Depth Anything 3 nodes, and with them DA3_GEOMETRY."""
    return importlib.util.find_spec("comfy_extras.nodes_depth_anything_3") is not None


def has_moge() -> bool:
    """Whether the host has core's MoGe nodes, and with them MOGE_GEOMETRY."""
    return importlib.util.find_spec("comfy_extras.nodes_moge") is not None


# --- splats ---------------------------------------------------------------------------------------------------------


class SplatTwin:
    """The attributes of core's SPLAT (since 0.23), for hosts that do not have it.

    positions (B,N,3), scales (B,N,3) linear, rotations (B,N,4) wxyz, opacities (B,N,1), sh (B,N,K,3), counts (B,)|None.
    """

    def __init__(self, positions, scales, rotations, opacities, sh, counts=None):
        self.positions, self.scales, self.rotations = positions, scales, rotations
        self.opacities, self.sh, self.counts = opacities, sh, counts


def splat_class() -> type:
    from comfy_api.latest import Types

    return getattr(Types, "SPLAT", SplatTwin)


def to_splat(gaussians: Gaussians):
    """One splat as the host's SPLAT, on the CPU."""
    g = gaussians.detach().to("cpu")
    return splat_class()(g.means[None], g.scales[None], g.quats[None], g.opacities[None, :, None], g.sh[None])


def from_splat(splat, index: int = 0) -> Gaussians:
    """One item of a SPLAT, checked. Raises ValueError for other types, an index out of range and empty splats."""
    fields = ("positions", "scales", "rotations", "opacities", "sh")
    missing = [f for f in fields if not hasattr(splat, f)]
    if missing:
        raise ValueError(f"Expected a SPLAT, got {type(splat).__name__} without {', '.join(missing)}.")
    batch = splat.positions.shape[0]
    if not 0 <= index < batch:
        raise ValueError(f"This SPLAT holds {batch} splat(s); index {index} does not exist.")
    counts = getattr(splat, "counts", None)
    n = splat.positions.shape[1] if counts is None else int(counts[index])
    p, s, r, o, sh = (getattr(splat, f)[index, :n].float() for f in fields)
    return Gaussians(p, s, r, o.reshape(n), sh).validate()


def cell_pixels(latent_format) -> int | None:
    """Pixels along a side of a latent's cell. None where a host that keeps no record of it (0.3) leaves it open."""
    if isinstance(latent_format, (comfy.latent_formats.SD15, comfy.latent_formats.SDXL)):
        return 8
    return getattr(latent_format, "spacial_downscale_ratio", None)


# --- running ----------------------------------------------------------------------------------------------------------


def device() -> torch.device:
    return comfy.model_management.get_torch_device()


def fit_device() -> torch.device:
    """Where splats are fitted and rendered: the CUDA card, else the CPU (other back ends lack needed operations)."""
    chosen = device()
    return chosen if chosen.type == "cuda" else torch.device("cpu")


class _Holder(torch.nn.Module):
    """A module whose `device` can be set, as the host's patcher does; that of transformers' models is read-only."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network


def place_network(network: torch.nn.Module) -> None:
    """Move a network of another library to the host's device, in half precision where the host would (fp32 on a CPU).

    Goes through the host's model management, so that other models make room and it makes room for them.
    """
    from comfy.model_patcher import ModelPatcher

    management = comfy.model_management
    chosen = management.get_torch_device()
    network.to(torch.float16 if management.should_use_fp16(chosen) else torch.float32)
    patcher = ModelPatcher(_Holder(network), load_device=chosen, offload_device=management.unet_offload_device())
    management.load_models_gpu([patcher], force_full_load=True)


def check_cancelled() -> None:
    """Raise the host's own exception when the user has cancelled the prompt."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Progress:
    """The host's progress bar with an optional preview picture; every step also looks whether the user cancelled."""

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)

    def step(
        self, done: int, total: int | None = None, picture: Image.Image | None = None, send: bool = True
    ) -> None:
        """send False: only look for a cancel, for loops whose steps are too quick to report each."""
        check_cancelled()
        if not send:
            return
        preview = None if picture is None else ("JPEG", picture, PREVIEW_MAX_SIDE)
        self._bar.update_absolute(done, total, preview)


# --- folders ----------------------------------------------------------------------------------------------------------


def cache_folder(name: str) -> str:
    """A folder of ours below ComfyUI's models folder, made when missing."""
    path = os.path.join(folder_paths.models_dir, "multiview", name)
    os.makedirs(path, exist_ok=True)
    return path


def output_path(prefix: str, suffix: str) -> tuple[str, str, str]:
    """A new file in ComfyUI's output folder: (full path, file name, subfolder).

    ValueError for a prefix that leads outside it and for a folder that cannot be made or written.
    """
    root = os.path.realpath(folder_paths.get_output_directory())
    wanted = os.path.dirname(os.path.join(root, os.path.normpath(prefix)))
    if os.path.commonpath([root, os.path.realpath(wanted)]) != root:
        raise ValueError(f"The file name '{prefix}' leads outside ComfyUI's output folder; choose one inside it.")
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError as error:
        raise ValueError(f"The output folder '{wanted}' cannot be used ({error.strerror}); choose another.") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"The output folder '{folder}' cannot be written; change its permissions or choose another.")
    file = f"{name}_{counter:05}_{suffix}"
    return os.path.join(folder, file), file, subfolder


def temp_path(name: str, suffix: str) -> tuple[str, str]:
    """A new file in ComfyUI's temporary folder, which it empties when it starts: (full path, file name)."""
    root = folder_paths.get_temp_directory()
    os.makedirs(root, exist_ok=True)
    file = f"{name}_{uuid.uuid4().hex[:12]}{suffix}"
    return os.path.join(root, file), file


def _depth_folders() -> list[str]:
    """ComfyUI's folders of depth models; models/depthanything is registered where no other pack has done so."""
    if DEPTH_MODELS not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(DEPTH_MODELS, os.path.join(folder_paths.models_dir, DEPTH_MODELS))
    return [path for path in folder_paths.get_folder_paths(DEPTH_MODELS) if os.path.isdir(path)]


def depth_models() -> list[str]:
    """Names in models/depthanything: .safetensors files, and folders with a config.json (their own files left out)."""
    found = set()
    for root in _depth_folders():
        for folder, below, files in os.walk(root):
            inside = os.path.relpath(folder, root).replace(os.sep, "/")
            if "config.json" in files and inside != ".":
                found.add(inside)
                below.clear()
                continue
            prefix = "" if inside == "." else inside + "/"
            found |= {prefix + name for name in files if name.endswith(".safetensors")}
    return sorted(found)


def depth_model_path(name: str) -> str | None:
    """Full path of a name from depth_models(), None if it is not there (any more)."""
    for root in _depth_folders() if name in depth_models() else []:
        path = os.path.join(root, name)
        if os.path.exists(path):
            return path
    return None
