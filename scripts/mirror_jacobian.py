"""How far is MIRROR's detached pull (Eq. 14) from the one through the network (Eq. 12), and is Theorem 4.4 right?

    python -m scripts.mirror_jacobian        prints the figures, writes docs/mirror/jacobian.png; a minute on one core

With d the detached pull and J = dx0/dx, Eq. 12 pulls by J^T d (multiview/mirror_jacobian.py). The theorem says that the
difference goes to 0 with the noise, because S (J^T - 1) d is the network's slope d eps / d x times S and that slope
goes to 0. Three denoisers, same views, matches and noise:
- Gaussian data of variance v: J = v / (v + sigma^2), so the difference is sigma^2 / (v + sigma^2) exactly;
- a video UNet of SVD's architecture with random weights and EDM's v-prediction, as SV3D's;
- the exact denoiser of a bank of objects (the analytic demo model).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from multiview.cameras import orbit
from multiview.correspondence import track
from multiview.demo.analytic import AnalyticModel, AnalyticOptions
from multiview.demo.bank import build_bank
from multiview.demo.objects import make_object
from multiview.demo.raycast import render_object
from multiview.draw import curves
from multiview.mirror import MirrorOptions, rectify
from multiview.mirror_jacobian import through_network

CAMERAS = orbit([45.0 * i for i in range(8)], 15.0, 1.5, 49.13)
SIZE, VARIANCE, ETA = 32, 0.25, 0.5
SIGMAS = [30.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.3, 0.1, 0.05, 0.02]
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "mirror" / "jacobian.png"
TITLE = "How alike Eq. 12 and Eq. 14 are, 1 - |J^T d - d| / |d|, over log10(sigma)"
Denoiser = Callable[[Tensor, float], Tensor]


def gaussian(x: Tensor, sigma: float) -> Tensor:
    return x * (VARIANCE / (VARIANCE + sigma**2))


def random_unet(seed: int = 0) -> Denoiser:
    """F with random weights in x0 = (x - sigma r F(x / r, ln(sigma) / 4)) / r^2, where r^2 = sigma^2 + 1."""
    from diffusers import UNetSpatioTemporalConditionModel

    torch.manual_seed(seed)
    network = UNetSpatioTemporalConditionModel(
        sample_size=SIZE, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=(2, 4),
        cross_attention_dim=32, addition_time_embed_dim=32, projection_class_embeddings_input_dim=96, num_frames=8,
    )  # fmt: skip
    network.requires_grad_(False).eval()
    context, ids = torch.randn(1, 1, 32), torch.zeros(1, 3)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        scale = (sigma**2 + 1) ** 0.5
        time = torch.tensor([sigma]).log() / 4
        out = network((x / scale)[None], time, context, added_time_ids=ids, return_dict=False)[0][0]
        return x / scale**2 - sigma / scale * out

    return denoise


def bank_denoiser() -> tuple[Denoiser, Tensor, int]:
    """The near-sighted analytic model, views that disagree (each of another variant), and the object's seed."""
    bank = build_bank(CAMERAS, SIZE, 1, 4, 0)
    model = AnalyticModel(bank, AnalyticOptions(window=9, kappa=0.0))
    mixed = torch.stack([bank.views[i % 4, i] for i in range(len(CAMERAS))])
    views = mixed.movedim(-1, 1).float() / 127.5 - 1
    return (lambda x, sigma: model.denoise(x, sigma)), views, int(bank.seeds[0])


def differences(denoise: Denoiser, views: Tensor, matches, noise: Tensor) -> list[float]:
    """|J^T d - d| / |d| for each of SIGMAS."""
    found = []
    for sigma in SIGMAS:
        x = views + sigma * noise
        with torch.no_grad():
            clean = denoise(x, sigma)
        direction = rectify(clean, matches, ETA, MirrorOptions(block=1)) - clean
        _, product = through_network(lambda leaf, s=sigma: denoise(leaf, s), x, direction)
        found.append(float((product - direction).norm() / direction.norm()))
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    exact, views, seed = bank_denoiser()
    true = render_object(make_object(seed, 0, 4), CAMERAS, 4 * SIZE, 1)
    matches = track(CAMERAS, (SIZE, SIZE), true.depth)
    noise = torch.randn(views.shape, generator=torch.Generator().manual_seed(0))
    rows = {
        "Gaussian data": differences(gaussian, views, matches, noise),
        "random video UNet": differences(random_unet(), views, matches, noise),
        "bank of objects, exact": differences(exact, views, matches, noise),
    }
    closed = [s**2 / (VARIANCE + s**2) for s in SIGMAS]
    print("| sigma | " + " | ".join(f"{name}: difference | slope of eps" for name in rows) + " |")
    print("|---|" + "---|---|" * len(rows))
    for i, sigma in enumerate(SIGMAS):
        cells = [f"{d[i]:.3g} | {d[i] / sigma:.3g}" for d in rows.values()]
        print(f"| {sigma:g} | " + " | ".join(cells) + " |")
    worst = max(abs(a - b) for a, b in zip(rows["Gaussian data"], closed, strict=True))
    print(f"\nGaussian data against sigma^2 / (v + sigma^2): worst difference {worst:.1e}")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    at = torch.tensor(SIGMAS).log10().tolist()
    alike = {name: [1 - d for d in found] for name, found in rows.items()}
    curves(alike, TITLE, at, size=(720, 400)).save(PICTURE)
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
