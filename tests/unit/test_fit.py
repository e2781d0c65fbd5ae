"""Fitting: what it recovers, that it repeats, ends and answers bad input as promised."""

import random

import numpy as np
import plyfile
import pytest
import torch
from mvpack.multiview.cameras import Cameras, orbit
from mvpack.multiview.splats import fit as fit_module
from mvpack.multiview.splats.fit import FitConfig, fit
from mvpack.multiview.splats.gaussians import SH_C0
from mvpack.multiview.splats.init import initial_gaussians, scene_sphere
from mvpack.multiview.splats.losses import psnr
from mvpack.multiview.splats.ply import save_ply
from mvpack.multiview.splats.render import render_gaussians
from mvpack.multiview.splats.views import background_colour, estimate_masks, prepare_views

SIZE = 48
QUICK = FitConfig(iterations=60, points=400, max_points=800, densify_every=10)
SHORT = FitConfig(iterations=8, points=200, densify_every=4)
RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.9)
# Left, above and right of the middle as the front camera sees it; y points down, the front faces -z.
BALLS = [((-0.25, 0.1, 0.0), 0.16, RED), ((0.0, -0.25, 0.0), 0.16, GREEN), ((0.25, 0.1, -0.05), 0.2, BLUE)]


def cast_balls(cameras, size=SIZE, background=(1.0, 1.0, 1.0), oversample=3):
    """Pictures (N,H,W,3) and masks (N,H,W) of BALLS, flat colours, one ray at a time in spirit: no rasteriser."""
    fine = size * oversample
    origins, directions = cameras.rays(fine, fine)
    nearest = torch.full(directions.shape[:3], torch.inf)
    image = torch.tensor(background).expand(directions.shape).clone()
    for center, radius, color in BALLS:
        offset = origins[:, None, None] - torch.tensor(center)
        a = directions.square().sum(-1)
        b = (directions * offset).sum(-1)
        root = b.square() - a * (offset.square().sum(-1) - radius**2)
        depth = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, torch.inf)
        image[depth < nearest] = torch.tensor(color)
        nearest = torch.minimum(nearest, depth)
    both = torch.cat([image, torch.isfinite(nearest)[..., None].float()], dim=-1)
    small = both.unflatten(1, (size, oversample)).unflatten(3, (size, oversample)).mean((2, 4))
    return small[..., :3], small[..., 3]


def ring(count=8, **options):
    return orbit([360 / count * i for i in range(count)], 15.0, 1.5, 49.13, **options)


@pytest.fixture(scope="module")
def scene():
    cameras = ring()
    return cameras, *cast_balls(cameras)


@pytest.fixture(scope="module")
def fitted(scene):
    cameras, images, _ = scene
    return fit(images, cameras, config=QUICK)


def tensors_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def seen(gaussians, cameras, size=SIZE, background=(1.0, 1.0, 1.0)):
    return render_gaussians(gaussians, cameras, size, size, background).features.clamp(0, 1)


def test_recovers_views_it_did_not_see(fitted):
    between = orbit([22.5, 112.5, 202.5, 292.5], 15.0, 1.5, 49.13)
    truth, _ = cast_balls(between)
    assert psnr(seen(fitted.gaussians, between), truth).mean() > 25
    losses = fitted.history["loss"]
    assert len(losses) == QUICK.iterations and np.mean(losses[-5:]) < 0.2 * losses[0]
    total = sum(np.array(fitted.history[k]) for k in ("l1", "msssim", "mask"))
    np.testing.assert_allclose(total, losses, rtol=1e-4)
    fitted.gaussians.validate()
    assert float(fitted.gaussians.quats.norm(dim=1).sub(1).abs().max()) < 1e-5


@pytest.mark.parametrize("init", ["sphere", "center"])
def test_every_start_converges(scene, init):
    cameras, images, _ = scene
    config = FitConfig(iterations=80, points=400, max_points=800, densify_every=10, init=init, lr_means=2e-2)
    result = fit(images, cameras, config=config)
    assert psnr(seen(result.gaussians, cameras), images).mean() > 22


def test_same_seed_same_splat_and_global_randomness_untouched(scene, fitted):
    cameras, images, _ = scene
    torch.manual_seed(77)
    np.random.seed(77)
    random.seed(77)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(77)
    np.random.seed(77)
    random.seed(77)
    again = fit(images, cameras, config=QUICK)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1]) and random.random() == expected[2]
    assert tensors_equal(again.gaussians, fitted.gaussians)
    assert again.history == fitted.history
    # The fit did grow, so the comparison covers gsplat's random splits as well.
    assert len(set(fitted.history["gaussians"])) > 1


