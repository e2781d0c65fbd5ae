"""Measures of consistency: views of one object, views that drift, views that contradict each other."""

import json
import math
from dataclasses import replace

import pytest
import torch
from mvpack.multiview import consistency
from mvpack.multiview.cameras import orbit
from mvpack.multiview.consistency import (
    QUICK,
    compare,
    held_out,
    left_out_parts,
    neighbour_error,
    odd_even,
    orbit_order,
)
from mvpack.multiview.consistency_measure import QUALITIES, Wanted, measure
from mvpack.multiview.consistency_report import heat, picture, table
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.splats.gaussians import SH_C0, Gaussians
from mvpack.multiview.splats.losses import ssim
from mvpack.multiview.splats.render import render_gaussians

# Fewer than 8 views for each splat leave its shape open, and then that is what the two disagree about.
CAMERAS = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
SIDE = 32


@pytest.fixture(scope="module")
def toy():
    """Variants of one held-out toy, which differ from behind only."""
    return [render_object(make_object(1_000_003, variant, 4), CAMERAS, SIDE) for variant in range(4)]


def ball(radius=0.35, count=1500, colour=(0.8, 0.3, 0.2)) -> Gaussians:
    """A matt ball in one colour, whose pictures and depth are known."""
    i = torch.arange(count) + 0.5
    z, turn = 1 - 2 * i / count, math.pi * (1 + 5**0.5) * i
    ring = (1 - z * z).sqrt()
    means = radius * torch.stack([ring * turn.cos(), ring * turn.sin(), z], dim=1)
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4).clone()
    sh = ((torch.tensor(colour) - 0.5) / SH_C0).expand(count, 1, 3).clone()
    return Gaussians(means, torch.full((count, 3), 0.02), quats, torch.full((count,), 0.95), sh)


def sphere_depth(radius: float, side: int) -> torch.Tensor:
    """(16,side,side) camera z of a sphere around the origin, in closed form."""
    origin, rays = CAMERAS.rays(side, side)
    a, b = rays.square().sum(-1), (rays * origin[:, None, None]).sum(-1)
    root = b.square() - a * (origin.square().sum(-1)[:, None, None] - radius**2)
    return torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, torch.zeros_like(a))


# --- the comparison itself ---


def test_comparison_counts_pixels_by_share_and_views_as_one_picture():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 24, 24, 3, generator=generator)
    share = torch.rand(3, 24, 24, generator=generator)
    b[2] = a[2]
    found = compare(a, b, share)
    squares, weights = ((a - b).double() ** 2).mean(-1), share.double()
    assert found.psnr == pytest.approx(-10 * math.log10(float((squares * weights).sum() / weights.sum())), abs=1e-4)
    one = float((squares[0] * weights[0]).sum() / weights[0].sum())
    assert float(found.view_psnr[0]) == pytest.approx(-10 * math.log10(one), abs=1e-4)
    assert float(found.view_psnr[2]) == 99
    assert torch.allclose(found.error.double(), squares.sqrt() * weights, atol=1e-6)
    left = compare(a, b, share, torch.tensor([1.0, 0.0, 1.0]))
    assert math.isnan(float(left.view_psnr[1])) and float(left.error[1].abs().max()) == 0
    assert left.psnr > found.psnr


def test_weighted_ssim_is_the_plain_one_for_equal_weights_and_sees_only_its_part():
    a = torch.rand(2, 40, 40, 3, generator=torch.Generator().manual_seed(1))
    b = a.clone()
    b[:, :, 20:] = 1 - b[:, :, 20:]
    assert torch.allclose(ssim(a, b, torch.ones(2, 40, 40)), ssim(a, b), atol=1e-6)
    left = torch.zeros(2, 40, 40)
    left[:, :, :14] = 1  # windows of 11 pixels around these end at column 19
    assert torch.allclose(ssim(a, b, left), torch.ones(2), atol=1e-5)
    assert float(ssim(a, b, 1 - left).max()) < 0.6


def test_order_along_orbits():
    shuffled = orbit([90.0, 0.0, 270.0, 180.0], 0.0, 1.5, 40.0, closed=True)
    assert orbit_order(shuffled) == [1, 0, 3, 2]
    arc = orbit([340.0, 20.0, 0.0, 320.0], 0.0, 1.5, 40.0)
    assert not arc.closed
    assert orbit_order(arc) == [3, 0, 2, 1]
    assert left_out_parts(arc, 2) == [[2], [0]]
    assert sorted(sum(left_out_parts(CAMERAS, 3), [])) == list(range(16))


