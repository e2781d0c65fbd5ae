"""A small depth network for views of one object, shipped with the pack (weights/depth_net.safetensors).

What the network says per pixel, from RGB alone:
  offset  signed distance toward the camera from the plane through the origin that faces the camera, in units of the
          picture's half height at that plane, R tan(fov_y / 2). In these units the answer does not depend on the
          camera's distance or zoom, so one network serves every orbit;
  log_b   log of the Laplace scale of that offset, same units;
  logit   foreground against background.
Metric depth follows from the camera: Z = R - offset * R tan(fov_y / 2)   (references.md 5.2: an offset from the
rotation axis, not a disparity, is what a correspondence needs).

Trained by training/train_depth.py on generated objects only; figures and limits: docs/depth_net.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cameras import Cameras

CHANNELS = (24, 40, 56, 72)
MULTIPLE = 16
# Trained at this size: larger pictures are shrunk to it, which measured better than running them as they are.
WORKING_SIDE = 64
FORMAT = "mv-depth-net-1"
WEIGHTS = Path(__file__).parent / "weights" / "depth_net.safetensors"
# Confidence is the probability that the offset is right to this many world units.
TOLERANCE = 0.05
LOG_SCALE_RANGE = (-7.0, 1.0)


class _Block(nn.Module):
    """Two 3x3 convolutions with group norm, added to the input."""

    def __init__(self, channels: int, operations):
        super().__init__()
        self.norm1 = operations.GroupNorm(8, channels)
        self.conv1 = operations.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = operations.GroupNorm(8, channels)
        self.conv2 = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class DepthNet(nn.Module):
    """U-Net on half-resolution features, with a thin full-resolution head. 0.57 M parameters.

    forward: RGB (N,3,H,W) in [0,1], H and W multiples of 16 -> offset, log_b, logit, each (N,H,W).
    """

    def __init__(self, channels: tuple[int, ...] = CHANNELS, operations=nn):
        super().__init__()
        self.stem = operations.Conv2d(12, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            operations.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, channels[1:], strict=False)
        )
        self.encode = nn.ModuleList(_Block(c, operations) for c in channels)
        self.middle = _Block(channels[-1], operations)
        pairs = list(zip(channels, channels[1:], strict=False))[::-1]
        self.merge = nn.ModuleList(operations.Conv2d(a + b, a, 3, padding=1) for a, b in pairs)
        self.decode = nn.ModuleList(_Block(a, operations) for a, _ in pairs)
        self.spread = operations.Conv2d(channels[0], 48, 3, padding=1)
        self.refine = operations.Conv2d(15, 16, 3, padding=1)
        self.head = operations.Conv2d(16, 3, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % MULTIPLE or images.shape[3] % MULTIPLE:
            raise ValueError(
                f"The depth network takes RGB (N,3,H,W) with H and W multiples of {MULTIPLE}, "
                f"got {tuple(images.shape)}; use estimate_depth, which resizes."
            )
        rgb = images * 2 - 1
        x = self.encode[0](self.stem(F.pixel_unshuffle(rgb, 2)))
        skips = [x]
        for down, block in zip(self.down, self.encode[1:], strict=True):
            x = block(down(x))
            skips.append(x)
        x = self.middle(skips.pop())
        for merge, block in zip(self.merge, self.decode, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(merge(torch.cat([x, skips.pop()], dim=1)))
        fine = F.pixel_shuffle(self.spread(F.silu(x)), 2)
        offset, log_b, logit = self.head(F.silu(self.refine(torch.cat([fine, rgb], dim=1)))).unbind(1)
        return offset, log_b.clamp(*LOG_SCALE_RANGE), logit


def load_depth_net(path: str | Path = WEIGHTS, operations=nn) -> DepthNet:
    """The network with the weights of a safetensors file, float32, in eval mode, on the CPU.

    ValueError, one sentence, when the file is missing, damaged, or of another model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no depth network file at {path}; reinstall the pack or give another path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.name} is not a readable safetensors file ({error}); it may be truncated: copy or download it again."
        ) from None
    net = DepthNet(operations=operations)
    wanted = net.state_dict()
    if state.keys() != wanted.keys():
        missing, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
        raise ValueError(
            f"{path.name} holds another model: {len(missing)} tensors of the depth network are missing and "
            f"{len(extra)} are unknown; give a file written by training/train_depth.py."
        )
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"{path.name} holds a depth network of another size: {key} is {tuple(state[key].shape)}, "
                f"expected {tuple(tensor.shape)}; train it again with this version."
            )
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def half_heights(cameras: Cameras) -> Tensor:
    """(N,) world units from the picture's centre to its upper edge, measured in the plane through the origin."""
    return (cameras.radii() * 0.5 / cameras.intrinsics[:, 1].double()).float()


