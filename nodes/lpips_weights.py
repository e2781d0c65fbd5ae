"""Where LPIPS weights lie on this machine, and what to say where they do not."""

from __future__ import annotations

import importlib.util
import os

import folder_paths
import torch

from ..multiview.lpips import Lpips, find_weights, load_lpips

# The files as their makers name them: torchvision's backbone and the heads, in the package "lpips" too.
FILES = {"vgg": ("vgg16-397923af.pth", "vgg.pth"), "alex": ("alexnet-owt-7be5be79.pth", "alex.pth")}
LPIPS_FOLDER = "lpips"


def lpips_folders() -> list[str]:
    """ComfyUI's folders for LPIPS, torch's own download folder, and the heads inside an installed package "lpips"."""
    if LPIPS_FOLDER in folder_paths.folder_names_and_paths:
        found = list(folder_paths.get_folder_paths(LPIPS_FOLDER))
    else:
        found = [os.path.join(folder_paths.models_dir, LPIPS_FOLDER)]
    found.append(os.path.join(torch.hub.get_dir(), "checkpoints"))
    package = importlib.util.find_spec("lpips")
    if package is not None:
        found += [os.path.join(place, "weights", "v0.1") for place in package.submodule_search_locations or []]
    return found


def lpips_network(wanted: str) -> tuple[Lpips | None, str]:
    """The network of this kind ("vgg" or "alex"), else of the other, else None; and a sentence where it is not the
    wanted one."""
    files = find_weights(lpips_folders(), [wanted, *(kind for kind in FILES if kind != wanted)])
    if files is None:
        return None, f"LPIPS was left out: its weights were not found. {where_to_put(wanted)}"
    with torch.inference_mode(False):
        network = load_lpips(files)
    if files.kind == wanted:
        return network, ""
    return network, f"LPIPS was measured with {files.kind}: {wanted} was not found. {where_to_put(wanted)}"


def where_to_put(kind: str) -> str:
    """Which files LPIPS needs, and where."""
    backbone, heads = FILES[kind]
    folder = os.path.join(folder_paths.models_dir, LPIPS_FOLDER)
    return (
        f"Put torchvision's {backbone} and the LPIPS heads {heads} (from the Python package lpips, folder "
        f"weights/v0.1) into {folder}."
    )
