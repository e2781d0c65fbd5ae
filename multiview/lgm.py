"""LGM: a U-Net that turns four views of an object into Gaussians in one pass (Tang et al. 2024, arXiv 2402.05054).

references.md section 3.6. Tensors and shapes are those of the public weights; how the network is used, from views and
cameras to a splat in our world, is in lgm_reconstruct.py. The variant with a time embedding is Ouroboros3D's
`recon_model` (references.md 3.1): it is told how noisy the views still are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VIEWS = 4
INPUT_SIZE = 256
CHANNELS = 14
HEADS = 16
GROUPS = 32
EPSILON = 1e-5
SKIP_SCALE = math.sqrt(0.5)
# Width of the sinusoid of the time and of its embedding.
TIME, TIME_EMBED = 128, 512


@dataclass(frozen=True)
class LGMConfig:
    """Widths and attention of the levels, from the finest down and up again.

    layers: blocks in a level on the way down; one more on the way up. timed: with a time embedding.
    rigged: with a tensor that says for which cameras it was trained (radius, field of view, side; training/).
    """

    down: tuple[int, ...] = (64, 128, 256, 512, 1024, 1024)
    down_attention: tuple[bool, ...] = (False, False, False, True, True, True)
    up: tuple[int, ...] = (1024, 1024, 512, 256, 128)
    up_attention: tuple[bool, ...] = (True, True, True, False, False)
    middle_attention: bool = True
    layers: int = 2
    timed: bool = False
    rigged: bool = False

    def splat_size(self, side: int = INPUT_SIZE) -> int:
        """Gaussians along a side of each view."""
        return side >> (len(self.down) - len(self.up))


BIG = LGMConfig()
SMALL = LGMConfig(up=(1024, 1024, 512, 256), up_attention=(True, True, True, False))


class JointAttention(nn.Module):
    """Self-attention of all pixels of all views of an object together."""

    def __init__(self, channels: int, operations):
        super().__init__()
        self.norm = operations.GroupNorm(GROUPS, channels, eps=EPSILON)
        self.attn = _Projections(channels, operations)

    def forward(self, x: Tensor, views: int) -> Tensor:
        rows, channels, height, width = x.shape
        tokens = self.norm(x).view(rows // views, views, channels, height * width).transpose(2, 3)
        out = self.attn(tokens.reshape(rows // views, -1, channels))
        out = out.view(rows // views, views, height * width, channels).transpose(2, 3).reshape(x.shape)
        return (out + x) * SKIP_SCALE


class _Projections(nn.Module):
    def __init__(self, channels: int, operations):
        super().__init__()
        self.qkv = operations.Linear(channels, 3 * channels, bias=False)
        self.proj = operations.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, channels = tokens.shape
        q, k, v = self.qkv(tokens).view(batch, count, 3, HEADS, channels // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, channels))


class ResBlock(nn.Module):
    def __init__(self, inside: int, out: int, timed: bool, operations):
        super().__init__()
        self.norm1 = operations.GroupNorm(GROUPS, inside, eps=EPSILON)
        self.conv1 = operations.Conv2d(inside, out, 3, padding=1)
        self.norm2 = operations.GroupNorm(GROUPS, out, eps=EPSILON)
        self.conv2 = operations.Conv2d(out, out, 3, padding=1)
        self.shortcut = operations.Conv2d(inside, out, 1) if inside != out else nn.Identity()
        # Index 1, as in the public weights; 0 is the activation.
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(TIME_EMBED, out)) if timed else None

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        out = self.conv1(F.silu(self.norm1(x)))
        if self.emb_layers is not None:
            out = out + self.emb_layers(time)[..., None, None]
        out = self.conv2(F.silu(self.norm2(out)))
        return (out + self.shortcut(x)) * SKIP_SCALE


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where the level has it."""

    def __init__(self, widths: list[tuple[int, int]], attention: bool, timed: bool, operations):
        super().__init__()
        self.nets = nn.ModuleList([ResBlock(inside, out, timed, operations) for inside, out in widths])
        self.attns = nn.ModuleList([JointAttention(out, operations) for _, out in widths] if attention else [])

    def step(self, i: int, x: Tensor, time: Tensor | None, views: int) -> Tensor:
        x = self.nets[i](x, time)
        return self.attns[i](x, views) if len(self.attns) else x


class DownLevel(Level):
    def __init__(self, inside: int, out: int, layers: int, attention: bool, last: bool, timed: bool, operations):
        super().__init__([(inside, out)] + [(out, out)] * (layers - 1), attention, timed, operations)
        self.downsample = None if last else operations.Conv2d(out, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor | None, views: int) -> tuple[Tensor, list[Tensor]]:
        kept = []
        for i in range(len(self.nets)):
            x = self.step(i, x, time, views)
            kept.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            kept.append(x)
        return x, kept