def _working_size(height: int, width: int) -> tuple[int, int]:
    """The picture's shape with the longer side at what the network was trained on, in multiples of 16."""
    scale = WORKING_SIDE / max(height, width)
    return tuple(max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """offset, log_b, logit (N,3,h,w) resized. Weighted by the mask, or background would leak into silhouettes."""
    if maps.shape[2:] == size:
        return maps
    weight = maps[:, 2:].sigmoid() + 1e-4
    both = F.interpolate(torch.cat([maps[:, :2] * weight, weight, maps[:, 2:]], 1), size=size, mode="bilinear")
    return torch.cat([both[:, :2] / both[:, 2:3], both[:, 3:]], dim=1)


def estimate_depth(
    net: DepthNet, images: Tensor, cameras: Cameras, batch: int = 8, on_step=None
) -> tuple[Tensor, Tensor]:
    """Metric depth of every view, on its own (no view looks at another).

    images: (N,H,W,3) in [0,1]. cameras: N views, all with the object around the origin.
    -> depth (N,H,W): camera z in world units, 0 on background; confidence (N,H,W) in [0,1]: the network's
    probability that the pixel is foreground and its depth right to 0.05 world units.
    Pictures of other sizes are resampled to 64 px and the answer back. on_step(done, total).
    """
    if images.ndim != 4 or images.shape[3] < 3:
        raise ValueError(f"Depth needs colour pictures (N,H,W,3), got {tuple(images.shape)}.")
    if images.shape[0] != len(cameras):
        raise ValueError(
            f"There are {images.shape[0]} pictures but {len(cameras)} cameras; give one camera for each picture."
        )
    if not torch.isfinite(images).all():
        raise ValueError("The pictures contain NaN or infinity; check the node that made them.")
    n, height, width = images.shape[:3]
    weight = next(net.parameters())
    size = _working_size(height, width)
    scale = half_heights(cameras)[:, None, None]
    tolerance = TOLERANCE / scale
    depth, confidence = torch.empty(n, height, width), torch.empty(n, height, width)
    with torch.no_grad():
        for start in range(0, n, batch):
            part = slice(start, min(start + batch, n))
            rgb = images[part, ..., :3].permute(0, 3, 1, 2).to(weight.device, weight.dtype).clamp(0, 1)
            if size != (height, width):
                rgb = F.interpolate(rgb, size=size, mode="bilinear", antialias=True, align_corners=False)
            offset, log_b, logit = _enlarged(torch.stack(net(rgb), dim=1).float(), (height, width)).cpu().unbind(1)
            inside = logit > 0
            metric = cameras.radii().float()[part, None, None] - offset * scale[part]
            depth[part] = torch.where(inside, metric.clamp_min(1e-3), torch.zeros_like(metric))
            # Laplace distribution: P(|error| < t) = 1 - exp(-t / b).
            confidence[part] = logit.sigmoid() * -torch.expm1(-tolerance[part] / log_b.exp())
            if on_step is not None:
                on_step(part.stop, n)
    return depth, confidence
