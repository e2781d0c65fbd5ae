"""The injector inside a trained demo model's file, where it was trained jointly with an LGM (training joint)."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from ..ouroboros import Injector, InjectorConfig, fill_injector
from .video_unet import INJECTOR_PREFIX


def read_injector(path: str | Path, operations=nn) -> Injector | None:
    """The injector in a file that video_unet.read_checkpoint has accepted; None where it has none.

    ValueError in one sentence for a damaged one.
    """
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        described = json.loads((file.metadata() or {}).get("meta", "{}")).get("injector")
        keys = [key for key in file.keys() if key.startswith(INJECTOR_PREFIX)]
        tensors = {key.removeprefix(INJECTOR_PREFIX): file.get_tensor(key).float() for key in keys}
    if described is None and not tensors:
        return None
    try:
        config = InjectorConfig(**{**described, "channels": tuple(described["channels"])})
    except (KeyError, TypeError):
        raise ValueError(
            f"{Path(path).name} has feedback encoders but its header does not describe them; the file is damaged, "
            "write it again with `python training joint`."
        ) from None
    return fill_injector(config, tensors, operations)
