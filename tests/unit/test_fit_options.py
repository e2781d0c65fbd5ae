"""What a fit can do beyond its defaults: MCMC, starts from depth, LPIPS, early stop, running out of memory."""

import math

import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.depth import DepthMaps
from mvpack.multiview.lpips import Lpips
from mvpack.multiview.splats.fit import fit
from mvpack.multiview.splats.fit_config import IM3D_FIT, LOSSES, FitConfig
from mvpack.multiview.splats.gaussians import SH_C0, Gaussians
from mvpack.multiview.splats.init import initial_gaussians
from mvpack.multiview.splats.losses import psnr
from mvpack.multiview.splats.mcmc import Mcmc, relocation
from mvpack.multiview.splats.memory import memory_advice
from mvpack.multiview.splats.render import render_gaussians
from mvpack.multiview.splats.views import parse_colour, parse_view_weights, prepare_views
from scipy.integrate import quad

SIZE, RADIUS, CENTER = 40, 0.3, (0.1, -0.05, 0.0)
QUICK = {"iterations": 12, "points": 150, "max_points": 200, "densify_every": 4}


@pytest.fixture(scope="module")
def ball():
    """A ball off the middle, red on its right half: cameras, pictures, masks and camera depth, by ray casting."""
    cameras = orbit([0, 60, 120, 180, 240, 300], 15.0, 1.5, 49.13)
    origins, directions = cameras.rays(SIZE, SIZE)
    offset = (origins - torch.tensor(CENTER))[:, None, None]
    a, b = directions.square().sum(-1), (directions * offset).sum(-1)
    root = b.square() - a * (offset.square().sum(-1) - RADIUS**2)
    depth = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, 0.0)
    right = (origins[:, None, None] + depth[..., None] * directions)[..., :1] > CENTER[0]
    colour = torch.where(right, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.8]))
    images = torch.where((depth > 0)[..., None], colour, torch.ones(3))
    return cameras, images, (depth > 0).float(), depth


# --- MCMC ---------------------------------------------------------------------------------------------------------


def test_relocation_is_equation_9_in_the_literal():
    """The double sum of the paper, term by term."""
    old, sizes, copies = [0.9, 0.3, 0.05, 0.7], [0.02, 0.5, 1.0, 0.1], [1, 2, 5, 20]
    new, scales = relocation(
        torch.tensor(old, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)[:, None].repeat(1, 3),
        torch.tensor(copies),
    )  # fmt: skip
    for i, (o, size, n) in enumerate(zip(old, sizes, copies, strict=True)):
        opacity = 1 - (1 - o) ** (1 / n)
        inner = sum(
            math.comb(k - 1, j) * (-1) ** j * opacity ** (j + 1) / math.sqrt(j + 1)
            for k in range(1, n + 1)
            for j in range(k)
        )
        assert float(new[i]) == pytest.approx(opacity, rel=1e-12)
        assert scales[i].tolist() == pytest.approx([o / inner * size] * 3, rel=1e-9)


@pytest.mark.parametrize(("opacity", "copies"), [(0.6, 3), (0.95, 51)])
def test_relocated_gaussians_cover_a_line_as_before(opacity, copies):
    new, scale = relocation(torch.tensor([opacity]), torch.full((1, 3), 0.2), torch.tensor([copies]))
    o, s = float(new), float(scale[0, 0])
    together = quad(lambda x: 1 - (1 - o * math.exp(-x * x / (2 * s * s))) ** copies, -5, 5, points=[0], limit=200)[0]
    before = quad(lambda x: opacity * math.exp(-x * x / (2 * 0.2**2)), -5, 5, points=[0], limit=200)[0]
    assert together == pytest.approx(before, rel=1e-4)
    assert new.dtype == torch.float32


def state(opacities):
    count = len(opacities)
    params = {
        "means": torch.arange(count * 3.0).view(count, 3), "scales": torch.full((count, 3), -3.0),
        "quats": torch.eye(4)[:1].repeat(count, 1), "opacities": torch.logit(torch.tensor(opacities)),
        "sh0": torch.rand(count, 1, 3),
    }  # fmt: skip
    params = {k: torch.nn.Parameter(v) for k, v in params.items()}
    optimizers = {k: torch.optim.Adam([p], lr=0.0) for k, p in params.items()}
    sum(p.sum() for p in params.values()).backward()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()
    return params, optimizers


