"""Camera corrections: geometry against orbit(), gradients against finite differences, and what they find."""

import random

import pytest
import torch
from mvpack.multiview.cameras import Cameras, orbit
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.splats.camera_refine import CameraOffsets, CameraRefiner, offset_cameras
from mvpack.multiview.splats.camera_search import find_cameras
from mvpack.multiview.splats.fit import fit
from mvpack.multiview.splats.fit_config import FitConfig
from mvpack.multiview.splats.raster import rasterize

AZIMUTHS = [0.0, 50.0, 170.0, 260.0]


def test_offsets_move_along_the_orbit():
    """Against the closed form of cameras.py, also around a centre that is not the origin."""
    given = orbit(AZIMUTHS, 10.0, 1.5, 40.0)
    turned = (3.0, -7.0, 0.0, 12.5)
    moved = offset_cameras(given, CameraOffsets(25.0, turned, 1.25))
    expected = orbit([a + t for a, t in zip(AZIMUTHS, turned, strict=True)], 35.0, 1.5, 40.0)
    torch.testing.assert_close(moved.c2w, expected.c2w, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.intrinsics[:, :2], given.intrinsics[:, :2] * 1.25)
    assert torch.equal(moved.intrinsics[:, 2:], given.intrinsics[:, 2:])
    shift = torch.tensor([1.0, -2.0, 0.5])
    c2w = given.c2w.clone()
    c2w[:, :3, 3] += shift
    away = offset_cameras(Cameras(c2w, given.intrinsics), CameraOffsets(25.0, turned))
    torch.testing.assert_close(away.centers(), expected.centers() + shift, atol=1e-5, rtol=0)
    none = offset_cameras(given, CameraOffsets())
    torch.testing.assert_close(none.c2w, given.c2w, atol=1e-7, rtol=0)
    assert CameraOffsets().describe() == "" and "+25.0 degrees" in CameraOffsets(25.0, turned, 1.25).describe()


def test_refiner_gives_the_cameras_it_draws_with():
    given = orbit(AZIMUTHS, 10.0, 1.5, 40.0)
    refiner = CameraRefiner(given, ("elevation", "azimuths", "fov"), 0.05, torch.device("cpu"))
    goal = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        (refiner.w2c([0, 1, 2, 3]) * goal).sum().backward()
        refiner.k(given.pixel_intrinsics(64, 48)).square().sum().backward()
        refiner.step(0.5)
    offsets, cameras = refiner.offsets(), refiner.cameras()
    assert abs(offsets.elevation) > 1 and abs(sum(offsets.azimuths)) < 1e-4 and offsets.zoom < 0.99
    torch.testing.assert_close(refiner.w2c([2, 0]).detach(), cameras.w2c()[[2, 0]], atol=1e-5, rtol=0)
    expected = cameras.pixel_intrinsics(64, 48)
    torch.testing.assert_close(refiner.k(given.pixel_intrinsics(64, 48)).detach(), expected, atol=1e-3, rtol=0)


def test_gradients_through_the_rasteriser():
    """d picture / d elevation, azimuth and zoom against central differences, in float64."""
    g = torch.Generator().manual_seed(3)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    means, quats, scales = 0.3 * (rand(12, 3) - 0.5), rand(12, 4), 0.05 + 0.05 * rand(12, 3)
    opacities, colours = 0.3 + 0.5 * rand(12), rand(12, 3)
    given = orbit(AZIMUTHS, 10.0, 1.5, 40.0)
    refiner = CameraRefiner(given, ("elevation", "azimuths", "fov"), 0.01, torch.device("cpu"))
    refiner.base, refiner.intrinsics = refiner.base.double(), refiner.intrinsics.double()
    refiner.values = {k: v.detach().double().requires_grad_() for k, v in refiner.values.items()}
    pixel_k, weight = given.pixel_intrinsics(24, 24).double(), rand(2, 24, 24, 3)

    def loss():
        drawn = rasterize(
            means, quats, scales, opacities, colours, refiner.w2c([1, 3]), refiner.k(pixel_k[[1, 3]]), 24, 24,
            backend="torch",
        )  # fmt: skip
        return (drawn.features * weight).sum()

    loss().backward()
    for name, index in (("elevation", ()), ("azimuths", (1,)), ("azimuths", (3,)), ("fov", ())):
        value, step = refiner.values[name], 1e-5
        with torch.no_grad():
            value[index] += step
            up = float(loss())
            value[index] -= 2 * step
            down = float(loss())
            value[index] += step
        assert float(value.grad[index]) == pytest.approx((up - down) / (2 * step), rel=2e-3), name
    assert float(refiner.values["azimuths"].grad[[0, 2]].abs().max()) == 0


@pytest.mark.parametrize(("wrong", "what"), [(CameraOffsets(6.0), "elevation"), (CameraOffsets(zoom=1.08), "fov")])
def test_a_fit_moves_wrong_cameras_the_right_way(wrong, what):
    cameras = orbit([30 * i for i in range(12)], 15.0, 1.5, 49.13)
    images = render_object(make_object(1_000_000), cameras, 40).rgb
    settings = {"points": 300, "views_per_step": 4, "densify_every": 0, "hull_cells": 24, "refine": (what,)}
    result = fit(images, offset_cameras(cameras, wrong), config=FitConfig(iterations=60, **settings))
    found = result.offsets
    if what == "elevation":
        assert -8.0 < found.elevation < -1.5 and found.zoom == 1.0
        torch.testing.assert_close(result.cameras.elevations(), cameras.elevations() + 6.0 + found.elevation)
    else:
        assert 0.9 < found.zoom < 0.995 and found.elevation == 0.0
        torch.testing.assert_close(result.cameras.intrinsics[:, 1], cameras.intrinsics[:, 1] * 1.08 * found.zoom)
    assert not any(found.azimuths)


@pytest.mark.slow  # eleven small fits and two of 100 steps at 64 pixels: half a minute
def test_elevation_and_azimuths_from_views_alone():
    rng = random.Random(0)
    shifts = [rng.uniform(-5, 5) for _ in range(16)]
    even = [22.5 * i for i in range(16)]
    truth = orbit([a + s for a, s in zip(even, shifts, strict=True)], -10.0, 1.5, 49.13)
    images = render_object(make_object(1_000_000), truth, 64).rgb
    steps = []
    with torch.inference_mode():
        cameras, found = find_cameras(
            images, orbit(even, 10.0, 1.5, 49.13), refine=("elevation", "azimuths"),
            on_step=lambda step, total, info: steps.append((step, total)),
        )  # fmt: skip
    assert abs(found.elevation + 20.0) < 3.0
    errors = torch.tensor(found.azimuths) - torch.tensor(shifts)
    assert float((errors - errors[0]).abs().mean()) < 2.0
    assert steps[-1][0] == steps[-1][1] == len(steps)
    torch.testing.assert_close(cameras.elevations().mean(), torch.tensor(10.0 + found.elevation).double())
