"""Training state as safetensors: weights, optimizer moments and random generators as tensors, everything else as JSON.

No pickle, so a checkpoint from somebody else cannot run code. Written to a temporary name first, so that a training
that is stopped while saving keeps its previous checkpoint.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: str | Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Tensors and a JSON header into one safetensors file, replacing the old one in a single step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    # Fresh copies: safetensors refuses tensors that share memory.
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        str(temporary),
        metadata={"format": "pt", "meta": json.dumps(meta)},
    )
    os.replace(temporary, path)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """What write_tensors wrote."""
    with safe_open(str(path), framework="pt") as file:
        meta = json.loads((file.metadata() or {}).get("meta", "{}"))
        return {key: file.get_tensor(key) for key in file.keys()}, meta


def read_meta(path: str | Path) -> dict:
    """The JSON header alone."""
    with safe_open(str(path), framework="pt") as file:
        return json.loads((file.metadata() or {}).get("meta", "{}"))


def save_state(path, modules: dict, optimizer, generators: dict[str, torch.Generator], meta: dict) -> None:
    """Everything a training needs to go on as if it had never stopped.

    modules: name -> nn.Module (an EMA copy is one more). meta: JSON values (step, seconds, options).
    """
    tensors = {f"module.{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    for name, generator in generators.items():
        tensors[f"generator.{name}"] = generator.get_state()
    write_tensors(path, tensors, meta)


def load_state(path, modules: dict, optimizer, generators: dict[str, torch.Generator]) -> dict:
    """Put a saved state back in place; returns its meta. ValueError when it belongs to another model."""
    tensors, meta = read_tensors(path)
    for name, module in modules.items():
        prefix = f"module.{name}."
        part = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        wanted = module.state_dict()
        if part.keys() != wanted.keys() or any(part[k].shape != wanted[k].shape for k in wanted):
            raise ValueError(f"{path} was written for another '{name}' model; give the options it was started with.")
        module.load_state_dict(part)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".", 2)
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for name, generator in generators.items():
        generator.set_state(tensors[f"generator.{name}"])
    return meta
