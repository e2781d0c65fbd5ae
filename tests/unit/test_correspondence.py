"""Correspondence against exact ray-cast geometry, the published error table, and the properties it promises."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvpack.multiview.camera_presets import PRESETS, preset
from mvpack.multiview.cameras import orbit
from mvpack.multiview.correspondence import MODES, cell_centres, footprints, neighbour_table, resample_depth, track
from mvpack.multiview.correspondence_paper import move, turn, turn_raised
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object

DEMO = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)


def sphere_depth(cameras, size, radius=0.5):
    """(N,H,W) float64-solved camera depth of a sphere around the origin, 0 outside."""
    origins, directions = cameras.rays(size, size)
    o, d = origins.double()[:, None, None], directions.double()
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - radius**2
    root = b * b - a * c
    return torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, 0.0).float()


def literal_projection(cameras, points, width, height):
    """uv (N,P,2) and z (N,P) in float64 from a 4x4 inverse: not the code under test."""
    w2c = torch.linalg.inv(cameras.c2w.double())
    p = points.double() @ w2c[:, :3, :3].transpose(1, 2) + w2c[:, None, :3, 3]
    fx, fy, cx, cy = (v[:, None] for v in cameras.intrinsics.double().unbind(1))
    uv = torch.stack([(p[..., 0] / p[..., 2] * fx + cx) * width, (p[..., 1] / p[..., 2] * fy + cy) * height], -1)
    return uv, p[..., 2]


@pytest.mark.parametrize("name", PRESETS)
def test_perspective_lands_on_the_true_projection(name):
    cameras = preset(name)
    size = 48
    true = render_object(make_object(5, 1), cameras, size, supersample=1)
    found = track(cameras, (size, size), true.depth, offsets=(-2, -1, 1, 2))
    uv, z = literal_projection(cameras, true.coords.reshape(-1, 3), size, size)
    uv = uv.view(len(cameras), len(cameras), size, size, 2)
    checked = 0
    for i in range(len(cameras)):
        for k, j in enumerate(found.neighbours[i].tolist()):
            seen = found.valid[i, k]
            if j < 0:
                assert not seen.any()
                continue
            assert bool((true.depth[i][seen] > 0).all())
            worst = (found.uv[i, k] - uv[j, i])[seen].abs()
            assert worst.numel() == 0 or float(worst.max()) < 1e-3
            checked += int(seen.sum())
    assert checked > 50 * len(cameras)


@pytest.mark.parametrize(("grid", "resolution"), [(64, 128), (32, 256)])
def test_occlusion_precision_and_recall(grid, resolution):
    cameras = orbit([0, 22.5, 45], 15.0, 1.5, 49.13)
    fine_size = 768
    hit = wrong = missed = hidden = 0
    for seed in (1, 3, 4, 6):
        spec = make_object(seed)
        cell, fine = render_object(spec, cameras, grid, 1), render_object(spec, cameras, fine_size, 1)
        found = track(cameras, (grid, grid), render_object(spec, cameras, resolution, 1).depth, offsets=(-2, -1, 1, 2))
        uv, z = literal_projection(cameras, cell.coords.reshape(-1, 3), fine_size, fine_size)
        for i in range(3):
            for k, j in enumerate(found.neighbours[i].tolist()):
                if j < 0:
                    continue
                part = slice(i * grid * grid, (i + 1) * grid * grid)
                at, depth = uv[j, part].view(grid, grid, 2), z[j, part].view(grid, grid)
                pixel = at.long().clamp(0, fine_size - 1)
                other = fine.depth[j][pixel[..., 1], pixel[..., 0]]
                sight = torch.nn.functional.normalize(cell.coords[i] - cameras.centers()[j], dim=-1)
                cos = -(cell.normals[i] * sight).sum(-1)
                # One fine pixel, and what a surface of known tilt rises over it.
                room = depth / (1.094 * fine_size) * (1 + 0.71 / cos.clamp_min(0.05))
                front = cell.depth[i] > 0
                truth = front & (cos > 0) & (other > 0) & ((other - depth).abs() < room)
                got = found.valid[i, k]
                hit += int((got & truth).sum())
                wrong += int((got & ~truth & front).sum())
                missed += int((~got & truth).sum())
                hidden += int((front & ~truth).sum())
    assert hidden > 0.1 * hit
    assert hit / (hit + wrong) > 0.97
    assert hit / (hit + missed) > 0.97


# references.md 5.1: mean and 95th percentile in latent pixels; no move, z = 0, Eq. 4, with elevation.
TABLE = {
    ("syncdreamer", None, 32): ((4.30, 6.3), (4.26, 6.1), (1.71, 2.5), (1.04, 1.8)),
    ("videomv_i2v", None, 32): ((3.33, 4.7), (3.32, 4.6), (0.77, 1.3), (0.75, 1.3)),
    ("videomv_t2v", None, 32): ((2.60, 3.7), (2.60, 3.7), (0.67, 1.0), (0.49, 0.9)),
    ("sv3d_stability", 0, 72): ((8.1, 11.4), (8.1, 11.3), (1.54, 2.7), (1.54, 2.7)),
    ("sv3d_stability", 20, 72): ((7.8, 11.3), (7.8, 11.1), (2.36, 3.4), (1.45, 2.5)),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("case", TABLE)
def test_error_table_of_the_paper_formula(case, turned):
    """Sphere of radius 0.5, points that face both cameras; either direction of turning gives the same figures."""
    name, elevation, size = case
    cameras = preset(name, elevation).subset([1, 0] if turned else [0, 1])
    depth = sphere_depth(cameras, size)
    origins, directions = cameras.rays(size, size)
    points = origins[0] + directions[0] * depth[0][..., None]
    exact = literal_projection(cameras, points.reshape(-1, 3), size, size)[0][1].view(size, size, 2)
    both = (depth[0] > 0) & (((cameras.centers()[1] - points) * points).sum(-1) > 0)
    cells, first, second = cell_centres(size, size), torch.tensor([0]), torch.tensor([1])
    positions = (
        cells,
        move(cells, None, cameras, first, second, raised=False)[0],
        move(cells, depth[:1], cameras, first, second, raised=False)[0],
        move(cells, depth[:1], cameras, first, second, raised=True)[0],
    )
    for at, (mean, high) in zip(positions, TABLE[case], strict=True):
        miss = (at - exact).norm(dim=-1)[both]
        assert float(miss.mean()) == pytest.approx(mean, abs=0.05)
        assert float(miss.quantile(0.95)) == pytest.approx(high, abs=0.051)  # the table's last digit


def test_modes_use_their_own_positions():
    cameras = preset("syncdreamer").subset([0, 1])
    depth, size = sphere_depth(cameras, 32), (32, 32)
    index = torch.tensor([0]), torch.tensor([1])
    for mode, raised in (("paper", False), ("orthographic", True)):
        found = track(cameras, size, depth, offsets=(1,), mode=mode)
        seen = found.valid[0, 0]
        assert int(seen.sum()) > 300
        assert torch.equal(found.uv[0, 0][seen], move(cell_centres(*size), depth[:1], cameras, *index, raised)[0][seen])
    same = track(cameras, size, depth, offsets=(1,), mode="identity")
    assert torch.equal(same.uv[0, 0], cell_centres(*size))
    # Whether a point is hidden is a property of the point, not of the formula: what perspective drops, all drop.
    exact = track(cameras, size, depth, offsets=(1,))
    assert not bool((same.valid & ~exact.valid & (same.foreground[:, None] == 1))[0, 0, 12:20, 12:20].any())


def test_paper_mode_without_depth_puts_every_point_on_the_axis():
    found = track(preset("sv3d_stability"), (9, 9), mode="paper", offsets=(1,))
    alpha = math.radians(360 / 21)
    expected = (torch.arange(9) + 0.5 - 4.5) * math.cos(alpha) + 4.5
    assert torch.allclose(found.uv[3, 0, 4, :, 0], expected, atol=1e-5)
    assert torch.equal(found.uv[3, 0, :, 2, 1], torch.arange(9) + 0.5)


angles = st.floats(-math.pi, math.pi)
lengths = st.floats(-100, 100)


@given(lengths, lengths, lengths, angles, angles, st.floats(-1.5, 1.5))
@settings(deadline=None, max_examples=100)
def test_turning_twice_is_turning_by_the_sum(x, y, z, first, second, elevation):
    """Lemma B.1, for Eq. 4 and for its raised form."""
    x, y, z, first, second, elevation = torch.tensor([x, y, z, first, second, elevation], dtype=torch.float64)
    once = turn(x, z, first + second)
    twice = turn(*turn(x, z, second), first)
    assert torch.allclose(torch.stack(once), torch.stack(twice), atol=1e-9)
    once = turn_raised(x, y, z, first + second, elevation)
    twice = turn_raised(*turn_raised(x, y, z, second, elevation), first, elevation)
    assert torch.allclose(torch.stack(once), torch.stack(twice), atol=1e-9)
    flat = turn_raised(x, y, z, first, torch.zeros_like(elevation))
    assert torch.allclose(torch.stack(flat), torch.stack([turn(x, z, first)[0], y, turn(x, z, first)[1]]), atol=1e-9)


def test_neighbours_follow_the_azimuths_and_wrap_only_on_closed_orbits():
    assert neighbour_table(DEMO).tolist() == [[(i - 1) % 16, (i + 1) % 16] for i in range(16)]
    arc = orbit([-40, -20, 0, 20, 40], 0.0, 2.0, 40.0, input_view=2)
    assert not arc.closed
    assert neighbour_table(arc, (-2, -1, 1, 2)).tolist() == [
        [-1, -1, 1, 2], [-1, 0, 2, 3], [0, 1, 3, 4], [1, 2, 4, -1], [2, 3, -1, -1],
    ]  # fmt: skip
    mixed = orbit([40, -20, 20, 0, -40], 0.0, 2.0, 40.0)
    assert neighbour_table(replace(mixed, closed=False)).tolist() == [[2, -1], [4, 3], [3, 0], [1, 2], [-1, 1]]
    clockwise = orbit([0, 270, 180, 90], 0.0, 2.0, 40.0)
    assert clockwise.closed and neighbour_table(clockwise, (1,)).flatten().tolist() == [3, 0, 1, 2]
    uneven = preset("ouroboros3d")
    assert neighbour_table(uneven)[[0, 7]].tolist() == [[7, 1], [6, 0]]


def test_a_short_orbit_never_counts_a_neighbour_twice():
    table = neighbour_table(preset("lgm"), (-3, -2, -1, 1, 2, 3))
    assert all(sorted(row)[:3] == [-1, -1, -1] and len(set(row) - {-1}) == 3 for row in table.tolist())
    assert table[0].tolist() == [-1, 2, 3, 1, -1, -1]
    assert (neighbour_table(orbit([0, 30], 0.0, 2.0, 40.0), (-1, 1)) == torch.tensor([[-1, 1], [0, -1]])).all()
    assert (neighbour_table(orbit([0], 0.0, 2.0, 40.0)) == -1).all()


def test_a_repeated_view_matches_itself_in_place():
    """ComfyUI's SV3D table: the last view stands where the first does."""
    cameras = preset("sv3d_comfyui")
    table = neighbour_table(cameras)
    assert 20 in table[0] and 0 in table[20]
    found = track(cameras, (36, 36), sphere_depth(cameras, 36))
    k = table[0].tolist().index(20)
    seen = found.valid[0, k]
    assert torch.equal(seen, found.foreground[0] > 0)
    assert torch.allclose(found.uv[0, k][seen], cell_centres(36, 36)[seen], atol=1e-4)