def test_another_seed_another_splat(scene):
    cameras, images, _ = scene
    short = FitConfig(iterations=2, points=400, seed=1)
    assert not torch.equal(
        fit(images, cameras, config=short).gaussians.means,
        fit(images, cameras, config=FitConfig(iterations=2, points=400, seed=2)).gaussians.means,
    )


def test_inference_mode_and_inputs(scene):
    cameras, images, _ = scene
    with torch.inference_mode():
        inside = images.clone()
        its_cameras = Cameras(cameras.c2w.clone(), cameras.intrinsics.clone())
        masks = estimate_masks(inside, torch.ones(3))
        result = fit(inside, its_cameras, config=SHORT)
        fit(inside, its_cameras, masks, FitConfig(iterations=1, points=50), start=result.gaussians)
    assert tensors_equal(result.gaussians, fit(images, cameras, config=SHORT).gaussians)
    assert not any(t.is_inference() or t.requires_grad for t in result.gaussians.tensors())
    with torch.inference_mode():
        assert torch.equal(inside, images) and torch.equal(its_cameras.c2w, cameras.c2w)


class Cancelled(BaseException):
    """As ComfyUI's interruption may be: not an Exception."""


def test_cancel_ends_within_the_step_and_passes_through(scene):
    cameras, images, _ = scene
    steps = []

    def on_step(step, total, info):
        steps.append((step, total, float(info["loss"]), info["gaussians"]))
        if step == 3:
            raise Cancelled("stop")

    before = torch.get_rng_state()
    with pytest.raises(Cancelled, match="stop"):
        fit(images, cameras, config=QUICK, on_step=on_step)
    assert [s[:2] for s in steps] == [(1, 60), (2, 60), (3, 60)]
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()


def test_preview_is_drawn_only_when_asked_for(scene, monkeypatch):
    cameras, images, _ = scene
    calls, previews = [], []
    drawn = fit_module.rasterize
    monkeypatch.setattr(fit_module, "rasterize", lambda *a, **k: calls.append(1) or drawn(*a, **k))
    config = FitConfig(iterations=4, points=300)
    fit(images, cameras, config=config)
    assert len(calls) == 4

    def on_step(step, total, info):
        if step == total:
            previews.extend([info["get_preview"](), info["get_preview"](3)])

    result = fit(images, cameras, config=config, on_step=on_step)
    assert len(calls) == 10
    expected = seen(result.gaussians, cameras.subset([0, 3]))
    torch.testing.assert_close(torch.stack(previews), expected, atol=1e-5, rtol=0)


def test_growth_stops_at_the_bound(scene):
    cameras, images, _ = scene
    config = FitConfig(iterations=30, points=300, max_points=360, densify_every=5, grow_grad2d=0.0)
    counts = fit(images, cameras, config=config).history["gaussians"]
    assert max(counts) == 360 and min(counts) < 360


def test_a_fit_that_loses_everything_says_so(scene):
    cameras, images, _ = scene
    config = FitConfig(iterations=10, points=200, densify_every=4, prune_opacity=0.9999)
    with pytest.raises(ValueError, match="Every Gaussian faded away"):
        fit(images, cameras, config=config)


def test_opacity_reset(scene):
    cameras, images, _ = scene
    seen_opacity = []

    def fit_with(every):
        config = FitConfig(iterations=6, points=300, densify_every=20, reset_opacity_every=every)
        result = fit(images, cameras, config=config)
        seen_opacity.append(float(result.gaussians.opacities.max()))

    fit_with(0)
    fit_with(4)
    # 4 steps after nothing, and few after a reset to twice the pruning threshold and two steps of 0.1 logit.
    assert seen_opacity[0] > 0.5 and seen_opacity[1] < 0.1


def test_spherical_harmonics_grow_to_the_degree_asked_for(scene):
    cameras, images, _ = scene
    result = fit(images, cameras, config=FitConfig(iterations=20, points=200, sh_degree=3, densify_every=0))
    sh = result.gaussians.sh
    assert sh.shape[1:] == (16, 3)
    assert all(sh[:, band].abs().max() > 0 for band in (slice(1, 4), slice(4, 9), slice(9, 16)))