# --- odd/even ---


def test_views_of_one_splat_agree_and_fall_with_drift():
    out = render_gaussians(ball(), CAMERAS, SIDE, SIDE)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    push = torch.linspace(-1, 1, 16)[order].view(16, 1, 1, 1) * out.alpha
    found = [odd_even((out.features + drift * push).clamp(0, 1), CAMERAS) for drift in (0.0, 0.1, 0.2)]
    decibels = [one.psnr for one in found]
    assert decibels[0] > 25
    assert decibels[0] > decibels[1] + 1 and decibels[1] > decibels[2] + 1, decibels
    assert found[0].used == (tuple(range(0, 16, 2)), tuple(range(1, 16, 2)))
    again = odd_even(out.features.clamp(0, 1), CAMERAS)
    assert torch.equal(again.pictures.error, found[0].pictures.error), "same seed, same numbers"


def test_depth_of_two_balls_differs_as_geometry_says(monkeypatch):
    """Balls of radius 0.35 and 0.3 instead of fitted splats: the measure's own part, on a known answer."""
    balls = iter([ball(0.35), ball(0.3)])
    monkeypatch.setattr(consistency, "fit_some", lambda *_: next(balls))
    views = render_gaussians(ball(), CAMERAS, 64, 64).features
    first, second = sphere_depth(0.35, 64), sphere_depth(0.3, 64)
    both = (first > 0) & (second > 0)
    expected = float((2 * (first - second).abs() / (first + second))[both].mean())
    # The outermost pixels, where depth changes fastest, are blurred by Gaussians of 0.02.
    assert odd_even(views, CAMERAS).depth == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("seed", [0, 1])
def test_contradicting_views_are_told_apart(toy, seed):
    variants = torch.stack([one.rgb for one in toy])
    pick = torch.arange(16)[torch.randperm(16, generator=torch.Generator().manual_seed(seed))] % 4
    wanted = Wanted(neighbours=False)
    agree = measure(variants[0], CAMERAS, wanted=wanted, seed=seed)
    disagree = measure(variants[pick, torch.arange(16)], CAMERAS, wanted=wanted, seed=seed)
    assert agree.odd_even.psnr > disagree.odd_even.psnr + 0.7
    assert agree.held_out.psnr > disagree.held_out.psnr + 1.5
    depth = toy[0].depth
    neighbours = [neighbour_error(v, CAMERAS, depth)[0].psnr for v in (variants[0], variants[pick, torch.arange(16)])]
    assert neighbours[0] > neighbours[1] + 3


def test_one_wrong_view_is_the_one_held_out_views_point_at(toy):
    views = toy[0].rgb.clone()
    views[8] = toy[1].rgb[8]
    found = held_out(views, CAMERAS, folds=2)
    right = held_out(toy[0].rgb, CAMERAS, folds=2)
    drop = right.view_psnr - found.view_psnr
    assert int(drop.argmax()) == 8 and float(drop[8]) > 2


def test_open_orbit_leaves_its_ends_out():
    arc = orbit([20.0 * i for i in range(6)], 10.0, 1.5, 49.13)
    views = render_object(make_object(1_000_003, 0, 4), arc, SIDE).rgb
    found = odd_even(views, arc)
    assert torch.isnan(found.pictures.view_psnr).tolist() == [True, False, False, False, False, True]
    assert found.psnr > 15
    assert torch.isnan(held_out(views, arc, folds=2).view_psnr).tolist() == [True, False, False, False, False, True]


# --- neighbours ---


def test_neighbours_of_a_matt_ball_agree_where_the_true_depth_says():
    depth = sphere_depth(0.35, 64)
    inside = (depth > 0).float()
    views = torch.where(inside[..., None] > 0, torch.tensor([0.8, 0.3, 0.2]), torch.ones(3))
    clean, l1 = neighbour_error(views, CAMERAS, depth)
    assert clean.psnr > 60 and l1 < 1e-3
    # A wave painted on the ball is where the neighbours show it.
    origin, rays = CAMERAS.rays(64, 64)
    height = (origin[:, None, None] + rays * depth[..., None])[..., :1]
    wave = views + 0.15 * torch.sin(12 * height) * inside[..., None]
    assert neighbour_error(wave, CAMERAS, depth)[0].psnr > 40
    # Brightness that alternates by +-0.1 from view to view: every neighbour is 0.2 away.
    step = 0.1 * (-1.0) ** torch.arange(16).view(16, 1, 1, 1)
    drifted, l1 = neighbour_error(views + step * inside[..., None] - 0.1 * inside[..., None], CAMERAS, depth)
    assert drifted.psnr == pytest.approx(-20 * math.log10(0.2), abs=0.1)
    assert l1 == pytest.approx(0.2, abs=0.002)


