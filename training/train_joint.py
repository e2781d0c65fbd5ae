"""Train injector, small LGM and video UNet together: `python training joint`, see docs/ouroboros3d_training.md.

Ouroboros3D (papers/ouroboros3d.txt), section 3.3 and algorithm 1 of its appendix: every step predicts the clean views,
reconstructs them with the LGM and draws the splat; in half of the steps, chosen by chance, the views are then
predicted once more with these renders fed back, and that prediction is the one that is judged. Needs a trained demo
model (`python training video`) and pools of orbits. Resumable; with a pool that does not grow, a stopped and continued
training ends with the same weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..multiview.demo.objects import GENERATOR_VERSION
from ..multiview.demo.video_unet import FORMAT, INJECTOR_PREFIX, UNET_PREFIX, VAE_PREFIX
from ..multiview.lgm import LGM, LGMConfig
from ..multiview.lpips import find_weights, load_lpips
from ..multiview.ouroboros import Injector
from ..multiview.splats.losses import psnr
from .checkpoint import load_state, save_state, write_tensors
from .diffusion import Noisy, add_noise
from .gate import load_model
from .joint_model import FEEDBACKS, SMALL, Networks, Shots, build_injector, build_lgm, orbit_of, start_loss
from .schedule import Budget, cosine, update_average
from .train_video_unet import write_parts
from .video_data import PicturePool

SHARE = 0.5
WARMUP = 100
MODEL_FILE, LGM_FILE = "joint_model.safetensors", "joint_lgm.safetensors"


class JointTraining:
    """All networks, their averaged copies, optimizer and random generator of one training; step() makes one update.

    networks: with the UNet's and autoencoder's trained weights. unet_rate 0: the UNet stays as it is. lpips: LPIPS as a
    further loss of the renders, None = without. start: steps in which untrained Gaussians are led to their rays.
    """

    def __init__(
        self,
        networks: Networks,
        pool: PicturePool,
        seed=0,
        total=20000,
        batch=8,
        rate=4e-4,
        unet_rate=5e-5,
        start=300,
        lpips=None,
        decay=0.999,
    ):
        self.networks, self.pool, self.total, self.batch = networks, pool, total, batch
        self.start, self.lpips, self.decay = start, lpips, decay
        parts = {"injector": (networks.injector, rate), "lgm": (networks.lgm, rate)}
        networks.unet.requires_grad_(unet_rate > 0)
        if unet_rate > 0:
            parts["unet"] = (networks.unet, unet_rate)
        self.trained = nn.ModuleDict({name: part for name, (part, _) in parts.items()})
        self.average = copy.deepcopy(self.trained).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            [{"params": part.parameters(), "lr": lr, "peak": lr} for part, lr in parts.values()],
            betas=(0.9, 0.99),
            weight_decay=0.01,
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.done = self.fed_back = 0

    def step(self) -> dict[str, Tensor]:
        """One update; its losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.done, self.total, group["peak"], WARMUP)
        chosen = self.pool.choose(self.batch, self.generator)
        noisy = add_noise(self.pool.latents_of(*chosen), self.networks.config, self.generator)
        again = fed_back(self.generator)
        losses = self.losses(noisy, *self.pool.pictures_of(*chosen), again)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.trained, self.done, self.decay)
        self.done += 1
        self.fed_back += again
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(self, noisy: Noisy, pictures: Tensor, masks: Tensor, again: bool) -> dict[str, Tensor]:
        """The terms of the loss (algorithm 1; the clean views are the last paragraph of section 3.2).

        pictures (B,V,S,S,3) on white, masks (B,V,S,S). again: with a second prediction, which is fed with the renders
        of the first one's splat; the first has no gradient then.
        """
        n, scenes = self.networks, len(pictures)
        with torch.set_grad_enabled(not again):
            output = noisy.output(n.unet, n.dtype, n.patches(None, scenes))
        sigma = noisy.sigma[:: noisy.views]
        raw = n.reconstruct(n.seen_by_lgm(noisy.denoised(output.detach())), sigma)
        shots = n.draw(raw)
        if again:
            output = noisy.output(n.unet, n.dtype, n.patches(shots, scenes))
        clean = n.reconstruct(pictures[:, n.orbit.picked])
        found = {
            "views": noisy.loss(output).mean(),
            "splat": self.splat_loss(shots, pictures, masks),
            "clean": self.splat_loss(n.draw(clean), pictures, masks),
        }
        if self.done < self.start:
            found["start"] = (1 - self.done / self.start) * (start_loss(raw, n.orbit) + start_loss(clean, n.orbit))
        return found

    def splat_loss(self, shots: Shots, pictures: Tensor, masks: Tensor) -> Tensor:
        """Equation 2 with lambda = 1: squared error of the renders plus LPIPS; and of the coverage, as LGM does it."""
        loss = (shots.colour - pictures).square().mean() + (shots.coverage - masks).square().mean()
        if self.lpips is not None:
            loss = loss + self.lpips(shots.colour.flatten(0, 1).clamp(0, 1), pictures.flatten(0, 1)).mean()
        return loss

    @torch.no_grad()
    def check(self, held_out: PicturePool, scenes: int = 8, seed: int = 1) -> dict[str, float]:
        """Held-out losses of the averaged networks, always with the same noise, without and with feedback."""
        n = self.networks
        n = Networks(
            n.config, self.average["unet"] if "unet" in self.average else n.unet, n.vae, self.average["injector"],
            self.average["lgm"], n.orbit, n.feedback, n.dtype,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        totals: dict[str, float] = {}
        count = min(scenes, len(held_out))
        for k in range(count):
            chosen = (torch.tensor([k]), torch.zeros(1, dtype=torch.long), torch.arange(held_out.views)[None])
            noisy = add_noise(held_out.latents_of(*chosen), n.config, generator)
            pictures, _ = held_out.pictures_of(*chosen)
            first = noisy.output(n.unet, n.dtype, n.patches(None, 1))
            shots = n.draw(n.reconstruct(n.seen_by_lgm(noisy.denoised(first)), noisy.sigma[:1]))
            second = noisy.output(n.unet, n.dtype, n.patches(shots, 1))
            clean = n.draw(n.reconstruct(pictures[:, n.orbit.picked]))
            dB = [psnr(s.colour[0].clamp(0, 1), pictures[0]).mean() for s in (shots, clean)]  # noqa: N806
            found = (noisy.loss(first), noisy.loss(second), *dB)
            for name, value in zip(("views_black", "views_fed_back", "splat_psnr", "clean_psnr"), found, strict=True):
                totals[name] = totals.get(name, 0.0) + float(value) / count
        return totals

    def save(self, path: Path, meta: dict) -> None:
        save_state(
            path,
            {"trained": self.trained, "average": self.average},
            self.optimizer,
            {"data": self.generator},
            {**meta, "step": self.done, "fed_back": self.fed_back},
        )

    def load(self, path: Path) -> dict:
        meta = load_state(
            path, {"trained": self.trained, "average": self.average}, self.optimizer, {"data": self.generator}
        )
        self.done, self.fed_back = meta["step"], meta["fed_back"]
        return meta


def fed_back(generator: torch.Generator) -> bool:
    """Whether a step has a second prediction: one coin for all of its scenes (section 3.3, probability 0.5)."""
    return float(torch.rand(1, generator=generator)) < SHARE


def export(networks: Networks, injector: Injector, lgm: LGM, unet: nn.Module, folder: Path, base: dict, meta: dict):
    """Two files in half precision: the demo model with its injector, and the LGM. Returns their paths.

    base: header of the demo model's file, kept.
    """
    tensors = {UNET_PREFIX + key: value.half() for key, value in unet.state_dict().items()}
    tensors |= {VAE_PREFIX + key: value.half() for key, value in networks.vae.state_dict().items()}
    tensors |= {INJECTOR_PREFIX + key: value.half() for key, value in injector.state_dict().items()}
    about = {"feedback": networks.feedback, **meta}
    config = networks.config.to_json()
    header = {**base, "format": FORMAT, "config": config, "injector": asdict(injector.config), "joint": about}
    write_tensors(folder / MODEL_FILE, tensors, header)
    # The rig stays as it is: half precision would move its field of view.
    weights = {key: value if key == "rig" else value.half() for key, value in lgm.state_dict().items()}
    write_tensors(folder / LGM_FILE, weights, {"joint": about})
    return folder / MODEL_FILE, folder / LGM_FILE


def lpips_of(folder: Path | None, device):
    """LPIPS from weight files in a folder, VGG before AlexNet, or None; says which."""
    files = find_weights([folder], ("vgg", "alex")) if folder else None
    if files is None:
        print("Without LPIPS: no weights of it were given (--lpips FOLDER). Renders: squared error and coverage.")
        return None
    print(f"LPIPS with {files.kind}.")
    return load_lpips(files).to(device).requires_grad_(False)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="training joint", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the trained demo model to start from")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mvtrain"), help="state and log")
    parser.add_argument("--out", type=Path, default=None, help="folder of the two files; default --work")
    parser.add_argument("--parts", type=Path, default=None, help="also write both in parts of 15 MB into this folder")
    parser.add_argument("--views", type=int, default=None, help="views of a scene, a multiple of 4; default: all")
    parser.add_argument("--feedback", choices=list(FEEDBACKS), default="both", help="which maps are fed back")
    parser.add_argument("--lgm-down", type=int, nargs="+", default=list(SMALL.down), help="widths, multiples of 32")
    parser.add_argument("--lgm-up", type=int, nargs="+", default=list(SMALL.up))
    parser.add_argument("--injector-blocks", type=int, default=3, help="residual blocks in a scale")
    parser.add_argument("--lpips", type=Path, default=None, help="folder with weights of LPIPS")
    parser.add_argument("--objects", type=int, default=None)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=8, help="scenes in a step")
    parser.add_argument("--rate", type=float, default=4e-4, help="of injector and LGM, which start anew")
    parser.add_argument("--unet-rate", type=float, default=5e-5, help="of the UNet; 0 leaves it as it is")
    parser.add_argument("--start", type=int, default=300, help="steps that lead untrained Gaussians to their rays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call")
    parser.add_argument("--check-every", type=float, default=60.0, help="seconds between checks of what is learned")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="products of UNet, injector and LGM in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def lgm_config(args) -> LGMConfig:
    """Attention at the coarsest level only, on both ways."""
    down, up = tuple(args.lgm_down), tuple(args.lgm_up)
    coarsest = tuple(i == len(down) - 1 for i in range(len(down)))
    return LGMConfig(down, coarsest, up, coarsest[::-1][: len(up)], layers=1, timed=True, rigged=True)


