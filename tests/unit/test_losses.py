"""Losses against pytorch-msssim, scikit-image and closed forms."""

import math

import numpy as np
import pytest
import pytorch_msssim
import skimage.metrics
import torch
from mvpack.multiview.splats.losses import ViewLoss, l1, mask_loss, ms_ssim, psnr, ssim, view_mean
from pytorch_msssim.ssim import _ssim


def pictures(n=2, h=64, w=64, noise=0.15, seed=0, dtype=torch.float32):
    """A smooth picture and a noisy copy, so that the similarity lies well inside (0, 1)."""
    gen = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=gen, dtype=dtype)
    a = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic").clamp(0, 1).permute(0, 2, 3, 1)
    return a, (a + noise * torch.randn(a.shape, generator=gen, dtype=dtype)).clamp(0, 1)


def planes(x):
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("h, w", [(64, 64), (48, 80), (33, 11)])
def test_ssim_equals_pytorch_msssim(h, w):
    a, b = pictures(3, h, w)
    expected = pytorch_msssim.ssim(planes(a), planes(b), data_range=1.0, size_average=False)
    torch.testing.assert_close(ssim(a, b), expected, atol=1e-6, rtol=0)


def test_ssim_equals_scikit_image():
    a, b = pictures(1, 40, 40, dtype=torch.float64)
    _, full = skimage.metrics.structural_similarity(
        a[0].numpy(), b[0].numpy(), data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert float(ssim(a, b)) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)


@pytest.mark.parametrize("h, w", [(161, 161), (176, 200), (181, 163)])
def test_ms_ssim_of_five_scales_equals_pytorch_msssim(h, w):
    a, b = pictures(2, h, w, dtype=torch.float64)
    expected = pytorch_msssim.ms_ssim(planes(a), planes(b), data_range=1.0, size_average=False)
    torch.testing.assert_close(ms_ssim(a, b), expected, atol=5e-6, rtol=0)  # its window is rounded to float32


@pytest.mark.parametrize(
    "side, scales", [(160, 4), (128, 4), (81, 4), (80, 3), (64, 3), (41, 3), (40, 2), (21, 2), (20, 1)]
)
def test_ms_ssim_of_small_pictures(side, scales):
    """Literal recursion with the other library's single-scale function and the weights brought back to their sum."""
    a, b = pictures(2, side, side, dtype=torch.float64)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights = weights / weights.sum() * 1.0001
    window = torch.exp(-torch.arange(-5, 6).double().square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 1, 11)
    x, y, expected = planes(a), planes(b), 1.0
    for i in range(scales):
        both, contrast = _ssim(x, y, 1.0, window)
        expected = expected * torch.relu(both if i == scales - 1 else contrast) ** weights[i]
        x, y = (torch.nn.functional.avg_pool2d(p, 2, padding=side % 2) for p in (x, y))
        side = x.shape[-1]
    torch.testing.assert_close(ms_ssim(a, b), expected.mean(1), atol=1e-9, rtol=0)


def test_equal_pictures_score_one_and_opposite_ones_stay_finite():
    a, _ = pictures(2)
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(2))
    flipped = (1 - a).requires_grad_()
    value = ms_ssim(flipped, a)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(flipped.grad).all() and (value < 0.5).all()


def test_ms_ssim_gradient_matches_finite_differences():
    a, b = pictures(1, 24, 24, dtype=torch.float64)
    x = b.clone().requires_grad_()
    ms_ssim(x, a).sum().backward()
    gen = torch.Generator().manual_seed(1)
    direction = torch.randn(b.shape, generator=gen, dtype=torch.float64)
    step = 1e-5
    numeric = (ms_ssim(b + step * direction, a) - ms_ssim(b - step * direction, a)) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)
    assert x.grad.abs().max() > 0


def test_psnr_and_l1_by_hand():
    a = torch.zeros(2, 4, 4, 3)
    b = torch.stack([torch.full((4, 4, 3), 0.1), torch.full((4, 4, 3), 0.5)])
    torch.testing.assert_close(l1(a, b), torch.tensor([0.1, 0.5]))
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, -20 * math.log10(0.5)]))
    assert torch.isinf(psnr(a, a)).all()
    b[:, 0, 0] = 1.0
    weight = torch.zeros(2, 4, 4)
    weight[:, 0, 0] = 3.0
    torch.testing.assert_close(l1(a, b, weight), torch.ones(2))
    torch.testing.assert_close(psnr(a, b, weight), torch.zeros(2))
    torch.testing.assert_close(mask_loss(a[..., 0], b[..., 0] * 0 + 0.5), torch.full((2,), 0.25))


def test_psnr_equals_scikit_image():
    a, b = pictures(1, 30, 20, dtype=torch.float64)
    expected = skimage.metrics.peak_signal_noise_ratio(a[0].numpy(), b[0].numpy(), data_range=1.0)
    assert float(psnr(a, b)) == pytest.approx(expected, abs=1e-9)


def test_view_loss_is_the_weighted_sum():
    a, b = pictures(3)
    alpha, mask = torch.rand(3, 64, 64), torch.ones(3, 64, 64)
    weights = torch.tensor([1.0, 0.0, 3.0])
    total, terms = ViewLoss(2.0, 0.3, 0.7)(a, alpha, b, mask, weights)
    expected = 2 * l1(a, b) + 0.3 * (1 - ms_ssim(a, b)) + 0.7 * mask_loss(alpha, mask)
    assert float(total) == pytest.approx(float((expected * weights).sum() / 4), rel=1e-5)
    assert set(terms) == {"l1", "msssim", "mask"}
    assert float(sum(terms.values())) == pytest.approx(float(total), rel=1e-5)
    assert set(ViewLoss(1.0, 0.0, 0.0)(a, alpha, b, mask)[1]) == {"l1"}
    assert float(view_mean(torch.tensor([1.0, 2.0]), None)) == 1.5


def test_pictures_below_the_window_are_refused():
    with pytest.raises(ValueError, match="at least 11 pixels a side, got 12 x 10"):
        ms_ssim(torch.rand(1, 10, 12, 3), torch.rand(1, 10, 12, 3))
