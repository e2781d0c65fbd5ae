"""Camera mathematics against hand-made numbers, closed forms and round trips."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mvpack.multiview.camera_convert import (
    from_da3,
    from_load3d,
    quaternion_to_rotation,
    rotation_to_quaternion,
    to_load3d,
)
from mvpack.multiview.camera_presets import PRESETS, preset
from mvpack.multiview.cameras import Cameras, even_azimuths, orbit
from mvpack.multiview.draw import camera_plan

angle = st.floats(-720, 720, allow_nan=False)
elevation = st.floats(-89, 89, allow_nan=False)
radius = st.floats(0.3, 20, allow_nan=False)
fov = st.floats(5, 120, allow_nan=False)


def wrapped(degrees):
    return (degrees + 180) % 360 - 180


def test_position_of_the_first_cameras_by_hand():
    cams = orbit([0, 90, 180, 270], 0.0, 2.0, 50.0)
    expected = torch.tensor([[0.0, 0, -2], [2, 0, 0], [0, 0, 2], [-2, 0, 0]])
    assert torch.allclose(cams.centers(), expected, atol=1e-6)
    assert float(orbit([0], 30.0, 2.0, 50.0).centers()[0, 1]) == pytest.approx(-1.0, abs=1e-6)  # y is down


def test_syncdreamer_preset_is_the_published_camera():
    cams = preset("syncdreamer")
    k = cams.pixel_intrinsics(256, 256)[0]
    assert torch.allclose(k, torch.tensor([[280.0, 0, 128], [0, 280, 128], [0, 0, 1]]), atol=1e-3)
    assert torch.allclose(torch.diff(cams.azimuths()), torch.full((15,), 22.5, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(cams.elevations(), torch.full((16,), 30.0, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(cams.radii(), torch.full((16,), 1.5, dtype=torch.float64), atol=1e-6)


def test_growing_azimuth_moves_the_camera_to_the_viewers_right():
    """A point in front of the object then drifts to the left of the picture, and a far one to the right."""
    uv, z = preset("syncdreamer").project(torch.tensor([[0.0, 0.0, -0.3], [0.0, 0.0, 0.3]]), 256, 256)
    assert uv[0, 0, 0] == pytest.approx(128, abs=1e-3)
    assert uv[1, 0, 0] < 127 and uv[1, 1, 0] > 129
    assert z[0, 0] < z[0, 1]


def test_projected_azimuth_steps_are_22_5_degrees():
    """From pixels alone: triangulate where view i+1's camera stands in view i's picture by projecting its centre ray.

    A point p at angle b from the front on the equator is on the vertical centre line of the view at azimuth b only.
    """
    flat = preset("syncdreamer", elevation=0.0)
    b = torch.deg2rad(torch.arange(16) * 22.5)
    points = 0.4 * torch.stack([torch.sin(b), torch.zeros(16), -torch.cos(b)], dim=1)
    uv, z = flat.project(points, 256, 256)
    assert torch.allclose(uv.diagonal(dim1=0, dim2=1)[0], torch.full((16,), 128.0), atol=1e-3)
    assert torch.allclose(z.diagonal(), torch.full((16,), 1.1), atol=1e-5)


def literal_projection(azimuth, elev, dist, focal_px, centre_px, point):
    """references.md 5.1's frame written out: rotate about the vertical axis, tilt, divide."""
    a, e = math.radians(azimuth), math.radians(elev)
    x, y, z = point
    right = x * math.cos(a) + z * math.sin(a)
    toward = x * math.sin(a) - z * math.cos(a)
    d = toward * math.cos(e) + (-y) * math.sin(e)
    up = (-y) * math.cos(e) - toward * math.sin(e)
    depth = dist - d
    return centre_px + focal_px * right / depth, centre_px - focal_px * up / depth, depth


@given(angle, elevation, radius, fov, st.tuples(*[st.floats(-0.25, 0.25)] * 3))
def test_projection_equals_the_literal_formula(a, e, r, f, point):
    cams = orbit([a], e, r, f)
    uv, z = cams.project(torch.tensor([point], dtype=torch.float64), 200, 200)
    focal = 100 / math.tan(math.radians(f) / 2)
    u, v, depth = literal_projection(a, e, r, focal, 100, point)
    if depth > 0.05:
        size = max(1.0, abs(u), abs(v))
        assert float(z[0, 0]) == pytest.approx(depth, rel=1e-4, abs=1e-4)
        assert float(uv[0, 0, 0]) == pytest.approx(u, abs=2e-4 * size / depth + 1e-3)
        assert float(uv[0, 0, 1]) == pytest.approx(v, abs=2e-4 * size / depth + 1e-3)


