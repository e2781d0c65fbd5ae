"""An LGM's splat by core's convention, written out literally (tests/helpers/core_splat.py), and by our renderer.

tests/host/test_lgm_core.py holds the same literal drawing against core itself.
"""

from __future__ import annotations

from dataclasses import replace

import core_splat
import numpy as np
import ouroboros_files
import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.lgm import LGM, LGMConfig
from mvpack.multiview.lgm_reconstruct import lgm_model
from mvpack.multiview.splats.gaussians import Gaussians
from mvpack.multiview.splats.render import render_gaussians

# Small Gaussians far away under a long lens are many pixels wide and hardly distorted: neither our filter of 0.3 square
# pixels nor our flat footprint then tells much.
AZIMUTH, ELEVATION, RADIUS, FOV, SIDE = 40.0, 25.0, 8.0, 26.0, 256


@pytest.fixture(scope="module")
def splat() -> Gaussians:
    """256 Gaussians that LGM's blocks with random weights make of a toy."""
    network = LGM(LGMConfig((32,) * 6, (False,) * 4 + (True,) * 2, (32,) * 3, (True, False, False))).eval()
    ouroboros_files.fill(network)
    model = lgm_model(network, "lgm", "predicted")
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 0.0, 1.5, 49.1)
    toy = render_object(make_object(3), cameras, 64).rgb
    return replace(model, rig=replace(model.rig, side=64))(toy, cameras)


@pytest.mark.slow  # 256 Gaussians one by one at 256 px in float64: 4 seconds
def test_our_renderer_draws_what_core_draws(splat):
    """With what is core's own taken away: blending in linear light, slabs of depth, and pixels' centres at i."""
    values = [t.double().numpy() for t in (splat.means, splat.scales, splat.quats, splat.opacities)]
    colours = np.clip(0.5 + core_splat.SH_C0 * splat.sh[:, 0].double().numpy(), 0, 1)
    camera = core_splat.orbit_camera(AZIMUTH, ELEVATION, RADIUS)
    wanted, coverage = core_splat.draw(*values, colours, camera, FOV, SIDE, slabs=splat.num)
    cameras = orbit([AZIMUTH], ELEVATION, RADIUS, FOV)
    centred = cameras.intrinsics + torch.tensor([0.0, 0.0, 0.5 / SIDE, 0.5 / SIDE])
    linear = torch.from_numpy((core_splat.to_linear(colours) - 0.5) / core_splat.SH_C0).float()[:, None]
    drawn = render_gaussians(replace(splat, sh=linear), replace(cameras, intrinsics=centred), SIDE, SIDE)
    ours = np.clip(core_splat.to_srgb(drawn.features[0].double().numpy()), 0, 1)
    covered = drawn.alpha[0, ..., 0].double().numpy()
    likeness = psnr(ours, wanted)
    mirrored = [psnr(other, wanted) for other in (ours[::-1], ours[:, ::-1], ours[::-1, ::-1])]
    assert likeness > 55 and psnr(covered, coverage) > 48, (likeness, psnr(covered, coverage))
    assert max(mirrored) < 25, mirrored


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(((a - b) ** 2).mean()))
