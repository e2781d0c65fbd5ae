"""Calibration of affine depth: against the true depth of generated objects, closed forms, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvpack.multiview.cameras import orbit
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.depth_agreement import confidence, disagreement
from mvpack.multiview.depth_calibrate import calibrate, object_masks, silhouette_radii
from mvpack.multiview.depth_sources import from_da3_geometry, from_moge_geometry, from_picture

CAMERAS = orbit([45.0 * i for i in range(8)], 15.0, 1.5, 49.13)
RADIUS = 0.4


def sphere(cameras, size: int, radius: float = RADIUS) -> torch.Tensor:
    """(N,size,size) camera z of a sphere around the origin, by the quadratic equation in float64; 0 = nothing."""
    half = math.tan(math.radians(float(cameras.fov_y()[0])) / 2)
    axis = ((torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1) * half
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    a = 1 + x * x + y * y
    out = []
    for distance in cameras.radii().tolist():
        # |z d - (0, 0, R)|^2 = r^2 with d = (x, y, 1).
        root = distance**2 - a * (distance**2 - radius**2)
        out.append(torch.where(root > 0, (distance - root.clamp_min(0).sqrt()) / a, 0.0))
    return torch.stack(out).float()


def as_disparity(depth: torch.Tensor, factors, offsets) -> torch.Tensor:
    inverse = torch.where(depth > 0, 1 / depth.clamp_min(1e-3), torch.zeros_like(depth))
    return inverse * torch.tensor(factors)[:, None, None] + torch.tensor(offsets)[:, None, None]


@pytest.fixture(scope="module")
def toy():
    """A held-out object in 8 views of 64 px."""
    return render_object(make_object(1_000_003, 0, 6), CAMERAS, 64, 1)


def mean_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    both = (found > 0) & (truth > 0)
    return float((found - truth).abs()[both].mean())


# --- against the truth ------------------------------------------------------------------------------------------------


def test_joint_recovers_a_sphere():
    """Affine disparity without noise: what is left comes from sampled outlines, under a hundredth of the radius."""
    truth = sphere(CAMERAS, 64)
    chance = torch.Generator().manual_seed(1)
    raw = as_disparity(truth, (torch.rand(8, generator=chance) * 9 + 0.3).tolist(), torch.randn(8).tolist())
    result = calibrate(raw, (truth > 0).float(), CAMERAS)
    assert mean_error(result.maps.depth, truth) < 0.004
    assert result.after.world < 0.003
    assert bool((result.maps.depth[truth == 0] == 0).all())


@pytest.mark.parametrize("kind", ["disparity", "depth"])
def test_each_calibration_is_better_than_the_one_before(toy, kind):
    """minmax, silhouette, joint on a real shape with 2 % noise. The joint fit comes close to the best map there is."""
    truth, inside = toy.depth, toy.depth > 0
    source = torch.where(inside, 1 / truth.clamp_min(1e-3), 0.0) if kind == "disparity" else truth
    span = source[inside].max() - source[inside].min()
    noisy = source + 0.02 * span * torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    errors = {
        method: mean_error(calibrate(noisy, inside.float(), CAMERAS, kind=kind, method=method).maps.depth, truth)
        for method in ("minmax", "silhouette", "joint")
    }
    floor = mean_error(torch.where(inside, 1 / noisy if kind == "disparity" else noisy, 0.0), truth)
    assert errors["silhouette"] < 0.6 * errors["minmax"]
    assert errors["joint"] < errors["silhouette"]
    assert errors["joint"] < 1.3 * floor + 0.003


def test_joint_mends_one_view_that_starts_wrong(toy):
    """Metric depth with one view moved by a tenth of the object and flattened: the others pull it back."""
    wrong = toy.depth.clone()
    inside = wrong > 0
    wrong[3] = torch.where(inside[3], 1.6 + 0.7 * (wrong[3] - 1.5), 0.0)
    before = mean_error(wrong[3], toy.depth[3])
    result = calibrate(wrong, inside.float(), CAMERAS, kind="depth", method="joint", metric=True)
    assert before > 0.09
    assert mean_error(result.maps.depth[3], toy.depth[3]) < 0.2 * before
    untouched = calibrate(wrong, inside.float(), CAMERAS, kind="depth", method="none", metric=True)
    assert torch.allclose(untouched.maps.depth, wrong, atol=1e-6)


def test_minmax_is_the_papers_formula():
    """Z = R - r V with V linear between the ends; r from the silhouette of a sphere, known in closed form."""
    truth = sphere(CAMERAS, 64)
    inside = truth > 0
    raw = torch.where(inside, 3.0 - 2.0 * truth, -5.0)
    result = calibrate(raw, inside.float(), CAMERAS, method="minmax", percentiles=(0.0, 100.0))
    radius = silhouette_radii(inside, CAMERAS)[0]
    assert radius == pytest.approx(RADIUS, abs=1.5 / 64)
    for found, values, mask in zip(result.maps.depth, raw, inside, strict=True):
        v = (values[mask] - values[mask].min()) / (values[mask].max() - values[mask].min())
        assert torch.allclose(found[mask], 1.5 - radius * v, atol=1e-5)


def test_side_views_are_missed_openly(toy):
    few = CAMERAS.subset([0, 1])
    result = calibrate(toy.depth[:2], (toy.depth[:2] > 0).float(), few, kind="depth", method="silhouette")
    assert "No view sees the object from the side" in result.note
    assert "min-max" in result.report()


# --- invariances ------------------------------------------------------------------------------------------------------


@settings(max_examples=4, deadline=None)
@given(
    factor=st.lists(st.floats(0.01, 100), min_size=8, max_size=8),
    offset=st.lists(st.floats(-50, 50), min_size=8, max_size=8),
    method=st.sampled_from(["minmax", "silhouette", "joint"]),
)
def test_affine_changes_of_the_disparity_change_nothing(toy, factor, offset, method):
    """Offsets up to 50 times the values: float64 keeps the rest."""
    inside = toy.depth > 0
    plain = as_disparity(toy.depth, [1.0] * 8, [0.0] * 8).double()
    scale, shift = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (factor, offset))
    expected = calibrate(plain, inside.float(), CAMERAS, method=method).maps.depth
    found = calibrate(plain * scale + shift, inside.float(), CAMERAS, method=method).maps.depth
    assert torch.allclose(found, expected, atol=1e-4)


def test_units_of_the_world_do_not_matter(toy):
    """Everything three times as large gives depth three times as large."""
    inside = (toy.depth > 0).float()
    raw = as_disparity(toy.depth, [1.0] * 8, [0.0] * 8)
    large = orbit([45.0 * i for i in range(8)], 15.0, 4.5, 49.13)
    for method in ("silhouette", "joint"):
        small_depth = calibrate(raw, inside, CAMERAS, method=method).maps
        large_depth = calibrate(raw, inside, large, method=method).maps
        assert torch.allclose(large_depth.depth, 3 * small_depth.depth, rtol=1e-3)
        assert torch.allclose(large_depth.confidence, small_depth.confidence, atol=1e-2)


def test_same_input_same_answer_and_inputs_stay(toy):
    raw, inside = as_disparity(toy.depth, [1.0] * 8, [0.0] * 8), (toy.depth > 0).float()
    copies = raw.clone(), inside.clone()
    first, second = (calibrate(raw, inside, CAMERAS).maps for _ in range(2))
    assert torch.equal(first.depth, second.depth)
    assert torch.equal(first.confidence, second.confidence)
    assert torch.equal(raw, copies[0])
    assert torch.equal(inside, copies[1])


# --- agreement and confidence -----------------------------------------------------------------------------------------


def test_disagreement_measures_a_known_error():
    """A sphere's true depth agrees; pushed back by d in every second view, neighbours differ by d times a cosine."""
    truth = sphere(CAMERAS, 96)
    assert disagreement(truth, CAMERAS).world < 0.002
    moved = truth.clone()
    moved[::2][truth[::2] > 0] += 0.05
    found = disagreement(moved, CAMERAS)
    assert 0.025 < found.world < 0.11
    assert found.pixels > 1
    assert disagreement(truth[[0, 4]], CAMERAS.subset([0, 4])) is None


