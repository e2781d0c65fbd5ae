"""LPIPS, the learned perceptual distance (Zhang et al. 2018), on weight files that are already on the machine.

Features of an AlexNet or VGG-16 trained on ImageNet, scaled to unit length across channels at every pixel; the squared
differences are weighted by channel (the published linear heads), averaged over the picture and summed over the layers.
Nothing is ever downloaded: find_weights looks through folders, and without both files there is no LPIPS.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

# (out channels, kernel, stride, padding) and "pool" of torchvision's feature stacks; "*": an output LPIPS compares.
ALEX = ((64, 11, 4, 2), "*", "pool3", (192, 5, 1, 2), "*", "pool3", (384, 3, 1, 1), "*", (256, 3, 1, 1), "*",
        (256, 3, 1, 1), "*")  # fmt: skip
VGG = tuple(
    item
    for block, (channels, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
    for item in (*(["pool2"] if block else []), *[(channels, 3, 1, 1)] * convolutions, "*")
)
STACKS = {"alex": ALEX, "vgg": VGG}
# Mean and spread of ImageNet in the heads' own scale, pictures in [-1,1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST_SIDE = {"alex": 31, "vgg": 16}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Only files with one of these in their name are opened: a cache folder may hold many gigabytes of other weights.
NAMES = ("alex", "vgg", "lpips")


class Lpips(nn.Module):
    """kind: "alex" or "vgg". Call with two batches of pictures (N,H,W,3) in [0,1]; returns (N,)."""

    def __init__(self, kind: str = "alex", operations=nn):
        super().__init__()
        self.kind = kind
        self.features = nn.ModuleList()
        self.heads = nn.ParameterList()
        channels = 3
        for item in STACKS[kind]:
            if isinstance(item, tuple):
                out, kernel, stride, padding = item
                self.features.append(operations.Conv2d(channels, out, kernel, stride, padding))
                channels = out
            elif item == "*":
                self.heads.append(nn.Parameter(torch.zeros(1, channels, 1, 1)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        side = SMALLEST_SIDE[self.kind]
        if min(first.shape[1:3]) < side:
            raise ValueError(
                f"LPIPS with {self.kind} needs pictures of at least {side} pixels a side, got "
                f"{first.shape[2]} x {first.shape[1]}."
            )
        total = first.new_zeros(len(first))
        for head, a, b in zip(self.heads, self._layers(first), self._layers(second), strict=True):
            total = total + ((_unit(a) - _unit(b)).square() * head).sum(1).mean((1, 2))
        return total

    def _layers(self, pictures: Tensor) -> list[Tensor]:
        x = (pictures.movedim(-1, 1) * 2 - 1 - pictures.new_tensor(SHIFT).view(1, 3, 1, 1)) / pictures.new_tensor(
            SCALE
        ).view(1, 3, 1, 1)
        found, convolutions = [], iter(self.features)
        for item in STACKS[self.kind]:
            if isinstance(item, tuple):
                x = torch.relu(next(convolutions)(x))
            elif item == "*":
                found.append(x)
            else:
                x = torch.nn.functional.max_pool2d(x, int(item[-1]), 2)
        return found


@dataclass(frozen=True)
class LpipsFiles:
    """Where the weights of one kind lie; the two may be the same file."""

    kind: str
    backbone: Path
    heads: Path


def find_weights(folders: Iterable[str | Path], kinds: Sequence[str] = tuple(STACKS)) -> LpipsFiles | None:
    """The first complete pair of backbone and heads in the folders (not their subfolders), of the first of `kinds` that
    is there; or None.

    Files named after alex, vgg or lpips are told by what they hold: backbones by torchvision's keys
    ("features.0.weight"), heads by the published ones ("lin0.model.1.weight"). Unreadable ones are passed over.
    """
    backbones, heads = {}, {}
    for path in (p for folder in folders if Path(folder).is_dir() for p in sorted(Path(folder).iterdir())):
        if path.suffix in SUFFIXES and any(name in path.name.lower() for name in NAMES):
            state = _read(path)
            backbones.setdefault(_backbone_kind(state), path)
            heads.setdefault(_heads_kind(state), path)
    for kind in kinds:
        if kind in backbones and kind in heads:
            return LpipsFiles(kind, backbones[kind], heads[kind])
    return None


def load_lpips(files: LpipsFiles, operations=nn) -> Lpips:
    """The network, ready to measure, on the CPU. ValueError for weights of another shape."""
    state = _read(files.backbone)
    heads = state if files.heads == files.backbone else _read(files.heads)
    network = Lpips(files.kind, operations)
    wanted = {f"heads.{i}": heads.get(f"lin{i}.model.1.weight") for i in range(len(network.heads))}
    for i, place in enumerate(convolution_places(files.kind)):
        for part in ("weight", "bias"):
            wanted[f"features.{i}.{part}"] = state.get(f"features.{place}.{part}")
    missing = [name for name, value in wanted.items() if value is None]
    wrong = [n for n, p in network.state_dict().items() if n not in missing and wanted[n].shape != p.shape]
    if missing or wrong:
        raise ValueError(
            f"'{files.backbone.name}' and '{files.heads.name}' are not the {files.kind} weights of LPIPS "
            f"({', '.join((missing + wrong)[:3])} missing or of another shape); fetch them again."
        )
    network.load_state_dict({name: value.float() for name, value in wanted.items()})
    return network.eval().requires_grad_(False)


def _unit(features: Tensor) -> Tensor:
    # The floor only keeps the gradient of the root finite where every channel is 0.
    return features / (features.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt() + 1e-10)


def convolution_places(kind: str) -> list[int]:
    """torchvision's index of each convolution: every one is followed by its ReLU, and poolings count."""
    places, index = [], 0
    for item in STACKS[kind]:
        if isinstance(item, tuple):
            places.append(index)
        index += 2 if isinstance(item, tuple) else int(item != "*")
    return places


def _backbone_kind(state: dict[str, Tensor]) -> str | None:
    first = state.get("features.0.weight")
    if first is None or first.shape[:2] != (64, 3):
        return None
    if first.shape[2] == 11:
        return "alex"
    # VGG-19 has no convolution at 17.
    return "vgg" if first.shape[2] == 3 and "features.17.weight" in state and "features.28.weight" in state else None


def _heads_kind(state: dict[str, Tensor]) -> str | None:
    second = state.get("lin1.model.1.weight")
    if second is None or "lin5.model.1.weight" in state:  # SqueezeNet's has seven
        return None
    return {192: "alex", 128: "vgg"}.get(second.shape[1])


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name; nothing for a file that cannot be read. The published files are pickles of plain tensors, which
    torch reads without running code."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any broken or foreign file
        logging.getLogger(__name__).warning("%s cannot be read as LPIPS weights: %s", path, error)
        return {}
    return {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