class UpLevel(Level):
    def __init__(
        self, inside: int, skip: int, out: int, layers: int, attention: bool, last: bool, timed: bool, operations
    ):
        # All but the last block meet a skip of this level's width; the last one meets the finer level's.
        before = [inside] + [out] * (layers - 1)
        skips = [out] * (layers - 1) + [skip]
        super().__init__([(a + b, out) for a, b in zip(before, skips, strict=True)], attention, timed, operations)
        self.upsample = None if last else operations.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor, kept: list[Tensor], time: Tensor | None, views: int) -> Tensor:
        for i in range(len(self.nets)):
            x = self.step(i, torch.cat([x, kept.pop()], dim=1), time, views)
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class MiddleLevel(nn.Module):
    def __init__(self, channels: int, attention: bool, timed: bool, operations):
        super().__init__()
        self.nets = nn.ModuleList([ResBlock(channels, channels, timed, operations) for _ in range(2)])
        self.attns = nn.ModuleList([JointAttention(channels, operations)] if attention else [])

    def forward(self, x: Tensor, time: Tensor | None, views: int) -> Tensor:
        x = self.nets[0](x, time)
        for attention in self.attns:
            x = attention(x, views)
        return self.nets[1](x, time)


class UNet(nn.Module):
    def __init__(self, config: LGMConfig, operations):
        super().__init__()
        down, up, timed = config.down, config.up, config.timed
        self.conv_in = operations.Conv2d(9, down[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            DownLevel(
                down[max(i - 1, 0)], out, config.layers, config.down_attention[i], i == len(down) - 1, timed, operations
            )
            for i, out in enumerate(down)
        ])  # fmt: skip
        self.mid_block = MiddleLevel(down[-1], config.middle_attention, timed, operations)
        self.up_blocks = nn.ModuleList([
            UpLevel(
                up[max(i - 1, 0)], down[max(len(down) - 2 - i, 0)], out, config.layers + 1, config.up_attention[i],
                i == len(up) - 1, timed, operations,
            )
            for i, out in enumerate(up)
        ])  # fmt: skip
        self.norm_out = operations.GroupNorm(GROUPS, up[-1], eps=EPSILON)
        self.conv_out = operations.Conv2d(up[-1], CHANNELS, 3, padding=1)
        if timed:
            self.time_embed = nn.Sequential(
                operations.Linear(TIME, TIME_EMBED), nn.SiLU(), operations.Linear(TIME_EMBED, TIME_EMBED)
            )

    def forward(self, x: Tensor, time: Tensor | None, views: int) -> Tensor:
        x = self.conv_in(x)
        kept = [x]
        for level in self.down_blocks:
            x, more = level(x, time, views)
            kept += more
        x = self.mid_block(x, time, views)
        for level in self.up_blocks:
            x = level(x, kept, time, views)
        return self.conv_out(F.silu(self.norm_out(x)))


class LGM(nn.Module):
    """The network as in the public files: a U-Net and a 1x1 convolution. operations: where layers come from."""

    def __init__(self, config: LGMConfig = BIG, operations=nn):
        super().__init__()
        self.config = config
        self.unet = UNet(config, operations)
        self.conv = operations.Conv2d(CHANNELS, CHANNELS, 1)
        if config.rigged:
            self.register_buffer("rig", torch.zeros(3))

    def forward(self, inputs: Tensor, time: float | Tensor | None = None, views: int = VIEWS) -> Tensor:
        """inputs (B*views,9,H,W), the views of an object one after another -> raw channels (B*views,14,h,w).

        time: for a timed network, c_noise = ln(sigma) / 4 of the views, 0 for clean ones (Ouroboros3D, section 3.2);
        one number or (B,).
        """
        if inputs.ndim != 4 or inputs.shape[1] != 9 or inputs.shape[0] % views:
            raise ValueError(f"LGM takes (B*{views},9,H,W), colours and rays, got {tuple(inputs.shape)}.")
        embedded = None
        if self.config.timed:
            wave = time_wave(0.0 if time is None else time).to(inputs)
            embedded = self.unet.time_embed(wave.view(-1, TIME))
            if len(embedded) > 1:
                embedded = embedded.repeat_interleave(views, dim=0)
        return self.conv(self.unet(inputs, embedded, views))


def time_wave(time: float | Tensor) -> Tensor:
    """(...,128) cosines, then sines, of time (...) at 64 frequencies from 1 down to almost 1/10000."""
    half = TIME // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
    angles = torch.as_tensor(time, dtype=torch.float32).cpu()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> LGMConfig:
    """The configuration that a file's tensors (name -> shape, without prefix) were made for.

    ValueError if the levels cannot be told, that is, if part of the network is missing.
    """
    levels = {kind: _levels(shapes, kind) for kind in ("down", "up")}
    attention = {
        kind: tuple(f"unet.{kind}_blocks.{i}.attns.0.attn.qkv.weight" in shapes for i in range(len(found)))
        for kind, found in levels.items()
    }
    blocks = {int(m[1]) for key in shapes if (m := re.match(r"unet\.down_blocks\.0\.nets\.(\d+)\.", key))}
    if not levels["down"] or not levels["up"] or not blocks or len(levels["up"]) > len(levels["down"]):
        raise ValueError("The LGM file is incomplete: its levels cannot be told from its tensors; download it again.")
    return LGMConfig(
        levels["down"], attention["down"], levels["up"], attention["up"],
        "unet.mid_block.attns.0.attn.qkv.weight" in shapes, len(blocks), "unet.time_embed.0.weight" in shapes,
        "rig" in shapes,
    )  # fmt: skip


def _levels(shapes: Mapping[str, tuple[int, ...]], kind: str) -> tuple[int, ...]:
    found = []
    while (key := f"unet.{kind}_blocks.{len(found)}.nets.0.conv1.weight") in shapes:
        found.append(int(shapes[key][0]))
    return tuple(found)
