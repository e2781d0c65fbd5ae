"""Train the demo model's autoencoder: `python training autoencoder`, see docs/trained_model.md.

Pictures come from a pool made by `python training render --kind orbit`. Resumable: the same command goes on from its
last state. Writes autoencoder.safetensors in half precision, its latents normalised per channel.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..multiview.demo.video_unet import FORMAT, VideoConfig
from .checkpoint import load_state, read_tensors, save_state, write_tensors
from .comfy_classes import build_autoencoder
from .depth_data import backgrounds
from .pool import load_pool
from .schedule import Budget, cosine

# Decoding must survive what a sampler leaves behind: latents are disturbed by this share of their spread.
LATENT_NOISE = 0.05
WHITE_SHARE = 0.7


def picture_batch(pool: dict[str, Tensor], batch: int, generator: torch.Generator, device) -> Tensor:
    """(B,3,S,S) in [0,1]: random views, mirrored or not, mostly on white."""
    objects, views = pool["rgb"].shape[:2]
    k = torch.randint(objects, (batch,), generator=generator)
    v = torch.randint(views, (batch,), generator=generator)
    colours = backgrounds(batch, generator)
    colours[torch.rand(batch, generator=generator) < WHITE_SHARE] = 1.0
    rgb = pool["rgb"][k, v].to(device).permute(0, 3, 1, 2).float() / 255
    alpha = pool["alpha"][k, v].to(device)[:, None].float() / 255
    images = rgb + (1 - alpha) * colours.to(device)[:, :, None, None]
    mirror = (torch.rand(batch, generator=generator) < 0.5).to(device)
    return torch.where(mirror[:, None, None, None], images.flip(3), images)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Absolute error of colours and of their differences between neighbours (edges)."""
    loss = (output - target).abs().mean()
    for axis in (2, 3):
        loss = loss + (output.diff(dim=axis) - target.diff(dim=axis)).abs().mean()
    return loss