def main(argv: list[str]) -> int:
    return train(options().parse_args(argv))


def train(args) -> int:
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(args.seed)
    budget = Budget(args.minutes)
    config, unet, vae, base = load_model(args.model, args.device)
    views = args.views or config.views
    try:
        injector = build_injector(config, args.injector_blocks).to(args.device)
        lgm = build_lgm(config.size, lgm_config(args)).to(args.device)
        orbit = orbit_of(lgm, config, views, args.device)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    networks = Networks(
        config, unet, vae, injector, lgm, orbit, args.feedback, torch.bfloat16 if args.bf16 else torch.float32
    )
    pool = PicturePool(args.pool, vae, views, args.device, args.objects)
    held_out = PicturePool(args.held_out, vae, views, args.device, 32)
    training = JointTraining(
        networks, pool, args.seed, args.steps, args.batch, args.rate, args.unet_rate, args.start,
        lpips_of(args.lpips, args.device),
    )  # fmt: skip
    state, log = args.work / "joint_state.safetensors", args.work / "joint_log.jsonl"
    if state.is_file():
        budget.used = training.load(state)["seconds"]
    sizes = {name: round(sum(p.numel() for p in m.parameters()) / 1e6, 2) for name, m in training.trained.items()}
    print(f"training, million parameters: {sizes}; {len(pool)} objects, from step {training.done}", flush=True)
    checked, losses = budget.seconds, []
    while training.done < args.steps and not budget.over():
        losses.append(training.step())
        if training.done % 50 == 0 and not math.isfinite(float(sum(losses[-1].values()))):
            raise RuntimeError(f"The loss is not finite at step {training.done}; lower --rate.")
        if budget.seconds - checked >= args.check_every:
            line = {
                "step": training.done,
                "seconds": round(budget.seconds),
                "objects": pool.refresh(),
                **means(losses),
                **training.check(held_out),
            }
            print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            training.save(state, {"seconds": budget.seconds})
            checked, losses = budget.seconds, []
    training.save(state, {"seconds": budget.seconds})
    meta = {
        "steps": training.done,
        "scenes": training.done * args.batch,
        "objects": len(pool),
        "fed_back": training.fed_back,
        "seed": args.seed,
        "seconds": round(budget.seconds),
        "lpips": training.lpips is not None,
        "unet_trained": args.unet_rate > 0,
        "generator_version": GENERATOR_VERSION,
        "check": training.check(held_out, 32),
    }
    best = training.average
    paths = export(
        networks, best["injector"], best["lgm"], best["unet"] if "unet" in best else unet, args.out or args.work, base,
        meta,
    )  # fmt: skip
    for path in paths if args.parts else ():
        write_parts(path, args.parts)
    print(json.dumps(meta))
    return 0


def means(losses: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each loss over the steps that have it."""
    names = {name: None for one in losses for name in one}
    return {name: float(torch.stack([one[name] for one in losses if name in one]).mean()) for name in names}
