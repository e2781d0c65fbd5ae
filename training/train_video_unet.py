"""Train the video UNet: `python training video`, see docs/trained_model.md.

Needs an autoencoder (`python training autoencoder`) and pools of orbits (`python training render --kind orbit`),
which may still be growing. Resumable; with a pool that does not grow, a stopped and continued training ends with the
same weights. Checks now and then on held-out objects whether azimuth is being learned, and gives up when it is not.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..multiview.demo.objects import GENERATOR_VERSION
from ..multiview.demo.video_unet import FORMAT, UNET_PREFIX, VAE_PREFIX, VideoConfig
from .checkpoint import load_state, read_tensors, save_state, write_tensors
from .comfy_classes import build_unet
from .diffusion import pose_errors, sample, v_loss
from .schedule import Budget, cosine, update_average
from .train_autoencoder import add_model_options, config_of, load_autoencoder
from .video_data import LatentPool

NOT_TURNING = 3


class VideoTraining:
    """UNet, averaged copy, optimizer and random generator of one training; step() makes one update."""

    def __init__(
        self,
        config: VideoConfig,
        pool: LatentPool,
        seed=0,
        total=20000,
        batch=32,
        rate=7e-4,
        device="cpu",
        dtype=torch.float32,
        decay=0.999,
    ):
        torch.manual_seed(seed)
        self.config, self.pool, self.total, self.batch = config, pool, total, batch
        self.rate, self.device, self.dtype, self.decay = rate, device, dtype, decay
        self.unet = build_unet(config).to(device)
        self.average = copy.deepcopy(self.unet).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.generator = torch.Generator().manual_seed(seed)
        self.done = 0

    def step(self) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.done, self.total, self.rate, warmup=200)
        clean = self.pool.batch(self.batch, self.generator)
        loss = v_loss(self.unet, clean, self.config, self.generator, self.dtype).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.unet, self.done, self.decay)
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def check(self, held_out: LatentPool, scenes: int = 16, steps: int = 12, seed: int = 1) -> dict[str, float]:
        """Loss and sampled views on held-out objects, always with the same noise."""
        generator = torch.Generator().manual_seed(seed)
        truth = held_out.latents[:scenes, 0].float()
        loss = v_loss(self.average, truth, self.config, generator, self.dtype).mean()
        views = sample(self.average, self.config, truth[:, 0], truth.shape[1], generator, steps, dtype=self.dtype)
        errors = pose_errors(views, truth)
        others = (views - truth)[:, 1:].square().mean()
        copied = (truth[:, :1] - truth)[:, 1:].square().mean()
        return {
            "held_out_loss": float(loss),
            "pose_error": float(errors.mean()),
            "within_30": float((errors <= 30).float().mean()),
            "error_against_copy": float(others / copied),
        }

    def save(self, path: Path, meta: dict) -> None:
        save_state(
            path,
            {"unet": self.unet, "average": self.average},
            self.optimizer,
            {"data": self.generator},
            {**meta, "step": self.done},
        )

    def load(self, path: Path) -> dict:
        meta = load_state(path, {"unet": self.unet, "average": self.average}, self.optimizer, {"data": self.generator})
        self.done = meta["step"]
        return meta


def export(unet: nn.Module, vae_file: Path, config: VideoConfig, path: Path, meta: dict) -> None:
    """The model as one ComfyUI-style checkpoint in half precision: UNet, autoencoder, configuration and figures."""
    vae, vae_meta = read_tensors(vae_file)
    tensors = {UNET_PREFIX + key: value.half() for key, value in unet.state_dict().items()}
    tensors |= {VAE_PREFIX + key: value.half() for key, value in vae.items()}
    write_tensors(path, tensors, {"format": FORMAT, "config": config.to_json(), "autoencoder": vae_meta, **meta})


def write_parts(path: Path, folder: Path, limit: int = 15_000_000) -> list[Path]:
    """A weights file as several of at most `limit` bytes (a transfer limit); join_parts puts them together again."""
    tensors, meta = read_tensors(path)
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        bytes_ = value.numel() * value.element_size()
        if groups[-1] and size + bytes_ > limit:
            groups.append({})
            size = 0
        groups[-1][key] = value
        size += bytes_
    paths = [folder / f"{path.stem}.part{i + 1}of{len(groups)}.safetensors" for i in range(len(groups))]
    for target, group in zip(paths, groups, strict=True):
        write_tensors(target, group, meta)
    return paths


def join_parts(folder: Path, stem: str, path: Path) -> None:
    """The opposite of write_parts. ValueError when a part is missing."""
    found = sorted(folder.glob(f"{stem}.part*of*.safetensors"))
    if not found or len(found) != int(found[0].stem.rsplit("of", 1)[1]):
        raise ValueError(f"{folder} holds {len(found)} part(s) of {stem}, which is not all of them.")
    tensors: dict[str, Tensor] = {}
    for part in found:
        some, meta = read_tensors(part)
        tensors |= some
    write_tensors(path, tensors, meta)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training video", description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mvtrain"), help="state, and autoencoder.safetensors")
    parser.add_argument(
        "--out", type=Path, default=None, help="the model's file; default trained_model.safetensors in --work"
    )
    parser.add_argument(
        "--parts", type=Path, default=None, help="also write the model in parts of 15 MB into this folder"
    )
    parser.add_argument("--join", type=Path, default=None, help="only join parts from this folder into --out")
    add_model_options(parser)
    parser.add_argument("--objects", type=int, default=None)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=32, help="scenes in a step")
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call")
    parser.add_argument("--check-every", type=float, default=60.0, help="seconds between checks of what is learned")
    parser.add_argument("--check-scenes", type=int, default=16, help="held-out objects sampled in a check")
    parser.add_argument(
        "--give-up-after", type=float, default=300.0, help="seconds of training after which views must turn"
    )
    parser.add_argument("--turning", type=float, default=75.0, help="mean pose error (degrees) that counts as turning")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    out = args.out or args.work / "trained_model.safetensors"
    if args.join:
        join_parts(args.join, out.stem, out)
        return 0
    return train(args, out)


def train(args, out: Path) -> int:
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    config = config_of(args)
    if not (args.work / "autoencoder.safetensors").is_file():
        raise SystemExit(
            f"There is no autoencoder.safetensors in {args.work}; run `python training autoencoder` first."
        )
    vae, vae_config, _ = load_autoencoder(args.work / "autoencoder.safetensors", args.device)
    if (vae_config.size, vae_config.latent_channels, vae_config.vae_mult) != (
        config.size,
        config.latent_channels,
        config.vae_mult,
    ):
        raise SystemExit(
            "The autoencoder was trained with other --size, --latent-channels or --vae-mult; use the same options."
        )
    budget = Budget(args.minutes)
    pool = LatentPool(args.pool, vae, config.views, args.device, args.objects)
    held_out = LatentPool(args.held_out, vae, config.views, args.device, 32)
    training = VideoTraining(
        config,
        pool,
        args.seed,
        args.steps,
        args.batch,
        args.rate,
        args.device,
        torch.bfloat16 if args.bf16 else torch.float32,
    )
    state, log = args.work / "video_state.safetensors", args.work / "video_log.jsonl"
    if state.is_file():
        budget.used = training.load(state)["seconds"]
    print(
        f"{sum(p.numel() for p in training.unet.parameters()) / 1e6:.1f} M parameters, {len(pool)} objects, "
        f"from step {training.done}",
        flush=True,
    )
    checked, losses, outcome, figures = budget.seconds, [], 0, {}
    while training.done < args.steps and not budget.over():
        losses.append(training.step())
        if training.done % 50 == 0 and not math.isfinite(float(losses[-1])):
            raise RuntimeError(f"The loss is not finite at step {training.done}; lower --rate.")
        if budget.seconds - checked >= args.check_every:
            figures = training.check(held_out, args.check_scenes)
            mean = float(torch.stack(losses).mean())
            line = {
                "step": training.done,
                "seconds": round(budget.seconds),
                "scenes": training.done * args.batch,
                "objects": pool.refresh(),
                "loss": mean,
                **figures,
            }
            print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            training.save(state, {"seconds": budget.seconds})
            checked, losses = budget.seconds, []
            if budget.seconds > args.give_up_after and figures["pose_error"] > args.turning:
                print(
                    f"Stopped: after {budget.seconds:.0f} s of training the views do not turn "
                    f"(pose error {figures['pose_error']:.0f} degrees, chance is 88).",
                    flush=True,
                )
                outcome = NOT_TURNING
                break
    training.save(state, {"seconds": budget.seconds})
    figures = training.check(held_out, args.check_scenes)
    meta = {
        "steps": training.done,
        "scenes": training.done * args.batch,
        "objects": pool.latents.shape[0],
        "seed": args.seed,
        "seconds": round(budget.seconds),
        "generator_version": GENERATOR_VERSION,
        "check": figures,
    }
    export(training.average, args.work / "autoencoder.safetensors", config, out, meta)
    if args.parts:
        write_parts(out, args.parts)
    print(json.dumps(meta))
    return outcome