# --- everything together ---


def test_everything_at_once_shares_fits_and_reports_all_steps(toy):
    steps = []
    found = measure(
        toy[0].rgb,
        CAMERAS,
        toy[0].alpha,
        truth=toy[0].rgb,
        splat=ball(),
        true_splat=ball(),
        perceptual=lambda a, b: (a - b).abs().mean((1, 2, 3)),
        on_step=lambda step, total, info: steps.append((step, total)),
    )
    total = 2 * QUICK.iterations
    assert steps == [(i + 1, total) for i in range(total)]
    assert found.truth.psnr == 99 and found.truth.perceptual == 0
    assert found.chamfer == 0 and found.iou == 1
    assert 0 < found.odd_even.pictures.perceptual < 0.1
    numbers = json.loads(json.dumps(found.numbers(), allow_nan=False))
    assert numbers["views"] == 16 and numbers["size"] == [SIDE, SIDE]
    assert len(numbers["held_out"]["view_psnr"]) == 16
    text = table(found, CAMERAS, "title", ("a note",))
    assert "| odd/even | " in text and "a note" in text and "| 337.5 deg | " in text
    assert picture(found, CAMERAS, "title").width > 400
    assert torch.equal(heat(torch.tensor([[[0.3, 9.0]]]))[0, 0], torch.ones(2, 3))


def test_full_quality_holds_every_view_out_once_and_large_views_are_reduced(toy, monkeypatch):
    used = []

    def counted(views, cameras, chosen, *rest):
        used.append(sorted(chosen))
        assert tuple(views.images.shape[1:3]) == (16, 24)
        return ball()

    # Only which views are fitted is looked at here; a real fit of each would take a minute.
    monkeypatch.setattr(consistency, "fit_some", counted)
    wide = torch.nn.functional.interpolate(toy[0].rgb.movedim(-1, 1), size=(32, 48)).movedim(1, -1)
    quality = replace(QUALITIES["full"], side=24)
    found = measure(wide, CAMERAS, quality=quality, wanted=Wanted(True, False, True))
    assert used[:2] == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert [sorted(set(range(16)) - set(u)) for u in used[2:]] == [list(range(i, 16, 4)) for i in range(4)]
    assert torch.isfinite(found.held_out.view_psnr).all()


def test_truth_of_another_size_is_scaled(toy):
    larger = render_object(make_object(1_000_003, 0, 4), CAMERAS, 2 * SIDE).rgb
    found = measure(toy[0].rgb, CAMERAS, truth=larger, wanted=Wanted(False, False, False))
    assert 25 < found.truth.psnr < 99
    assert found.comparisons().keys() == {"truth"}
    expected = -10 * torch.log10((toy[0].rgb - toy[1].rgb).square().mean((1, 2, 3)))
    against = measure(toy[0].rgb, CAMERAS, truth=toy[1].rgb, wanted=Wanted(False, False, False)).truth
    assert torch.allclose(against.view_psnr, expected.clamp(max=99), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"views": 3}, "at least 4 views, got 3"),
        ({"views": 5}, "5 views but the cameras describe 16"),
        ({"masks": torch.zeros(16, SIDE, SIDE)}, "Every mask is empty"),
        ({"masks": torch.ones(16, 9, 9)}, r"masks have shape \(16, 9, 9\)"),
        ({"depth": torch.ones(5, 8, 8)}, "5 depth maps"),
        ({"depth": torch.zeros(16, 8, 8)}, "depth is 0 everywhere"),
        ({"truth": torch.ones(7, 8, 8, 3)}, "16 views but 7 true views"),
        ({"white": True}, "nothing but the background"),
    ],
)
def test_bad_input_is_answered_before_any_fit(toy, change, words):
    views, cameras = toy[0].rgb, CAMERAS
    given = {k: v for k, v in change.items() if k in ("masks", "depth", "truth")}
    if "white" in change:
        views = torch.ones_like(views)
    if "views" in change:
        views = views[: change["views"]]
        cameras = CAMERAS.subset(range(3)) if change["views"] == 3 else CAMERAS

    def never(*_):
        raise AssertionError("a fit was started")

    with pytest.raises(ValueError, match=words):
        measure(views, cameras, **given, on_step=never)