def test_confidence_falls_where_depth_is_wrong():
    truth = sphere(CAMERAS, 96)
    right = confidence(truth, CAMERAS, RADIUS)
    assert float(right[:, 38:58, 38:58].mean()) > 0.95
    assert bool((right[truth == 0] == 0).all())
    wrong = truth.clone()
    wrong[2, 40:56, 40:56] -= 0.15
    low = confidence(wrong, CAMERAS, RADIUS)
    assert float(low[2, 42:54, 42:54].mean()) < 0.2
    assert torch.equal(low[6], right[6])  # the view from the other side shares nothing with it


# --- sources ----------------------------------------------------------------------------------------------------------


def test_moge_geometry_with_holes(toy):
    """Depth in metres of its own scale, infinite outside; holes inside the object stay holes."""
    inside = toy.depth > 0
    depth = torch.where(inside, 7.0 * toy.depth, torch.inf)
    hole = (slice(None), slice(30, 33), slice(30, 33))
    mask = inside.clone()
    mask[hole] = False
    source = from_moge_geometry({"depth": depth, "mask": mask, "image": toy.rgb}, CAMERAS, None)
    result = calibrate(source.maps, source.masks, CAMERAS, kind=source.kind, near_is_large=source.near_is_large)
    assert mean_error(result.maps.depth, toy.depth) < 0.02
    assert bool((result.maps.depth[hole] == 0).all())


