"""HarmonyView's formula and its schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mvpack.multiview.harmony import as_negative, baseline, check_range, combine, scale_at


def three(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_a_number_worked_by_hand():
    """c = 1, views only 0.25, reference only -0.5: 1 + 2 * 0.75 + 0.5 * 1.5."""
    c, views, reference = torch.tensor([1.0]), torch.tensor([0.25]), torch.tensor([-0.5])
    assert combine(c, views, reference, 2.0, 0.5).item() == 3.25
    assert baseline(c, views, 2.0).item() == 2.5
    negative, scale = as_negative(views, reference, 2.0, 0.5)
    assert negative.item() == pytest.approx(0.1, abs=1e-7)  # (2 * 0.25 - 0.5 * 0.5) / 2.5
    assert scale == 3.5


@given(s1=st.floats(0, 20), s2=st.floats(0, 20))
def test_as_negative_is_the_same_guidance(s1, s2):
    c, views, reference = three()
    negative, scale = as_negative(views, reference, s1, s2)
    wanted = c + s1 * (c - views) + s2 * (c - reference)
    guided = c if negative is None else negative + scale * (c - negative)
    assert torch.allclose(guided, wanted, atol=1e-12 * (1 + s1 + s2))
    assert torch.allclose(combine(c, views, reference, s1, s2), wanted, atol=1e-12)


def test_prediction_types_commute_with_it():
    """eps = (x - x0) / sigma: guided noise and guided x0 are the same guidance, because the weights sum to 1."""
    parts, x, sigma = three(), three(1)[0], 3.7
    noise = combine(*((x - p) / sigma for p in parts), 2.0, 1.0)
    assert torch.allclose(x - sigma * noise, combine(*parts, 2.0, 1.0), atol=1e-12)


def test_unused_branches_may_be_missing():
    c, views, reference = three()
    assert combine(c, None, None, 0.0, 0.0) is c
    assert torch.equal(combine(c, views, None, 2.0, 0.0), c + 2.0 * (c - views))
    assert torch.equal(combine(c, None, reference, 0.0, 1.0), c + 1.0 * (c - reference))
    assert as_negative(None, None, 0.0, 0.0) == (None, 1.0)
    assert as_negative(views, None, 2.0, 0.0)[0] is views
    assert as_negative(None, reference, 0.0, 2.0)[0] is reference


@pytest.mark.parametrize(
    ("schedule", "progress", "wanted"),
    [
        ("constant", 0.2, 2.0), ("constant", 0.6, 2.0), ("constant", 0.19, 0.0), ("constant", 0.61, 0.0),
        ("falling", 0.2, 2.0), ("falling", 0.3, 1.5), ("falling", 0.6, 0.0),
        ("rising", 0.2, 0.0), ("rising", 0.5, 1.5), ("rising", 0.6, 2.0), ("rising", 0.7, 0.0),
    ],
)  # fmt: skip
def test_schedules(schedule, progress, wanted):
    assert scale_at(2.0, progress, schedule, 0.2, 0.6) == pytest.approx(wanted, abs=1e-12)


def test_a_range_of_one_point():
    assert scale_at(2.0, 0.5, "falling", 0.5, 0.5) == 2.0
    assert scale_at(2.0, 0.5, "constant", 0.5, 0.5) == 2.0


@pytest.mark.parametrize("scales", [(-1.0, 0.0), (0.0, -0.1), (float("nan"), 1.0), (1.0, float("inf"))])
def test_impossible_scales(scales):
    for function in (combine, lambda c, v, r, a, b: as_negative(v, r, a, b)):
        with pytest.raises(ValueError, match="must be 0 or more"):
            function(*three(), *scales)


def test_impossible_schedules():
    with pytest.raises(ValueError, match="constant, falling, rising"):
        scale_at(1.0, 0.5, "cosine")
    for start, end in ((0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="must start before it ends"):
            check_range(start, end)
