"""What Ouroboros3D adds to a Stable Video Diffusion UNet: rays of the cameras, and the last reconstruction fed back.

Ouroboros3D (papers/ouroboros3d.txt), sections 3.1 and 3.3; references.md 3.1, 3.4b and 3.5. `Injector` has
the tensors of the released `mv_model_unet.pth` but for the UNet itself, and says what is added and where; putting it on
a model is the host's business (nodes/ouroboros_model.py).

Where, in numbers of the UNet's blocks (layers = 2 blocks a level; "after input 2" is what block 2 gave):
  rays      after input 0, 3, 6, 9 and 11, into the stored skips as well, and before output 0, 3, 6, 9;
  feedback  after input 2, 5, 8, not into the stored skips, and after the middle block.
That the rays reach the skips is not in the paper: the released network adds them in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cameras import Cameras
from .demo.video_unet import check_weights
from .lgm_files import require_kind
from .lgm_reconstruct import RIGS, Frame

UNET_PREFIX = "unet."
SHRINK = 8
HARMONICS = 6
RAY_CHANNELS = 6 * (2 * HARMONICS + 1)


@dataclass(frozen=True)
class InjectorConfig:
    """channels: widths of the UNet's levels. layers: its blocks in a level. blocks: residual blocks in a scale.

    rays: with embeddings of the cameras' rays; without them for models that know their poses, trained with this pack.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    blocks: int = 3
    rays: bool = True

    @property
    def definition(self) -> str:
        """Which coordinate maps (coordinates.py) the weights know: the public ones come with rays, ours without."""
        return "released" if self.rays else "canonical"


