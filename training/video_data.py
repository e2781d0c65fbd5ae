"""Latents of whole orbits on the training device, and exact augmentations of them.

The generator's light comes straight from above, so showing an orbit from another starting view is a picture of the same
scene, and mirrored pictures in reversed order are the orbit of the mirrored object. Both are used.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..multiview.demo.video_unet import VideoConfig, context_tokens, pose_vector
from .checkpoint import read_tensors
from .pool import read_shards

ROLL = 3


def white_pictures(pool: dict[str, Tensor], objects=slice(None)) -> Tensor:
    """(K,V,S,S,3) float in [0,1] on white."""
    alpha = pool["alpha"][objects][..., None].float() / 255
    return pool["rgb"][objects].float() / 255 + 1 - alpha


@torch.no_grad()
def encode_pictures(vae: nn.Module, images: Tensor, device, batch: int = 64) -> Tensor:
    """(N,S,S,3) in [0,1] -> latents (N,C,h,w) half precision on the device."""
    return torch.cat([vae.encode(part.to(device).permute(0, 3, 1, 2) * 2 - 1).half() for part in images.split(batch)])


class LatentPool:
    """Latents (K,2,V,C,h,w) of a growing pool folder: [:,0] as rendered, [:,1] mirrored pictures in reversed order."""

    def __init__(self, folder: Path, vae: nn.Module, views: int, device, limit: int | None = None):
        self.folder, self.vae, self.views, self.device, self.limit = folder, vae, views, device, limit
        self.names: list[str] = []
        self.seeds = torch.zeros(0, dtype=torch.long)
        self.shards: list[Tensor] = []
        self.latents: Tensor | None = None
        if not self.refresh():
            raise ValueError(f"There are no shards in {folder}; make them with `python training render --kind orbit`.")

    def refresh(self) -> int:
        """Take in shards that have appeared since; returns how many objects there are now."""
        for name, fresh in read_shards(self.folder, ("rgb", "alpha", "seed"), self.names):
            if self.limit is not None and sum(len(s) for s in self.shards) >= self.limit:
                break
            step, rest = divmod(fresh["rgb"].shape[1], self.views)
            if rest:
                raise ValueError(f"The pool has {fresh['rgb'].shape[1]} views, which is no multiple of {self.views}.")
            back = [-i % self.views for i in range(self.views)]
            images = white_pictures(fresh)[:, ::step]
            both = torch.stack([images, images[:, back].flip(3)], dim=1)
            self.shards.append(encode_pictures(self.vae, both.flatten(0, 2), self.device).unflatten(0, both.shape[:3]))
            self.seeds = torch.cat([self.seeds, fresh["seed"]])
            self.names.append(name)
        if sum(len(s) for s in self.shards) > len(self):
            self.latents = torch.cat(self.shards)[: self.limit]
            self.seeds = self.seeds[: self.limit]
            self.shards = [self.latents]
        return len(self)

    def __len__(self) -> int:
        return 0 if self.latents is None else self.latents.shape[0]

    def choose(self, scenes: int, generator: torch.Generator, roll: int = ROLL) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) objects, (B,) whether mirrored, (B,V) which of their views in which order."""
        k = torch.randint(self.latents.shape[0], (scenes,), generator=generator)
        mirror = torch.randint(2, (scenes,), generator=generator)
        # Rolls are given for 16 views: a reference up to 67 degrees from the front.
        most = max(0, round(roll * self.views / 16))
        start = torch.randint(-most, most + 1, (scenes, 1), generator=generator)
        return k, mirror, (torch.arange(self.views)[None] + start) % self.views

    def latents_of(self, k: Tensor, mirror: Tensor, order: Tensor) -> Tensor:
        """What choose() chose: (B,V,C,h,w) float32."""
        rows = self.latents[k.to(self.device), mirror.to(self.device)]
        return torch.gather(rows, 1, order.to(self.device)[:, :, None, None, None].expand_as(rows)).float()

    def batch(self, scenes: int, generator: torch.Generator, roll: int = ROLL) -> Tensor:
        """(B,V,C,h,w) float32; view 0 is the input view, the others follow at even steps of azimuth."""
        return self.latents_of(*self.choose(scenes, generator, roll))


class PicturePool(LatentPool):
    """A LatentPool that keeps the pictures too, uint8 on the CPU: rgb (K,V,S,S,3) on black and alpha (K,V,S,S)."""

    def __init__(self, folder: Path, vae: nn.Module, views: int, device, limit: int | None = None):
        self.rgb: Tensor | None = None
        self.alpha: Tensor | None = None
        super().__init__(folder, vae, views, device, limit)

    def refresh(self) -> int:
        known = len(self.names)
        count = super().refresh()
        # By name: shards that have appeared in the meantime have no latents yet.
        fresh = [read_tensors(self.folder / name)[0] for name in self.names[known:]]
        for kind in ("rgb", "alpha") if fresh else ():
            parts = [one[kind][:, :: one[kind].shape[1] // self.views] for one in fresh]
            before = [] if getattr(self, kind) is None else [getattr(self, kind)]
            setattr(self, kind, torch.cat(before + parts)[:count])
        return count

    def pictures_of(self, k: Tensor, mirror: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """What choose() chose, as pictures on white (B,V,S,S,3) and coverage (B,V,S,S), in [0,1] on the device."""
        back = torch.where(mirror[:, None] > 0, (-order) % self.views, order)
        rgb, alpha = self.rgb[k[:, None], back], self.alpha[k[:, None], back]
        flip = mirror[:, None, None, None].bool()
        alpha = torch.where(flip, alpha.flip(3), alpha).to(self.device).float() / 255
        rgb = torch.where(flip[..., None], rgb.flip(3), rgb).to(self.device).float() / 255
        return rgb + 1 - alpha[..., None], alpha


def conditioning(
    config: VideoConfig, reference: Tensor, views: int, azimuths: Tensor | None = None
) -> dict[str, Tensor]:
    """What the UNet needs beside the noisy latents, for B scenes of V views.

    reference: (B,C,h,w) input-view latents, all zero where dropped. -> concat (BV,C,h,w), context (BV,T,D), y
    (BV,1280).
    """
    scenes = reference.shape[0]
    if azimuths is None:
        azimuths = torch.arange(views) * (360.0 / views)
    pose = pose_vector(torch.full((views,), config.elevation), azimuths).to(reference.device)
    return {
        "concat": reference.repeat_interleave(views, dim=0),
        "context": context_tokens(reference, config.patch).repeat_interleave(views, dim=0),
        "y": pose.repeat(scenes, 1),
    }
