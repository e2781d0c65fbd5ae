"""Inversion on Gaussian data, whose probability-flow ODE is known in closed form, and on random models and sigmas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvpack.multiview.inversion import (
    METHODS,
    ddim_step,
    invert,
    noisy_start,
    round_trip,
    round_trip_error,
    sample,
    scales,
)

SHAPE = (2, 3, 4, 4)
FORMS = [False, True]


class Gaussian:
    """Data normal(mean, spread^2) in every number: posterior mean and ODE in closed form, in x = a x0 + b noise."""

    def __init__(self, flow=False, dtype=torch.float64):
        g = torch.Generator().manual_seed(0)
        self.mean = torch.randn(SHAPE, generator=g, dtype=dtype)
        self.spread = 0.3 + torch.rand(SHAPE, generator=g, dtype=dtype)
        self.data = self.mean + self.spread * torch.randn(SHAPE, generator=g, dtype=dtype)
        self.flow = flow
        self.calls = 0

    def __call__(self, x, sigma):
        self.calls += 1
        a, b = scales(sigma, self.flow)
        share = a * self.spread**2 / (a**2 * self.spread**2 + b**2)
        return self.mean + share * (x - a * self.mean)

    def exact(self, x, sigma, to):
        """Where the ODE carries x from sigma to `to`: (x - a mean) / sd(x) stays."""
        (a, b), (a2, b2) = scales(sigma, self.flow), scales(to, self.flow)
        sd, sd2 = (a**2 * self.spread**2 + b**2).sqrt(), (a2**2 * self.spread**2 + b2**2).sqrt()
        return a2 * self.mean + (x - a * self.mean) * sd2 / sd


def levels(steps, flow, low=0.05, high=None):
    high = high or (0.9 if flow else 8.0)
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    power = 1.0 if flow else 3.0
    return ((low ** (1 / power) + ramp * (high ** (1 / power) - low ** (1 / power))) ** power).tolist()


def order(errors):
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


@pytest.mark.parametrize("flow", FORMS)
@pytest.mark.parametrize(("method", "promised"), [("ddim", 1), ("fixed_point", 1), ("belm", 2)])
def test_order_of_convergence_of_the_inversion(method, promised, flow):
    errors = []
    for steps in (64, 128, 256, 512):
        model, sigmas = Gaussian(flow), levels(steps, flow)
        start = model.exact(model.data, 0.0, sigmas[0])
        found = invert(model, start, sigmas, method, iterations=4, flow=flow).x
        errors.append(float((found - model.exact(model.data, 0.0, sigmas[-1])).abs().max()))
    assert order(errors)[-1] == pytest.approx(promised, abs=0.15)


@pytest.mark.parametrize("flow", FORMS)
@pytest.mark.parametrize(("method", "promised"), [("ddim", 1), ("belm", 2)])
def test_order_of_convergence_of_the_sampler(method, promised, flow):
    errors = []
    for steps in (64, 128, 256, 512):
        model, sigmas = Gaussian(flow), levels(steps, flow)[::-1]
        start = model.exact(model.data, 0.0, sigmas[0])
        found = sample(model, start, sigmas, method, flow=flow)
        errors.append(float((found - model.exact(model.data, 0.0, sigmas[-1])).abs().max()))
    assert order(errors)[-1] == pytest.approx(promised, abs=0.15)


@pytest.mark.parametrize("flow", FORMS)
def test_round_trip_of_ddim_falls_with_the_steps_and_of_fixed_point_with_the_iterations(flow):
    errors = []
    for steps in (20, 40, 80, 160):
        model = Gaussian(flow)
        inversion = invert(model, model.data, [0.0, *levels(steps, flow)], "ddim", flow=flow)
        errors.append(round_trip_error(model, model.data, inversion))
    assert order(errors)[-1] > 0.8 and errors[-1] < 0.05
    model = Gaussian(flow)
    sigmas = [0.0, *levels(30, flow)]
    closing = [
        round_trip_error(model, model.data, invert(model, model.data, sigmas, "fixed_point", iterations=i, flow=flow))
        for i in (1, 2, 3, 5, 8)
    ]
    plain = round_trip_error(model, model.data, invert(model, model.data, sigmas, "ddim", flow=flow))
    assert closing[0] <= 1.05 * plain
    assert all(b < 0.6 * a for a, b in zip(closing, closing[1:], strict=False))
    assert closing[-1] < 1e-3 * plain


def test_fixed_point_converges_where_plain_iteration_creeps():
    """One step from 0.1 to 8 is linear in x' for Gaussian data: solved by hand. Plain iteration gains a factor of
    1 - 0.1 / 8 - (what the model keeps) a round; three spreads span the numbers, so that four rounds solve it."""
    model = Gaussian()
    model.spread = torch.tensor([0.1, 0.5, 1.5], dtype=torch.float64)[None, :, None, None].expand(SHAPE)
    x = model.exact(model.data, 0.0, 0.1)
    ratio, kept = 0.1 / 8, model.spread**2 / (model.spread**2 + 64)
    # x = x0(x') + ratio (x' - x0(x')) with x0(x') = mean + kept (x' - mean)
    exact = model.mean + (x - model.mean) / (ratio + (1 - ratio) * kept)
    found = invert(model, x, [0.1, 8.0], "fixed_point", iterations=7).x
    assert float((found - exact).abs().max()) < 1e-6 * float(exact.abs().max())
    plain = invert(model, x, [0.1, 8.0], "ddim").x
    for _ in range(6):
        plain = x + (8.0 - 0.1) * (plain - model(plain, 8.0)) / 8.0
    assert float((plain - exact).abs().max()) > 0.1 * float(exact.abs().max())


def test_a_converged_step_asks_the_model_no_more():
    model = Gaussian()
    x = model.exact(model.data, 0.0, 1.0)
    found = invert(model, x, [1.0, 1.5], "fixed_point", iterations=500).x
    assert model.calls < 40
    assert torch.allclose(ddim_step(found, model(found, 1.5), 1.5, 1.0), x, atol=1e-13)


class Network:
    """A smooth nonlinear denoiser without any closed form: pixels mix, outputs bend."""

    def __init__(self, flow, seed=0, dtype=torch.float64):
        g = torch.Generator().manual_seed(seed)
        self.mix = torch.randn(48, 48, generator=g, dtype=dtype) / 7
        self.flow = flow

    def __call__(self, x, sigma):
        a, b = scales(sigma, self.flow)
        inner = (x / math.sqrt(a * a + b * b)).flatten(1) @ self.mix
        return (0.7 * x * a / (a * a + b * b)) + 0.5 * torch.tanh(inner).view_as(x)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=12),
    st.booleans(),
    st.booleans(),
    st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_belm_returns_the_start_on_any_sigmas(gaps, flow, from_clean, seed):
    """In float64, where rounding stays out of sight: the identity itself is exact for any model and any steps."""
    sigmas = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    if flow:
        sigmas = [1.0 * s / sigmas[-1] for s in sigmas]
    if from_clean:
        sigmas = [0.0, *sigmas]
    model = Network(flow, seed)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inversion = invert(model, start, sigmas, "belm", flow=flow)
    assert inversion.previous is not None and len(inversion.sigmas) == len(sigmas)
    assert float((round_trip(model, inversion) - start).abs().max()) < 1e-5


@pytest.mark.parametrize("rising", ["edm", "sd", "flow"])
def test_belm_returns_the_start_in_float32_on_real_schedules(rising):
    ramp = torch.linspace(0, 1, 25)
    sigmas = {
        "edm": (0.02 ** (1 / 7) + ramp * (700 ** (1 / 7) - 0.02 ** (1 / 7))) ** 7,
        "sd": (0.03 ** (1 / 7) + ramp * (14.6 ** (1 / 7) - 0.03 ** (1 / 7))) ** 7,
        "flow": 3 * ramp / (1 + 2 * ramp),
    }[rising].tolist()
    flow = rising == "flow"
    sigmas = sigmas if flow else [0.0, *sigmas]
    model = Gaussian(flow, torch.float32)
    inversion = invert(model, model.data, sigmas, "belm", flow=flow)
    assert round_trip_error(model, model.data, inversion) < 1e-5


def test_steps_cost_what_they_promise():
    for method, calls in (("ddim", 10), ("fixed_point", 30), ("belm", 10)):
        model = Gaussian()
        invert(model, model.data, [0.0, *levels(9, False)], method, iterations=3)
        assert model.calls == calls


@pytest.mark.parametrize("method", METHODS)
def test_one_step_matches_the_formula_by_hand(method):
    """Variance exploding, one step from 1 to 3."""
    model = Gaussian()
    x = model.exact(model.data, 0.0, 1.0)
    found = invert(model, x, [1.0, 3.0], method, iterations=60).x
    if method == "fixed_point":
        assert torch.allclose(found, x + 2.0 * (found - model(found, 3.0)) / 3.0)
    else:
        assert torch.allclose(found, x + 2.0 * (x - model(x, 1.0)))


def test_variance_preserving_ddim_of_the_paper_is_the_same_step():
    """Eq. 2 and 3 in z = sqrt(alpha) x, for two levels of SD's schedule."""
    model = Gaussian()
    low, high = 0.4, 0.9
    alpha, alpha_up = 1 / (1 + low**2), 1 / (1 + high**2)
    x = model.exact(model.data, 0.0, low)
    z = math.sqrt(alpha) * x
    eps = (z / math.sqrt(alpha) - model(x, low)) / low
    z_up = math.sqrt(alpha_up) * (z - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha) + math.sqrt(1 - alpha_up) * eps
    assert torch.allclose(invert(model, x, [low, high]).x, z_up / math.sqrt(alpha_up))
    assert torch.allclose(ddim_step(x, model(x, low), low, high), z_up / math.sqrt(alpha_up))


