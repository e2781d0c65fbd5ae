"""The torch rasteriser against a literal reference, gsplat's torch projection, finite differences and symmetries."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvpack.multiview.cameras import orbit
from mvpack.multiview.splats import raster_tiles, raster_torch
from mvpack.multiview.splats.gaussians import Gaussians
from mvpack.multiview.splats.projection import project, rotation_matrices
from mvpack.multiview.splats.raster import gsplat_status, rasterize
from mvpack.multiview.splats.render import render_coordinates, render_gaussians
from mvpack.multiview.splats.sh import eval_sh

_spec = importlib.util.spec_from_file_location("raster_reference", Path(__file__).with_name("raster_reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

NAMES = ("means", "quats", "scales", "opacities", "features", "background")
# Float32 sums up to a hundred terms per pixel; positions are worth up to about 1e2 pixels.
IMAGE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6}
GRADIENT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}


def scene(count, seed=0, dtype=torch.float64, channels=3, size=0.1, opacity=(0.2, 1.0)):
    """means, quats, scales, opacities, features of a cloud inside a ball of radius about 0.5."""
    g = torch.Generator().manual_seed(seed)
    means = 0.25 * torch.randn(count, 3, generator=g, dtype=torch.float64).clamp(-2, 2)
    quats = torch.randn(count, 4, generator=g, dtype=torch.float64)
    scales = size * torch.exp(0.6 * torch.randn(count, 3, generator=g, dtype=torch.float64))
    low, high = opacity
    opacities = low + (high - low) * torch.rand(count, generator=g, dtype=torch.float64)
    features = torch.rand(count, channels, generator=g, dtype=torch.float64)
    return tuple(t.to(dtype) for t in (means, quats, scales, opacities, features))


def views(width, height, azimuths=(30.0, 130.0), radius=1.2, dtype=torch.float64):
    cameras = orbit(azimuths, 15.0, radius, 49.13, aspect=width / height)
    return cameras.w2c().to(dtype), cameras.pixel_intrinsics(width, height).to(dtype)


def weighted_sum(outputs, seed=7):
    """A scalar that gives every output element a different weight."""
    g = torch.Generator().manual_seed(seed)
    return sum((t * torch.randn(t.shape, generator=g, dtype=torch.float64).to(t)).sum() for t in outputs)


def parts(render):
    return render.features, render.alpha, render.depth


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("count", "size", "opacity", "channels", "width", "height", "antialiased", "per_view"),
    [
        # crowded: stops, many segments, sides that are no multiple of the tile
        (90, 0.1, (0.2, 1.0), 3, 37, 29, False, False),
        # small ones, where the antialiasing factor matters
        (90, 0.01, (0.2, 1.0), 5, 24, 40, True, True),
        # wide plateaus of alpha limited to 0.999
        (12, 0.3, (0.9995, 1.0), 1, 16, 16, False, False),
    ],
)
def test_pictures_and_gradients_match_the_literal_reference(
    count, size, opacity, channels, width, height, antialiased, per_view, dtype
):
    values = [
        *scene(count, size=size, channels=channels, opacity=opacity),
        torch.linspace(0.1, 0.9, channels, dtype=torch.float64),
    ]
    if per_view:
        values[4] = torch.stack([values[4], values[4].flip(0)])
    # camera 2 stands inside the cloud: some Gaussians are behind it, some beside its frustum
    w2c, K = views(width, height)
    w2c = torch.cat([w2c[:1], views(width, height, [130.0], radius=0.35)[0]])
    slow = [v.clone().requires_grad_() for v in values]
    fast = [v.to(dtype, copy=True).requires_grad_() for v in values]
    expected = reference.draw(*slow[:5], w2c, K, width, height, slow[5], antialiased)
    got = parts(rasterize(*fast[:5], w2c, K, width, height, background=fast[5], antialiased=antialiased))
    for e, g in zip(expected, got, strict=True):
        assert g.dtype == dtype
        torch.testing.assert_close(
            g.double(), e, rtol=0, atol=IMAGE_TOLERANCE[dtype] * max(1, e.detach().abs().max().item())
        )
    weighted_sum(expected).backward()
    weighted_sum(got).backward()
    for name, s, f in zip(NAMES, slow, fast, strict=True):
        assert s.grad.abs().max() > 1e-3, f"the test does not exercise {name}"
        torch.testing.assert_close(
            f.grad.double(), s.grad, rtol=0, atol=GRADIENT_TOLERANCE[dtype] * float(s.grad.abs().max()), msg=name
        )


def test_drawing_stops_before_the_light_falls_below_1e_4():
    """The stop rule in closed form, and that the crowded scene above comes to it."""
    w2c, K = views(37, 29)
    render = rasterize(*scene(90), w2c, K, 37, 29)
    assert 1e-4 < 1 - render.alpha.max() < 2e-4
    stacked = torch.zeros(3, 3, dtype=torch.float64)
    stacked[:, 2] = torch.tensor([1.0, 2.0, 3.0])
    one = torch.ones(3, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)[None]
    K = torch.tensor([[[8.0, 0, 4.5], [0, 8.0, 4.5], [0, 0, 1]]], dtype=torch.float64)
    quats = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(3, 1)
    opaque = rasterize(stacked, quats, one[:, None].repeat(1, 3), one, torch.eye(3).double(), eye, K, 9, 9)
    # 0.999 of the first; the second would leave 1e-6 of the light, so drawing stops before it
    torch.testing.assert_close(opaque.features[0, 4, 4], torch.tensor([0.999, 0, 0], dtype=torch.float64))


def test_finite_differences():
    means, quats, scales, opacities, features = scene(3, seed=3, channels=2)
    w2c, K = views(12, 10, azimuths=(30.0,))

    def outputs(*values):
        return parts(rasterize(*values[:5], w2c, K, 12, 10, background=values[5]))

    values = (means, quats, scales, opacities, features, torch.tensor([0.3, 0.6], dtype=torch.float64))
    assert torch.autograd.gradcheck(
        outputs, tuple(v.requires_grad_() for v in values), eps=1e-7, atol=1e-5, fast_mode=True
    )


def test_one_gaussian_by_hand():
    """Isotropic, on the axis: sigma_px^2 = (f s / z)^2 + 0.3, alpha = o exp(-r^2 / 2 sigma_px^2), depth = z."""
    f, s, z, o = 20.0, 0.1, 2.0, 0.7
    K = torch.tensor([[[f, 0, 8.5], [0, f, 8.5], [0, 0, 1]]], dtype=torch.float64)
    render = rasterize(
        torch.tensor([[0, 0, z]], dtype=torch.float64), torch.tensor([[2.0, 0, 0, 0]], dtype=torch.float64),
        torch.full((1, 3), s, dtype=torch.float64), torch.tensor([o], dtype=torch.float64),
        torch.tensor([[0.2, 0.4]], dtype=torch.float64), torch.eye(4, dtype=torch.float64)[None], K, 17, 17,
        background=torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    variance = (f * s / z) ** 2 + 0.3
    for row, column in ((8, 8), (8, 10), (6, 7)):
        alpha = o * math.exp(-((row - 8) ** 2 + (column - 8) ** 2) / (2 * variance))
        assert render.alpha[0, row, column, 0].item() == pytest.approx(alpha, abs=1e-12)
        assert render.features[0, row, column].tolist() == pytest.approx([0.2 * alpha + 1 - alpha, 0.4 * alpha])
        assert render.depth[0, row, column, 0].item() == pytest.approx(z)
    assert render.alpha[0, 0, 0, 0] == 0 and render.depth[0, 0, 0, 0] == 0
    assert render.info["radii"].tolist() == [[[math.ceil(math.sqrt(2 * math.log(o * 255) * variance))] * 2]]


@pytest.mark.parametrize("antialiased", [False, True])
def test_projection_agrees_with_gsplat(antialiased):
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    means, quats, scales, _, _ = scene(300, size=0.05)
    w2c, K = views(48, 32, azimuths=(0.0, 75.0, 200.0), radius=0.45)
    covariances, _ = _quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    radii, means2d, depths, conics, compensations = _fully_fused_projection(
        means, covariances, w2c, K, 48, 32, calc_compensations=antialiased
    )
    # opacity 1 makes the opacity-aware radius of the CUDA code all but the 3.33 of the torch twin
    got = project(means, quats, scales, torch.ones(300).double(), w2c, K, 48, 32, antialiased=antialiased)
    shown = (got.radii > 0).all(-1)
    assert 50 < shown.sum() < 0.9 * shown.numel(), "the scene should hold visible and culled Gaussians"
    faint = (compensations if antialiased else torch.ones_like(depths)) < 1 / 255
    assert torch.equal(shown | faint, (radii > 0).all(-1) | faint)
    torch.testing.assert_close(got.means2d[shown], means2d[shown], rtol=0, atol=1e-9)
    torch.testing.assert_close(got.depths, depths, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.conics[shown], conics[shown], rtol=1e-9, atol=1e-12)
    if antialiased:
        torch.testing.assert_close(got.compensations[shown], compensations[shown], rtol=1e-9, atol=1e-12)
    else:
        assert (got.radii[shown] - radii[shown]).abs().max() <= 1
        assert (got.radii[shown] == radii[shown]).float().mean() > 0.97


def test_tile_lists_are_gsplats_without_the_pairs_that_draw_nothing():
    from gsplat.cuda._torch_impl import _isect_tiles

    means, quats, scales, opacities, _ = scene(25, size=0.05)
    w2c, K = views(40, 24, azimuths=(10.0,))
    flat = project(means, quats, scales, opacities, w2c, K, 40, 24)
    log_opacities = opacities.log()[None]
    lists = raster_tiles.tile_lists(flat.means2d, flat.conics, log_opacities, flat.radii, flat.depths, 3, 5)
    _, ids, gaussians = _isect_tiles(flat.means2d, flat.radii, flat.depths, raster_tiles.TILE, 5, 3)
    theirs = [((i >> 32), g) for i, g in zip(ids.tolist(), gaussians.tolist(), strict=True)]
    tiles = torch.repeat_interleave(torch.arange(15), lists.count)
    ours = list(zip(tiles.tolist(), lists.gaussian.tolist(), strict=True))
    kept = set(ours)
    assert [pair for pair in theirs if pair in kept] == ours  # a subset, in the same order
    line = torch.arange(8).double() + 0.5
    for tile, g in set(theirs) - kept:
        dx = flat.means2d[0, g, 0] - (tile % 5 * 8 + line)[None, :]
        dy = flat.means2d[0, g, 1] - (tile // 5 * 8 + line)[:, None]
        a, b, c = flat.conics[0, g]
        assert (opacities[g] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).max() < 1 / 255
    assert len(ours) < len(theirs)


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01),
    st.tuples(*[st.floats(-5, 5)] * 3),
)
def test_moving_splat_and_cameras_together_changes_nothing(quaternion, shift):
    means, quats, scales, opacities, features = scene(20)
    w2c, K = views(20, 20)
    q = torch.tensor(quaternion, dtype=torch.float64)
    move = torch.eye(4, dtype=torch.float64)
    move[:3, :3] = rotation_matrices(q)
    move[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    moved_means = means @ move[:3, :3].T + move[:3, 3]
    w, v = q[0], q[1:]
    moved_quats = torch.cat(
        [
            (w * quats[:, 0] - quats[:, 1:] @ v)[:, None],
            w * quats[:, 1:] + quats[:, :1] * v + torch.linalg.cross(v.expand(20, 3), quats[:, 1:]),
        ],
        dim=1,
    )
    before = rasterize(means, quats, scales, opacities, features, w2c, K, 20, 20)
    after = rasterize(moved_means, moved_quats, scales, opacities, features, w2c @ torch.linalg.inv(move), K, 20, 20)
    for b, a in zip(parts(before), parts(after), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(30)))
def test_order_of_the_gaussians_does_not_matter(order):
    values = scene(30)
    w2c, K = views(20, 20)
    before = rasterize(*values, w2c, K, 20, 20)
    after = rasterize(*(v[order] for v in values), w2c, K, 20, 20)
    for b, a in zip(parts(before), parts(after), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_views_in_one_call_equal_views_one_by_one():
    values = scene(40)
    w2c, K = views(20, 28, azimuths=(0.0, 90.0, 200.0))
    together = rasterize(*values, w2c, K, 20, 28)
    for c in range(3):
        alone = rasterize(*values, w2c[c : c + 1], K[c : c + 1], 20, 28)
        for t, a in zip(parts(together), parts(alone), strict=True):
            torch.testing.assert_close(t[c], a[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "value"), [("KEEP_BYTES", 0), ("BLOCK_CPU", 2**11), ("SEGMENT", 3), ("TILES_AT_ONCE", 1)]
)
def test_bounding_memory_changes_nothing(monkeypatch, name, value):
    def run():
        values = [v.requires_grad_() for v in scene(60)]
        render = rasterize(*values, *views(32, 24), 32, 24)
        weighted_sum(parts(render)).backward()
        return [*parts(render), *(v.grad for v in values)]

    expected = run()
    monkeypatch.setattr(raster_torch, name, value)
    for e, g in zip(expected, run(), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-12)


def test_what_cannot_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(raster_tiles, "MAX_PAIRS", 100)
    with pytest.raises(ValueError, match="lower the resolution"):
        rasterize(*scene(60), *views(32, 24), 32, 24)


def test_nothing_to_see():
    means, quats, scales, opacities, features = scene(10)
    w2c, K = views(18, 10)
    background = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    behind = -views(18, 10, azimuths=(30.0,))[0][0, 2, :3] * 30  # far behind camera 1's back
    cases = {
        "no Gaussians": [v[:0] for v in (means, quats, scales, opacities, features)],
        "all behind": [means + behind, quats, scales, opacities, features],
        "all transparent": [means, quats, scales, torch.zeros(10).double(), features],
    }
    for name, values in cases.items():
        values = [v.clone().requires_grad_() for v in values]
        render = rasterize(*values, w2c[:1], K[:1], 18, 10, background=background)
        assert torch.equal(render.features, background.expand(1, 10, 18, 3)), name
        assert not render.alpha.any() and not render.depth.any(), name
        weighted_sum(parts(render)).backward()
        for v in values:
            assert v.grad is not None and not v.grad.any(), name


def test_degenerate_gaussians_keep_gradients_finite():
    """On the camera plane, at the near limit, behind; and points and needles, whose antialiasing factor is 0."""
    means, quats, scales, opacities, features = (v.requires_grad_() for v in scene(8))
    eye = torch.eye(4, dtype=torch.float64)[None]
    K = views(16, 16)[1][:1]
    heights = torch.tensor([0.0, 0.0, 0.01, 0.010001, -1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    placed = torch.cat([means[:, :2], heights[:, None]], dim=1)
    thickness = torch.ones(8, 3, dtype=torch.float64)
    thickness[6], thickness[7, 1:] = 0, 0
    render = rasterize(placed, quats, scales * thickness, opacities, features, eye, K, 16, 16, antialiased=True)
    weighted_sum(parts(render)).backward()
    for v in (means, quats, scales, opacities, features):
        assert torch.isfinite(v.grad).all()
    assert torch.isfinite(render.features).all()


def test_one_gaussian_over_everything():
    """A huge Gaussian gives every pixel its opacity, in every tile of every camera."""
    w2c, K = views(33, 9)
    render = rasterize(
        torch.zeros(1, 3).double(), torch.tensor([[1.0, 0, 0, 0]]).double(), torch.full((1, 3), 1e4).double(),
        torch.tensor([0.6]).double(), torch.tensor([[0.5]]).double(), w2c, K, 33, 9,
    )  # fmt: skip
    torch.testing.assert_close(render.alpha, torch.full((2, 9, 33, 1), 0.6).double(), rtol=0, atol=1e-6)


def test_densification_of_gsplat_can_be_driven_by_it():
    from gsplat import DefaultStrategy

    means, quats, scales, opacities, features = scene(30, dtype=torch.float32)
    params = torch.nn.ParameterDict(
        {
            "means": means,
            "quats": quats,
            "scales": scales.log(),
            "opacities": opacities.logit(eps=1e-3),
            "rgb": features,
        }
    )
    optimizers = {key: torch.optim.Adam([value], lr=1e-3) for key, value in params.items()}
    strategy = DefaultStrategy(refine_start_iter=0, refine_every=1, grow_grad2d=1e-9, prune_opa=0.0, verbose=False)
    state = strategy.initialize_state(scene_scale=1.0)
    render = rasterize(
        params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(), params["rgb"],
        *views(32, 32, dtype=torch.float32), 32, 32,
    )  # fmt: skip
    strategy.step_pre_backward(params, optimizers, state, 1, render.info)
    render.features.square().sum().backward()
    gradient = render.info["means2d"].grad
    assert gradient.shape == (2, 30, 2) and gradient.abs().max() > 0
    strategy.step_post_backward(params, optimizers, state, 1, render.info)
    assert len(params["means"]) > 30


def test_gradient_of_means2d_is_the_pixel_gradient():
    """Shifting cx by one pixel moves every mean2d by one pixel (the footprints depend on cx only off the frustum)."""
    values = [v.requires_grad_() for v in scene(10, size=0.03)]
    w2c, K = views(24, 24, azimuths=(30.0,))

    def loss(shift):
        moved = K.clone()
        moved[:, 0, 2] += shift
        render = rasterize(*values, w2c, moved, 24, 24)
        return weighted_sum(parts(render)), render

    value, render = loss(0.0)
    render.info["means2d"].retain_grad()
    value.backward()
    numeric = (loss(1e-6)[0] - loss(-1e-6)[0]) / 2e-6
    assert render.info["means2d"].grad[..., 0].sum().item() == pytest.approx(numeric.item(), rel=1e-5)


def test_works_in_inference_mode_and_with_tensors_made_there():
    values = scene(10)
    w2c, K = views(16, 16)
    expected = rasterize(*values, w2c, K, 16, 16)
    with torch.inference_mode():
        copies = [v.clone() for v in (*values, w2c, K)]
        assert torch.equal(rasterize(*copies, 16, 16).features, expected.features)
    with torch.enable_grad():
        colours = copies[4].clone().requires_grad_()
        render = rasterize(*copies[:4], colours, *copies[5:], 16, 16, background=(1, 1, 1))
        render.features.sum().backward()
    assert colours.grad.abs().max() > 0


def test_inputs_are_left_alone():
    values = [*scene(10), *views(16, 16)]
    copies = [v.clone() for v in values]
    rasterize(*values, 16, 16, background=torch.ones(3))
    assert all(torch.equal(v, c) for v, c in zip(values, copies, strict=True))


def _splat(count=40, k=4):
    means, quats, scales, opacities, _ = scene(count, dtype=torch.float32, size=0.05)
    sh = 0.3 * torch.randn(count, k, 3, generator=torch.Generator().manual_seed(5))
    return Gaussians(means, scales, torch.nn.functional.normalize(quats, dim=1), opacities, sh)


def test_colour_of_a_splat_depends_on_the_viewing_direction():
    splat, cameras = _splat(), orbit([0.0, 120.0], 15.0, 1.5, 49.13)
    render = render_gaussians(splat, cameras, 24, 24, background=(0.2, 0.3, 0.4))
    for c in range(2):
        colours = eval_sh(splat.sh, splat.means - cameras.centers()[c])
        alone = rasterize(
            splat.means, splat.quats, splat.scales, splat.opacities, colours, cameras.w2c()[c : c + 1],
            cameras.pixel_intrinsics(24, 24)[c : c + 1], 24, 24, background=(0.2, 0.3, 0.4),
        )  # fmt: skip
        torch.testing.assert_close(render.features[c], alone.features[0], rtol=0, atol=1e-6)
    assert not torch.allclose(render.features[0], render.features[1], atol=1e-2)


def test_coordinates_lie_at_the_rendered_depth():
    """Depth and coordinates are means with the same weights, and depth is linear in the coordinates."""
    splat, cameras = _splat(), orbit([0.0, 120.0], 15.0, 1.5, 49.13)
    render = render_coordinates(splat, cameras, 24, 24)
    covered = render.alpha[..., 0] > 0
    assert 0.2 < covered.float().mean() < 1
    w2c = cameras.w2c()
    z = torch.einsum("ni,nhwi->nhw", w2c[:, 2, :3], render.features) + w2c[:, 2, 3, None, None]
    torch.testing.assert_close(z[covered], render.depth[..., 0][covered], rtol=0, atol=1e-5)
    assert not render.features[~covered].any()


def _replace(index, value):
    def change(arguments):
        arguments[index] = value(arguments[index]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (_replace(0, lambda t: t[:, :2]), {}, r"means should have shape \(6, 3\)"),
        (_replace(1, lambda t: t[:5]), {}, r"quats should have shape \(6, 4\) for 6 Gaussians, got \(5, 4\)"),
        (_replace(3, lambda t: t[:, None]), {}, r"opacities should have shape \(6,\)"),
        (_replace(4, lambda t: t[:, :0]), {}, "features should have shape"),
        (_replace(4, lambda t: t.repeat(3, 1, 1)), {}, "3 views but there are 2 cameras"),
        (_replace(2, lambda t: t.float()), {}, "scales should be float32 or float64 like means"),
        (_replace(2, lambda t: -t), {}, "cannot be negative"),
        (_replace(3, lambda t: t * 9), {}, "sigmoid"),
        (_replace(0, lambda t: t * math.nan), {}, "means contain NaN"),
        (_replace(5, lambda t: t[0]), {}, r"w2c should have shape \(C,4,4\)"),
        (_replace(6, lambda t: t[:1]), {}, r"K should have shape \(2,3,3\)"),
        (_replace(6, lambda t: -t), {}, "positive focal lengths"),
        (_replace(5, lambda t: t * math.inf), {}, "w2c or K contain NaN"),
        (_replace(7, 0), {}, "whole numbers from 1"),
        (_replace(8, 2.5), {}, "whole numbers from 1"),
        (None, {"near": 2.0, "far": 1.0}, "0 < near < far"),
        (None, {"eps2d": -1.0}, "eps2d"),
        (None, {"background": torch.ones(4)}, "background should have shape"),
        (None, {"backend": "cuda"}, "auto, torch, gsplat"),
    ],
)
def test_bad_input_is_named(change, options, sentence):
    arguments = [*scene(6), *views(16, 16), 16, 16]
    if change:
        change(arguments)
    with pytest.raises(ValueError, match=sentence):
        rasterize(*arguments, **options)


def test_gsplat_on_the_cpu_is_refused_with_a_reason():
    ok, sentence = gsplat_status()
    assert isinstance(ok, bool) and sentence.endswith((".", "gsplat"))
    arguments = [*scene(4, dtype=torch.float32), *views(16, 16, dtype=torch.float32), 16, 16]
    with pytest.raises((RuntimeError, ValueError), match="gsplat") as refusal:
        rasterize(*arguments, backend="gsplat")
    assert "auto" in str(refusal.value)
    assert rasterize(*arguments).info["backend"] == "torch"


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="compares with gsplat's CUDA kernels, and there is no CUDA GPU"
)
@pytest.mark.parametrize("antialiased", [False, True])
def test_both_back_ends_agree_on_cuda(antialiased):
    ok, sentence = gsplat_status()
    if not ok:
        pytest.skip(sentence)
    device = torch.device("cuda", torch.cuda.current_device())
    results = {}
    for backend in ("gsplat", "torch"):
        values = [v.to(device).requires_grad_() for v in scene(800, dtype=torch.float32, size=0.04)]
        w2c, K = (t.to(device) for t in views(70, 50, dtype=torch.float32))
        background = torch.tensor([0.2, 0.5, 0.9], device=device, requires_grad=True)
        render = rasterize(*values, w2c, K, 70, 50, background=background, backend=backend, antialiased=antialiased)
        render.info["means2d"].retain_grad()
        weighted_sum(parts(render)).backward()
        assert render.info["backend"] == backend
        results[backend] = (parts(render), [v.grad for v in (*values, background, render.info["means2d"])])
    for a, b in zip(results["gsplat"][0], results["torch"][0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    for a, b in zip(results["gsplat"][1], results["torch"][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))
