"""Canonical coordinate maps against the true surface of demo objects, and the released definition pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mvpack.multiview.camera_presets import preset
from mvpack.multiview.cameras import orbit
from mvpack.multiview.coordinates import canonical_map, feedback_maps, released_map
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.splats.gaussians import SH_C0, Gaussians

TOY = make_object(1_000_003, 0, 6)


@pytest.fixture(scope="module")
def surface() -> Gaussians:
    """Small Gaussians on the toy's true surface, where 14 cameras see it."""
    seen = orbit([30.0 * i for i in range(12)] + [0.0, 0.0], [20.0, -20.0] * 6 + [80.0, -80.0], 1.5, 49.13)
    drawn = render_object(TOY, seen, 72, supersample=1)
    there = drawn.depth > 0
    means, colours = drawn.coords[there], drawn.rgb[there]
    count = len(means)
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4)
    return Gaussians(means, torch.full((count, 3), 0.006), quats, torch.full((count,), 0.95),
                     ((colours - 0.5) / SH_C0)[:, None]).validate()  # fmt: skip


def test_canonical_map_is_the_raycast_surface(surface):
    """From cameras that were not among those above."""
    cameras = orbit([15.0, 100.0, 217.0], [15.0, 0.0, 35.0], 1.5, 49.13)
    truth = render_object(TOY, cameras, 64, supersample=1)
    colour, found, coverage = feedback_maps(surface, cameras, 64, 64)
    solid = (truth.depth > 0) & (coverage > 0.99)
    assert float(solid.sum() / (truth.depth > 0).sum()) > 0.9
    # Where the surface turns away, a Gaussian's footprint shows depths that are not the pixel's own.
    near = -F.max_pool2d(-truth.depth[:, None], 3, 1, 1)[:, 0]
    inside = solid & (F.max_pool2d(truth.depth[:, None], 3, 1, 1)[:, 0] - near < 0.08)
    off = (found - (truth.coords + 0.5)).norm(dim=-1)
    assert float(inside.sum()) > 1000 and float(off[solid].median()) < 0.015
    # A pixel is 0.022 wide at the toy's distance.
    assert float(off[inside].mean()) < 0.015 and float(off[inside].quantile(0.95)) < 0.03
    assert float((found.flip(2) - (truth.coords + 0.5)).norm(dim=-1)[inside].mean()) > 0.1
    assert (found[coverage == 0] == 0.5).all() and (colour[coverage == 0] == 1).all()
    exact = canonical_map(truth.depth, (truth.depth > 0).float(), cameras)
    assert torch.allclose(exact[truth.depth > 0], truth.coords[truth.depth > 0] + 0.5, atol=1e-5)


def test_cube_and_coverage():
    """The camera at azimuth 0 looks along +z from (0, 0, -1.5); depth 1.6 ahead is z = 0.1."""
    camera = orbit([0.0], 0.0, 1.5, 90.0)
    depth, full = torch.full((1, 2, 2), 1.6), torch.ones(1, 2, 2)
    found = canonical_map(depth, full, camera, 4.0)[0]
    # Pixel centres half way to the border: slope 0.5, so x = -0.8 on the left and y (down) = -0.8 at the top.
    assert torch.allclose(found[0, 0], torch.tensor([-0.8, -0.8, 0.1]) / 4 + 0.5)
    half = canonical_map(depth, 0.5 * full, camera, 4.0)[0]
    assert torch.allclose(half - 0.5, 0.5 * (found - 0.5))
    assert torch.allclose(canonical_map(depth, full, camera)[0][1, 1], torch.tensor([1.0, 1.0, 0.6]))  # clipped
    with pytest.raises(ValueError, match="positive side"):
        canonical_map(depth, full, camera, 0.0)


def test_released_map_pixel_by_pixel():
    cameras = preset("ouroboros3d")
    generator = torch.Generator().manual_seed(0)
    depth = 1.2 + torch.rand(8, 16, 16, generator=generator)
    coverage = torch.rand(8, 16, 16, generator=generator)
    coverage[:, 0] = 0
    found = released_map(depth, coverage, cameras)
    for view, azimuth in ((0, 0.0), (2, 90.0), (7, 337.5)):
        a = math.radians(azimuth)
        # Columns: right, down and ahead of the camera in the weights' world (y up, the first camera on +z).
        right, down, ahead = (
            (math.cos(a), 0, -math.sin(a)), (0, -1, 0), (-math.sin(a), 0, -math.cos(a))
        )  # fmt: skip
        eye = (1.7417 * math.sin(a), 0, 1.7417 * math.cos(a))
        for row, column in ((3, 14), (15, 1)):
            d = float(depth[view, row, column] * coverage[view, row, column])
            x, y = (column - 0.5) * d / 1.3889, (row - 0.5) * d / 1.3889
            world = [right[i] * x + down[i] * y + ahead[i] * d + eye[i] for i in range(3)]
            wanted = [min(max(0.001 * w + 0.5, 0.0), 1.0) for w in world]
            assert found[view, row, column].tolist() == pytest.approx(wanted, abs=2e-6)
    assert (found[:, 0] == 0.5).all()


def test_released_map_does_not_depend_on_the_scene_s_size(surface):
    """The weights know one distance: cameras twice as far around a toy twice as large give the same map."""
    near = orbit([0.0, 90.0], 0.0, 1.5, 39.6)
    far = orbit([0.0, 90.0], 0.0, 3.0, 39.6)
    large = Gaussians(2 * surface.means, 2 * surface.scales, *surface.tensors()[2:])
    a, b = (feedback_maps(g, c, 32, 32, "released")[1] for g, c in ((surface, near), (large, far)))
    assert torch.allclose(a, b, atol=1e-5) and float((a - 0.5).abs().max()) > 1e-3


def test_unknown_definition(surface):
    with pytest.raises(ValueError, match="choose canonical or released"):
        feedback_maps(surface, orbit([0.0], 0.0, 1.5, 49.0), 8, 8, "nocs")
