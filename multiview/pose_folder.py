"""A folder of pictures with pose labels, which MVPoseClusters writes and `python training pose` reads.

00000.png, 00001.png, ... and labels.json: {"format": "mv-pose-labels-1", "poses": 10, "labels": {"00000.png": 3, ...}}.
Any folder of square pictures of one size with such a labels.json can be trained on, however its labels were made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .draw import to_pil

FORMAT = "mv-pose-labels-1"
LABELS = "labels.json"


def labels_json(labels: Tensor, poses: int) -> str:
    """The text of labels.json for pictures 00000.png and so on."""
    named = {f"{i:05d}.png": label for i, label in enumerate(labels.tolist())}
    return json.dumps({"format": FORMAT, "poses": poses, "labels": named}, indent=1)


def write_pose_folder(
    folder: Path, crops: Tensor, labels: Tensor, poses: int, on_step: Callable[[], None] | None = None
) -> None:
    """crops (N,S,S,3) in [0,1], labels (N,). The folder appears when it is complete; FileExistsError if it is there."""
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already.")
    temporary = folder.with_name(folder.name + ".part")
    temporary.mkdir(parents=True)
    for i, crop in enumerate(crops):
        to_pil(crop).save(temporary / f"{i:05d}.png")
        if on_step is not None:
            on_step()
    (temporary / LABELS).write_text(labels_json(labels, poses), encoding="utf-8")
    os.replace(temporary, folder)


def read_pose_folder(folder: Path, size: int | None = None) -> tuple[Tensor, Tensor, int]:
    """Pictures (N,S,S,3) uint8, labels (N,), number of poses. size: scaled to it; else all must have one size.

    ValueError in a sentence: no labels.json, one of another kind, labels beyond the poses, pictures that are missing,
    not square or of different sizes.
    """
    folder = Path(folder)
    try:
        read = json.loads((folder / LABELS).read_text(encoding="utf-8"))
        poses, named = int(read["poses"]), {str(k): int(v) for k, v in read["labels"].items()}
        if read["format"] != FORMAT or not named:
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{folder} has no {LABELS} with poses and labels; save the folder with the node Pose Clusters."
        ) from None
    pictures = []
    for name, label in named.items():
        if not 0 <= label < poses:
            raise ValueError(f"{name} in {folder} has the label {label}, but there are {poses} poses, from 0 on.")
        # Names come from a file: only pictures beside it are read.
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{folder} lacks the picture {name} that its {LABELS} names.")
        with Image.open(folder / name) as file:
            picture = file.convert("RGB")
        if picture.width != picture.height:
            raise ValueError(f"{name} in {folder} is {picture.width} x {picture.height}; training takes squares.")
        if size is not None and picture.width != size:
            picture = picture.resize((size, size), Image.Resampling.BOX)
        pictures.append(torch.from_numpy(np.array(picture)))
    if len({p.shape for p in pictures}) > 1:
        raise ValueError(f"The pictures in {folder} have different sizes; give --size.")
    return torch.stack(pictures), torch.tensor(list(named.values())), poses
