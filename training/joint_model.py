"""The networks of the joint training and the way round: views, splat, renders, and the views again.

Ouroboros3D (papers/ouroboros3d.txt), sections 3.2 and 3.3, on the trained demo model; see docs/ouroboros3d_training.md.
The same loop serves the training and its evaluation; in ComfyUI it is nodes/feedback_patch.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..multiview.cameras import Cameras
from ..multiview.coordinates import coordinate_map
from ..multiview.demo.video_unet import VideoConfig
from ..multiview.lgm import LGM, VIEWS, LGMConfig
from ..multiview.lgm_reconstruct import Frame, Rig, choose_views, gaussians_of, normalise, plucker, rig_of
from ..multiview.ouroboros import SHRINK, Injector, InjectorConfig
from ..multiview.splats.gaussians import Gaussians
from ..multiview.splats.render import render_gaussians
from .comfy_classes import TrainLayers
from .pool import ORBIT_FOV, ORBIT_RADIUS, orbit_cameras

# Which maps are fed back; those that are not stay black, as all are before the first reconstruction.
FEEDBACKS = {"none": (False, False), "coordinates": (False, True), "colour": (True, False), "both": (True, True)}
# 7.4 million parameters; 4 x 32 x 32 Gaussians for views of 128 pixels.
SMALL = LGMConfig(
    (32, 64, 128, 192), (False, False, False, True), (192, 128), (True, False), layers=1, timed=True, rigged=True
)
# Where untrained Gaussians start: opacity 0.12, and as large as a pixel of a view is (softplus(-1.5) / 10 = 0.02).
OPACITY_START, SCALE_START = -2.0, -1.5


def build_injector(config: VideoConfig, blocks: int = 3, layers_of=TrainLayers) -> Injector:
    """The injector for this UNet, which changes nothing yet. ValueError for an autoencoder it does not fit."""
    if config.factor != SHRINK:
        raise ValueError(
            f"The injector needs an autoencoder that makes views {SHRINK} times smaller, this one makes them "
            f"{config.factor} times smaller; train one with four --vae-mult numbers."
        )
    widths = tuple(config.model_channels * m for m in config.channel_mult)
    return Injector(InjectorConfig(widths, config.num_res_blocks, blocks, rays=False), layers_of).zero_start()


@torch.no_grad()
def build_lgm(size: int, config: LGMConfig = SMALL, layers_of=TrainLayers) -> LGM:
    """An untrained LGM for the demo orbit at this size. Its time embedding is added as zero (section 3.2)."""
    network = LGM(config, layers_of)
    for name, parameter in network.named_parameters():
        if ".emb_layers.1." in name:
            nn.init.zeros_(parameter)
    bias = network.conv.bias
    bias.zero_()
    bias[3], bias[4:7], bias[7] = OPACITY_START, SCALE_START, 1.0
    network.rig.copy_(torch.tensor([ORBIT_RADIUS, ORBIT_FOV, size]))
    return network


@dataclass(frozen=True)
class Orbit:
    """The cameras of all scenes, which four of them the LGM sees, and their rays (4,6,S,S)."""

    cameras: Cameras
    picked: list[int]
    frame: Frame
    rig: Rig
    rays: Tensor

    @staticmethod
    def of(views: int, elevation: float, rig: Rig, device="cpu") -> Orbit:
        """ValueError where four views at right angles are not among them."""
        cameras = orbit_cameras(0, views, elevation)
        picked = choose_views(cameras)
        frame = Frame.of(cameras.subset(picked), rig)
        return Orbit(cameras.to(device), picked, frame, rig, plucker(frame, rig).to(device))

    def surface(self, side: int) -> Tensor:
        """(4,3,side,side) the point nearest to the origin on each pixel's ray, in LGM's world."""
        moments, directions = plucker(self.frame, Rig(self.rig.radius, self.rig.fov_y, side)).split(3, dim=1)
        return torch.linalg.cross(directions, moments, dim=1)


@dataclass(frozen=True)
class Shots:
    """Renders of B splats from V cameras: colour on white and coordinates (B,V,S,S,3), coverage (B,V,S,S)."""

    colour: Tensor
    coordinates: Tensor
    coverage: Tensor


@dataclass
class Networks:
    """All networks of the loop. orbit: for as many views as the scenes have. feedback: key of FEEDBACKS."""

    config: VideoConfig
    unet: nn.Module
    vae: nn.Module
    injector: Injector
    lgm: LGM
    orbit: Orbit
    feedback: str = "both"
    dtype: torch.dtype = torch.float32

    @torch.no_grad()
    def seen_by_lgm(self, latents: Tensor) -> Tensor:
        """Latents (B,V,C,h,w) -> the LGM's four views as pictures (B,4,S,S,3) in [0,1]."""
        pictures = self.vae.decode(latents[:, self.orbit.picked].flatten(0, 1))
        return ((pictures + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).unflatten(0, (-1, VIEWS))

    def reconstruct(self, pictures: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Four views (B,4,S,S,3) at noise levels sigma (B,), None = clean -> the LGM's raw channels (B,4,14,h,w).

        Time is c_noise(sigma) = ln(sigma) / 4, and 0 for clean views (section 3.2).
        """
        given = normalise(pictures.flatten(0, 1).permute(0, 3, 1, 2))
        rays = self.orbit.rays.repeat(len(pictures), 1, 1, 1)
        time = None if sigma is None else 0.25 * sigma.log()
        raw = self.lgm(torch.cat([given, rays], dim=1).to(self.dtype), time)
        return raw.float().unflatten(0, (-1, VIEWS))

    def splats(self, raw: Tensor) -> list[Gaussians]:
        """Raw channels -> a splat for each scene, in the world of the cameras, faint Gaussians included."""
        return [self.orbit.frame.to_world(gaussians_of(one, identity_rotations=False, min_opacity=0.0)) for one in raw]

    def draw(self, raw: Tensor) -> Shots:
        """Raw channels -> renders from all cameras at the views' size."""
        size, cameras = self.orbit.rig.side, self.orbit.cameras
        drawn = [render_gaussians(splat, cameras, size, size) for splat in self.splats(raw)]
        coverage = [one.alpha[..., 0] for one in drawn]
        with torch.no_grad():
            coordinates = [
                coordinate_map(one.depth[..., 0].detach(), alpha.detach(), cameras, self.injector.config.definition)
                for one, alpha in zip(drawn, coverage, strict=True)
            ]
        return Shots(torch.stack([one.features for one in drawn]), torch.stack(coordinates), torch.stack(coverage))

    def maps(self, shots: Shots | None, scenes: int) -> tuple[Tensor, Tensor]:
        """What the injector gets of renders: colour and coordinates (BV,3,S,S), black where there are none.

        No gradient goes this way: as in self-conditioning (Chen et al. 2022, which section 3.3 follows), what is fed
        back is an input, and each network learns from its own loss.
        """
        size = self.orbit.rig.side
        black = self.orbit.rays.new_zeros(scenes * len(self.orbit.cameras), 3, size, size)
        given = (None, None) if shots is None else (shots.colour.clamp(0, 1), shots.coordinates)
        return tuple(
            black if one is None or not use else one.detach().flatten(0, 1).permute(0, 3, 1, 2)
            for one, use in zip(given, FEEDBACKS[self.feedback], strict=True)
        )

    def patches(self, shots: Shots | None, scenes: int) -> dict:
        """What the injector adds to the UNet, as functions at the host's patch points."""
        colour, coordinates = self.maps(shots, scenes)
        features = self.injector(colour.to(self.dtype), coordinates.to(self.dtype))

        def plus(h: Tensor, options: dict) -> Tensor:
            level = self.injector.feedback_level(*options["block"])
            return h if level is None else h + features[level].to(h)

        return {
            "input_block_patch_after_skip": [plus],
            "output_block_patch": [lambda h, skip, options: (plus(h, options), skip)],
        }


def start_loss(raw: Tensor, orbit: Orbit) -> Tensor:
    """How far Gaussians are from their own pixels' rays, nearest to the origin: mean squared distance.

    Only at the very start, and not in the paper, whose LGM is trained already: Gaussians that all start in one place
    would learn to vanish before they learn to move.
    """
    return F.mse_loss(raw[:, :, :3], orbit.surface(raw.shape[-1]).to(raw).expand_as(raw[:, :, :3]))


def orbit_of(lgm: LGM, config: VideoConfig, views: int, device="cpu") -> Orbit:
    """The orbit of `views` views as this LGM knows it. ValueError if LGM and video model are of different sizes."""
    rig = rig_of(lgm)
    if rig.side != config.size or not math.isclose(rig.radius, ORBIT_RADIUS) or abs(rig.fov_y - ORBIT_FOV) > 0.01:
        raise ValueError(
            f"The LGM was trained for views of {rig.side} pixels at distance {rig.radius:g} with a field of view of "
            f"{rig.fov_y:g} degrees, the video model draws {config.size} at {ORBIT_RADIUS:g} with {ORBIT_FOV:g}."
        )
    return Orbit.of(views, config.elevation, rig, device)
