"""Train the depth network: `python training depth --minutes 25`. See docs/depth_net.md.

Renders its pools first (about 5 minutes on one core), trains on random views and backgrounds, keeps an
averaged copy of the weights, and writes that in half precision. Stop it at any time: the same command goes on from
the last checkpoint, and ends with the same weights as if it had not been stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from ..multiview.cameras import orbit
from ..multiview.demo.depth_net import FORMAT, TOLERANCE, WEIGHTS, DepthNet, estimate_depth, load_depth_net
from ..multiview.demo.objects import GENERATOR_VERSION, HELD_OUT_SEED, make_object
from ..multiview.demo.raycast import render_object
from .checkpoint import load_state, save_state, write_tensors
from .depth_data import SIZE, at_size, loss_of, make_batch, mean_map, sphere_map
from .pictures import depth_sheet
from .pool import ORBIT_FOV, ORBIT_RADIUS, load_pool, render_pool
from .schedule import Budget, cosine, update_average


def half_height_units(pool: dict[str, Tensor]) -> Tensor:
    """(K,V) world units per unit of offset, from the pool's cameras."""
    radius, fov = pool["camera"][..., 2], pool["camera"][..., 3]
    return radius * torch.tan(torch.deg2rad(fov) / 2)


@torch.no_grad()
def validate(
    net: DepthNet, pool: dict[str, Tensor], mean: Tensor, size: int = SIZE, background: float = 1.0
) -> dict[str, float]:
    """Mean absolute depth errors in world units inside the objects: the network's, and three baselines' that see more
    (the true silhouette) or know the training set. Also the mask's IoU and how often the stated confidence holds."""
    k, v = pool["rgb"].shape[:2]
    flat = [pool[key].flatten(0, 1) for key in ("rgb", "alpha", "offset")]
    rgb, alpha, offset = at_size(*flat, size)
    images = rgb + (1 - alpha)[:, None] * background
    inside = (alpha > 0.5) & (offset != 0)
    outputs = [torch.cat(parts) for parts in zip(*(net(part) for part in images.split(16)), strict=True)]
    guess, log_b, logit = outputs
    unit = half_height_units(pool).flatten()[:, None, None]
    plain = torch.nn.functional.interpolate(mean[None, None], size=(size, size), mode="area")[0]

    def error(estimate: Tensor) -> float:
        return float(((estimate - offset).abs() * unit)[inside].mean())

    per_object = ((guess - offset).abs() * unit * inside).view(k, -1).sum(1) / inside.view(k, -1).sum(1)
    mask, truth = logit > 0, alpha > 0.5
    claimed = -torch.expm1(-TOLERANCE / unit / log_b.exp())
    held = ((guess - offset).abs() * unit < TOLERANCE).float()
    sure = inside & (claimed >= claimed[inside].median())
    return {
        "network": error(guess),
        "network_worst_object": float(per_object.max()),
        "plane": error(torch.zeros_like(offset)),
        "mean_map": error(plain.expand_as(offset)),
        "sphere": error(sphere_map(truth)),
        "mask_iou": float((mask & truth).sum() / (mask | truth).sum()),
        "within_tolerance": float(held[inside].mean()),
        "claimed_within_tolerance": float(claimed[inside].mean()),
        "surer_half": float(((guess - offset).abs() * unit)[sure].mean()),
    }