def test_uneven_steps_use_their_own_angle():
    cameras = preset("ouroboros3d")
    true = render_object(make_object(2), cameras, 64, 1)
    found = track(cameras, (64, 64), true.depth)
    coords, _ = literal_projection(cameras, true.coords[6].reshape(-1, 3), 64, 64)
    seen = found.valid[6, 1]
    assert int(seen.sum()) > 30
    assert float((found.uv[6, 1] - coords[7].view(64, 64, 2))[seen].abs().max()) < 1e-3


def test_resampling_never_mixes_surfaces():
    """A near square in front of a far wall: what comes out is one of them or nothing."""
    depth = torch.full((1, 40, 40), 2.0)
    depth[:, 10:27, 13:30] = 1.0
    depth[:, :5] = 0
    step = footprints(DEMO.subset([0]), depth)
    for size in ((40, 40), (17, 23), (64, 80)):
        values = resample_depth(depth, size, step)[0].unique()
        assert all(min(abs(v - t) for t in (0.0, 1.0, 2.0)) < 1e-5 for v in values.tolist())
    assert torch.equal(resample_depth(depth, (40, 40), step)[0], depth)


def test_resampling_is_exact_on_a_tilted_plane():
    camera = orbit([0], 0.0, 1.5, 49.13)
    plane = torch.tensor([0.15, -0.1, 0.7], dtype=torch.float64)  # plane . p = 1 in camera axes

    def wall(height, width):
        uv = cell_centres(height, width).double()
        fx, fy, cx, cy = camera.intrinsics[0].double()
        x, y = (uv[..., 0] / width - cx) / fx, (uv[..., 1] / height - cy) / fy
        return (1.0 / (plane[0] * x + plane[1] * y + plane[2]))[None].float()

    fine = wall(96, 96)
    for size in ((32, 32), (41, 29)):
        found = resample_depth(fine, size, footprints(camera, fine))[0]
        assert torch.allclose(found, wall(*size), rtol=1e-5)


