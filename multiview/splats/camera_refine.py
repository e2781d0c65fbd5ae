"""Corrections to orbit cameras that a fit learns beside the splat: a common elevation, azimuths, the field of view.

The cameras turn around the point they look at (Cameras.focus): growing elevation lifts all of them, growing azimuth
moves one to the viewer's right, as in cameras.py. Which way the object faces is unobservable, so the azimuths' mean
correction is held at 0: only differences between views mean something. Distance and size of the object cannot be told
apart either, so the radius stays.
IM-3D trains a network to guess the elevation instead (its appendix A.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras

FOV_SHARE = 0.5  # of the cameras' rate: the logarithm of the focal length moves the picture's edge by half as much
# Rates fall to this share over the fit; nothing moves during the first part, when there is no object yet.
FINAL_RATE, WAIT = 0.1, 0.1


@dataclass(frozen=True)
class CameraOffsets:
    """elevation: degrees added to all; azimuths: (N,) degrees added to each; zoom: factor of the focal lengths."""

    elevation: float = 0.0
    azimuths: tuple[float, ...] = ()
    zoom: float = 1.0

    def describe(self) -> str:
        """One line for a report, or "" where nothing moved."""
        parts = [f"elevation {self.elevation:+.1f} degrees"] if self.elevation else []
        if any(self.azimuths):
            parts.append(f"azimuths {', '.join(f'{a:+.1f}' for a in self.azimuths)} degrees")
        return "; ".join(parts + ([f"focal length times {self.zoom:.3f}"] if self.zoom != 1 else []))


def offset_cameras(cameras: Cameras, offsets: CameraOffsets) -> Cameras:
    """The cameras, moved; radius, principal points and everything else stay."""
    azimuths = torch.tensor(offsets.azimuths or [0.0] * len(cameras), dtype=torch.float64)
    turned = _turns(cameras, torch.tensor(math.radians(offsets.elevation), dtype=torch.float64), azimuths.deg2rad())
    focal = cameras.intrinsics.new_tensor([offsets.zoom, offsets.zoom, 1, 1])
    c2w = turned.to(cameras.c2w.device) @ cameras.c2w.double()
    return replace(cameras, c2w=c2w.to(cameras.c2w.dtype), intrinsics=cameras.intrinsics * focal)


class CameraRefiner:
    """The corrections as parameters: w2c() and k() are differentiable in them.

    what: names of fit_config.REFINABLE. rate: first step of the angles, radians.
    """

    def __init__(self, cameras: Cameras, what: tuple[str, ...], rate: float, device: torch.device):
        self.given, self.what, self.rate = cameras, what, rate
        count = len(cameras)
        shapes = {"elevation": (), "azimuths": (count,), "fov": ()}
        self.values = {name: torch.zeros(shapes[name], device=device, requires_grad=name in what) for name in shapes}
        self.base, self.intrinsics = cameras.w2c().to(device), cameras.intrinsics.to(device)
        groups = [{"params": [self.values[name]], "share": FOV_SHARE if name == "fov" else 1.0} for name in what]
        self.optimizer = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99))

    def w2c(self, chosen: list[int]) -> Tensor:
        """(k,4,4) of the chosen views as they are now."""
        turns = _turns(self.given, self.values["elevation"], self.values["azimuths"])[chosen]
        # The turns are rigid: their inverse is the transposed rotation.
        rotation = turns[:, :3, :3].transpose(1, 2)
        inverse = torch.cat([torch.cat([rotation, -rotation @ turns[:, :3, 3:]], dim=2), turns[:, 3:]], dim=1)
        return self.base[chosen] @ inverse

    def k(self, pixel_intrinsics: Tensor) -> Tensor:
        """(k,3,3) pixel intrinsics with the focal lengths as they are now."""
        zoom = self.values["fov"].exp()
        one = torch.ones_like(zoom)
        return pixel_intrinsics * torch.stack([zoom, zoom, one])

    def step(self, progress: float) -> None:
        """One move along the gradients; progress: share of the fit that is done."""
        falling = FINAL_RATE ** max(0.0, (progress - WAIT) / (1 - WAIT))
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if progress < WAIT else self.rate * group["share"] * falling
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.values["azimuths"] -= self.values["azimuths"].mean()

    def offsets(self) -> CameraOffsets:
        elevation, azimuths, zoom = (v.detach() for v in self.values.values())
        return CameraOffsets(math.degrees(float(elevation)), tuple(azimuths.rad2deg().tolist()), math.exp(float(zoom)))

    def cameras(self) -> Cameras:
        """The cameras as they are now."""
        return offset_cameras(self.given, self.offsets())


def _turns(cameras: Cameras, elevation: Tensor, azimuths: Tensor) -> Tensor:
    """(N,4,4) rigid motions of the world that lift the cameras and turn them about the vertical, in radians."""
    like = azimuths
    focus = cameras.focus().to(like)
    right = cameras.c2w[:, :3, 0].to(like) * like.new_tensor([1.0, 0.0, 1.0])
    right = F.normalize(right, dim=1)
    down = like.new_tensor([0.0, 1.0, 0.0]).expand_as(right)
    # y points down, so both turn against the right-hand rule.
    rotation = _rotations(down, -azimuths) @ _rotations(right, -elevation.expand_as(azimuths))
    shift = focus - rotation @ focus
    last = like.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(right), 1, 4)
    return torch.cat([torch.cat([rotation, shift[:, :, None]], dim=2), last], dim=1)


def _rotations(axes: Tensor, angles: Tensor) -> Tensor:
    """(N,3,3) about unit axes (N,3), Rodrigues' formula."""
    x, y, z = axes.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    sine, cosine = angles.sin()[:, None, None], angles.cos()[:, None, None]
    return torch.eye(3).to(axes) + sine * cross + (1 - cosine) * (cross @ cross)
