"""Rectification against autograd of the paper's loss, written out cell by cell, and the properties users rely on."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvpack.multiview.cameras import orbit
from mvpack.multiview.correspondence import Correspondence, cell_centres, track
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.mirror import MirrorOptions, fuse, loss, rectify
from mvpack.multiview.mirror_schedule import (
    decision_window,
    noise_ratio,
    paper_eta,
    paper_scale,
    progress_eta,
    window_eta,
)

DEMO = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)


def random_matches(n=3, k=2, height=4, width=5, seed=0, sure=False) -> Correspondence:
    g = torch.Generator().manual_seed(seed)
    neighbours = torch.stack([(torch.arange(n) + o) % n for o in (-1, 1, 2, -2)[:k]], 1)
    uv = torch.rand(n, k, height, width, 2, generator=g) * torch.tensor([width, height])
    confidence = torch.rand(n, k, height, width, generator=g)
    confidence = torch.ones_like(confidence) if sure else confidence * (confidence > 0.3)
    foreground = torch.rand(n, height, width, generator=g)
    foreground = torch.ones_like(foreground) if sure else foreground * (foreground > 0.3)
    return Correspondence(neighbours, uv, confidence, foreground)


def pixel(picture, u, v, nearest):
    """(C,) value of (C,H,W) at a position, borders repeated."""
    _, height, width = picture.shape
    if nearest:
        return picture[:, min(max(math.floor(v), 0), height - 1), min(max(math.floor(u), 0), width - 1)]
    x, y = min(max(u - 0.5, 0), width - 1), min(max(v - 0.5, 0), height - 1)
    left, top = min(math.floor(x), width - 2), min(math.floor(y), height - 2)
    a, b = x - left, y - top
    return (
        (1 - a) * (1 - b) * picture[:, top, left]
        + a * (1 - b) * picture[:, top, left + 1]
        + (1 - a) * b * picture[:, top + 1, left]
        + a * b * picture[:, top + 1, left + 1]
    )


def literal_loss(x0, matches, options):
    """Eq. 7-11 by loops in float64. Weights over neighbours: confidence times omega, scaled so that their sum is the
    largest confidence (1 and omega itself where everything is sure). Neighbours and weights are detached."""
    n, channels, height, width = x0.shape
    z = x0.detach()
    k_count = matches.neighbours.shape[1]
    omega = torch.tensor(options.neighbour_weights or [1.0] * k_count, dtype=torch.float64)
    omega = omega / omega.sum()
    reach = options.block // 2
    total = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        for r in range(height):
            for c in range(width):
                terms = []
                for k in range(k_count):
                    j = int(matches.neighbours[i, k])
                    u, v = matches.uv[i, k, r, c].double().tolist()
                    sure = float(matches.confidence[i, k, r, c])
                    if options.nearest:
                        u, v = math.floor(u) + 0.5, math.floor(v) + 0.5
                    cells, prior = [], []
                    for dv in range(-reach, reach + 1):
                        for du in range(-reach, reach + 1):
                            cells.append(pixel(z[j], u + du, v + dv, options.nearest))
                            inside = 0 <= u + du <= width and 0 <= v + dv <= height
                            solid = pixel(matches.foreground[j][None].double(), u + du, v + dv, options.nearest)
                            prior.append(float(inside) * (float(solid) if options.skip_background else 1.0))
                    if options.negative == "image":
                        neg = (z[j][:, 0, 0] + z[j][:, 0, -1] + z[j][:, -1, 0] + z[j][:, -1, -1]) / 4
                    else:
                        s = options.block
                        neg = (cells[0] + cells[s - 1] + cells[s * s - s] + cells[s * s - 1]) / 4
                    if max(prior) == 0 or sure == 0:
                        continue
                    prior = torch.tensor(prior, dtype=torch.float64)
                    values = torch.stack(cells)
                    like = torch.cosine_similarity(z[i, :, r, c][None], values, dim=1)
                    unlike = 1 - torch.cosine_similarity(neg[None], values, dim=1)
                    weights = torch.zeros(len(cells), dtype=torch.float64)
                    for share, score in ((options.positive, like), (1 - options.positive, unlike)):
                        e = prior * (score / options.temperature).exp()
                        weights += share * e / e.sum()
                    terms.append((float(omega[k]), sure, (weights[:, None] * values).sum(0)))
                norm = sum(w * s for w, s, _ in terms)
                if norm == 0:
                    continue
                top = max(s for w, s, _ in terms if w > 0)
                for w, s, fused in terms:
                    total = total + w * s / norm * top * (x0[i, :, r, c] - fused).square().sum()
    return total


CASES = [
    (MirrorOptions(), True),
    (MirrorOptions(), False),
    (MirrorOptions(positive=0.8, temperature=0.1), False),
    (MirrorOptions(negative="block", temperature=0.5), False),
    (MirrorOptions(nearest=True, temperature=0.2), False),
    (MirrorOptions(neighbour_weights=(0.9, 0.1), skip_background=False), False),
    (MirrorOptions(block=1), False),
    (MirrorOptions(block=5, negative="block"), True),
]


@pytest.mark.parametrize(("options", "sure"), CASES)
def test_rectification_is_the_gradient_step_of_the_papers_loss(options, sure):
    matches = random_matches(sure=sure)
    x0 = torch.randn(3, 4, 4, 5, generator=torch.Generator().manual_seed(1))
    x = x0.double().requires_grad_()
    (gradient,) = torch.autograd.grad(literal_loss(x, matches, options), x)
    scale, ratio = 0.008, 5.0  # s(t) and S: Eq. 14 moves x0 by -s S^2 gradient
    expected = x0.double() - scale * ratio**2 * gradient
    eta = 2 * scale * ratio**2
    found = rectify(x0, matches, eta, options, views_at_once=2)
    assert float((expected - x0).abs().max()) > 0.1
    assert torch.allclose(found.double(), expected, atol=1e-5)
    y = x0.clone().requires_grad_()
    (ours,) = torch.autograd.grad(loss(y, matches, options), y)
    assert torch.allclose(ours.double(), gradient, atol=1e-5)


def demo_matches(size=32, seed=3, cameras=DEMO, offsets=(-1, 1)):
    true = render_object(make_object(seed), cameras, size, 1)
    return true, track(cameras, (size, size), true.depth, offsets=offsets)


def test_strength_zero_is_bit_identical():
    _, matches = demo_matches()
    x0 = torch.randn(16, 4, 32, 32)
    x0[0, 0, 0, 0] = math.nan
    for eta in (0, 0.0, -1.0, torch.zeros(16)):
        assert rectify(x0, matches, eta) is x0


def test_no_pull_without_confidence():
    _, matches = demo_matches()
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(16, 4, 32, 32, generator=g)
    out = rectify(x0, matches, 1.0)
    free = ~matches.valid.any(1)[:, None].expand_as(x0)
    assert torch.equal(out[free], x0[free])
    assert float((out != x0)[~free].float().mean()) > 0.95
    nothing = replace(matches, confidence=torch.zeros_like(matches.confidence))
    assert torch.equal(rectify(x0, nothing, 1.0), x0)


def test_input_is_kept_and_views_can_be_pinned():
    _, matches = demo_matches()
    x0 = torch.randn(16, 4, 32, 32)
    kept = x0.clone()
    eta = torch.full((16,), 0.7)
    eta[3] = 0
    out = rectify(x0, matches, eta, iterations=2)
    assert torch.equal(x0, kept)
    assert torch.equal(out[3], x0[3]) and not torch.equal(out[4], x0[4])
    with torch.inference_mode():
        assert torch.equal(rectify(x0, matches, eta, iterations=2), out)


def test_eta_is_clamped():
    _, matches = demo_matches()
    x0 = torch.randn(16, 4, 32, 32)
    assert torch.equal(rectify(x0, matches, 5.0), rectify(x0, matches, 1.0))


@pytest.mark.parametrize("order", ["reversed", "rotated", "shuffled"])
def test_order_of_views_does_not_matter(order):
    index = {
        "reversed": list(range(15, -1, -1)),
        "rotated": [(i + 5) % 16 for i in range(16)],
        "shuffled": torch.randperm(16, generator=torch.Generator().manual_seed(2)).tolist(),
    }[order]
    true, matches = demo_matches()
    x0 = torch.randn(16, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    cameras = replace(DEMO.subset(index), closed=True)
    again = track(cameras, (32, 32), true.depth[index])
    assert torch.allclose(rectify(x0[index], again, 0.6), rectify(x0, matches, 0.6)[index], atol=1e-6)


def test_turning_the_whole_orbit_does_not_matter():
    """The same depth seen from cameras that all stand 40 degrees further round (as if the object had turned too)."""
    true, matches = demo_matches()
    turned = orbit([22.5 * i + 40.0 for i in range(16)], 15.0, 1.5, 49.13)
    again = track(turned, (32, 32), true.depth)
    # Azimuths now start elsewhere, but every view keeps its neighbours, positions and visibility.
    assert torch.equal(again.neighbours, matches.neighbours)
    x0 = torch.randn(16, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    a, b = rectify(x0, again, 0.6), rectify(x0, matches, 0.6)
    same = (again.valid == matches.valid).all(1)
    assert float(same.float().mean()) > 0.999
    assert torch.allclose(a[same[:, None].expand_as(a)], b[same[:, None].expand_as(b)], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    _, matches = demo_matches()
    x0 = torch.randn(16, 4, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = rectify(x0, matches, 0.5)
    assert out.dtype == dtype
    expected = rectify(x0.float(), matches, 0.5)
    assert torch.allclose(out.float(), expected, atol=2e-2 if dtype == torch.bfloat16 else 2e-3)
    free = ~matches.valid.any(1)[:, None].expand_as(x0)
    assert torch.equal(out[free], x0[free])


def test_video_latents_and_several_objects_in_a_batch():
    _, matches = demo_matches()
    x0 = torch.randn(2, 16, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    each = torch.stack([rectify(x, matches, 0.5) for x in x0])
    assert torch.equal(rectify(x0.flatten(0, 1), matches, 0.5), each.flatten(0, 1))
    video = x0.movedim(1, 2)
    assert torch.equal(rectify(video, matches, 0.5), each.movedim(1, 2))
    assert rectify(video[:1], matches, 0.5).shape == (1, 4, 16, 32, 32)


def test_chunks_of_views_give_the_same():
    _, matches = demo_matches()
    x0 = torch.randn(16, 4, 32, 32)
    first = rectify(x0, matches, 0.5, views_at_once=16)
    for count in (1, 5):
        assert torch.allclose(rectify(x0, matches, 0.5, views_at_once=count), first, atol=1e-6)


def patches(coords, solid):
    """A colour for every surface point, constant over wide bands of height, so that nearest cells share it."""
    band = ((coords[..., 1] * 4).floor() % 2)[:, None]
    colour = torch.cat([0.3 + 0.4 * band, 0.8 - 0.5 * band, 0.5 + 0 * band], 1)
    return torch.where(solid[:, None], colour, torch.ones_like(colour))


def test_views_that_agree_are_left_and_an_odd_one_is_pulled():
    true, matches = demo_matches(size=64)
    views = patches(true.coords, true.depth > 0)
    options = MirrorOptions(block=1, nearest=True)
    out = rectify(views, matches, 1.0, options)
    touched = (out - views).abs().amax(1) > 1e-6
    # Only cells next to a band's edge or the outline can take another value.
    assert float(touched.float().mean()) < 0.02
    # One colour all over is a fixed point with the paper's block as well, to the last bits.
    plain = torch.where((true.depth > 0)[:, None], 0.25, 1.0).expand(-1, 3, -1, -1).contiguous()
    inner = track(DEMO, (64, 64), true.depth)
    moved = (rectify(plain, inner, 1.0, MirrorOptions(nearest=True)) - plain).abs().amax(1)
    assert float((moved > 0.01).float().mean()) < 0.02

    odd = views.clone()
    odd[6] = torch.where((true.depth[6] > 0)[None], odd[6] * 0.5, odd[6])
    fixed = rectify(odd, matches, 0.5, options)
    seen = matches.valid[6].any(0)
    before, after = (odd[6] - views[6]).abs().amax(0)[seen], (fixed[6] - views[6]).abs().amax(0)[seen]
    # Halfway where the match is sure, less in cells the object only grazes, never further away than before.
    assert float((after / before).median()) == pytest.approx(0.5, abs=0.02)
    assert float((after > before + 1e-6).float().mean()) < 0.02


def test_iterations_carry_further_than_one_neighbour():
    true, matches = demo_matches(size=64)
    views = torch.zeros(16, 1, 64, 64)
    views[0] = 1.0
    reach = [
        (rectify(views, matches, 0.5, MirrorOptions(block=1), iterations=i).amax((1, 2, 3)) > 1e-4).sum()
        for i in (1, 2)
    ]
    assert reach[0] == 3 and reach[1] == 5


@pytest.mark.parametrize("options", [MirrorOptions(block=1), MirrorOptions(block=3, temperature=0.2)])
def test_guidance_goes_beyond_the_pulled_views(options):
    matches = random_matches()
    x0 = torch.randn(3, 4, 4, 5, generator=torch.Generator().manual_seed(2))
    eta = torch.tensor([0.9, 0.0, 0.4])
    pulled = rectify(x0, matches, eta, options, iterations=3)
    beyond = rectify(x0, matches, eta, options, iterations=3, guidance=2.5)
    assert torch.allclose(beyond, x0 + 2.5 * (pulled - x0), atol=1e-5)
    assert torch.equal(beyond[1], x0[1]) and torch.equal(pulled[1], x0[1])
    assert rectify(x0, matches, eta, options, guidance=0.0) is x0


@pytest.mark.parametrize("skip", [True, False])
def test_repeated_pulls_of_the_match_alone_are_the_pulls_of_fuse_repeated(skip):
    """The sparse product (mirror_taps) against fuse, one pull after the other: two ways to the same numbers."""
    options = MirrorOptions(block=1, neighbour_weights=(0.7, 0.3), skip_background=skip)
    matches = random_matches(height=6, width=7, seed=4)
    x0 = torch.randn(3, 4, 6, 7, generator=torch.Generator().manual_seed(3))
    eta = torch.tensor([0.8, 0.3, 1.0])
    expected = x0.clone()
    for _ in range(5):
        fused, trust = fuse(expected, matches, options)
        expected = expected + eta.view(3, 1, 1, 1) * trust * (fused - expected)
    assert torch.allclose(rectify(x0, matches, eta, options, iterations=5), expected, atol=1e-5)


def test_temperature_picks_the_best_cell_of_the_block():
    """A matching cell one off the predicted position: cold weights take it, the paper's mostly average the block."""
    neighbours = torch.tensor([[1], [0]])
    uv = cell_centres(5, 5).expand(2, 1, -1, -1, -1)
    ones = torch.ones(2, 1, 5, 5)
    matches = Correspondence(neighbours, uv, ones, ones[:, 0])
    x0 = torch.tensor([1.0, -1.0])[None, :, None, None].repeat(2, 1, 5, 5)
    x0[0, :, 2, 2] = torch.tensor([1.0, 1.0])
    x0[1, :, 2, 3] = torch.tensor([2.0, 2.0])
    cold, _ = fuse(x0, matches, MirrorOptions(positive=1.0, temperature=0.01))
    warm, _ = fuse(x0, matches, MirrorOptions(positive=1.0))
    assert torch.allclose(cold[0, :, 2, 2], torch.tensor([2.0, 2.0]), atol=1e-3)
    assert float((warm[0, :, 2, 2] - 2).abs().max()) > 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: rectify(torch.zeros(15, 4, 32, 32), m, 0.5), "16 views"),
        (lambda m: rectify(torch.zeros(16, 4, 16, 16), m, 0.5), "32 x 32"),
        (lambda m: rectify(torch.zeros(16, 4, 32, 32), m, math.nan), "eta"),
        (lambda m: rectify(torch.zeros(16, 4, 32, 32), m, torch.ones(3)), "eta"),
        (lambda m: rectify(torch.zeros(16, 4, 32, 32), m, 0.5, iterations=0), "iterations"),
        (lambda m: rectify(torch.zeros(16, 4, 32, 32), m, 0.5, guidance=-1.0), "guidance"),
        (lambda m: rectify(torch.zeros(16, 4, 32, 32), m, 0.5, MirrorOptions(neighbour_weights=(1.0,))), "weights"),
        (lambda m: MirrorOptions(positive=1.5), "share"),
        (lambda m: MirrorOptions(negative="corner"), "anchor"),
        (lambda m: MirrorOptions(temperature=0.0), "temperature"),
        (lambda m: MirrorOptions(block=2), "odd"),
        (lambda m: MirrorOptions(neighbour_weights=(0.0, 0.0)), "weights"),
    ],
)
def test_bad_input_is_one_sentence(make, words):
    _, matches = demo_matches()
    with pytest.raises(ValueError, match=words):
        make(matches)