class AutoencoderTraining:
    """Model, optimizer and random generator of one training; step() makes one update."""

    def __init__(
        self, config: VideoConfig, pool: dict[str, Tensor], seed=0, total=4000, batch=32, rate=1e-3, device="cpu"
    ):
        torch.manual_seed(seed)
        self.config, self.pool, self.total, self.batch, self.rate, self.device = (
            config,
            pool,
            total,
            batch,
            rate,
            device,
        )
        self.model = build_autoencoder(config, device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.generator = torch.Generator().manual_seed(seed)
        self.done = 0

    def step(self) -> float:
        images = picture_batch(self.pool, self.batch, self.generator, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.done, self.total, self.rate)
        latent = self.model.encode(images * 2 - 1)
        noise = torch.randn(latent.shape, generator=self.generator).to(latent)
        spread = latent.detach().std(dim=(0, 2, 3), keepdim=True)
        output = self.model.decode(latent + LATENT_NOISE * spread * noise)
        # The last term only keeps the latents from growing without bound.
        loss = reconstruction_loss(output, images * 2 - 1) + 1e-3 * latent.square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        return float(loss.detach())

    def save(self, path: Path, meta: dict) -> None:
        save_state(path, {"vae": self.model}, self.optimizer, {"data": self.generator}, {**meta, "step": self.done})

    def load(self, path: Path) -> dict:
        meta = load_state(path, {"vae": self.model}, self.optimizer, {"data": self.generator})
        self.done = meta["step"]
        return meta


@torch.no_grad()
def fold_normalisation(model: nn.Module, pool: dict[str, Tensor], device, pictures: int = 512, seed: int = 0) -> None:
    """Change the 1x1 convolutions around the latent so that its channels have mean 0 and spread 1; decoding stays
    the same.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = torch.cat(
        [
            model.encode(picture_batch(pool, min(32, pictures), generator, device) * 2 - 1)
            for _ in range(max(1, pictures // 32))
        ]
    )
    mean, spread = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)).clamp_min(1e-6)
    channels = mean.shape[0]
    before, after = model.quant_conv, model.post_quant_conv
    before.weight[:channels] /= spread[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / spread
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= spread[None, :, None, None]


@torch.no_grad()
def reconstruction_psnr(model: nn.Module, pool: dict[str, Tensor], device, pictures: int = 64) -> float:
    """dB over whole pictures on white, mean of the pictures' values."""
    rgb, alpha = pool["rgb"].flatten(0, 1)[:pictures], pool["alpha"].flatten(0, 1)[:pictures]
    values = []
    for some, mask in zip(rgb.split(32), alpha.split(32), strict=True):
        images = (some.to(device).float() / 255 + 1 - mask.to(device)[..., None].float() / 255).permute(0, 3, 1, 2)
        output = ((model.decode(model.encode(images * 2 - 1)) + 1) / 2).clamp(0, 1)
        values.append(-10 * torch.log10(F.mse_loss(output, images, reduction="none").mean((1, 2, 3))))
    return float(torch.cat(values).mean())


def export(model: nn.Module, config: VideoConfig, path: Path, meta: dict) -> None:
    weights = {key: value.half() for key, value in model.state_dict().items()}
    write_tensors(path, weights, {"format": f"{FORMAT}-vae", "config": config.to_json(), **meta})


def load_autoencoder(path: Path, device="cpu") -> tuple[nn.Module, VideoConfig, dict]:
    """What export wrote, in float32 and eval mode."""
    tensors, meta = read_tensors(path)
    config = VideoConfig.from_json(meta["config"])
    model = build_autoencoder(config, device)
    model.load_state_dict({key: value.float() for key, value in tensors.items()})
    return model.eval().requires_grad_(False), config, meta


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that size the model; both trainings need the same ones."""
    default = VideoConfig()
    parser.add_argument("--size", type=int, default=default.size, help="pixels of a view")
    parser.add_argument("--views", type=int, default=default.views)
    parser.add_argument("--latent-channels", type=int, default=default.latent_channels)
    parser.add_argument("--channels", type=int, default=default.model_channels, help="base channels of the UNet")
    parser.add_argument("--mult", type=int, nargs="+", default=list(default.channel_mult))
    parser.add_argument("--blocks", type=int, default=default.num_res_blocks)
    parser.add_argument("--vae-mult", type=int, nargs="+", default=list(default.vae_mult))


def config_of(args) -> VideoConfig:
    return replace(
        VideoConfig(),
        size=args.size,
        views=args.views,
        latent_channels=args.latent_channels,
        model_channels=args.channels,
        channel_mult=tuple(args.mult),
        num_res_blocks=args.blocks,
        vae_mult=tuple(args.vae_mult),
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training autoencoder", description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True, help="pool of held-out objects")
    parser.add_argument("--work", type=Path, default=Path("/tmp/mvtrain"))
    add_model_options(parser)
    parser.add_argument("--objects", type=int, default=None)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    keys = ("rgb", "alpha", "seed")
    pool = load_pool(args.pool, args.objects, keys)
    held_out = load_pool(args.held_out, 32, keys)
    if pool["rgb"].shape[2] != args.size:
        raise SystemExit(
            f"The pool's pictures have {pool['rgb'].shape[2]} px, the model {args.size}; render at that size."
        )
    training = AutoencoderTraining(config_of(args), pool, args.seed, args.steps, args.batch, args.rate, args.device)
    state = args.work / "autoencoder_state.safetensors"
    used = training.load(state)["seconds"] if state.is_file() else 0.0
    budget = Budget(args.minutes, used)
    while training.done < args.steps and not budget.over():
        loss = training.step()
        if not math.isfinite(loss):
            raise RuntimeError(f"The loss is {loss} at step {training.done}; lower --rate.")
        if training.done % 100 == 0:
            print(f"step {training.done}  loss {loss:.4f}  {budget.seconds:.0f} s", flush=True)
        if training.done % 1000 == 0:
            training.save(state, {"seconds": budget.seconds})
    training.save(state, {"seconds": budget.seconds})
    training.model.eval()
    before = reconstruction_psnr(training.model, held_out, args.device)
    fold_normalisation(training.model, pool, args.device)
    meta = {
        "steps": training.done,
        "seed": args.seed,
        "seconds": round(budget.seconds),
        "held_out_psnr": round(before, 2),
        "held_out_psnr_normalised": round(reconstruction_psnr(training.model, held_out, args.device), 2),
    }
    export(training.model, training.config, args.work / "autoencoder.safetensors", meta)
    print(json.dumps(meta))
    return 0