def test_warm_start(scene, fitted):
    cameras, images, _ = scene
    copies = [t.clone() for t in fitted.gaussians.tensors()]
    on = fit(images, cameras, config=FitConfig(iterations=4, sh_degree=1), start=fitted.gaussians)
    cold = fit(images, cameras, config=FitConfig(iterations=4))
    assert on.history["loss"][0] < 0.3 * cold.history["loss"][0]
    assert on.gaussians.sh.shape[1] == 4 and on.gaussians.num == fitted.gaussians.num
    assert fit(images, cameras, config=FitConfig(iterations=1), start=on.gaussians).gaussians.sh.shape[1] == 1
    assert all(torch.equal(a, b) for a, b in zip(fitted.gaussians.tensors(), copies, strict=True))


def test_moving_cameras_moves_the_splat(scene, fitted):
    """The same pictures with all cameras moved rigidly: the splat moves along and looks the same."""
    cameras, images, _ = scene
    angle = torch.tensor(0.7)
    motion = torch.eye(4)
    motion[0, 0] = motion[2, 2] = torch.cos(angle)
    motion[0, 2], motion[2, 0] = torch.sin(angle), -torch.sin(angle)
    motion[:3, 3] = torch.tensor([0.5, -2.0, 3.0])
    moved = Cameras(motion @ cameras.c2w, cameras.intrinsics, closed=True)
    result = fit(images, moved, config=QUICK)
    center = motion[:3, :3] @ fitted.gaussians.means.mean(0) + motion[:3, 3]
    torch.testing.assert_close(result.gaussians.means.mean(0), center, atol=0.04, rtol=0)
    assert psnr(seen(result.gaussians, moved), seen(fitted.gaussians, cameras)).min() > 26


def test_a_view_of_weight_zero_does_not_count(scene, fitted):
    cameras, images, masks = scene
    spoiled = images.clone()
    spoiled[0][masks[0] > 0.5] = 0.5
    config = FitConfig(iterations=8, densify_every=0, background=(1.0, 1.0, 1.0))
    weights = torch.tensor([0.0] + [1.0] * 7)

    def run(pictures, weights):
        return fit(pictures, cameras, masks, config, start=fitted.gaussians, view_weights=weights).gaussians

    assert tensors_equal(run(spoiled, weights), run(images, weights))
    assert not tensors_equal(run(spoiled, None), run(images, None))


@pytest.mark.parametrize("shape", [(SIZE, 64), (40, SIZE)])
def test_pictures_need_not_be_square(shape):
    h, w = shape
    cameras = orbit([0, 90, 180, 270], 10.0, 1.5, 49.13, aspect=w / h)
    origins, directions = cameras.rays(w, h)
    b, a = (directions * origins[:, None, None]).sum(-1), directions.square().sum(-1)
    hit = b.square() - a * (origins.square().sum(-1)[:, None, None] - 0.3**2) > 0
    images = torch.where(hit[..., None], torch.tensor(RED), torch.ones(3))
    result = fit(images, cameras, config=FitConfig(iterations=30, points=300))
    assert float(result.gaussians.means.abs().max()) < 0.45
    drawn = render_gaussians(result.gaussians, cameras, w, h).features.clamp(0, 1)
    assert psnr(drawn, images).mean() > 20


def test_saved_file_shows_what_the_render_shows(fitted, tmp_path):
    """Colours and orientation, from another library's reading of the file and Cameras.project alone."""
    save_ply(fitted.gaussians, tmp_path / "balls.ply")
    rows = plyfile.PlyData.read(tmp_path / "balls.ply")["vertex"].data
    xyz = torch.tensor(np.stack([rows[c] for c in "xyz"], 1))
    rgb = torch.tensor(np.stack([rows[f"f_dc_{i}"] for i in range(3)], 1)) * SH_C0 + 0.5
    opacity = torch.sigmoid(torch.tensor(np.array(rows["opacity"])))
    area = torch.tensor(np.stack([rows[f"scale_{i}"] for i in range(3)], 1)).exp().mean(1).square()
    for azimuth, order in ((0, "red green blue"), (180, "blue green red")):
        camera = orbit([azimuth], 0.0, 1.5, 49.13)
        picture = seen(fitted.gaussians, camera)[0]
        uv = camera.project(xyz, SIZE, SIZE)[0][0]
        places = {}
        for name, color in (("red", RED), ("green", GREEN), ("blue", BLUE)):
            near = (rgb - torch.tensor(color)).abs().amax(1) < 0.2
            weight = (opacity * area)[near, None]
            from_file = (uv[near] * weight).sum(0) / weight.sum()
            v, u = ((picture - torch.tensor(color)).abs().amax(-1) < 0.2).nonzero().float().add(0.5).mean(0)
            torch.testing.assert_close(from_file, torch.stack([u, v]), atol=2.5, rtol=0)
            places[name] = from_file
        assert " ".join(sorted(places, key=lambda name: places[name][0])) == order
        assert places["green"][1] < min(places["red"][1], places["blue"][1]) - 5


