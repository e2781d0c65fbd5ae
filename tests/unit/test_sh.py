"""Spherical harmonics against gsplat's torch twin, against orthonormality by quadrature, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mvpack.multiview.splats.sh import eval_sh, sh_basis


def directions(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_agrees_with_gsplat(degree):
    from gsplat.cuda._torch_impl import _spherical_harmonics

    d = directions(50)
    sh = torch.randn(50, (degree + 1) ** 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = (_spherical_harmonics(degree, d, sh) + 0.5).clamp_min(0)
    torch.testing.assert_close(eval_sh(sh, d), expected, rtol=0, atol=1e-12)


def test_basis_is_orthonormal():
    # Gauss-Legendre in cos(theta) and an even rule in phi are exact for products of degree 3.
    z, wz = np.polynomial.legendre.leggauss(8)
    phi = np.arange(16) * 2 * math.pi / 16
    zz, pp = np.meshgrid(z, phi, indexing="ij")
    r = np.sqrt(1 - zz**2)
    points = torch.from_numpy(np.stack([r * np.cos(pp), r * np.sin(pp), zz], -1).reshape(-1, 3))
    weights = torch.from_numpy(np.repeat(wz, 16) * 2 * math.pi / 16)
    basis = sh_basis(points, 16)
    gram = basis.T @ (weights[:, None] * basis)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_degree_one_by_hand():
    # A coefficient of band 1, order 1 darkens what is seen along +x: its basis function is -sqrt(3/(4 pi)) x.
    sh = torch.zeros(1, 4, 3, dtype=torch.float64)
    sh[0, 3] = 0.1
    ahead = eval_sh(sh, torch.tensor([[2.0, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(ahead, torch.full((1, 3), 0.5 - 0.1 * math.sqrt(3 / (4 * math.pi))).double())


def test_views_share_coefficients_and_darkness_is_clamped():
    d = directions(12).reshape(2, 6, 3)
    sh = torch.randn(6, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    both = eval_sh(sh, d)
    assert both.shape == (2, 6, 3)
    torch.testing.assert_close(both[1], eval_sh(sh, d[1]))
    assert both.min() == 0


def test_gradients():
    d = directions(3).requires_grad_()
    sh = (0.1 * torch.randn(3, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).requires_grad_()
    assert torch.autograd.gradcheck(eval_sh, (sh, d))


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="1, 4, 9 or 16"):
        eval_sh(torch.zeros(2, 5, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\(P,K,3\)"):
        eval_sh(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="There are 2 Gaussians"):
        eval_sh(torch.zeros(2, 4, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="3 components"):
        sh_basis(torch.ones(2, 4), 4)
