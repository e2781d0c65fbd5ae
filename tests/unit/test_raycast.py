"""Ray casting against closed forms, a marched implicit solid, the camera model and finite differences."""

import math

import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.demo.objects import ObjectSpec, make_object
from mvpack.multiview.demo.raycast import GROUND, SKY, render_object
from mvpack.multiview.demo.shapes import Part, rotation

CAMS = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)


def single(part):
    return ObjectSpec("one", 0, 0, 1, (part,))


def test_a_sphere_in_closed_form():
    center, radius, size = torch.tensor([0.1, -0.05, 0.07], dtype=torch.float64), 0.3, 24
    part = Part("ellipsoid", tuple(center.tolist()), (radius,) * 3, (0.2, 0.5, 0.8))
    cams = orbit([10.0, 130.0, 250.0], [0.0, 20.0, -10.0], 1.5, 40.0)
    shot = render_object(single(part), cams, size, 1)
    for view in range(3):
        c2w = cams.c2w[view].double()
        fx, fy, cx, cy = cams.intrinsics[view].double() * size
        for row in range(size):
            for col in range(size):
                d = c2w[:3, :3] @ torch.tensor([(col + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, 1.0], dtype=torch.float64)
                oc = c2w[:3, 3] - center
                disc = (oc @ d) ** 2 - (d @ d) * (oc @ oc - radius**2)
                if abs(disc) < 1e-4:
                    continue  # on the rim rounding decides
                got = shot.depth[view, row, col].item()
                if disc < 0:
                    assert got == 0 and shot.alpha[view, row, col] == 0
                    continue
                t = (-(oc @ d) - disc.sqrt()) / (d @ d)
                assert got == pytest.approx(t.item(), abs=2e-5)
                normal = (c2w[:3, 3] + t * d - center) / radius
                assert torch.allclose(shot.normals[view, row, col].double(), normal, atol=2e-4)
                up = 0.5 - 0.5 * normal[1]
                expected = [c * (g + (s - g) * up) for c, g, s in zip(part.color, GROUND, SKY, strict=True)]
                assert torch.allclose(shot.rgb[view, row, col].double(), torch.stack(expected), atol=2e-4)


def inside(part, points):
    """Whether world points (...,3) are in the solid, from its implicit equation alone (float64)."""
    turn = torch.tensor(part.rotation, dtype=torch.float64)
    p = (points - torch.tensor(part.center, dtype=torch.float64)) @ turn / torch.tensor(part.half, dtype=torch.float64)
    if part.kind == "ellipsoid":
        return (p**2).sum(-1) < 1
    if part.kind == "box":
        return (p.abs() < 1).all(-1)
    radius = 1 - (1 - part.taper) * (1 - p[..., 1]) / 2
    return (p[..., 1].abs() < 1) & (p[..., 0] ** 2 + p[..., 2] ** 2 < radius**2)


@pytest.mark.parametrize(
    "kind, taper", [("ellipsoid", 1.0), ("box", 1.0), ("frustum", 1.0), ("frustum", 0.4), ("frustum", 0.0)]
)
def test_depth_is_where_a_marched_ray_enters_the_solid(kind, taper):
    part = Part(kind, (0.05, 0.02, -0.08), (0.2, 0.3, 0.12), (0.5, 0.5, 0.5), rotation(25, -40, 70), taper)
    cams = orbit([0.0, 75.0, 200.0, 290.0], [15.0, -30.0, 60.0, 0.0], 1.5, 40.0)
    size = 20
    shot = render_object(single(part), cams, size, 1)
    steps = torch.linspace(0.8, 2.2, 2801, dtype=torch.float64)
    origins, directions = (t.double() for t in cams.rays(size, size))
    points = origins[:, None, None, None] + directions[:, :, :, None] * steps[:, None]
    member = inside(part, points)
    hit = member.any(-1)
    entry = steps[member.double().argmax(-1)]
    got = shot.depth.double()
    assert ((got > 0) == hit).double().mean() > 0.995  # rays that only graze an edge may slip between the steps
    both = hit & (got > 0)
    assert both.sum() > 100
    assert ((got - entry).abs()[both] < 6e-4).double().mean() > 0.995
    # And the point itself lies on the surface: a hair before it is outside, a hair behind it inside.
    surface = shot.coords.double()
    ray = directions / directions.norm(dim=-1, keepdim=True)
    assert not inside(part, surface - 1e-4 * ray)[both].any()
    assert inside(part, surface + 1e-4 * ray)[both].double().mean() > 0.98


@pytest.mark.parametrize("seed", [1, 9, 16])
def test_coordinates_project_to_their_own_pixel_and_depth(seed):
    size = 40
    shot = render_object(make_object(seed, 2), CAMS, size)
    columns = (torch.arange(size) + 0.5).expand(size, size)
    for view in range(0, 16, 3):
        seen = shot.depth[view] > 0
        assert seen.sum() > 100
        uv, z = CAMS.subset([view]).project(shot.coords[view][seen], size, size)
        assert torch.allclose(z[0], shot.depth[view][seen], atol=1e-5)
        assert torch.allclose(uv[0], torch.stack([columns[seen], columns.T[seen]], 1), atol=2e-3)
        origins, directions = CAMS.subset([view]).rays(size, size)
        along = origins[0] + shot.depth[view][..., None] * directions[0]
        assert torch.allclose(along[seen], shot.coords[view][seen], atol=1e-5)


@pytest.mark.parametrize("kind, taper", [("ellipsoid", 1.0), ("box", 1.0), ("frustum", 0.5)])
def test_normals_are_those_of_finite_differences_of_coordinates(kind, taper):
    part = Part(kind, (0.0, 0.0, 0.0), (0.25, 0.3, 0.2), (0.5, 0.5, 0.5), rotation(15, 30, -20), taper)
    cams = orbit([20.0, 160.0], 25.0, 1.5, 45.0)
    shot = render_object(single(part), cams, 192, 1)
    p, n = shot.coords.double(), shot.normals.double()
    du, dv = p[:, 1:-1, 2:] - p[:, 1:-1, :-2], p[:, 2:, 1:-1] - p[:, :-2, 1:-1]
    flat = torch.nn.functional.normalize(torch.cross(dv, du, dim=-1), dim=-1)
    n = n[:, 1:-1, 1:-1]
    seen = torch.nn.functional.avg_pool2d((shot.depth > 0).float()[:, None], 7, 1, 3)[:, 0, 1:-1, 1:-1] > 0.999
    cosine = (flat * n).sum(-1)[seen]
    assert (cosine > 0.995).double().mean() > 0.93  # the rest are pixels whose differences straddle an edge
    assert torch.allclose(n[seen].norm(dim=-1), torch.ones_like(cosine), atol=1e-5)
    towards = (cams.centers().double()[:, None, None] - p[:, 1:-1, 1:-1])[seen]
    assert ((towards * n[seen]).sum(-1) > 0).all()


def test_the_nearest_part_wins():
    near = Part("ellipsoid", (0, 0, -0.25), (0.1, 0.1, 0.1), (1.0, 0.0, 0.0))
    far = Part("box", (0, 0, 0.1), (0.3, 0.3, 0.1), (0.0, 0.0, 1.0))
    cams = orbit([0.0, 180.0], 0.0, 1.5, 49.13)
    for parts in ((near, far), (far, near)):
        shot = render_object(ObjectSpec("two", 0, 0, 1, parts), cams, 33, 1)
        red = shot.rgb[:, 16, 16, 0] > shot.rgb[:, 16, 16, 2]
        assert red.tolist() == [True, False]
        assert shot.depth[:, 16, 16].tolist() == pytest.approx([1.15, 1.3], abs=1e-4)


def test_windows_and_chunks_change_nothing():
    """Every part is cast in a small window only; the same picture must come out of sub-pictures and single views."""
    spec = make_object(12, 1)
    whole = render_object(spec, CAMS, 32)
    for view in (0, 5, 11):
        alone = render_object(spec, CAMS.subset([view]), 32)
        assert torch.allclose(alone.depth[0], whole.depth[view], atol=1e-6)
        assert torch.allclose(alone.rgb[0], whole.rgb[view], atol=1e-6)


def test_a_close_and_off_centre_camera_clips_parts_at_the_picture_border_correctly():
    part = Part("ellipsoid", (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    cams = orbit([0.0, 90.0], 0.0, 0.7, 60.0)
    assert (render_object(single(part), cams, 16).alpha == 1).all()


def test_alpha_is_coverage():
    part = Part("box", (0, 0, 0), (0.2, 0.2, 0.2), (0.5, 0.5, 0.5))
    cams = orbit([0.0], 0.0, 1.5, 49.13)
    size = 64
    side = 2 * 0.2 / 1.3 * float(cams.intrinsics[0, 1]) * size
    covered = render_object(single(part), cams, size, 8).alpha.sum().item()
    assert covered == pytest.approx(side * side, rel=0.01)


def test_background_shows_where_nothing_is():
    shot = render_object(make_object(0), CAMS.subset([0, 4]), 24, background=(0.1, 0.7, 0.3))
    empty = shot.alpha == 0
    assert torch.allclose(shot.rgb[empty], torch.tensor([0.1, 0.7, 0.3]))
    assert (shot.coords[shot.depth == 0] == 0).all() and (shot.normals[shot.depth == 0] == 0).all()


def test_light_from_above_makes_rolling_the_orbit_exact():
    """Turning the object by one step of the orbit gives the same pictures one view later."""
    spec = make_object(9, 2)
    step = math.radians(22.5)
    turn = torch.tensor(
        [[math.cos(step), 0, -math.sin(step)], [0, 1, 0], [math.sin(step), 0, math.cos(step)]], dtype=torch.float64
    )
    parts = tuple(
        Part(
            p.kind,
            tuple((turn @ torch.tensor(p.center, dtype=torch.float64)).tolist()),
            p.half,
            p.color,
            tuple(map(tuple, (turn @ torch.tensor(p.rotation, dtype=torch.float64)).tolist())),
            p.taper,
            p.role,
            p.decals,
            p.cap,
        )
        for p in spec.parts
    )
    still = render_object(spec, CAMS, 48).rgb
    turned = render_object(ObjectSpec("t", 0, 0, 1, parts), CAMS, 48).rgb
    # The +azimuth side comes round: view i+1 of the turned object is view i of the still one.
    assert (turned.roll(-1, 0) - still).abs().mean() < 5e-4
    assert (turned - still).abs().mean() > 0.01


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="at least 1 pixel"):
        render_object(make_object(0), CAMS, 0)
    with pytest.raises(ValueError, match="supersample"):
        render_object(make_object(0), CAMS, 8, 9)