def broken(scene, what):
    cameras, images, masks = (scene[0], scene[1].clone(), scene[2].clone())
    config = FitConfig(iterations=10**6)
    if what == "count":
        images = images[:5]
    elif what == "one":
        images, cameras, masks = images[:1], cameras.subset([0]), None
    elif what == "shape":
        images = images[..., 0]
    elif what == "nan":
        images[2, 5, 5] = torch.nan
        images[4, 1, 1] = torch.inf
    elif what == "range":
        images = images * 255
    elif what == "integer":
        images = (images * 255).to(torch.uint8)
    elif what == "tiny":
        images, masks = images[:, :9, :9], None
    elif what == "mask size":
        masks = masks[:, :24]
    elif what == "mask nan":
        masks[0, 0, 0] = torch.nan
    elif what == "masks empty":
        masks = masks * 0
    elif what == "mask empty":
        masks[3] = 0
    elif what == "masks full":
        masks = masks * 0 + 1
    elif what == "blank":
        images, masks = torch.full_like(images, 0.5), None
    elif what == "one blank":
        images[6], masks = 1.0, None
    elif what == "background":
        config = FitConfig(background=(2.0, 0.0, 0.0))
    elif what == "background word":
        config = FitConfig(background="white")
    return images, cameras, masks, config


@pytest.mark.parametrize(
    "what, said",
    [
        ("count", "5 views but the cameras describe 8"),
        ("one", "at least 2 views"),
        ("shape", "batch of colour pictures"),
        ("nan", "NaN or infinity \\(view 2, 4\\)"),
        ("range", r"values from .* to 255; expected \[0,1\]"),
        ("integer", "floating-point"),
        ("tiny", "9 x 9 pixels; fitting needs at least 16"),
        ("mask size", r"masks have shape \(8, 24, 48\)"),
        ("mask nan", "masks contain NaN"),
        ("masks empty", "Every mask is empty"),
        ("mask empty", "mask of view 3 is empty"),
        ("masks full", "Every mask covers its whole picture"),
        ("blank", "The views show nothing but the background colour"),
        ("one blank", "View 6 shows nothing but the background"),
        ("background", "three numbers from 0 to 1"),
        ("background word", "'auto' or three numbers"),
    ],
)
def test_bad_input_is_one_sentence_before_heavy_work(scene, what, said, monkeypatch):
    def heavy(*_, **__):
        raise AssertionError("heavy work began")

    monkeypatch.setattr(fit_module, "initial_gaussians", heavy)
    images, cameras, masks, config = broken(scene, what)
    with pytest.raises(ValueError, match=said) as caught:
        fit(images, cameras, masks, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"points": 0}, "points must be at least 1"),
        ({"points": 20, "max_points": 10}, "must not be below points"),
        ({"sh_degree": 4}, "sh_degree must be 0, 1, 2 or 3"),
        ({"init": "magic"}, "hull, sphere, center"),
        ({"w_l1": 0.0, "w_msssim": 0.0}, "LPIPS or MS-SSIM above 0"),
        ({"w_mask": -1.0}, "not negative"),
    ],
)
def test_impossible_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        FitConfig(**settings)


def test_view_weights_are_checked(scene):
    cameras, images, _ = scene
    for weights in (torch.ones(3), torch.zeros(8), -torch.ones(8), torch.full((8,), torch.nan)):
        with pytest.raises(ValueError, match="View weights must be 8 finite numbers"):
            fit(images, cameras, view_weights=weights)


def test_background_and_masks_are_found():
    cameras = ring(4)
    gray = (0.5, 0.55, 0.6)
    images, masks = cast_balls(cameras, background=gray)
    images[0, 0, :5] = 0.0  # something at the border of one view
    torch.testing.assert_close(background_colour(images), torch.tensor(gray))
    views = prepare_views(images, cameras, None)
    assert ((views.masks > 0.5) != (masks > 0.5)).float().mean() < 0.03
    assert torch.equal(views.images, images)
    result = fit(images[1:], cameras.subset([1, 2, 3]), config=FitConfig(iterations=20, points=300))
    torch.testing.assert_close(result.background, torch.tensor(gray))
    drawn = seen(result.gaussians, cameras.subset([1]), background=gray)
    assert psnr(drawn, images[1:2]) > 22


