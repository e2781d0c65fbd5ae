"""Bootstrap intervals against scipy's and against the normal closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvpack.multiview.statistics import bootstrap, paired_bootstrap
from scipy import stats

SKEWED = np.random.default_rng(7).exponential(2.0, 40)


def test_agrees_with_scipys_percentile_bootstrap():
    theirs = stats.bootstrap((SKEWED,), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    ours = bootstrap(SKEWED, samples=20000)
    width = theirs.high - theirs.low
    assert ours.mean == pytest.approx(SKEWED.mean())
    # Both are Monte Carlo; 2 % of the width is three of its standard errors at 20,000 resamplings.
    assert ours.low == pytest.approx(theirs.low, abs=0.02 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.02 * width)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_many_values_give_the_normal_interval(level):
    values = np.random.default_rng(1).normal(3.0, 2.0, 1500)
    ours = bootstrap(values, samples=4000, level=level)
    half = stats.norm.ppf((1 + level) / 2) * values.std() / np.sqrt(len(values))
    assert ours.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert ours.high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_interval_covers_the_true_mean_as_often_as_it_promises():
    rng = np.random.default_rng(3)
    found = [bootstrap(rng.normal(0.0, 1.0, 60), samples=400, seed=i, level=0.9) for i in range(300)]
    share = np.mean([f.low <= 0.0 <= f.high for f in found])
    # 300 trials of 0.9 have a standard deviation of 0.017; a percentile bootstrap of 60 values is about 0.01 short.
    assert 0.83 < share < 0.95


def test_deterministic_and_the_seed_matters():
    assert bootstrap(SKEWED) == bootstrap(SKEWED)
    assert bootstrap(SKEWED, seed=1).low != bootstrap(SKEWED, seed=2).low
    before = np.random.get_state()[1].copy()
    bootstrap(SKEWED)
    assert np.array_equal(before, np.random.get_state()[1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(-50, 50))
def test_moves_with_the_values_and_stays_within_them(values, shift):
    plain, moved = bootstrap(values, samples=200), bootstrap(np.array(values) + shift, samples=200)
    assert moved == pytest.approx([v + shift for v in plain], abs=1e-9)
    assert min(values) - 1e-9 <= plain.low <= plain.mean + 1e-9 and plain.high <= max(values) + 1e-9


def test_pairs_see_a_small_gain_under_a_large_spread():
    base = np.random.default_rng(5).normal(20.0, 5.0, 32)
    gain = np.random.default_rng(6).normal(0.5, 0.3, 32)
    found = paired_bootstrap(base, base + gain)
    assert found.mean == pytest.approx(gain.mean())
    assert found.low > 0.3 and found.high < 0.7
    assert paired_bootstrap(base + gain, base).high < 0
    assert bootstrap(base).low < base.mean() + 0.5 < bootstrap(base).high


def test_one_value_has_no_spread():
    assert bootstrap([2.5]) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap([]), "at least one number"),
        (lambda: bootstrap([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: bootstrap([1.0, float("nan")]), "1 of the 2 values are NaN"),
        (lambda: bootstrap([1.0], samples=0), "at least 1, got 0"),
        (lambda: bootstrap([1.0], level=1.0), "between 0 and 1, got 1.0"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0]), "same cases"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
