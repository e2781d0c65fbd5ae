"""Files of kinds of models that ComfyUI has no folder for: models/dinov2, models/raft."""

from __future__ import annotations

import os

import folder_paths


def _roots(kind: str) -> list[str]:
    if kind not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
    return [path for path in folder_paths.get_folder_paths(kind) if os.path.isdir(path)]


def model_files(kind: str, suffixes: tuple[str, ...] = (".safetensors",)) -> list[str]:
    """Names below models/KIND, with / between folder and file on every system."""
    found = set()
    for root in _roots(kind):
        for folder, _, files in os.walk(root):
            inside = os.path.relpath(folder, root).replace(os.sep, "/")
            prefix = "" if inside == "." else inside + "/"
            found |= {prefix + name for name in files if name.endswith(suffixes)}
    return sorted(found)


def model_path(kind: str, name: str, suffixes: tuple[str, ...] = (".safetensors",)) -> str:
    """Full path of a name from model_files. ValueError if it is not there (any more)."""
    for root in _roots(kind) if name in model_files(kind, suffixes) else []:
        path = os.path.join(root, name)
        if os.path.isfile(path):
            return path
    raise ValueError(f"There is no '{name}' in models/{kind}; put it there, or choose another, and reload the page.")