def test_depth_and_masks_of_other_resolutions():
    cameras = DEMO.subset([0, 1])
    true = render_object(make_object(3), cameras, 160, 1)
    mask = torch.zeros(2, 50, 50)
    mask[:, :, :25] = 1
    found = track(cameras, (20, 20), true.depth, mask, offsets=(1,))
    assert found.confidence.shape == (2, 1, 20, 20)
    assert not found.valid[0, 0, :, 10:].any() and found.valid[0, 0, :, :10].any()
    share = (true.depth > 0).float().view(2, 20, 8, 20, 8).mean((2, 4))
    assert torch.allclose(found.foreground[:, :, :10], share[:, :, :10], atol=1e-5)
    assert bool((found.confidence[0, 0] <= found.foreground[0] + 1e-6).all())


def test_nothing_is_changed_and_nothing_is_not_a_number():
    cameras = DEMO.subset([0, 1, 2])
    depth = sphere_depth(cameras, 24)
    kept = depth.clone()
    for mode in MODES:
        found = track(cameras, (24, 24), depth, mode=mode)
        assert torch.isfinite(found.uv).all() and torch.isfinite(found.confidence).all()
        assert not found.valid[0, 0].any() and int(found.neighbours[0, 0]) == -1
    assert torch.equal(depth, kept)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "epipolar"}, "mode"),
        ({"depth": None}, "needs depth"),
        ({"depth": torch.ones(3, 8, 8)}, "cameras"),
        ({"depth": torch.full((2, 8, 8), math.nan)}, "NaN"),
        ({"depth": -torch.ones(2, 8, 8)}, "negative"),
        ({"depth": torch.zeros(2, 8, 8)}, "0 everywhere"),
        ({"masks": torch.zeros(2, 8, 8)}, "no object"),
        ({"offsets": (0, 1)}, "offsets"),
        ({"offsets": ()}, "offsets"),
        ({"depth_error": -1.0}, "depth_error"),
        ({"size": (0, 8)}, "grid"),
    ],
)
def test_bad_input_is_one_sentence(change, words):
    arguments = {"size": (8, 8), "depth": torch.ones(2, 8, 8)} | change
    with pytest.raises(ValueError, match=words):
        track(DEMO.subset([0, 1]), **arguments)