# ------------------------------------------------------------------------------------------------------- schedules

ETAS = {  # references.md 5.3, by step index t = 45 .. 10
    "eq31": (0.229, 0.105, 0.352, 0.153, 0.084, 0.046, 0.023, 0.014, 0.007, 0.001),
    "eq32": (0.572, 0.264, 1.06, 0.459, 0.252, 0.137, 0.069, 0.041, 0.019, 0.0017),
}
INDICES = (45, 41, 40, 35, 31, 30, 25, 21, 20, 10)


def sd_ratios():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    return ((1 - alphas) / alphas).sqrt()


@pytest.mark.parametrize("table", ETAS)
def test_eta_table_of_the_paper_schedules_on_sds_noise(table):
    ratios = sd_ratios()
    for t, published in zip(INDICES, ETAS[table], strict=True):
        ratio = float(ratios[20 * (t - 1) + 1])  # DDIM's 50 steps are timesteps 1, 21, ... 981
        assert 2 * paper_scale(t, table) * ratio**2 == pytest.approx(published, rel=0.01, abs=6e-4)
        found = paper_eta(50 - t, 50, ratio, table)
        assert found == pytest.approx(min(published, 1.0), rel=0.01, abs=6e-4)


def test_paper_schedule_starts_after_the_fifth_step_and_scales_with_the_steps():
    active = [paper_eta(i, 50, 1.0) > 0 for i in range(50)]
    assert active == [False] * 5 + [True] * 45
    assert [paper_scale(t, "eq31") for t in (45, 40, 30, 20, 10, 0.5)] == [0.002, 0.008, 0.005, 0.003, 0.001, 0.001]
    assert [paper_eta(i, 25, 1.0) for i in (0, 2, 3, 5)] == pytest.approx([0, 0, 0.004, 0.016])
    assert paper_eta(10, 50, math.inf) == 1.0 and paper_eta(0, 50, math.inf) == 0.0