def test_mcmc_moves_the_dead_and_grows_to_the_bound():
    params, optimizers = state([0.9, 0.001, 0.8, 0.002, 0.7])
    config = FitConfig(points=5, max_points=6, strategy="mcmc", densify_every=1, iterations=10)
    strategy = Mcmc(config, 1.0)
    alive = params["means"].detach()[[0, 2, 4]].clone()
    for step in (2, 3, 4):
        strategy.after_step(params, optimizers, step, {})
    assert len(params["means"]) == 5  # 5 % of so few is none; see below
    nearest = torch.cdist(params["means"].detach(), alive).amin(1)
    assert float(nearest.max()) < 0.5  # all of them sit, but for the shaking, where something opaque was
    assert float(torch.sigmoid(params["opacities"].detach()).min()) > 0.05
    for name, optimizer in optimizers.items():
        assert optimizer.param_groups[0]["params"][0] is params[name]
        assert optimizer.state[params[name]]["exp_avg"].shape == params[name].shape
    params, optimizers = state([0.5] * 100)
    config = FitConfig(points=100, max_points=107, strategy="mcmc", densify_every=1, iterations=10)
    strategy, counts = Mcmc(config, 1.0), []
    for step in (2, 3, 4):
        strategy.after_step(params, optimizers, step, {})
        counts.append(len(params["means"]))
    assert counts == [105, 107, 107]
    sum(p.sum() for p in params.values()).backward()
    for name, optimizer in optimizers.items():
        optimizer.step()
        assert optimizer.state[params[name]]["exp_avg"].shape == params[name].shape


def test_a_fit_with_mcmc(ball):
    cameras, images, masks, _ = ball
    before = torch.get_rng_state()
    config = FitConfig(iterations=40, points=200, max_points=230, densify_every=5, strategy="mcmc")
    first = fit(images, cameras, masks, config)
    again = fit(images, cameras, masks, config)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.gaussians.means, again.gaussians.means)
    assert first.history["gaussians"][-1] == 230
    drawn = render_gaussians(first.gaussians, cameras, SIZE, SIZE).features.clamp(0, 1)
    assert psnr(drawn, images).mean() > 21
    total = sum(torch.tensor(first.history[k]) for k in ("l1", "msssim", "mask", "mcmc"))
    torch.testing.assert_close(total, torch.tensor(first.history["loss"]))


# --- starts -------------------------------------------------------------------------------------------------------


def test_a_start_from_depth_lies_on_the_surface(ball):
    cameras, images, masks, depth = ball
    views = prepare_views(images, cameras, masks)
    maps = DepthMaps(depth, (depth > 0).float())
    g = initial_gaussians("depth", 300, views, cameras, torch.Generator().manual_seed(0), depth=maps)
    assert g.num == 300 and g.validate() is g
    distance = (g.means - torch.tensor(CENTER)).norm(dim=1)
    torch.testing.assert_close(distance, torch.full((300,), RADIUS), atol=1e-4, rtol=0)
    rgb = g.sh[:, 0] * SH_C0 + 0.5
    right = g.means[:, 0] > CENTER[0]
    assert torch.equal(rgb[:, 0] > 0.5, right)
    # About as large as the surface they share: a sphere of 300 discs, of which views overlap.
    assert 0.2 < float(g.scales.mean()) / math.sqrt(4 * math.pi * RADIUS**2 / 300) < 1.5
    half = DepthMaps(depth[:, ::2, ::2], (depth[:, ::2, ::2] > 0).float())  # of any size of its own
    g = initial_gaussians("depth", 100, views, cameras, torch.Generator().manual_seed(0), depth=half)
    assert float(((g.means - torch.tensor(CENTER)).norm(dim=1) - RADIUS).abs().max()) < 0.06


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        (None, "needs depth maps"),
        (DepthMaps(torch.ones(5, 8, 8), torch.ones(5, 8, 8)), "5 depth maps but 6 cameras"),
        (DepthMaps(torch.zeros(6, 8, 8), torch.ones(6, 8, 8)), "only 0 pixels"),
    ],
)
def test_depth_that_cannot_serve(ball, maps, said):
    cameras, images, masks, _ = ball
    with pytest.raises(ValueError, match=said):
        fit(images, cameras, masks, FitConfig(init="depth", **QUICK), depth=maps)


def test_splats_of_another_degree():
    g = Gaussians(torch.zeros(2, 3), torch.ones(2, 3), torch.eye(4)[:2], torch.ones(2), torch.zeros(2, 25, 3))
    with pytest.raises(ValueError, match="save the splat with degree 3 or lower"):
        g.validate()


# --- losses -------------------------------------------------------------------------------------------------------


def test_named_losses_are_those_of_the_paper():
    """references.md 8.4: LPIPS 10, MS-SSIM 0.2, mask 1, no pixel term; 5,000 points at the centre, 1,200 iterations."""
    assert LOSSES["IM-3D"] == {"w_l1": 0.0, "w_l2": 0.0, "w_lpips": 10.0, "w_msssim": 0.2, "w_mask": 1.0}
    config = FitConfig(**IM3D_FIT)
    assert (config.iterations, config.points, config.init, config.densify_every) == (1200, 5000, "center", 50)
    defaults = FitConfig()
    assert all(getattr(defaults, name) == value for name, value in LOSSES["default"].items())
    assert all(FitConfig(**weights) for weights in LOSSES.values())