def test_flow_is_ddim_on_the_noise_ratio():
    """Flow levels t and the S = t / (1 - t) they stand for give the same path, up to the factor 1 - t.

    (belm differs: it is a two-step formula in sigma, finite at sigma 1.)
    """
    flow, plain = Gaussian(True), Gaussian(False)
    times = levels(12, True)
    x = flow.exact(flow.data, 0.0, times[0])
    for method in ("ddim", "fixed_point"):
        a = invert(flow, x, times, method, flow=True, iterations=60)
        b = invert(plain, x / (1 - times[0]), [t / (1 - t) for t in times], method, iterations=60)
        assert torch.allclose(a.x / (1 - times[-1]), b.x)
        assert torch.allclose(a.noise(), b.noise())


def test_flow_models_may_go_all_the_way_to_pure_noise():
    model = Gaussian(True)
    times = torch.linspace(0, 1, 201, dtype=torch.float64).tolist()
    for method in METHODS:
        found = invert(model, model.data, times, method, flow=True)
        error = (found.noise() - (model.data - model.mean) / model.spread).abs().max()
        assert float(error) < 0.2


def test_noise_starts_the_sampler_again():
    model = Gaussian()
    sigmas = levels(20, False)
    inversion = invert(model, model.exact(model.data, 0.0, sigmas[0]), sigmas, "fixed_point", iterations=20)
    assert torch.allclose(inversion.noise() * sigmas[-1], inversion.x)
    assert torch.allclose(inversion.noise(model.data) * sigmas[-1] + model.data, inversion.x)