def test_holes_of_background_colour_inside_the_object_are_object():
    images = torch.ones(1, 20, 20, 3)
    images[0, 5:15, 5:15] = torch.tensor(RED)
    images[0, 8:12, 8:12] = 1.0
    masks = estimate_masks(images, torch.ones(3))
    assert float(masks[0, 5:15, 5:15].min()) == 1.0 and float(masks.sum()) == 100.0


def test_alpha_and_clutter_are_put_before_the_background():
    cameras = ring(4)
    images, masks = cast_balls(cameras)
    gen = torch.Generator().manual_seed(0)
    clutter = torch.where(masks[..., None] > 0, images, torch.rand(images.shape, generator=gen))
    views = prepare_views(clutter, cameras, masks, (0.0, 0.0, 1.0))
    assert torch.equal(views.images[masks == 0], torch.tensor([0.0, 0.0, 1.0]).expand(int((masks == 0).sum()), 3))
    assert torch.allclose(views.images[masks == 1], images[masks == 1])
    views = prepare_views(torch.cat([clutter, masks[..., None]], -1), cameras, None)
    assert torch.equal(views.background, torch.ones(3)) and torch.equal(views.masks, masks)
    assert float((views.images[masks == 0] - 1).abs().max()) < 1e-6


def test_scene_sphere_in_closed_form():
    center, radius = scene_sphere(ring())
    torch.testing.assert_close(center, torch.zeros(3), atol=1e-6, rtol=0)
    assert radius == pytest.approx(1.5 * np.sin(np.radians(49.13 / 2)), rel=1e-5)
    moved = ring()
    offset = torch.tensor([3.0, -1.0, 2.0])
    c2w = moved.c2w.clone()
    c2w[:, :3, 3] += offset
    center, again = scene_sphere(Cameras(c2w, moved.intrinsics))
    torch.testing.assert_close(center, offset, atol=1e-5, rtol=0)
    assert again == pytest.approx(radius, rel=1e-4)
    parallel = Cameras(moved.c2w[:1].repeat(2, 1, 1), moved.intrinsics[:2])
    torch.testing.assert_close(scene_sphere(parallel)[0], torch.zeros(3), atol=1e-5, rtol=0)


def test_hull_start_lies_on_the_object_with_its_colours(scene):
    cameras, images, masks = scene
    views = prepare_views(images, cameras, masks)
    g = initial_gaussians("hull", 600, views, cameras, torch.Generator().manual_seed(0))
    assert g.num == 600
    distance = torch.stack([(g.means - torch.tensor(c)).norm(dim=1) - r for c, r, _ in BALLS])
    # A hull of a ring of views is somewhat larger than the object, never smaller.
    assert float(distance.amin(0).quantile(0.9)) < 0.05 and float(distance.amin(0).min()) > -0.04
    rgb = g.sh[:, 0] * SH_C0 + 0.5
    truth = torch.tensor([c for *_, c in BALLS])[distance.argmin(0)]
    assert float(((rgb - truth).abs().amax(1) < 0.25).float().mean()) > 0.6


def test_masks_without_a_common_inside_fall_back_to_the_sphere(scene):
    cameras, images, _ = scene
    corners = torch.zeros(8, SIZE, SIZE)
    corners[::2, :6, :6] = 1
    corners[1::2, -6:, -6:] = 1
    views = prepare_views(images, cameras, corners)
    g = initial_gaussians("hull", 200, views, cameras, torch.Generator().manual_seed(0))
    assert g.num == 200 and 0.3 < float(g.means.norm(dim=1).max()) < 0.6


@pytest.mark.parametrize("method, reach", [("center", 0.25), ("sphere", 0.8)])
def test_ball_starts_are_uniform(scene, method, reach):
    cameras, images, masks = scene
    views = prepare_views(images, cameras, masks)
    g = initial_gaussians(method, 5000, views, cameras, torch.Generator().manual_seed(0))
    limit = reach * scene_sphere(cameras)[1]
    share = (g.means.norm(dim=1) / limit) ** 3  # uniform on [0, 1] for a uniform ball
    assert float(share.max()) <= 1.001 and float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(g.means.mean(0).norm()) < 0.05 * limit


def test_without_gsplat_it_says_what_to_install(monkeypatch):
    images, cameras = torch.rand(2, 32, 32, 3), orbit([0, 90], 15.0, 1.5, 49.13)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="requirements.txt"):
        fit(images, cameras, config=SHORT)
