"""What a splat is fitted to: views that were checked, their background colour and their masks.

Pictures (N,H,W,3|4) floats in [0,1]; a fourth channel is coverage (straight alpha). Masks (N,H,W), 1 = object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from ..checks import check_images, check_view_count

SMALLEST_SIDE = 16
# How far a pixel's colour (largest channel) is from the background's: certainly background, certainly object.
BACKGROUND_BELOW, OBJECT_ABOVE = 0.03, 0.12


@dataclass(frozen=True)
class Views:
    """images (N,H,W,3) over the background colour, masks (N,H,W), background (3,)."""

    images: Tensor
    masks: Tensor
    background: Tensor


def prepare_views(
    images: Tensor, cameras: Cameras, masks: Tensor | None, background: str | tuple[float, float, float] = "auto"
) -> Views:
    """Check the views and find background and masks. The result shares no memory with the inputs.

    masks None: the pictures' alpha, else estimated from the distance to the background colour, with holes filled.
    background "auto": median colour outside the masks, else of the pictures' borders; white under alpha.
    Pictures whose surroundings are not of one colour are put before the background with their mask.
    ValueError, in one sentence, for views that cannot be fitted.
    """
    _check_images(images, cameras)
    alpha = images[..., 3].float().clamp(0, 1) if images.shape[-1] == 4 else None
    images = images[..., :3].detach().float().clone()
    given = masks is not None
    if given:
        _check_masks(masks, images)
        masks = masks.detach().to(images).clamp(0, 1)
        _check_filled(masks)
        outside = masks < 0.05
    elif alpha is not None:
        masks = alpha.detach().clone()
        _check_filled(masks)
    if isinstance(background, str):
        if background != "auto":
            raise ValueError(f"The background must be 'auto' or three numbers, got {background!r}.")
        if alpha is not None and not given:
            colour = torch.ones(3)
        else:
            colour = background_colour(images, outside if given and outside.any() else None)
    else:
        colour = checked_colour(background)
    colour = colour.to(images)
    if masks is None:
        masks = estimate_masks(images, colour)
        _check_estimated(masks, colour)
    if alpha is not None:
        images = alpha[..., None] * images + (1 - alpha[..., None]) * colour
    elif given and outside.any() and (images - colour).abs()[outside].mean() > BACKGROUND_BELOW:
        images = masks[..., None] * images + (1 - masks[..., None]) * colour
    return Views(images, masks, colour)


def checked_colour(colour: tuple[float, float, float]) -> Tensor:
    """(3,) float32. ValueError unless it is three numbers in [0,1]."""
    out = torch.as_tensor(colour, dtype=torch.float32).detach().clone()
    if out.shape != (3,) or not ((out >= 0) & (out <= 1)).all():
        raise ValueError(f"The background must be 'auto' or three numbers from 0 to 1, got {tuple(out.tolist())}.")
    return out


def parse_colour(text: str) -> tuple[float, float, float]:
    """ "#aabbcc" -> three numbers in [0,1]. ValueError for anything else."""
    digits = text.strip().removeprefix("#")
    if len(digits) != 6 or not all(c in "0123456789abcdefABCDEF" for c in digits):
        raise ValueError(f"A colour must be written as # and six hexadecimal digits, such as #8090a0, got {text!r}.")
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def parse_view_weights(text: str, count: int) -> Tensor | None:
    """Numbers between commas or blanks -> (count,) weights of the views; None for nothing but blanks.

    ValueError for words and for another count; the fit checks the values.
    """
    parts = text.replace(",", " ").split()
    if not parts:
        return None
    try:
        weights = [float(part) for part in parts]
    except ValueError as error:
        raise ValueError(f"View weights must be numbers between commas, such as 1, 0.5, 1, got {text!r}.") from error
    if len(weights) != count:
        raise ValueError(f"There are {count} views but {len(weights)} view weights; give one for each view.")
    return torch.tensor(weights)


def background_colour(images: Tensor, outside: Tensor | None = None) -> Tensor:
    """(3,) median colour of the pixels outside the object (N,H,W bool), by default of the pictures' borders."""
    if outside is not None:
        pixels = images[outside]
    else:
        edges = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
        pixels = torch.cat([edge.reshape(-1, 3) for edge in edges])
    return pixels.median(dim=0).values


def estimate_masks(images: Tensor, background: Tensor) -> Tensor:
    """(N,H,W) soft masks from the distance to the background colour; enclosed holes count as object."""
    from scipy.ndimage import binary_fill_holes

    distance = (images - background).abs().amax(-1)
    soft = ((distance - BACKGROUND_BELOW) / (OBJECT_ABOVE - BACKGROUND_BELOW)).clamp(0, 1)
    filled = [torch.from_numpy(binary_fill_holes((m > 0.5).cpu().numpy())) for m in soft]
    return torch.maximum(soft, torch.stack(filled).to(soft))


def _check_images(images: Tensor, cameras: Cameras) -> None:
    check_images(images, "views")
    if images.shape[-1] > 4:
        raise ValueError(f"The views must be pictures of shape (N, height, width, 3 or 4), got {tuple(images.shape)}.")
    n, h, w = images.shape[:3]
    check_view_count(n, cameras, "views")
    if n < 2:
        raise ValueError("A splat needs at least 2 views from different directions, got 1.")
    if min(h, w) < SMALLEST_SIDE:
        raise ValueError(f"The views are {w} x {h} pixels; fitting needs at least {SMALLEST_SIDE} pixels a side.")
    if not images.is_floating_point():
        raise ValueError(f"The views must be floating-point pictures in [0,1], got {images.dtype}.")
    if float(images.min()) < -0.5 or float(images.max()) > 1.5:
        raise ValueError(
            f"The views have values from {float(images.min()):.3g} to {float(images.max()):.3g}; expected [0,1]."
        )


def _check_masks(masks: Tensor, images: Tensor) -> None:
    if tuple(masks.shape) != tuple(images.shape[:3]):
        n, h, w = images.shape[:3]
        raise ValueError(
            f"The masks have shape {tuple(masks.shape)} but the views are {n} pictures of {w} x {h} pixels: "
            f"give masks of shape ({n}, {h}, {w})."
        )
    if not torch.isfinite(masks).all():
        raise ValueError("The masks contain NaN or infinity; check the node that made them.")


def _check_filled(masks: Tensor) -> None:
    covered = masks.flatten(1)
    empty = (covered.amax(1) < 0.5).nonzero().flatten().tolist()
    if len(empty) == len(masks):
        raise ValueError("Every mask is empty; a mask must be 1 where the object is (is it inverted?).")
    if empty:
        raise ValueError(f"The mask of view {_listed(empty)} is empty; leave the view out or repair its mask.")
    if bool((covered.amin(1) > 0.5).all()):
        raise ValueError("Every mask covers its whole picture; leave the masks away to have them estimated.")


def _check_estimated(masks: Tensor, colour: Tensor) -> None:
    empty = (masks.flatten(1).amax(1) < 0.5).nonzero().flatten().tolist()
    if empty:
        which = "The views show" if len(empty) == len(masks) else f"View {_listed(empty)} shows"
        rgb = ", ".join(f"{c:.2f}" for c in colour.tolist())
        raise ValueError(
            f"{which} nothing but the background colour ({rgb}); connect masks or set the background colour by hand."
        )


def _listed(indices: list[int]) -> str:
    return ", ".join(str(i) for i in indices[:8]) + (" ..." if len(indices) > 8 else "")