def test_a_fit_by_lpips_alone_lowers_it(ball):
    """Random weights of the true layout: the term reaches the Gaussians, and the weights stay as they were."""
    cameras, images, masks, _ = ball
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Lpips("alex")
        for head in network.heads:
            torch.nn.init.uniform_(head)
    with pytest.raises(ValueError, match="must be frozen"):
        fit(images, cameras, masks, FitConfig(**QUICK, w_lpips=1.0), perceptual=network)
    network.requires_grad_(False)
    before = [p.clone() for p in network.parameters()]
    config = FitConfig(iterations=12, points=150, densify_every=0, w_l1=0, w_msssim=0, w_mask=0, w_lpips=10.0)
    with torch.inference_mode():
        result = fit(images, cameras, masks, config, perceptual=network)
    assert set(result.history) == {"loss", "lpips", "gaussians"}
    losses = result.history["loss"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_lpips_gradient_against_finite_differences():
    """In float64; and finite where no feature fires at all, as on a flat background."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Lpips("alex").double().requires_grad_(False)
        for head in network.heads:
            torch.nn.init.uniform_(head)
        target, picture, direction = torch.rand(3, 1, 32, 32, 3, dtype=torch.float64)
    picture.requires_grad_()
    network(picture, target).sum().backward()
    step = 1e-6
    with torch.no_grad():
        up, down = (network(picture + s * step * direction, target) for s in (1, -1))
    assert float((picture.grad * direction).sum()) == pytest.approx(float(up - down) / (2 * step), rel=1e-4)
    for layer in network.features:
        layer.bias.fill_(-1e3)
    picture.grad = None
    network(picture, target).sum().backward()
    assert torch.equal(picture.grad, torch.zeros_like(picture))


def test_lpips_that_cannot_serve(ball):
    cameras, images, masks, _ = ball
    with pytest.raises(ValueError, match="needs its network"):
        fit(images, cameras, masks, FitConfig(**QUICK, w_lpips=1.0))
    small = torch.nn.functional.interpolate(images.movedim(-1, 1), (24, 24)).movedim(1, -1)
    with pytest.raises(ValueError, match="at least 31 pixels"):
        fit(small, cameras, None, FitConfig(**QUICK, w_lpips=1.0), perceptual=Lpips("alex").requires_grad_(False))


# --- running ------------------------------------------------------------------------------------------------------


def test_patience(ball):
    """With rates of 0 nothing improves: the fit ends at the second look. A fit that improves goes on."""
    cameras, images, masks, _ = ball
    still = {f"lr_{k}": 0.0 for k in ("means", "scales", "quats", "opacities", "sh")}
    config = {"points": 150, "densify_every": 0, "iterations": 40, "patience": 6}
    assert len(fit(images, cameras, masks, FitConfig(**config, **still)).history["loss"]) == 12
    assert len(fit(images, cameras, masks, FitConfig(**config)).history["loss"]) > 12
    assert len(fit(images, cameras, masks, FitConfig(**{**config, "patience": 0}, **still)).history["loss"]) == 40


def test_running_out_of_memory_says_what_to_lower(ball):
    """A real allocation that fails in the middle of a fit; the next fit works."""
    cameras, images, masks, _ = ball

    def on_step(step, total, info):
        if step == 3:
            torch.empty(2**60, dtype=torch.uint8)

    with (
        pytest.raises(RuntimeError, match="ran out of memory while fitting; lower max_points."),
        memory_advice("fitting", "lower max_points."),
    ):
        fit(images, cameras, masks, FitConfig(**QUICK), on_step)
    with pytest.raises(RuntimeError, match="ran out of memory while fitting; less."), memory_advice("fitting", "less."):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="something else"), memory_advice("fitting", "less."):
        raise RuntimeError("something else")
    with memory_advice("fitting", "less."):
        fit(images, cameras, masks, FitConfig(**QUICK))


def test_written_weights_and_colours():
    assert parse_view_weights("  ", 3) is None
    assert parse_view_weights("1, 0.5 2", 3).tolist() == [1.0, 0.5, 2.0]
    assert parse_colour(" #8000FF ") == pytest.approx((128 / 255, 0.0, 1.0))
    for text, said in (("1, two, 3", "must be numbers"), ("1, 2", "3 views but 2 view weights")):
        with pytest.raises(ValueError, match=said):
            parse_view_weights(text, 3)
    for text in ("#12345", "red", "#12345g", "1234567"):
        with pytest.raises(ValueError, match="six hexadecimal digits"):
            parse_colour(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"strategy": "split"}, "strategy must be one of default, mcmc, none"),
        ({"refine": ("roll",)}, "can refine elevation, azimuths, fov, not 'roll'"),
        ({"patience": -1}, "patience"),
        ({"w_l1": 0.0, "w_msssim": 0.0}, "above 0"),
        ({"w_lpips": -1.0}, "not negative"),
    ],
)
def test_impossible_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        FitConfig(**settings)