@given(angle, elevation, radius)
def test_azimuth_elevation_radius_are_read_back(a, e, r):
    cams = orbit([a], e, r, 40.0)
    assert abs(wrapped(float(cams.azimuths()[0]) - a)) * math.cos(math.radians(e)) < 1e-3
    assert float(cams.elevations()[0]) == pytest.approx(e, abs=2e-3)
    assert float(cams.radii()[0]) == pytest.approx(r, rel=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_rays_and_projection_are_inverse(size):
    width, height = size
    cams = orbit([10, 130], [20.0, -35.0], [1.5, 2.0], 45.0, aspect=width / height)
    origins, directions = cams.rays(width, height)
    for n in range(2):
        points = (origins[n] + 1.7 * directions[n]).reshape(-1, 3)
        uv, z = cams.subset([n]).project(points, width, height)
        v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        assert torch.allclose(uv[0], torch.stack([u, v], -1).reshape(-1, 2), atol=2e-3)
        assert torch.allclose(z[0], torch.full_like(z[0], 1.7), atol=1e-4)


def test_world_to_camera_is_the_inverse():
    cams = preset("ouroboros3d", elevation=12.0)
    assert torch.allclose(cams.w2c() @ cams.c2w, torch.eye(4).expand(8, 4, 4), atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_describe_themselves_and_can_be_drawn(name):
    cams = preset(name)
    assert len(cams) == PRESETS[name].views and cams.closed
    assert PRESETS[name].label in cams.describe() and "right" in cams.describe()
    picture = camera_plan(cams, 256)
    assert picture.size == (512, 288)
    colours = {c for _, c in picture.getcolors(1 << 20)}
    assert (42, 104, 196) in colours  # frustums
    assert ((226, 98, 32) in colours) == (cams.input_view is not None)  # the input view's


def test_tables_of_references():
    official = preset("sv3d_stability")
    assert torch.allclose(official.azimuths()[:2], torch.tensor([360 / 21, 720 / 21]).double(), atol=1e-3)
    assert official.input_view == 20 and float(official.azimuths()[20]) == 0
    core = preset("sv3d_comfyui").azimuths()
    assert float(core[0]) == float(core[20]) == 0 and float(core[1]) == pytest.approx(18, abs=1e-4)
    uneven = torch.tensor([0, 45, 90, 135, 180, 225, 270, 337.5]).double()
    assert torch.allclose(preset("ouroboros3d").azimuths(), uneven, atol=1e-3)
    assert preset("ouroboros3d").intrinsics[0, 0] == pytest.approx(1.3889, abs=1e-5)
    assert float(preset("videomv_i2v").elevations()[0]) == pytest.approx(5, abs=1e-4)


def test_whether_an_orbit_closes():
    assert orbit(even_azimuths(8), 0, 1, 40).closed
    assert not orbit([0, 20, 40, 60], 0, 1, 40).closed
    assert not orbit(even_azimuths(8, span_deg=180.0), 0, 1, 40).closed
    assert not orbit([0, 180], 0, 1, 40).closed
    assert orbit(even_azimuths(8, span_deg=-360.0), 0, 1, 40).closed
    assert preset("demo").subset(range(0, 16, 2)).closed
    assert not preset("demo").subset(range(4)).closed


def test_focus_is_what_the_cameras_look_at():
    cams = preset("demo")
    poses = cams.c2w.clone()
    poses[:, :3, 3] += torch.tensor([0.3, -0.2, 0.7])
    moved = Cameras(poses, cams.intrinsics)
    assert torch.allclose(moved.focus(), torch.tensor([0.3, -0.2, 0.7]).double(), atol=1e-6)
    single = orbit([0], 0.0, 2.0, 40.0)  # one axis meets nothing: a point one radius ahead
    assert torch.allclose(single.focus(), torch.zeros(3).double(), atol=1e-6)


def test_subset_keeps_track_of_the_input_view():
    cams = preset("sv3d_stability")
    assert cams.subset([20, 3]).input_view == 0 and cams.subset([3, 4]).input_view is None
    with pytest.raises(ValueError, match="between 0 and 20"):
        cams.subset([21])


@given(angle, elevation, radius, fov)
def test_load3d_round_trip(a, e, r, f):
    cams = orbit([a], e, r, f)
    back = from_load3d(to_load3d(cams, 0))
    assert (back.c2w - cams.c2w).abs().max() <= 1e-5 * max(1.0, r)
    assert (back.intrinsics - cams.intrinsics).abs().max() <= 1e-5 * float(cams.intrinsics.max())


def test_load3d_follows_cores_orbit_formula():
    """ecosystem.md: position = target + d (cos p sin y, sin p, cos p cos y), y up; no quaternion: look at it."""
    yaw, pitch, distance = math.radians(40), math.radians(25), 1.5
    position = {
        "x": distance * math.cos(pitch) * math.sin(yaw),
        "y": distance * math.sin(pitch),
        "z": distance * math.cos(pitch) * math.cos(yaw),
    }
    info = {"position": position, "target": {"x": 0, "y": 0, "z": 0}, "fov": 45.0, "cameraType": "perspective"}
    cams = from_load3d(info)
    assert (cams.c2w - orbit([40], 25.0, 1.5, 45.0).c2w).abs().max() < 1e-6
    zoomed = from_load3d({**info, "zoom": 2.0})
    assert torch.allclose(zoomed.intrinsics[:, :2], 2 * cams.intrinsics[:, :2])


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x * x for x in q) > 1e-2))
def test_quaternion_round_trip(q):
    rotation = quaternion_to_rotation(torch.tensor(q, dtype=torch.float64))
    assert torch.allclose(quaternion_to_rotation(rotation_to_quaternion(rotation)), rotation, atol=1e-9)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)


