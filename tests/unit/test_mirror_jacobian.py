"""Eq. 12 against Eq. 14: the product with the transposed Jacobian, and what Theorem 4.4 says of the difference."""

import math

import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.correspondence import Correspondence, track
from mvpack.multiview.demo.analytic import AnalyticModel, AnalyticOptions
from mvpack.multiview.demo.bank import Bank
from mvpack.multiview.mirror import MirrorOptions, loss, rectify
from mvpack.multiview.mirror_jacobian import ordinary, ordinary_weights, through_network
from torch.nn.functional import conv2d

FOUR = orbit([0, 30, 60, 90], 10.0, 1.5, 49.13)


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matches(size=12) -> Correspondence:
    return track(FOUR, (size, size), mode="identity")


class Network(torch.nn.Module):
    """v-prediction of EDM with a small random convolution network of bounded slope: x0 as SV3D's would be computed."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        shapes = ((8, 3, 3, 3), (8,), (3, 8, 3, 3), (3,))
        self.weights = torch.nn.ParameterList(torch.randn(shape, generator=g) * 0.3 for shape in shapes)
        self.requires_grad_(False)

    def layers(self, x):
        first, first_bias, second, second_bias = self.weights
        return conv2d(conv2d(x, first, first_bias, padding=1).tanh(), second, second_bias, padding=1)

    def forward(self, x, sigma):
        scale = (sigma**2 + 1) ** 0.5
        return x / scale**2 - sigma / scale * self.layers(x / scale)


def difference(denoise, x) -> float:
    direction = rectify(denoise(x), matches(x.shape[-1]), 0.5, MirrorOptions(block=1)) - denoise(x)
    _, product = through_network(denoise, x, direction)
    return float((product - direction).norm() / direction.norm())


def test_it_is_the_gradient_of_the_loss_through_the_network():
    """Eq. 12 as written: x0 moves by -s S^2 times the gradient of L(x0(x)) by x, eta = 2 s S^2."""
    network, x, eta = Network(), seeded(4, 3, 12, 12), 0.3
    options = MirrorOptions()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(network(leaf, 2.0), matches(), options), leaf)
    clean = network(x, 2.0)
    direction = rectify(clean, matches(), eta, options) - clean
    again, product = through_network(lambda v: network(v, 2.0), x, direction)
    assert torch.allclose(again, clean, atol=1e-6)
    assert torch.allclose(product, -eta / 2 * gradient, atol=1e-5)
    assert float((product - direction).norm() / direction.norm()) > 0.1
    none = through_network(lambda v: network(v, 2.0), x, torch.zeros_like(x))[1]
    assert torch.equal(none, torch.zeros_like(x))


def test_theorem_on_gaussian_data_is_its_closed_form():
    """x0 = x v / (v + sigma^2): the difference is sigma^2 / (v + sigma^2) and goes to 0."""
    x, v = seeded(4, 3, 12, 12), 0.25
    found = [difference(lambda a, s=s: a * (v / (v + s * s)), x) for s in (4.0, 1.0, 0.25, 0.05)]
    assert found == pytest.approx([s * s / (v + s * s) for s in (4.0, 1.0, 0.25, 0.05)], rel=1e-4)


def test_theorem_for_a_network_of_bounded_slope():
    """The difference falls with sigma, in the end in proportion to it: S times a slope that need not go to 0."""
    network, x = Network(), seeded(4, 3, 12, 12)
    sigmas = (1.0, 0.4, 0.1, 0.02, 0.01)
    found = [difference(lambda a, s=s: network(a, s), x) for s in sigmas]
    assert all(a > b for a, b in zip(found, found[1:], strict=False))
    assert found[3] / found[4] == pytest.approx(2.0, rel=0.1)


def test_theorem_fails_for_the_exact_denoiser_of_a_few_pictures():
    """One of two pictures that differ by 2 a in one pixel: x0 there is a tanh(3 a x / sigma^2) in each channel, whose
    slope goes to 0 with sigma, so nothing of the pull is left and the difference goes to 1."""
    views = torch.full((2, 1, 9, 9, 3), 128, dtype=torch.uint8)
    low, high = 88, 168
    views[0, 0, 4, 4], views[1, 0, 4, 4] = low, high
    zeros = torch.zeros(2, dtype=torch.long)
    bank = Bank(views, views[:, 0], zeros, torch.tensor([0, 1]), zeros, orbit([0], 0.0, 1.5, 40.0))
    model = AnalyticModel(bank, AnalyticOptions())
    a, centre = (high - low) / 255, (high + low) / 255 - 1
    direction = torch.zeros(1, 3, 9, 9)
    direction[:, :, 4, 4] = 1.0
    found = []
    for sigma in (0.5, 0.2, 0.1):
        x = (views[1].movedim(-1, 1).float() / 127.5 - 1).clone()
        x[:, :, 4, 4] = centre + 0.6 * a
        _, product = through_network(lambda v, s=sigma: model.denoise(v, s), x, direction)
        # All three channels see the same evidence: 3 a x / sigma^2.
        slope = 3 * (a / sigma / math.cosh(3 * a * 0.6 * a / sigma**2)) ** 2
        assert product[0, :, 4, 4].tolist() == pytest.approx([slope] * 3, rel=1e-3, abs=1e-6)
        found.append(float((product - direction).norm() / direction.norm()))
    assert found[-1] == pytest.approx(1.0, abs=1e-3)


def test_weights_from_inference_mode_are_used_where_they_are_and_given_back():
    with torch.inference_mode():
        network = Network()
        x = seeded(4, 3, 12, 12)
        weight = network.weights[0]
        assert weight.is_inference() and x.is_inference()
        with pytest.raises(RuntimeError, match="[Ii]nference"):
            through_network(lambda v: network(v, 1.0), x, x)
        with ordinary_weights(network):
            inner = network.weights[0]
            assert not inner.is_inference() and inner.data_ptr() == weight.data_ptr()
            _, product = through_network(lambda v: network(v, 1.0), x, x)
        assert network.weights[0] is weight
    plain = Network()
    expected = through_network(lambda v: plain(v, 1.0), seeded(4, 3, 12, 12), seeded(4, 3, 12, 12))[1]
    assert torch.equal(product, expected)
    with pytest.raises(ZeroDivisionError), ordinary_weights(plain):
        1 / 0  # noqa: B018 (given back after an error too)


def test_inference_tensors_are_copied_inside_containers():
    with torch.inference_mode():
        made = torch.ones(2)
    kept = torch.zeros(2)
    out = ordinary({"a": [made, kept], "b": (made, "text"), "c": None})
    assert not out["a"][0].is_inference() and out["a"][1] is kept
    assert torch.equal(out["b"][0], made) and out["b"][1] == "text" and out["c"] is None
