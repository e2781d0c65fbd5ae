"""What is fed back, and what it brings: `python training joint-gate`, see docs/ouroboros3d_training.md.

Samples held-out objects with a jointly trained model four times from the same noise: with no feedback, with coordinate
maps, with colours, with both (table 2 of Ouroboros3D, papers/ouroboros3d.txt). Prints PSNR of the views, PSNR of the
renders of the splat that the LGM makes of them, and how far apart the two are. The paper trained a model for each row;
so does whoever trains with --feedback none, coordinates, colour and both, and measures each file with --rows. With one
file for all rows, what is not fed back is black. Writes joint_gate.json and a contact sheet, and ends with exit code
0 where both maps are better than none in views and in renders, or where these rows were not asked for, else 1.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..multiview.demo.joint_files import read_injector
from ..multiview.demo.video_unet import denoised_from_output
from ..multiview.lgm_files import load_lgm
from ..multiview.splats.losses import psnr
from .checkpoint import read_meta
from .comfy_classes import TrainLayers
from .diffusion import apply_unet, karras_sigmas
from .gate import load_model, measure
from .joint_model import FEEDBACKS, Networks, Shots, orbit_of
from .pictures import write_png
from .pool import load_pool
from .video_data import conditioning, encode_pictures, white_pictures


def load_networks(model: Path, lgm: Path, views: int | None = None, device="cpu", dtype=torch.float32) -> Networks:
    """What the joint training wrote, in float32. ValueError for files without injector or of another kind."""
    config, unet, vae, _ = load_model(model, device)
    injector = read_injector(model, TrainLayers)
    if injector is None:
        raise ValueError(f"{model.name} has no feedback encoders; give the file that `python training joint` wrote.")
    network, kind = load_lgm(lgm, TrainLayers)
    if kind != "demo_lgm":
        raise ValueError(f"{lgm.name} is not an LGM of `python training joint`; give the one written with the model.")
    network.float().to(device)
    orbit = orbit_of(network, config, views or config.views, device)
    return Networks(config, unet, vae, injector.to(device), network, orbit, dtype=dtype)


@torch.no_grad()
def sample_fed_back(
    networks: Networks, reference: Tensor, generator: torch.Generator, steps: int = 25
) -> tuple[Tensor, Shots]:
    """Euler's method with the loop of section 3.3: each step is told the renders of the last one's splat, the first
    one black. reference (B,C,h,w) -> views' latents (B,V,C,h,w) and the renders of the splat made of them.
    """
    n, scenes, views = networks, len(reference), len(networks.orbit.cameras)
    sigmas = karras_sigmas(steps, n.config.sigma_min, n.config.sigma_max).tolist()
    x = sigmas[0] * torch.randn((scenes * views, *reference.shape[1:]), generator=generator).to(reference)
    cond = conditioning(n.config, reference, views)
    shots = None
    for now, after in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((len(x),), now, device=x.device)
        output = apply_unet(n.unet, x, level, cond, views, n.dtype, patches=n.patches(shots, scenes))
        denoised = denoised_from_output(x, output, level)
        x = x + (x - denoised) / now * (after - now)
        # Without feedback the splat of the views is only wanted at the end.
        if after and any(FEEDBACKS[n.feedback]):
            shots = n.draw(n.reconstruct(n.seen_by_lgm(denoised.unflatten(0, (scenes, views))), level[:scenes]))
    found = x.unflatten(0, (scenes, views))
    return found, n.draw(n.reconstruct(n.seen_by_lgm(found)))


@torch.no_grad()
def row_of(networks: Networks, truth: Tensor, seed: int, steps: int, scenes: int = 4) -> tuple[Tensor, Tensor]:
    """True views (K,V,S,S,3) -> sampled views and renders of their splats, the same."""
    device, views, renders = networks.orbit.rays.device, [], []
    generator = torch.Generator().manual_seed(seed)
    for part in truth[:, 0].split(scenes):
        latents = encode_pictures(networks.vae, part, device).float()
        found, shots = sample_fed_back(networks, latents, generator, steps)
        pictures = torch.cat([networks.vae.decode(one) for one in found])
        pictures = ((pictures + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
        views.append(pictures.unflatten(0, found.shape[:2]).cpu())
        renders.append(shots.colour.clamp(0, 1).cpu())
    return torch.cat(views), torch.cat(renders)


def figures(views: Tensor, renders: Tensor, truth: Tensor) -> dict:
    """One row: both against the truth (without the input's view), and the difference of their means (table 2)."""
    one, two = ({**measure(kind, truth), "psnr_by_object": by_object(kind, truth)} for kind in (views, renders))
    return {
        "views": one,
        "splat": two,
        "psnr_difference": abs(one["psnr"] - two["psnr"]),
        "ssim_difference": abs(one["ssim"] - two["ssim"]),
    }


def by_object(views: Tensor, truth: Tensor) -> list[float]:
    """PSNR of each object's views, their mean without the input's."""
    values = psnr(views.flatten(0, 1), truth.flatten(0, 1)).clamp(max=60).view(truth.shape[:2])
    return values[:, 1:].mean(1).tolist()


def verdict(table: dict[str, dict]) -> tuple[bool | None, list[str]]:
    """Whether feedback of both maps is better than none, in views and in renders; None where a row is missing.

    Better: by more than twice the standard error of the objects' differences, which share noise and input.
    """
    if not {"none", "both"} <= table.keys():
        return None, ["No verdict: it needs the rows none and both."]
    lines, passed = [], True
    for what in ("views", "splat"):
        without, fed_back = (torch.tensor(table[row][what]["psnr_by_object"]) for row in ("none", "both"))
        gain = fed_back - without
        error = float(gain.std() / len(gain) ** 0.5) if len(gain) > 1 else 0.0
        better = float(gain.mean()) > 2 * error
        passed &= better
        lines.append(
            f"PSNR of the {what} with both maps, {float(fed_back.mean()):.2f} dB, is "
            f"{'above' if better else 'not above'} that without feedback, {float(without.mean()):.2f} dB "
            f"(gain {float(gain.mean()):.3f}, standard error {error:.3f})."
        )
    return passed, lines


def contact_sheet(truth: Tensor, views: Tensor, renders: Tensor, path: Path, objects: int = 4, columns: int = 8):
    """Three rows for each object: true views, sampled views, renders of their splat."""
    step = max(1, truth.shape[1] // columns)
    kinds, count = (truth, views, renders), min(objects, len(truth))
    rows = [torch.cat(list(kind[k, ::step]), dim=1) for k in range(count) for kind in kinds]
    write_png(path, (torch.cat(rows) * 255).round().to(torch.uint8))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training joint-gate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="joint_model.safetensors")
    parser.add_argument("--lgm", type=Path, required=True, help="joint_lgm.safetensors")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=list(FEEDBACKS), default=list(FEEDBACKS), help="what to feed back")
    parser.add_argument("--views", type=int, default=None, help="views of a scene; default: as many as the model's")
    parser.add_argument("--objects", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        networks = load_networks(
            args.model, args.lgm, args.views, args.device, torch.bfloat16 if args.bf16 else torch.float32
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    held_out = load_pool(args.held_out, args.objects, ("rgb", "alpha", "seed"))
    truth = white_pictures(held_out)[:, :: held_out["rgb"].shape[1] // len(networks.orbit.cameras)]
    args.out.mkdir(parents=True, exist_ok=True)
    table = {}
    for row in args.rows:
        views, renders = row_of(replace(networks, feedback=row), truth, args.seed, args.steps)
        table[row] = found = figures(views, renders, truth)
        print(
            f"{row:12} views: PSNR {found['views']['psnr']:.2f}  pose {found['views']['pose_error']:.0f} deg   splat: "
            f"PSNR {found['splat']['psnr']:.2f}   difference {found['psnr_difference']:.2f} dB",
            flush=True,
        )
        contact_sheet(truth, views, renders, args.out / f"joint_gate_{row}.png")
    passed, lines = verdict(table)
    report = {
        "passed": passed,
        "verdict": lines,
        "objects": len(truth),
        "views": truth.shape[1],
        "steps": args.steps,
        "seed": args.seed,
        "training": read_meta(args.model).get("joint"),
        "table": table,
    }
    (args.out / "joint_gate.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print({True: "PASSED", False: "NOT PASSED", None: "NO VERDICT"}[passed], *lines, sep="\n", flush=True)
    return 1 if passed is False else 0
