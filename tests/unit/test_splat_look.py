"""From where a viewer first looks at a splat."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mvpack.multiview.cameras import Cameras, orbit
from mvpack.multiview.splats.look import cameras_around, extent, first_sight
from mvpack.multiview.splats.render import render_gaussians
from splat_letter import letter


@given(
    st.floats(0, 359.9), st.floats(-90, 90), st.floats(0.5, 5), st.floats(20, 100),
    st.tuples(*[st.floats(-3, 3)] * 3), st.floats(0.5, 2),
)  # fmt: skip
def test_the_sight_is_the_input_views_camera(azimuth, elevation, radius, fov, shift, aspect):
    """Also for cameras around another point than the origin, and from the poles."""
    cameras = orbit([azimuth + 200, azimuth, azimuth + 60], elevation, radius, fov, input_view=1, aspect=aspect)
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] += torch.tensor(shift)
    cameras = dataclasses.replace(cameras, c2w=c2w)
    sight = first_sight(letter(shift), cameras)
    again = cameras_around(sight, 4)
    assert again.input_view == 0
    assert (again.c2w[0] - c2w[1]).abs().max() < 2e-3
    fx, fy = cameras.intrinsics[1, :2].tolist()
    assert sight.focal == pytest.approx((fx, fy))
    assert again.intrinsics[0].tolist() == pytest.approx([min(fx, fy)] * 2 + [0.5, 0.5])


def test_pictures_go_around_the_target():
    sight = first_sight(letter(), orbit([30.0, 120.0], 20.0, 1.5, 49.13))
    assert sight.target == pytest.approx((0, 0, 0), abs=1e-5)
    around = cameras_around(sight, 4)
    assert around.azimuths().tolist() == pytest.approx([30, 120, 210, 300], abs=1e-3)
    assert around.elevations().tolist() == pytest.approx([20] * 4, abs=1e-3)
    assert around.radii().tolist() == pytest.approx([1.5] * 4, abs=1e-5)


@pytest.mark.parametrize("centre, size", [((0.0, 0.0, 0.0), 1.0), ((5.0, -2.0, 7.0), 100.0), ((0.0, 1.0, 0.0), 0.01)])
def test_without_cameras_all_of_it_is_in_the_picture(centre, size):
    splat = letter(centre, size)
    sight = first_sight(splat)
    assert (sight.azimuth, sight.elevation) == (0.0, 15.0)
    side = 48
    alpha = render_gaussians(splat, cameras_around(sight, 4), side, side).alpha[..., 0]
    edge = torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]])
    assert edge.max() < 0.02
    rows = (alpha > 0.5).any(2).sum(1)
    assert (rows > side / 2).all()  # and not a speck in the middle


def test_floaters_and_ghosts_do_not_count():
    splat = letter()
    centre, radius = extent(splat)
    far = torch.tensor([[50.0, 0, 0], [0, -80.0, 0]])
    many = torch.linspace(-30, 30, 600)[:, None].expand(-1, 3)
    means = torch.cat([splat.means, far, many])
    extra = len(means) - splat.num
    more = dataclasses.replace(
        splat,
        means=means,
        scales=torch.cat([splat.scales, splat.scales[:1].expand(extra, -1)]),
        quats=torch.cat([splat.quats, splat.quats[:1].expand(extra, -1)]),
        opacities=torch.cat([splat.opacities, torch.tensor([0.9, 0.9]), torch.full((600,), 0.01)]),
        sh=torch.cat([splat.sh, splat.sh[:1].expand(extra, -1, -1)]),
    )
    middle, size = extent(more)
    assert (middle - centre).abs().max() < 0.02
    assert size == pytest.approx(radius, rel=0.05)


def test_a_single_point_can_be_looked_at():
    one = letter()
    one = type(one)(*(t[:1] for t in one.tensors()))
    sight = first_sight(one)
    assert sight.target == pytest.approx(tuple(one.means[0].tolist()))
    assert sight.distance > 0 and math.isfinite(sight.distance)


def test_a_camera_that_looks_away_turns_around_a_point_ahead():
    cameras = orbit([0.0], 0.0, 1.0, 50.0)
    c2w = cameras.c2w.clone()
    c2w[0, :3, 3] = torch.tensor([0.0, 0.0, 3.0])  # behind the letter, and looking further
    sight = first_sight(letter(), Cameras(c2w, cameras.intrinsics))
    assert sight.distance > 0
    assert (cameras_around(sight, 1).c2w[0] - c2w[0]).abs().max() < 1e-5
