"""Judge a trained video model on held-out objects: `python training gate`, see docs/trained_model.md.

It compares the sampled views with the true ones, by azimuth, beside three things that need no
model: the input picture copied to every view, the mean picture of each view over the training pool, and the views of
the training object whose front resembles the input most. The gate: better than the copy and than the nearest object
in PSNR, and a mean pose error (azimuth of the true view each sampled view resembles most) of at most 30 degrees. PSNR
alone would not show that nothing turns. Writes gate.json, a contact sheet, and the gate's verdict as the exit code (0
passed, 1 not).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from ..multiview.demo.video_unet import check_weights, read_checkpoint
from ..multiview.splats.losses import psnr, ssim
from .comfy_classes import build_autoencoder, build_unet
from .diffusion import pose_errors, sample
from .pictures import write_png
from .pool import load_pool
from .video_data import encode_pictures, white_pictures

POSE_LIMIT = 30.0


def load_model(path: Path, device="cpu"):
    """A trained model's file -> configuration, UNet, autoencoder, header; float32, eval mode."""
    config, unet_weights, vae_weights, meta = read_checkpoint(path)
    unet, vae = build_unet(config), build_autoencoder(config)
    for name, module, weights in (("UNet", unet, unet_weights), ("autoencoder", vae, vae_weights)):
        check_weights(name, weights, module.state_dict())
        module.load_state_dict({key: value.float() for key, value in weights.items()})
        module.to(device).eval().requires_grad_(False)
    return config, unet, vae, meta


@torch.no_grad()
def sample_pictures(
    config,
    unet,
    vae,
    references: Tensor,
    seed: int,
    steps: int,
    cfg: float,
    device,
    dtype=torch.float32,
    scenes: int = 8,
) -> Tensor:
    """References (K,S,S,3) in [0,1] -> views (K,V,S,S,3) in [0,1]."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for part in references.split(scenes):
        latents = encode_pictures(vae, part, device).float()
        views = sample(unet, config, latents, config.views, generator, steps, cfg, dtype)
        pictures = torch.cat([vae.decode(v) for v in views.flatten(0, 1).split(64)])
        out.append(((pictures + 1) / 2).clamp(0, 1).cpu().permute(0, 2, 3, 1).unflatten(0, (len(part), config.views)))
    return torch.cat(out)


def nearest_objects(references: Tensor, pool: Tensor) -> Tensor:
    """(K,) index of the pool object whose view 0 has the least squared difference. references (K,S,S,3), pool
    (P,V,S,S,3) uint8.
    """
    fronts = pool[:, 0].flatten(1).float() / 255
    return torch.cdist(references.flatten(1), fronts).argmin(dim=1)


def measure(views: Tensor, truth: Tensor) -> dict:
    """(K,V,S,S,3) both -> PSNR and SSIM by view and their means without view 0 (the input), pose error, share within
    30 degrees.
    """
    k, v = truth.shape[:2]
    p = psnr(views.flatten(0, 1), truth.flatten(0, 1)).clamp(max=60).view(k, v)
    s = ssim(views.flatten(0, 1), truth.flatten(0, 1)).view(k, v)
    errors = pose_errors(views, truth)
    mean = p[:, 1:].mean(1)
    return {
        "psnr": float(mean.mean()),
        "psnr_standard_error": float(mean.std() / k**0.5) if k > 1 else None,
        "ssim": float(s[:, 1:].mean()),
        "pose_error": float(errors.mean()),
        "within_30": float((errors <= 30).float().mean()),
        "psnr_by_view": [round(x, 2) for x in p.mean(0).tolist()],
        "ssim_by_view": [round(x, 3) for x in s.mean(0).tolist()],
    }


def compare(views: Tensor, truth: Tensor, pool: Tensor) -> dict[str, dict]:
    """Model and baselines. truth, views (K,V,S,S,3) in [0,1]; pool (P,V,S,S,3) uint8 training objects on white."""
    near = pool[nearest_objects(truth[:, 0], pool)].float() / 255
    mean = (pool.float().mean(0) / 255).expand_as(truth)
    return {
        "model": measure(views, truth),
        "copy_of_input": measure(truth[:, :1].expand_as(truth), truth),
        "mean_image": measure(mean, truth),
        "nearest_object": measure(near, truth),
    }


def verdict(table: dict[str, dict]) -> tuple[bool, list[str]]:
    """Whether the gate is passed, and a sentence for each of its parts."""
    model, lines, passed = table["model"], [], True
    for name in ("copy_of_input", "nearest_object"):
        better = model["psnr"] > table[name]["psnr"]
        passed &= better
        lines.append(
            f"PSNR {model['psnr']:.2f} dB is {'above' if better else 'not above'} "
            f"{name} at {table[name]['psnr']:.2f} dB."
        )
    right = model["pose_error"] <= POSE_LIMIT
    lines.append(
        f"Mean pose error {model['pose_error']:.0f} degrees is {'within' if right else 'not within'} "
        f"{POSE_LIMIT:.0f} (chance about 88)."
    )
    return passed and right, lines


def contact_sheet(truth: Tensor, views: Tensor, path: Path, objects: int = 6, columns: int = 8) -> None:
    """Two rows for each object: true views above, sampled ones below; every second of 16 views."""
    step = max(1, truth.shape[1] // columns)
    rows = [
        torch.cat(list(r[k, ::step][:columns]), dim=1)
        for k in range(min(objects, truth.shape[0]))
        for r in (truth, views)
    ]
    write_png(path, (torch.cat(rows) * 255).round().to(torch.uint8))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training gate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True, help="training pool, for the baselines")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objects", type=int, default=32)
    parser.add_argument("--pool-objects", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    config, unet, vae, meta = load_model(args.model, args.device)
    held_out = load_pool(args.held_out, args.objects, ("rgb", "alpha", "seed"))
    step = held_out["rgb"].shape[1] // config.views
    truth = white_pictures(held_out)[:, ::step]
    fronts = load_pool(args.pool, args.pool_objects, ("rgb", "alpha", "seed"))
    if int(fronts["seed"].max()) >= int(held_out["seed"].min()):
        raise SystemExit("The training pool contains held-out objects; make pools with the right --first.")
    pool = torch.stack(
        [(white_pictures(fronts, k)[::step] * 255).round().to(torch.uint8) for k in range(len(fronts["seed"]))]
    )
    views = sample_pictures(
        config,
        unet,
        vae,
        truth[:, 0],
        args.seed,
        args.steps,
        args.cfg,
        args.device,
        torch.bfloat16 if args.bf16 else torch.float32,
    )
    table = compare(views, truth, pool)
    passed, lines = verdict(table)
    args.out.mkdir(parents=True, exist_ok=True)
    report = {
        "passed": passed,
        "verdict": lines,
        "objects": len(truth),
        "views": config.views,
        "steps": args.steps,
        "cfg": args.cfg,
        "seed": args.seed,
        "pool_objects": len(pool),
        "training": meta,
        "table": table,
    }
    (args.out / "gate.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    contact_sheet(truth, views, args.out / "gate_views.png")
    for name, row in table.items():
        print(
            f"{name:15} PSNR {row['psnr']:.2f}  SSIM {row['ssim']:.3f}  pose {row['pose_error']:.0f} deg  "
            f"within 30: {row['within_30']:.0%}"
        )
    print("PASSED" if passed else "NOT PASSED", *lines, sep="\n", flush=True)
    return 0 if passed else 1