def test_da3_geometry_scale_from_its_cameras(toy):
    """Depth and cameras of a world 2.5 times as large: calibration `none` brings them back."""
    w2c = CAMERAS.w2c()[:, :3].clone()
    w2c[:, :, 3] *= 2.5
    geometry = {"depth": 2.5 * toy.depth, "image": toy.rgb, "mode": "multiview", "extrinsics": w2c[None]}
    source = from_da3_geometry(geometry, CAMERAS, (toy.depth > 0).float())
    assert source.metric
    result = calibrate(source.maps, source.masks, CAMERAS, kind="depth", method="none", metric=True)
    assert mean_error(result.maps.depth, toy.depth) < 1e-4
    del geometry["extrinsics"]
    assert not from_da3_geometry(geometry, CAMERAS, None).metric


def test_pictures_of_depth_near_dark(toy):
    """8-bit depth as a picture, near dark: half a step of its 255 is what is lost."""
    inside = toy.depth > 0
    low, high = toy.depth[inside].min(), toy.depth[inside].max()
    shade = torch.where(inside, (255 * (toy.depth - low) / (high - low)).round() / 255, 1.0)
    image = shade[..., None].expand(-1, -1, -1, 3)
    source = from_picture(image, CAMERAS, inside.float(), "depth", near_is_bright=False)
    result = calibrate(source.maps, source.masks, CAMERAS, kind="depth", near_is_large=source.near_is_large)
    assert mean_error(result.maps.depth, toy.depth) < 0.012


def test_masks_are_estimated_from_a_plain_background(toy):
    found = object_masks(toy.rgb, None) > 0.5
    truth = toy.alpha > 0.5
    assert float((found & truth).sum() / (found | truth).sum()) > 0.97
    assert tuple(object_masks(toy.rgb, torch.ones(8, 16, 16)).shape) == (8, 64, 64)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.update(masks=torch.zeros(8, 64, 64)), "Every mask is empty"),
        (lambda a: a["masks"][2].zero_(), "The mask of view 2 is empty"),
        (lambda a: a["raw"][1].fill_(0.5), "view 1 has the same value all over the object"),
        (lambda a: a["raw"][4].fill_(float("nan")), "NaN or infinity .view 4."),
        (lambda a: a.update(raw=a["raw"][:5]), "5 depth maps but the cameras describe 8"),
        (lambda a: a.update(masks=a["masks"][:5]), "5 masks but the cameras describe 8"),
        (lambda a: a["masks"][0].fill_(float("nan")), "masks contain NaN"),
        (lambda a: a.update(method="none"), "no scale of their own"),
        (lambda a: a.update(method="best"), "no calibration 'best'"),
        (lambda a: a.update(kind="depth", metric=True, raw=0 * a["raw"]), "more than 0 inside the mask"),
        (lambda a: a.update(percentiles=(90.0, 10.0)), "percentiles must be two growing numbers"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(toy, change, says):
    inside = toy.depth > 0
    arguments = {"raw": as_disparity(toy.depth, [1.0] * 8, [0.0] * 8), "masks": inside.float(), "cameras": CAMERAS}
    change(arguments)
    raw, masks, cameras = (arguments.pop(name) for name in ("raw", "masks", "cameras"))
    with pytest.raises(ValueError, match=says) as caught:
        calibrate(raw, masks, cameras, **arguments)
    assert "\n" not in str(caught.value)


def test_views_without_an_object_and_foreign_geometry_are_refused(toy):
    with pytest.raises(ValueError, match="No object stands out .* in view 0, 1"):
        object_masks(torch.ones(2, 32, 32, 3), None)
    with pytest.raises(ValueError, match="no depth or no picture"):
        from_moge_geometry({"image": toy.rgb}, CAMERAS, None)
    with pytest.raises(ValueError, match="must be .views, height, width."):
        from_da3_geometry({"image": toy.rgb, "depth": toy.depth[0]}, CAMERAS, None)
