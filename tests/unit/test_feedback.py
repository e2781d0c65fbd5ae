"""3D-aware feedback without training: when it acts, what it blends, and that a splat of views brings them together."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.demo.objects import make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.multiview.feedback import PRESETS, Moments, QuickFit, blend, render_views, something_to_see

CAMERAS = orbit([45.0 * i for i in range(8)], 15.0, 1.5, 49.13)
SIDE = 48


def test_videomv_acts_at_three_of_fifty_steps():
    """references.md section 2: loop indices 20, 30 and 40, and nowhere else."""
    moments = PRESETS["VideoMV (three steps)"]
    assert [s for s in range(50) if moments.weight_at(1.0, s, 50)] == [20, 30, 40]
    assert [s for s in range(25) if moments.weight_at(1.0, s, 25)] == [10, 15, 20]
    assert [s for s in range(2) if moments.weight_at(1.0, s, 2)] == [1]


def test_cycle3d_acts_at_every_step_with_its_whole_weight():
    moments = PRESETS["Cycle3D (every step)"]
    assert all(moments.weight_at(ratio, s, 3) == 1.0 for s, ratio in enumerate((float("inf"), 5.0, 0.001)))


def test_the_short_preset_acts_at_every_step_of_its_window_and_nowhere_else():
    moments = PRESETS["short (S = 10 to 1)"]
    # Raised-cosine edges: half of the weight at the bounds themselves, nothing a factor of two outside.
    weights = [moments.weight_at(ratio, s, 6) for s, ratio in enumerate((700.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5))]
    assert weights == pytest.approx([0, 0, 1, 2, 2, 1, 0], abs=1e-6)


def test_a_window_of_noise_and_every_second_step():
    moments = Moments(weight=0.5, start=10.0, end=1.0, every=2)
    ratios = [20.0, 9.0, 8.0, 5.0, 2.0, 0.5]
    assert [moments.weight_at(r, s, 6) for s, r in enumerate(ratios)] == [0, 0, 0.5, 0, 0.5, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": -1.0}, "between 0 and 10"),
        ({"fractions": (1.2,)}, "fractions of the run"),
        ({"start": 1.0, "end": 2.0}, "more noise than it ends"),
        ({"every": 0}, "at least every 1 step"),
    ],
)
def test_settings_without_meaning_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Moments(**change)


def test_blend_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    x0, renders = torch.randn(2, 3, 4, 4, 6, generator=generator).unbind(0)
    before = x0.clone()
    keep = torch.tensor([1.0, 0.0, 0.5])
    where = torch.rand(3, 8, 12, generator=generator)
    out = blend(x0, renders, 2.0, keep, where)
    cells = where.view(3, 4, 2, 6, 2).mean((2, 4))
    expected = x0.double() + (2 * keep[:, None, None, None] * cells[:, None]).double() * (renders - x0).double()
    assert torch.allclose(out.double(), expected, atol=1e-6)
    assert torch.equal(out[1], x0[1]) and torch.equal(x0, before)
    assert torch.equal(blend(x0, renders, 1.0), x0 + (renders - x0))
    assert blend(x0.half(), renders, 1.0).dtype == torch.float16
    with pytest.raises(ValueError, match="VAE of this model"):
        blend(x0, renders[:, :2], 1.0)


@pytest.fixture(scope="module")
def toys():
    """Views of two variants of one toy: the same front, another back."""
    return [render_object(make_object(5, v, 6), CAMERAS, SIDE).rgb for v in (0, 1)]


def test_renders_of_contradicting_views_lie_between_them(toys):
    """Every view leads toward one object: where the toys differ, the renders of a mix differ less from each than they
    do from one another; and a warm start ends nearer than it began."""
    mixed = torch.where((torch.arange(8) % 2 == 0)[:, None, None, None], toys[0], toys[1])
    quick = QuickFit(CAMERAS, first=40, again=20, points=600)
    first = quick(mixed, None)
    again = quick(mixed, first)
    assert first.num == again.num == 600
    errors = []
    for splat in (first, again):
        renders, coverage = render_views(splat, CAMERAS, mixed)
        assert renders.shape == mixed.shape and coverage.shape == mixed.shape[:3]
        errors.append(float((renders - mixed).square().mean()))
    assert errors[1] < errors[0]
    apart = (toys[0] - toys[1]).abs().amax(-1) > 0.2
    to_first, to_second = ((renders - toy).abs().mean(-1)[apart].mean() for toy in toys)
    apart_by = (toys[0] - toys[1]).abs().mean(-1)[apart].mean()
    assert to_first < apart_by and to_second < apart_by


def test_same_seed_same_splat_and_weights_of_views_count(toys):
    quick = QuickFit(CAMERAS, first=10, points=300)
    one, two = quick(toys[0], None), quick(toys[0], None)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), two.tensors(), strict=True))
    weights = torch.ones(8)
    weights[0] = 50.0
    heavy = dataclasses.replace(quick, view_weights=weights)(toys[0], None)
    error = [float((render_views(s, CAMERAS, toys[0])[0] - toys[0])[0].square().mean()) for s in (one, heavy)]
    assert error[1] < error[0]


def test_flat_predictions_are_recognised(toys):
    assert something_to_see(toys[0])
    flat = toys[0].clone()
    flat[3] = 1.0
    assert not something_to_see(flat)
    assert not something_to_see(torch.full_like(flat, 0.4))