class ResBlock(nn.Module):
    def __init__(self, inside: int, out: int, shrink: bool, operations):
        super().__init__()
        self.shrink = shrink
        self.in_conv = operations.Conv2d(inside, out, 1) if inside != out else None
        self.block1 = operations.Conv2d(out, out, 3, padding=1)
        self.block2 = operations.Conv2d(out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.shrink:
            x = F.avg_pool2d(x, 2)
        if self.in_conv is not None:
            x = self.in_conv(x)
        return x + self.block2(F.relu(self.block1(x)))


class FeedbackEncoder(nn.Module):
    """Pictures (N,3,8h,8w) -> features of the four levels: (N,c,h,w) for the first width c, then half the side each."""

    def __init__(self, config: InjectorConfig, operations):
        super().__init__()
        widths = config.channels
        self.conv_in = operations.Conv2d(3 * SHRINK**2, widths[0], 3, padding=1)
        self.body = nn.ModuleList([
            ResBlock(widths[max(level - (i == 0), 0)], width, level > 0 and i == 0, operations)
            for level, width in enumerate(widths) for i in range(config.blocks)
        ])  # fmt: skip
        self.blocks = config.blocks

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = self.conv_in(F.pixel_unshuffle(pictures, SHRINK))
        features = []
        for i, block in enumerate(self.body):
            x = block(x)
            if (i + 1) % self.blocks == 0:
                features.append(x)
        return features


class RayEmbedding(nn.Module):
    def __init__(self, width: int, operations):
        super().__init__()
        self.embed = nn.Sequential(operations.Linear(RAY_CHANNELS, width), nn.SiLU(), operations.Linear(width, width))

    def forward(self, rays: Tensor) -> Tensor:
        return self.embed(rays).permute(0, 3, 1, 2)


class Injector(nn.Module):
    """The encoders of colour and coordinates and the embeddings of rays. operations: where layers come from."""

    def __init__(self, config: InjectorConfig | None = None, operations=nn):
        super().__init__()
        self.config = config = config or InjectorConfig()
        c = config.channels
        self.cond_encoder = nn.ModuleList([FeedbackEncoder(config, operations) for _ in range(2)])
        if config.rays:
            self.down_plucker = nn.ModuleList([RayEmbedding(width, operations) for width in (c[0], *c[:-1])])
            self.mid_plucker = RayEmbedding(c[-1], operations)
            self.up_plucker = nn.ModuleList([RayEmbedding(width, operations) for width in (c[-1], *c[:0:-1])])

    def forward(self, colour: Tensor | None, coordinates: Tensor | None) -> list[Tensor]:
        """Maps (N,3,8h,8w) in [0,1] of the last reconstruction -> a feature for each level, the finest first.

        One of them may be None: it is left out. Before the first reconstruction both are all zero (black, not None).
        """
        given = [(e, x) for e, x in zip(self.cond_encoder, (colour, coordinates), strict=True) if x is not None]
        if not given:
            raise ValueError("The feedback needs the colour or the coordinate map; before the first, feed zeros.")
        for _, maps in given:
            if maps.ndim != 4 or maps.shape[1] != 3 or maps.shape[2] % SHRINK or maps.shape[3] % SHRINK:
                raise ValueError(
                    f"Feedback maps should be (N,3,H,W) with sides that are multiples of {SHRINK}, got "
                    f"{tuple(maps.shape)}."
                )
        features = [encoder(maps) for encoder, maps in given]
        return [torch.stack(level).sum(0) if len(level) > 1 else level[0] for level in zip(*features, strict=True)]

    @property
    def levels(self) -> int:
        return len(self.config.channels)

    def ray_embedding(self, side: str, number: int) -> RayEmbedding | None:
        """What embeds the rays at ("input", block) or ("output", block), None where nothing is added."""
        step = self.config.layers + 1
        if not self.config.rays:
            return None
        if side == "input" and number == self.levels * step - 1:
            return self.mid_plucker
        level, rest = divmod(number, step)
        if rest or level >= self.levels:
            return None
        return (self.down_plucker if side == "input" else self.up_plucker)[level]

    def feedback_level(self, side: str, number: int) -> int | None:
        """Which of the features is added at ("input", block) or ("output", block), None where none is."""
        step = self.config.layers + 1
        if side == "output":
            return self.levels - 1 if number == 0 else None
        level, rest = divmod(number + 1, step)
        return level - 1 if not rest and level < self.levels else None

    @torch.no_grad()
    def zero_start(self) -> Injector:
        """Weights that change nothing but can learn: all that is added is exactly zero. Returns self."""
        for encoder in self.cond_encoder:
            for part in (encoder.conv_in, *(block.block2 for block in encoder.body)):
                part.weight.zero_()
                part.bias.zero_()
            for block in encoder.body:
                if block.in_conv is not None:
                    block.in_conv.bias.zero_()
        for embedding in (part for part in self.modules() if isinstance(part, RayEmbedding)):
            embedding.embed[2].weight.zero_()
            embedding.embed[2].bias.zero_()
        return self


def ray_frame(cameras: Cameras) -> Frame:
    """The cameras as the weights know them: the first one at (0, 0, 1.7417) in an OpenGL world (references.md 3.3)."""
    return Frame.of(cameras, RIGS["ouroboros_lgm"])


def released_rays(frame: Frame, intrinsics: Tensor, side: int) -> Tensor:
    """(N,side,side,78) float32: Pluecker rays with their sines and cosines, with the faults of the released network.

    intrinsics (N,4) normalised. u and v are exchanged, the pose is applied transposed and without its translation, and
    the camera's place is taken off all the same (references.md 3.4b); weights trained with that need it.
    """
    ramp = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    fx, fy, cx, cy = intrinsics.double().cpu()[:, :, None, None].unbind(1)
    rays = torch.stack([(rows - cx) / fx, (columns - cy) / fy, torch.ones_like(rows).expand(len(fx), -1, -1)], dim=-1)
    origins = frame.c2w[:, None, None, :3, 3]
    directions = F.normalize(torch.einsum("nij,nhwi->nhwj", frame.c2w[:, :3, :3], rays) - origins, dim=-1)
    moments = torch.linalg.cross(origins.expand_as(directions), directions, dim=-1)
    return harmonics(torch.cat([moments, directions], dim=-1)).float()


def harmonics(x: Tensor) -> Tensor:
    """(...,D) -> (...,13 D): sines, then cosines, of x times 1, 2, 4, ... 32 (all of one x together), then x."""
    waves = (x[..., None] * 2.0 ** torch.arange(HARMONICS, dtype=x.dtype, device=x.device)).flatten(-2)
    return torch.cat([waves.sin(), waves.cos(), x], dim=-1)


def split_view_model(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`mv_model_unet.pth` -> the UNet's tensors under diffusers' names, and the injector's.

    ValueError for files of other kinds, which it names.
    """
    require_kind(
        tensors, ("ouroboros_views",), "Ouroboros3D's view model", "choose mv_model_unet.pth of Ouroboros3D-SVD-LGM, "
        "or its tensors saved as .safetensors"
    )  # fmt: skip
    unet = {k.removeprefix(UNET_PREFIX): v for k, v in tensors.items() if k.startswith(UNET_PREFIX)}
    return unet, {k: v for k, v in tensors.items() if not k.startswith(UNET_PREFIX)}


def load_injector(tensors: Mapping[str, Tensor], operations=nn) -> Injector:
    """The released injector with these tensors, all of them and no others (ValueError)."""
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    found = [shapes.get(f"{place}.embed.0.weight", (0,))[0] for place in ("down_plucker.0", "down_plucker.2",
             "down_plucker.3", "mid_plucker")]  # fmt: skip
    blocks = sum(k.startswith("cond_encoder.0.body.") and k.endswith("block1.weight") for k in shapes)
    if not all(found) or blocks % len(found) or not blocks:
        raise ValueError("The view model's encoders are incomplete; download mv_model_unet.pth again.")
    return fill_injector(InjectorConfig(tuple(found), blocks=blocks // len(found)), tensors, operations)


def fill_injector(config: InjectorConfig, tensors: Mapping[str, Tensor], operations=nn) -> Injector:
    """An injector of this configuration with these tensors, all of them and no others (ValueError)."""
    with torch.device("meta"):
        injector = Injector(config, operations)
    check_weights("feedback encoder", dict(tensors), injector.state_dict())
    injector.load_state_dict(dict(tensors), assign=True)
    return injector.eval().requires_grad_(False)
