"""Image losses and measures for fitting splats to views.

Pictures are (N,H,W,3) floats in [0,1], coverage (N,H,W) in [0,1]. Everything returns one value per view, (N,), so that
the caller can weigh the views. SSIM: Wang et al., Image Quality Assessment, 2004 (Gaussian window of 11 pixels,
sigma 1.5, only where the window fits); MS-SSIM: Wang et al., Multi-scale Structural Similarity, 2003.
IM-3D's weights are in references.md 8.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def l1(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N,) mean absolute difference; weight (N,H,W) >= 0 says how much each pixel counts."""
    return _pixel_mean((image - target).abs().mean(-1), weight)


def l2(image: Tensor, target: Tensor) -> Tensor:
    """(N,) mean squared difference: the pixel loss that IM-3D compares its losses with."""
    return _pixel_mean((image - target).square().mean(-1), None)


def mask_loss(alpha: Tensor, mask: Tensor) -> Tensor:
    """(N,) mean squared difference of rendered coverage (N,H,W) and the object's mask (N,H,W)."""
    return _pixel_mean((alpha - mask).square(), None)


def psnr(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB for a peak of 1; infinite for equal pictures. weight as in l1."""
    return -10 * torch.log10(_pixel_mean((image - target).square().mean(-1), weight))


def ssim(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N,) structural similarity, mean over pixels and channels. Sides of at least 11 pixels. weight as in l1.

    The outermost 5 pixels on each side have no value of their own, so their weight does not count.
    """
    _check_side(image)
    luminance, contrast = _ssim_maps(_planes(image), _planes(target))
    border = WINDOW // 2
    inner = None if weight is None else weight[:, border:-border, border:-border]
    return _pixel_mean((luminance * contrast).mean(1), inner)


def ms_ssim(image: Tensor, target: Tensor) -> Tensor:
    """(N,) multi-scale structural similarity in [0,1], channels averaged.

    Five scales need sides of at least 161 pixels; smaller pictures use as many as fit (128: four, 64: three), with
    the published weights of those scales brought back to the sum of all five. Sides of at least 11 pixels.
    """
    _check_side(image)
    side = min(image.shape[1:3])
    scales = 1
    while scales < len(SCALE_WEIGHTS) and side > (WINDOW - 1) * 2**scales:
        scales += 1
    total = sum(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS)
    a, b = _planes(image), _planes(target)
    product: Tensor | float = 1.0
    for scale in range(scales):
        luminance, contrast = _ssim_maps(a, b)
        last = scale == scales - 1
        value = (luminance * contrast if last else contrast).mean((2, 3))
        # A negative mean has no real root; the small floor keeps the gradient of the root finite.
        product = product * value.clamp_min(1e-6) ** (SCALE_WEIGHTS[scale] / total)
        if not last:
            a, b = _halve(a), _halve(b)
    return product.mean(1)


def check_perceptual(network: Callable[[Tensor, Tensor], Tensor] | None, images: Tensor):
    """The distance that w_lpips weighs, ready for pictures like these (N,H,W,3).

    Tried on one of them at once, so that pictures too small for it are refused before the fit. ValueError as well where
    there is none, or a module whose weights would be trained along.
    """
    if network is None:
        raise ValueError("A weight of LPIPS needs its network; give one, or set the weight to 0.")
    if isinstance(network, nn.Module):
        if any(p.requires_grad for p in network.parameters()):
            raise ValueError("The LPIPS network's weights must be frozen; call requires_grad_(False) on it first.")
        network = network.to(images.device).eval()
    with torch.no_grad():
        network(images[:1], images[:1])
    return network


@dataclass(frozen=True)
class ViewLoss:
    """Weighted sum of the losses between rendered and given views. A weight of 0 skips the term.

    Terms: l1, l2, lpips, 1 - MS-SSIM, mask. The views' mean is weighted by view_weights (N,).
    perceptual: two batches of pictures (N,H,W,3) -> (N,); needed where w_lpips is above 0.
    """

    w_l1: float = 1.0
    w_msssim: float = 0.2
    w_mask: float = 1.0
    w_l2: float = 0.0
    w_lpips: float = 0.0
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(
        self, image: Tensor, alpha: Tensor, target: Tensor, mask: Tensor, view_weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total (scalar, differentiable) and the detached terms, weighted, for curves."""
        terms: dict[str, Tensor] = {}
        if self.w_l1:
            terms["l1"] = self.w_l1 * l1(image, target)
        if self.w_l2:
            terms["l2"] = self.w_l2 * l2(image, target)
        if self.w_lpips:
            terms["lpips"] = self.w_lpips * self.perceptual(image, target)
        if self.w_msssim:
            terms["msssim"] = self.w_msssim * (1 - ms_ssim(image, target))
        if self.w_mask:
            terms["mask"] = self.w_mask * mask_loss(alpha, mask)
        means = {name: view_mean(values, view_weights) for name, values in terms.items()}
        return torch.stack(list(means.values())).sum(), {name: value.detach() for name, value in means.items()}


def view_mean(values: Tensor, view_weights: Tensor | None) -> Tensor:
    """Mean of one value per view (N,), weighted by view_weights (N,) if given."""
    if view_weights is None:
        return values.mean()
    return (values * view_weights).sum() / view_weights.sum().clamp_min(1e-12)


def _pixel_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean((1, 2))
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-12)


def _check_side(image: Tensor) -> None:
    if min(image.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM needs pictures of at least {WINDOW} pixels a side, got {image.shape[2]} x {image.shape[1]}."
        )


def _planes(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2)


def _halve(planes: Tensor) -> Tensor:
    # Odd sides get a border of zeros that counts in the mean, as in the usual implementations.
    odd = [side % 2 for side in planes.shape[2:]]
    return torch.nn.functional.avg_pool2d(planes, 2, padding=odd)


def _ssim_maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps (N,3,H-10,W-10) of planes (N,3,H,W)."""
    down, across = (_window_matrix(side, a) for side in a.shape[2:])

    def blur(planes: Tensor) -> Tensor:
        # The window is separable: two matrix products, which on a CPU take half the time of a convolution.
        return down @ planes @ across.T

    mean_a, mean_b = blur(a), blur(b)
    mean_ab, mean_aa_bb = mean_a * mean_b, mean_a.square() + mean_b.square()
    luminance = (2 * mean_ab + C1) / (mean_aa_bb + C1)
    contrast = (2 * (blur(a * b) - mean_ab) + C2) / (blur(a * a + b * b) - mean_aa_bb + C2)
    return luminance, contrast


def _window_matrix(side: int, like: Tensor) -> Tensor:
    """(side-10, side): each row is the Gaussian window, one pixel further along."""
    offsets = torch.arange(side) - torch.arange(side - WINDOW + 1)[:, None] - WINDOW // 2
    window = torch.where(offsets.abs() <= WINDOW // 2, torch.exp(-offsets.double().square() / (2 * SIGMA**2)), 0.0)
    return (window / window.sum(1, keepdim=True)).to(like)
