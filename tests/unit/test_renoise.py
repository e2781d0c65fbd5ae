"""Where a restart enters a schedule, against lists written out by hand, and the variance of what it starts from."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mvpack.multiview.renoise import noised, remaining, round_values

SCHEDULE = [8.0, 4.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("restart", "value", "expected"),
    [
        ("fraction", 1.0, (8, 4, 2, 1, 0)),
        ("fraction", 0.75, (4, 2, 1, 0)),
        ("fraction", 0.5, (2, 1, 0)),
        # Every fraction above 0 does at least one step.
        ("fraction", 0.01, (1, 0)),
        ("fraction", 0.26, (2, 1, 0)),
        ("fraction", 0.0, ()),
        ("sigma", 8.0, (8, 4, 2, 1, 0)),
        ("sigma", 4.0002, (4, 2, 1, 0)),
        ("sigma", 3.0, (3, 2, 1, 0)),
        ("sigma", 0.5, (0.5, 0)),
        ("sigma", 0.0, ()),
    ],
)
def test_remaining_levels(restart, value, expected):
    assert remaining(SCHEDULE, restart, value) == expected


def test_a_fraction_of_a_real_schedule_is_not_rounded_up_by_float_errors():
    schedule = [30.0 - i for i in range(31)]
    assert [len(remaining(schedule, "fraction", k / 30)) - 1 for k in range(1, 31)] == list(range(1, 31))


def test_a_split_schedule_keeps_its_end():
    assert remaining([8.0, 4.0, 2.0], "fraction", 0.5) == (4, 2)
    assert remaining([8.0, 4.0, 2.0], "sigma", 3.0) == (3, 2)


@pytest.mark.parametrize(
    ("schedule", "restart", "value", "words"),
    [
        (SCHEDULE, "fraction", 1.5, "between 0 and 1"),
        (SCHEDULE, "fraction", -0.1, "between 0 and 1"),
        (SCHEDULE, "fraction", math.nan, "between 0 and 1"),
        (SCHEDULE, "sigma", 9.0, "outside the schedule"),
        (SCHEDULE, "sigma", -1.0, "0 or more"),
        (SCHEDULE, "sigma", math.inf, "0 or more"),
        ([8.0, 4.0, 2.0], "sigma", 1.0, "outside the schedule"),
        ([8.0, 4.0, 2.0], "sigma", 2.0, "outside the schedule"),
        (SCHEDULE[::-1], "fraction", 0.5, "must fall"),
        ([2.0, 2.0, 0.0], "fraction", 0.5, "must fall"),
        ([], "fraction", 0.5, "at least two"),
        ([3.0], "fraction", 0.5, "at least two"),
        ([math.inf, 1.0, 0.0], "fraction", 0.5, "finite"),
        (SCHEDULE, "half", 0.5, "one of fraction, sigma"),
    ],
)
def test_bad_restarts_are_refused_in_one_sentence(schedule, restart, value, words):
    with pytest.raises(ValueError, match=words) as caught:
        remaining(schedule, restart, value)
    assert "\n" not in str(caught.value)


@given(
    steps=st.lists(st.floats(0.01, 5.0), min_size=1, max_size=12),
    fraction=st.floats(0, 1),
    ends_at_zero=st.booleans(),
)
def test_what_remains_is_always_the_end_of_the_schedule(steps, fraction, ends_at_zero):
    schedule = [0.0 if ends_at_zero else 0.3]
    for step in steps:
        schedule.insert(0, schedule[0] + step)
    left = remaining(schedule, "fraction", fraction)
    assert left == tuple(schedule[len(schedule) - len(left) :])
    assert (len(left) == 0) == (math.ceil(fraction * len(steps) - 1e-6) == 0)
    # Said as a noise level, the same restart gives the same levels.
    assert not left or remaining(schedule, "sigma", left[0]) == left


def test_values_of_rounds():
    assert round_values("0.4", 3) == (0.4, 0.4, 0.4)
    assert round_values("0.6, 0.4", 3) == (0.6, 0.4, 0.4)
    assert round_values(" 3;1.5 0.5 ", 2) == (3.0, 1.5)
    for text in ("", "a, b", "0.5, nan", "0.5, inf", ","):
        with pytest.raises(ValueError, match="numbers with commas"):
            round_values(text, 2)
    with pytest.raises(ValueError, match="at least 1"):
        round_values("0.5", 0)


@pytest.mark.parametrize("shape", [(2, 4, 60, 60), (1, 3, 5, 40, 40)])
@pytest.mark.parametrize(
    ("sigma", "flow", "variance"),
    [(3.0, False, 9.25), (0.5, False, 0.5), (0.8, True, 0.65), (0.25, True, 0.203125)],
)
def test_variance_of_data_of_variance_a_quarter(shape, sigma, flow, variance):
    """Written out: v0 + sigma^2, and (1 - sigma)^2 v0 + sigma^2 for flow models, with v0 = 1/4."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 * torch.randn(shape, generator=generator)
    before = clean.clone()
    x = noised(clean, torch.randn(shape, generator=generator), sigma, flow)
    assert float(x.var()) == pytest.approx(variance, rel=0.05)
    assert torch.equal(clean, before)
