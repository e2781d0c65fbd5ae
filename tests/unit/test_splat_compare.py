"""Chamfer distance and volume IoU against closed forms: spheres, shifted copies, boxes of points."""

import math

import pytest
import torch
from mvpack.multiview.splat_compare import chamfer, sample_points, solid, splat_chamfer, volume_iou
from mvpack.multiview.splats.gaussians import Gaussians


def sphere(radius: float, centre=(0.0, 0.0, 0.0), count: int = 2000, opacity: float = 0.95) -> Gaussians:
    """A thin shell: flat discs on a Fibonacci lattice, with the third axis along the normal."""
    i = torch.arange(count) + 0.5
    z, turn = 1 - 2 * i / count, math.pi * (1 + 5**0.5) * i
    ring = (1 - z * z).sqrt()
    normal = torch.stack([ring * turn.cos(), ring * turn.sin(), z], dim=1)
    # The half-way quaternion between the z axis and the normal.
    quats = torch.stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], torch.zeros(count)], dim=1)
    spread = radius * math.sqrt(4 * math.pi / count)
    return Gaussians(
        radius * normal + torch.tensor(centre),
        torch.tensor([spread, spread, 0.002]).expand(count, 3).clone(),
        torch.nn.functional.normalize(quats, dim=1),
        torch.full((count,), opacity),
        torch.zeros(count, 1, 3),
    )


def test_points_lie_on_the_shell_and_spread_evenly():
    points = sample_points(sphere(0.4), 20000)
    radii = points.norm(dim=1)
    assert float((radii - 0.4).abs().max()) < 0.02
    # Of a uniform sphere the coordinates have mean 0 and variance r^2 / 3.
    assert points.mean(0).abs().max() < 0.01
    assert torch.allclose(points.var(0), torch.full((3,), 0.16 / 3), rtol=0.03)


def test_points_go_where_opacity_times_area_is():
    scales = torch.tensor([[0.03, 0.02, 0.001], [0.06, 0.04, 0.001], [0.03, 0.02, 0.02]])
    opacities = torch.tensor([1.0, 0.5, 0.5])
    means = torch.tensor([[0.0, 0, 0], [10.0, 0, 0], [20.0, 0, 0]])
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4)
    points = sample_points(Gaussians(means, scales, quats, opacities, torch.zeros(3, 1, 3)), 60000)
    share = torch.bincount((points[:, 0] / 10).round().long(), minlength=3) / 60000
    # 6 : 12 : 3; a share of 60,000 has a standard deviation of 0.002.
    assert torch.allclose(share, torch.tensor([6.0, 12.0, 3.0]) / 21, atol=0.008)


def test_sampling_is_seeded_and_leaves_the_splat_alone():
    splat = sphere(0.3)
    before = [t.clone() for t in splat.tensors()]
    assert torch.equal(sample_points(splat, 500, seed=4), sample_points(splat, 500, seed=4))
    assert not torch.equal(sample_points(splat, 500, seed=4), sample_points(splat, 500, seed=5))
    assert all(torch.equal(a, b) for a, b in zip(before, splat.tensors(), strict=True))
    assert splat_chamfer(splat, splat, 2000) == 0


def test_chamfer_of_a_shifted_lattice_is_the_shift():
    line = torch.arange(6.0)
    lattice = torch.cartesian_prod(line, line, line)
    assert chamfer(lattice, lattice + torch.tensor([0.3, 0.0, 0.4])) == pytest.approx(0.5, abs=1e-6)
    # One way 0, the other way 7: the mean of both.
    assert chamfer(torch.zeros(1, 3), torch.tensor([[0.0, 0, 0], [14.0, 0, 0]])) == pytest.approx(3.5)


@pytest.mark.parametrize(("inner", "outer"), [(0.3, 0.4), (0.35, 0.4), (0.2, 0.4)])
def test_concentric_spheres(inner, outer):
    first, second = sphere(inner), sphere(outer)
    # The discs stand off the sphere by up to 0.003, and the nearest of many points lies on the near side.
    assert splat_chamfer(first, second, 8000) == pytest.approx(outer - inner, abs=0.005)
    # The shells are solid for up to a cell (here 0.018) beyond their radius.
    cell = 0.86 / 48
    low, high = (inner / outer) ** 3, ((inner + cell) / (outer + cell)) ** 3
    assert low - 0.02 < volume_iou(first, second, 48) < high + 0.02


@pytest.mark.parametrize("shift", [0.05, 0.15, 0.3])
def test_shifted_spheres(shift):
    radius = 0.3
    first, second = sphere(radius), sphere(radius, (shift, 0.0, 0.0))
    lens = math.pi * (4 * radius + shift) * (2 * radius - shift) ** 2 / 12
    iou = lens / (2 * 4 / 3 * math.pi * radius**3 - lens)
    assert volume_iou(first, second, 48) == pytest.approx(iou, abs=0.03)
    # The nearest point of a sphere is along the radius: mean of | |p - c| - r | over the other sphere, by its zones.
    cosine = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    distance = ((radius**2 + shift**2 + 2 * radius * shift * cosine).sqrt() - radius).abs().mean()
    # The floor of 8,000 points on this sphere is half of sqrt(1.13 / 8000) = 0.006, and adds like a hypotenuse.
    assert splat_chamfer(first, second, 8000) == pytest.approx(math.hypot(float(distance), 0.006), abs=0.005)


def test_two_samples_of_one_sphere_are_at_the_stated_floor():
    splat = sphere(0.4)
    # Of points strewn over an area (Clark and Evans 1954); the cloud's thickness of 0.002 adds to it.
    floor = 0.5 * math.sqrt(4 * math.pi * 0.16 / 20000)
    found = chamfer(sample_points(splat, 20000, 1), sample_points(splat, 20000, 2))
    assert floor < found < math.hypot(floor, 2 * 0.002)


def test_a_shell_is_filled_and_a_shell_with_a_hole_is_not():
    low, high = torch.full((3,), -0.5), torch.full((3,), 0.5)
    whole = sphere(0.4)
    cells = solid(whole, low, high, 60)
    assert cells.shape == (60, 60, 60)
    volume, larger = (4 / 3 * math.pi * r**3 for r in (0.4, 0.4 + 1 / 60))
    assert volume < float(cells.sum()) / 60**3 < larger
    assert bool(cells[30, 30, 30]) and not bool(cells[1, 1, 1])
    keep = whole.means[:, 2] < 0.3
    cut = Gaussians(*(t[keep] for t in whole.tensors()))
    assert not bool(solid(cut, low, high, 60)[30, 30, 30])


def test_apart_and_alike():
    first, second = sphere(0.2), sphere(0.2, (1.0, 0.0, 0.0))
    assert volume_iou(first, first) == 1
    assert volume_iou(first, second) == 0


def test_transparent_splats_are_answered():
    nothing = sphere(0.3, opacity=0.0)
    with pytest.raises(ValueError, match="fully transparent"):
        splat_chamfer(nothing, nothing)
    with pytest.raises(ValueError, match="no volume"):
        volume_iou(sphere(0.3), nothing)