def test_noise_ratio_of_flow_models():
    assert noise_ratio(14.6) == 14.6
    assert noise_ratio(0.5, flow=True) == 1.0 and noise_ratio(1.0, flow=True) == math.inf
    with pytest.raises(ValueError, match="flow"):
        noise_ratio(1.2, flow=True)


@given(st.floats(1e-3, 1e3), st.floats(1.01, 1e3), st.floats(0, 1), st.floats(0.0, 3.0))
@settings(deadline=None, max_examples=100)
def test_window_lies_between_its_ends(end, width, peak, softness):
    start = end * width
    etas = [window_eta(r, peak, start, end, softness) for r in torch.logspace(-5, 8, 60).tolist()]
    assert all(0 <= e <= peak for e in etas)
    margin = math.exp(softness / 2 + 1e-6)
    assert window_eta(start * margin, peak, start, end, softness) == 0
    assert window_eta(end / margin, peak, start, end, softness) == 0
    if start / end > 2 * margin**2:
        assert window_eta(math.sqrt(start * end), peak, start, end, softness) == peak
    top = etas.index(max(etas))
    assert etas[: top + 1] == sorted(etas[: top + 1]) and etas[top:] == sorted(etas[top:], reverse=True)


def test_window_to_the_last_step_and_progress():
    assert window_eta(0.0, 0.5, 10.0, 0.0) == 0.5 and window_eta(1e-6, 0.5, 10.0, 0.0) == 0.5
    assert window_eta(0.0, 0.5, 10.0, 0.1) == 0.0 and window_eta(math.inf, 0.5, 10.0, 0.1) == 0.0
    assert window_eta(10.0, 0.5, 10.0, 0.1) == pytest.approx(0.25)
    assert [progress_eta(p, 0.5, 0.2, 0.8) for p in (0.1, 0.2, 0.5, 0.9)] == [0, 0.5, 0.5, 0]
    with pytest.raises(ValueError, match="window"):
        window_eta(1.0, 0.5, 0.1, 10.0)


def test_decision_window_holds_what_it_promises():
    ratios = [100.0, 50.0, 20.0, 10.0, 5.0, 2.0]
    assert decision_window(ratios, [0, 0, 1, 0, 0]) == (20.0, 10.0)
    assert decision_window(ratios, [1, 8, 20, 20, 1], keep=0.9) == (50.0, 5.0)
    assert decision_window(ratios, [1, 1, 1, 1, 1], keep=1.0) == (100.0, 2.0)
    with pytest.raises(ValueError, match="one fewer"):
        decision_window(ratios, [1.0])
    with pytest.raises(ValueError, match="not all 0"):
        decision_window(ratios, [0.0] * 5)


def test_unknown_schedule_is_one_sentence():
    with pytest.raises(ValueError, match="eq31, eq32"):
        paper_scale(10, "eq33")
    with pytest.raises(ValueError, match="step"):
        paper_eta(50, 50, 1.0)