def test_da3_cameras_are_centred_and_scaled():
    """Cameras of an orbit that someone rotated, moved and scaled come back as that orbit up to the rotation."""
    truth = preset("demo", views=6)
    turn = quaternion_to_rotation(torch.tensor([0.8, 0.3, -0.4, 0.2], dtype=torch.float64))
    c2w = truth.c2w.double().clone()
    c2w[:, :3, :3] = turn @ c2w[:, :3, :3]
    c2w[:, :3, 3] = 3.0 * (turn @ c2w[:, :3, 3:])[..., 0] + torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    geometry = {
        "extrinsics": torch.linalg.inv(c2w)[None, :, :3].float(),
        "intrinsics": truth.pixel_intrinsics(252, 252)[None],
    }
    cams = from_da3(geometry, radius=1.5)
    assert torch.allclose(cams.centers().norm(dim=1), torch.full((6,), 1.5), atol=1e-4)
    assert torch.allclose(cams.intrinsics, truth.intrinsics, atol=1e-6)
    relative = cams.c2w[:, :3, :3].transpose(1, 2) @ cams.c2w[:1, :3, :3]
    expected = truth.c2w[:, :3, :3].transpose(1, 2) @ truth.c2w[:1, :3, :3]
    assert torch.allclose(relative, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: preset("sv4d"), "no camera preset 'sv4d'"),
        (lambda: preset("syncdreamer", views=12), "makes 16 views, not 12"),
        (lambda: orbit([], 0, 1, 40), "at least one azimuth"),
        (lambda: orbit([0, 1], [0, 1, 2], 1, 40), "2 azimuths but 3 elevations"),
        (lambda: orbit([0], 95, 1, 40), "between -90 and 90"),
        (lambda: orbit([0], 0, -1, 40), "radius must be positive"),
        (lambda: orbit([0], 0, 1, 180), "field of view"),
        (lambda: orbit([math.nan], 0, 1, 40), "finite"),
        (lambda: Cameras(torch.eye(4), torch.ones(1, 4)), r"\(N,4,4\)"),
        (lambda: Cameras(torch.eye(4)[None] * 2, torch.ones(1, 4)), "without scale"),
        (lambda: Cameras(torch.diag(torch.tensor([1.0, 1, -1, 1]))[None], torch.ones(1, 4)), "mirroring"),
        (lambda: Cameras(torch.eye(4)[None], torch.ones(2, 4)), r"\(1,4\)"),
        (lambda: from_load3d({}), "position"),
        (lambda: from_load3d({"position": {"x": 1}, "cameraType": "orthographic"}), "orthographic"),
        (lambda: from_load3d({"position": {"x": 1}, "target": {"x": 1}}), "same point"),
        (lambda: from_da3({"mode": "mono"}), "multi-view mode"),
    ],
)
def test_wrong_input_is_answered_in_one_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
