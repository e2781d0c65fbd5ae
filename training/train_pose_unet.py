"""Train a pose model: `python training pose --folder FOLDER`, see docs/pose_model.md.

FOLDER holds pictures of one category and labels.json with the pose of each (the node Pose Clusters saves such a
folder). MIRAGE's training stage: noise prediction with DDIM's hyperparameters. Resumable; a stopped and continued
training ends with the same weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..multiview.pose_folder import read_pose_folder
from ..multiview.pose_unet import (
    FORMAT,
    MEANS,
    PREDICTIONS,
    STEPS,
    UNET_PREFIX,
    PoseConfig,
    noise_levels,
    pose_unet_config,
    pose_vectors,
)
from .checkpoint import load_state, save_state, write_tensors
from .comfy_classes import build_from
from .schedule import Budget, update_average


def predict(unet: nn.Module, x: Tensor, t: Tensor, pose: Tensor, dtype=torch.float32) -> Tensor:
    """What the UNet says of x (B,3,S,S) = clean + sigma noise at steps t (B,), for pose vectors (B,P), asked as ComfyUI
    asks: with x / sqrt(sigma^2 + 1)."""
    sigma = noise_levels().float().to(x.device)[t].view(-1, 1, 1, 1)
    scaled = x / (sigma.square() + 1).sqrt()
    return unet(scaled.to(dtype), t.float(), context=pose[:, None].to(dtype), y=pose.to(dtype)).float()


class PoseTraining:
    """UNet, averaged copy, optimizer and random generator of one training; step() makes one update.

    pictures (N,S,S,3) uint8 and labels (N,). drop: share of pictures shown without their pose, so that classifier-free
    guidance is possible; not in the paper, which uses none.
    """

    def __init__(self, config: PoseConfig, pictures: Tensor, labels: Tensor, seed=0, batch=64, rate=2e-4, drop=0.1,
                 device="cpu", dtype=torch.float32, decay=0.9999):  # fmt: skip
        torch.manual_seed(seed)
        self.config, self.batch, self.rate, self.drop = config, batch, rate, drop
        self.device, self.dtype, self.decay = device, dtype, decay
        self.pictures, self.labels = pictures.to(device), labels
        self.unet = build_from(pose_unet_config(config)).to(device)
        self.average = copy.deepcopy(self.unet).requires_grad_(False).eval()
        self.optimizer = torch.optim.Adam(self.unet.parameters(), lr=rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.sigmas = noise_levels().float()
        self.done = 0

    def loss(self, unet: nn.Module, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise (MIRAGE Eq. 2), or v, on one random batch."""
        rows = torch.randint(len(self.pictures), (self.batch,), generator=generator)
        t = torch.randint(STEPS, (self.batch,), generator=generator)
        noise = torch.randn((self.batch, 3, self.config.size, self.config.size), generator=generator).to(self.device)
        keep = (torch.rand(self.batch, 1, generator=generator) >= self.drop).float()
        pose = (pose_vectors(self.labels[rows], self.config.poses) * keep).to(self.device)
        clean = self.pictures[rows.to(self.device)].permute(0, 3, 1, 2).float() / 127.5 - 1
        sigma = self.sigmas[t].to(self.device).view(-1, 1, 1, 1)
        target = noise if self.config.prediction == "noise" else (noise - sigma * clean) / (sigma.square() + 1).sqrt()
        answer = predict(unet, clean + sigma * noise, t.to(self.device), pose, self.dtype)
        return (answer - target).square().mean()

    def step(self) -> Tensor:
        loss = self.loss(self.unet, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.unet, self.done, self.decay)
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def check(self, batches: int = 4) -> float:
        """Loss of the averaged weights, always on the same pictures, noise and levels."""
        generator = torch.Generator().manual_seed(1)
        return float(torch.stack([self.loss(self.average, generator) for _ in range(batches)]).mean())

    def save(self, path: Path, meta: dict) -> None:
        modules = {"unet": self.unet, "average": self.average}
        save_state(path, modules, self.optimizer, {"data": self.generator}, {**meta, "step": self.done})

    def load(self, path: Path) -> dict:
        modules = {"unet": self.unet, "average": self.average}
        meta = load_state(path, modules, self.optimizer, {"data": self.generator})
        self.done = meta["step"]
        return meta

    def means(self) -> Tensor:
        """(P,S,S,3) uint8: the mean picture of each pose, white where a pose has none."""
        empty = torch.full(self.pictures.shape[1:], 255.0)
        groups = (self.pictures[(self.labels == k).to(self.device)].cpu() for k in range(self.config.poses))
        return torch.stack([g.float().mean(0) if len(g) else empty for g in groups]).round().to(torch.uint8)

    def export(self, path: Path, meta: dict) -> None:
        """The averaged model in half precision with its configuration, for ComfyUI's models/multiview/pose."""
        tensors = {UNET_PREFIX + key: value.half() for key, value in self.average.state_dict().items()}
        header = {"format": FORMAT, "config": self.config.to_json(), **meta}
        write_tensors(path, {**tensors, MEANS: self.means()}, header)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training pose", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="pictures and labels.json")
    parser.add_argument("--work", type=Path, default=Path("/tmp/mvtrain"), help="where the state is kept")
    parser.add_argument("--out", type=Path, default=None, help="the model's file; default pose_model.safetensors "
                        "in --work")  # fmt: skip
    parser.add_argument("--size", type=int, default=None, help="scale the pictures to this side")
    parser.add_argument("--channels", type=int, default=64, help="model_channels, a multiple of 32")
    parser.add_argument("--mult", type=int, nargs="+", default=[1, 2, 4], help="channels of each level")
    parser.add_argument("--res-blocks", type=int, default=2)
    parser.add_argument("--prediction", choices=PREDICTIONS, default="noise", help="noise as in the paper; v is useful "
                        "after far fewer steps")  # fmt: skip
    parser.add_argument("--steps", type=int, default=500000, help="updates in all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--decay", type=float, default=0.9999, help="of the averaged weights")
    parser.add_argument("--drop", type=float, default=0.1, help="share of pictures shown without their pose")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call")
    parser.add_argument("--check-every", type=float, default=60.0, help="seconds between checks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        pictures, labels, poses = read_pose_folder(args.folder, args.size)
        config = PoseConfig(
            poses, pictures.shape[1], args.channels, tuple(args.mult), args.res_blocks, prediction=args.prediction
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    training = PoseTraining(
        config, pictures, labels, args.seed, args.batch, args.rate, args.drop, args.device,
        torch.bfloat16 if args.bf16 else torch.float32, args.decay,
    )  # fmt: skip
    return train(training, args)


def train(training: PoseTraining, args) -> int:
    budget = Budget(args.minutes)
    state, log = args.work / "pose_state.safetensors", args.work / "pose_log.jsonl"
    if state.is_file():
        budget.used = training.load(state)["seconds"]
    print(
        f"{sum(p.numel() for p in training.unet.parameters()) / 1e6:.1f} M parameters, {len(training.labels)} pictures "
        f"in {training.config.poses} poses, from step {training.done}",
        flush=True,
    )
    args.work.mkdir(parents=True, exist_ok=True)
    checked, losses = budget.seconds, []
    while training.done < args.steps and not budget.over():
        losses.append(training.step())
        if training.done % 50 == 0 and not math.isfinite(float(losses[-1])):
            raise RuntimeError(f"The loss is not finite at step {training.done}; lower --rate.")
        if budget.seconds - checked >= args.check_every:
            line = {"step": training.done, "seconds": round(budget.seconds), "check": round(training.check(), 5),
                    "loss": round(float(torch.stack(losses).mean()), 5)}  # fmt: skip
            print(json.dumps(line), flush=True)
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            training.save(state, {"seconds": budget.seconds})
            checked, losses = budget.seconds, []
    training.save(state, {"seconds": budget.seconds})
    meta = {"steps": training.done, "pictures": len(training.labels), "seed": args.seed,
            "seconds": round(budget.seconds), "check": training.check()}  # fmt: skip
    training.export(args.out or args.work / "pose_model.safetensors", meta)
    print(json.dumps(meta))
    return 0
