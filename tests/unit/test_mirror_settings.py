"""What the MIRROR node's settings mean, the depth's confidence in the matches, and the drawing of matches."""

import math

import numpy as np
import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.correspondence import track
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.depth import DepthMaps
from mvpack.multiview.draw_matches import (
    choose_points,
    confidence_colour,
    count_matches,
    draw_matches,
    match_table,
    surface_cells,
)
from mvpack.multiview.mirror import MirrorOptions, rectify
from mvpack.multiview.mirror_settings import PRESETS, Matching, Pull, match_views

CAMERAS = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
SIZE = (24, 24)


@pytest.fixture(scope="module")
def toy():
    return render_object(make_object(3), CAMERAS, 96, 1)


def maps(toy, confidence=1.0) -> DepthMaps:
    return DepthMaps(toy.depth, (toy.depth > 0).float() * confidence)


def test_further_neighbours_weigh_less(toy):
    pull = Pull(neighbours=2, falloff=0.25, iterations=2, guidance=1.0)
    assert pull.offsets == (-2, -1, 1, 2)
    x0 = torch.randn(16, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    matches = match_views(CAMERAS, SIZE, maps(toy), None, pull.offsets, Matching())
    options = MirrorOptions(block=1, neighbour_weights=(0.25, 1.0, 1.0, 0.25))
    expected = rectify(x0, matches, 0.5, options, iterations=2)
    assert not torch.equal(expected, x0)
    assert torch.equal(pull.apply(x0, matches, 0.5), expected)
    assert torch.equal(pull.apply(x0, matches, 0.5, pull.lay_out(matches)), expected)
    assert Pull(options=MirrorOptions()).lay_out(matches) is None  # blocks depend on the views


def test_settings_without_meaning_are_refused():
    for change, words in (
        ({"start": 1.0, "end": 1.0}, "more noise"),
        ({"end": -1.0}, "more noise"),
        ({"neighbours": 5}, "1 to 4"),
        ({"falloff": 1.5}, "falloff"),
        ({"schedule": "eq33"}, "eq31, eq32"),
    ):
        with pytest.raises(ValueError, match=words):
            Pull(**change)


def test_infinite_noise_is_pulled_in_a_window_without_start():
    """A flow model's first step has sigma 1, S infinite."""
    pull = Pull(eta=0.6, start=math.inf, end=0.5)
    assert pull.eta_at(math.inf) == 0.6 and pull.eta_at(1e20) == 0.6 and pull.eta_at(0.01) == 0
    assert Pull(start=10.0, end=0.5).eta_at(math.inf) == 0
    assert PRESETS["paper Eq. 31"].eta_at(math.inf, 0, 50) == 0


def test_sure_depth_gives_what_track_gives(toy):
    plain = track(CAMERAS, SIZE, toy.depth, depth_error=0.02)
    found = match_views(CAMERAS, SIZE, maps(toy), None, (-1, 1), Matching())
    assert torch.equal(found.confidence, plain.confidence) and torch.equal(found.uv, plain.uv)


def test_a_match_is_as_sure_as_the_less_sure_of_its_depths(toy):
    depth = maps(toy)
    depth.confidence[4] *= 0.3
    plain = match_views(CAMERAS, SIZE, maps(toy), None, (-1, 1), Matching()).confidence
    found = match_views(CAMERAS, SIZE, depth, None, (-1, 1), Matching()).confidence
    share = torch.where(plain > 0, found / plain.clamp_min(1e-9), 1.0)
    assert torch.allclose(share[4], torch.where(plain[4] > 0, 0.3, 1.0), atol=1e-5)
    # View 3's right and view 5's left neighbour is view 4; everything else is as it was.
    for view, step in ((3, 1), (5, 0)):
        assert torch.allclose(share[view, step], torch.where(plain[view, step] > 0, 0.3, 1.0), atol=1e-5)
        assert torch.equal(share[view, 1 - step], torch.ones(SIZE))
    assert torch.equal(share[8], torch.ones(2, *SIZE))


def test_depth_without_shape_and_masks_without_object_are_refused(toy):
    flat = DepthMaps(torch.where(toy.depth > 0, 1.5, 0.0), torch.ones_like(toy.depth))
    with pytest.raises(ValueError, match="1.5 everywhere"):
        match_views(CAMERAS, SIZE, flat, None, (-1, 1), Matching())
    with pytest.raises(ValueError, match="15 depth maps"):
        match_views(CAMERAS, SIZE, DepthMaps(toy.depth[:15], toy.depth[:15]), None, (-1, 1), Matching())
    with pytest.raises(ValueError, match="no object"):
        match_views(CAMERAS, SIZE, maps(toy), torch.zeros(16, 8, 8), (-1, 1), Matching())
    with pytest.raises(ValueError, match="masks"):
        match_views(CAMERAS, SIZE, maps(toy), torch.zeros(8, 8), (-1, 1), Matching())


# --- the picture ------------------------------------------------------------------------------------------------------


def test_points_are_even_the_same_each_time_and_on_the_object():
    solid = torch.zeros(40, 40, dtype=torch.bool)
    solid[8:32, 4:36] = True
    points = choose_points(solid, 32)
    assert points.tolist() == choose_points(solid.clone(), 32).tolist()
    assert len(points) == 32 and len(set(map(tuple, points.tolist()))) == 32
    assert bool(solid[points[:, 0], points[:, 1]].all())
    quarters = [(int(r >= 20), int(c >= 20)) for r, c in points.tolist()]
    assert all(6 <= quarters.count((i, j)) <= 10 for i in (0, 1) for j in (0, 1))
    few = torch.zeros(40, 40, dtype=torch.bool)
    few[3, 3] = few[5, 30] = True
    assert choose_points(few, 9).tolist() == [[3, 3], [5, 30]]
    assert choose_points(torch.zeros_like(few), 9).shape == (0, 2)


def test_shares_of_matches_tell_hidden_from_outside():
    """A wall seen by two cameras turned 30 degrees: what leaves the narrow picture of the second is outside."""
    cameras = orbit([0, 30], 0.0, 2.0, 20.0)
    origins, directions = cameras.rays(32, 32)
    # The plane z = 0 of the world, wider than both pictures: nothing is hidden and everything has depth.
    depth = (-origins[:, None, None, 2] / directions[..., 2]).float()
    found = track(cameras, (32, 32), depth, offsets=(1,))
    free = track(cameras, (32, 32), depth, offsets=(1,), occlusion=False)
    surface = surface_cells(found, cameras, depth)
    (one,) = count_matches(found, free, surface)
    points = origins[0] + directions[0] * depth[0][..., None]
    w2c = torch.linalg.inv(cameras.c2w[1].double())
    there = points.double() @ w2c[:3, :3].T + w2c[:3, 3]
    fx, _, cx, _ = cameras.intrinsics[1].double()
    u, v = (there[..., 0] / there[..., 2] * fx + cx, there[..., 1] / there[..., 2] * fx + 0.5)
    inside = float(((u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)).double().mean())
    assert 0.01 < 1 - inside < 0.9
    assert one.outside == pytest.approx(1 - inside, abs=1e-6)
    assert one.matched == pytest.approx(inside, abs=0.02) and one.matched + one.hidden + one.outside == pytest.approx(1)
    assert "| 0 (0 deg) | 1 (30 deg) |" in match_table([one], cameras, "perspective")


def test_lines_end_on_the_same_surface_point(toy):
    """Views painted black but for one red spot of the surface: its line runs from red to red."""
    found = track(CAMERAS, SIZE, toy.depth)
    surface = surface_cells(found, CAMERAS, toy.depth)
    cell = next(c for c in choose_points(surface[0], 50).tolist() if found.confidence[0, 1][tuple(c)] > 0.99)
    only = torch.zeros_like(surface)
    only[0][tuple(cell)] = True
    picture = np.asarray(draw_matches(torch.zeros(16, 48, 48, 3), found, only, CAMERAS, [0], 5))
    green = (picture == confidence_colour(1.0)).all(-1)
    green[-28:] = False  # the legend
    columns = np.nonzero(green.any(0))[0]
    u = float(found.uv[0, 1][tuple(cell)][0]) / SIZE[1] * 256 + 2 * (256 + 12)
    start = (cell[1] + 0.5) / SIZE[1] * 256 + 256 + 12
    assert abs(columns.max() - u) < 5 and columns.min() < start + 5
    assert confidence_colour(0.0)[0] > 200 and confidence_colour(1.0)[1] > confidence_colour(1.0)[0]