class DepthTraining:
    """Network, averaged copy, optimizer and random generator of one training; step() makes one update."""

    def __init__(self, pool: dict[str, Tensor], seed: int = 0, total: int = 6000, batch: int = 16, rate: float = 2e-3):
        torch.manual_seed(seed)
        self.pool, self.total, self.batch, self.rate = pool, total, batch, rate
        self.net = DepthNet()
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.generator = torch.Generator().manual_seed(seed)
        self.done = 0

    def step(self) -> tuple[float, float]:
        images, alpha, offset = make_batch(self.pool, self.batch, self.generator)
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.done, self.total, self.rate)
        loss, error = loss_of(self.net(images), alpha, offset)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.net, self.done)
        self.done += 1
        return float(loss.detach()), float(error)

    def save(self, path: Path, meta: dict) -> None:
        save_state(
            path,
            {"net": self.net, "average": self.average},
            self.optimizer,
            {"data": self.generator},
            {**meta, "step": self.done},
        )

    def load(self, path: Path) -> dict:
        meta = load_state(path, {"net": self.net, "average": self.average}, self.optimizer, {"data": self.generator})
        self.done = meta["step"]
        return meta


def export(net: DepthNet, path: Path, meta: dict) -> None:
    """The weights to ship: half precision, the figures in the header."""
    write_tensors(path, {k: v.half() for k, v in net.state_dict().items()}, {"format": FORMAT, **meta})


def picture(
    net: DepthNet, path: Path, seeds: range = range(HELD_OUT_SEED + 900, HELD_OUT_SEED + 908), size: int = 128
) -> None:
    """The model card's picture: objects that neither training nor validation has seen, each from another side of the
    demo orbit.
    """
    columns = []
    for index, seed in enumerate(seeds):
        cameras = orbit([15.0 + 45.0 * index], 15.0, ORBIT_RADIUS, ORBIT_FOV)
        shot = render_object(make_object(seed), cameras, size)
        depth, confidence = estimate_depth(net, shot.rgb, cameras)
        offsets = [torch.where(z > 0, ORBIT_RADIUS - z, torch.full_like(z, torch.nan)) for z in (shot.depth, depth)]
        columns.append((shot.rgb, *offsets, confidence))
    depth_sheet(*(torch.cat(parts) for parts in zip(*columns, strict=True)), path)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training depth", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/tmp/mvtrain"), help="folder of the pools and checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--objects", type=int, default=520)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="training time of this call, without rendering")
    parser.add_argument("--check-every", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--picture", type=Path, default=None, help="only draw the model card's picture of --out into this file"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.picture:
        picture(load_depth_net(args.out), args.picture)
        return 0
    render_pool(args.work / "depth", 0, args.objects, args.views, 128)
    render_pool(args.work / "depth_val", HELD_OUT_SEED, args.held_out, 8, 128)
    pool = load_pool(args.work / "depth", args.objects)
    held_out = load_pool(args.work / "depth_val", args.held_out)
    mean = mean_map(pool)
    training = DepthTraining(pool, args.seed, args.steps, args.batch, args.rate)
    state, used = args.work / "depth_state.safetensors", 0.0
    if state.is_file():
        used = training.load(state)["seconds"]
        print(f"continuing after step {training.done}", flush=True)
    budget, seen = Budget(args.minutes, used), []
    while training.done < args.steps and not budget.over():
        loss, error = training.step()
        if not math.isfinite(loss):
            raise RuntimeError(f"The loss is {loss} at step {training.done}; lower --rate.")
        seen.append(error)
        if training.done % 100 == 0:
            print(
                f"step {training.done}  loss {loss:.3f}  error {sum(seen[-100:]) / len(seen[-100:]):.4f}  "
                f"{budget.seconds:.0f} s",
                flush=True,
            )
            training.save(state, {"seconds": budget.seconds})
        if training.done % args.check_every == 0:
            print(
                json.dumps({k: round(v, 4) for k, v in validate(training.average, held_out, mean).items()}), flush=True
            )
    training.save(state, {"seconds": budget.seconds})
    figures = validate(training.average, held_out, mean)
    meta = {
        "steps": training.done,
        "seed": args.seed,
        "objects": int(pool["rgb"].shape[0]),
        "views": args.views,
        "seconds": round(budget.seconds),
        "generator_version": GENERATOR_VERSION,
        "held_out": figures,
    }
    export(training.average.eval(), args.out, meta)
    print(json.dumps(meta, indent=1))
    return 0