@pytest.mark.parametrize("flow", FORMS)
def test_noisy_start_is_carried_up_where_the_model_is_certain(flow):
    """Data of one point: the ODE keeps the noise it is begun with, and from the clean point it finds none at all."""

    def certain(x, sigma):
        return model.mean

    model, sigmas = Gaussian(flow), levels(12, flow)
    begun = noisy_start(model.mean, sigmas[0], 5, flow)
    assert torch.equal(begun, noisy_start(model.mean, sigmas[0], 5, flow))
    assert not torch.equal(begun, noisy_start(model.mean, sigmas[0], 6, flow))
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).double()
    for method in METHODS:
        found = invert(certain, begun, sigmas, method, iterations=60, flow=flow)
        assert torch.allclose(found.noise(model.mean), expected, atol=1e-6)
        without = invert(certain, model.mean, [0.0, *sigmas], method, iterations=60, flow=flow).noise(model.mean)
        assert float(without.abs().max()) < (1.05 * float(model.mean.abs().max()) if flow else 1e-6)


def test_step_reports_may_cancel():
    seen = []

    def report(step, steps, x):
        seen.append((step, steps, tuple(x.shape)))
        if step == 3:
            raise KeyboardInterrupt

    for method in METHODS:
        model = Gaussian()
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            invert(model, model.data, [0.0, *levels(7, False)], method, on_step=report)
        assert seen == [(i, 8, SHAPE) for i in (1, 2, 3)]
        with pytest.raises(KeyboardInterrupt):
            sample(model, model.data, levels(7, False)[::-1], method, on_step=report)


def test_input_is_kept_and_half_precision_is_carried_in_float32():
    model = Gaussian(dtype=torch.float32)
    x = model.data.half()
    kept = x.clone()
    for method in METHODS:
        found = invert(model, x, levels(5, False), method)
        assert found.x.dtype == torch.float32 and torch.isfinite(found.x).all()
        assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sigmas": [1.0]}, "two"),
        ({"sigmas": [2.0, 1.0]}, "rising"),
        ({"sigmas": [0.0, 1.0, 1.0]}, "rising"),
        ({"sigmas": [0.0, math.inf]}, "finite"),
        ({"sigmas": [0.0, math.nan]}, "rising"),
        ({"sigmas": [-1.0, 1.0]}, "0 or more"),
        ({"sigmas": [0.5, 1.5], "flow": True}, "flow"),
        ({"method": "edict"}, "edict"),
        ({"iterations": 0, "method": "fixed_point"}, "iteration"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words):
    model = Gaussian()
    with pytest.raises(ValueError, match=words):
        invert(model, model.data, **({"sigmas": [0.0, 1.0]} | arguments))
    assert model.calls == 0
