"""The measures of consistency as a Markdown table and as a picture: which views disagree, and where in them."""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from .cameras import Cameras
from .consistency import orbit_order
from .consistency_measure import Measured
from .draw import INK, PAPER, contact_sheet, curves, font, to_pil

NAMES = {"odd_even": "odd/even", "neighbours": "neighbours", "held_out": "held out", "truth": "truth"}
SIDE, COLUMNS = 112, 8
EQUAL = 60.0
# The error that is drawn as white; the same in every picture, so that pictures can be compared.
WHITE_AT = 0.3
STOPS = ((0.0, 0.0, 0.02), (0.35, 0.05, 0.40), (0.90, 0.30, 0.15), (1.0, 0.80, 0.25), (1.0, 1.0, 1.0))


def table(measured: Measured, cameras: Cameras, title: str, notes: tuple[str, ...] = ()) -> str:
    """Markdown: a line for each measure, then one for each view along the orbit with its PSNR under each measure."""
    found = measured.comparisons()
    height, width = measured.views.images.shape[1:3]
    lines = [f"**{title}** ({len(cameras)} views, measured at {width} x {height})", ""]
    if found:
        lines += ["| measure | PSNR dB | SSIM | LPIPS | also |", "|---|---|---|---|---|"]
    also = _also(measured)
    for name, one in found.items():
        perceptual = "" if one.perceptual is None else f"{one.perceptual:.4f}"
        lines.append(f"| {NAMES[name]} | {one.psnr:.2f} | {one.ssim:.4f} | {perceptual} | {also.get(name, '')} |")
    if measured.chamfer is not None:
        lines += ["", f"Splat against the true one: Chamfer {measured.chamfer:.4f}, volume IoU {measured.iou:.3f}."]
    lines += [item for note in notes for item in ("", note)]
    if found:
        lines += ["", "| view | " + " | ".join(NAMES[n] for n in found) + " |", "|---" * (len(found) + 1) + "|"]
        azimuths = cameras.azimuths().tolist()
        for view in orbit_order(cameras):
            cells = [_db(float(one.view_psnr[view])) for one in found.values()]
            lines.append(f"| {azimuths[view]:.1f} deg | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(measured: Measured, cameras: Cameras, title: str) -> Image.Image:
    """PSNR of each view over its azimuth, and under it the views with their errors as heat, along the orbit."""
    order = orbit_order(cameras)
    azimuths = cameras.azimuths()[order].tolist()
    found = measured.comparisons()
    rows = [("views", _sized(measured.views.images[order]))]
    if measured.odd_even is not None:
        rows += [
            (name, _sized(renders[order]))
            for name, renders in zip(("even splat", "odd splat"), measured.odd_even.renders, strict=True)
        ]
    rows += [(f"{NAMES[name]}, error", _sized(heat(one.error[order]))) for name, one in found.items()]
    sheet = contact_sheet(rows, [f"{a:.1f}".removesuffix(".0") + "\u00b0" for a in azimuths], COLUMNS)
    # Equal pictures (99 dB) would squeeze all the others into the bottom of the chart; they are left out.
    lines = {NAMES[k]: [v if v < EQUAL else math.nan for v in c.view_psnr[order].tolist()] for k, c in found.items()}
    top = curves(lines, f"{title}: PSNR in dB of each view over azimuth", azimuths, (max(480, sheet.width), 260))
    scale = _scale(top.width)
    page = Image.new("RGB", (top.width, top.height + sheet.height + scale.height), PAPER)
    page.paste(top, (0, 0))
    page.paste(sheet, (0, top.height))
    page.paste(scale, (0, top.height + sheet.height))
    return page


def heat(error: Tensor) -> Tensor:
    """Errors (N,H,W) as colours (N,H,W,3): black is 0, white WHITE_AT or more."""
    place = (error / WHITE_AT).clamp(0, 1) * (len(STOPS) - 1)
    below = place.floor().long().clamp_max(len(STOPS) - 2)
    stops = torch.tensor(STOPS)
    part = (place - below)[..., None]
    return stops[below] * (1 - part) + stops[below + 1] * part


def _scale(width: int) -> Image.Image:
    strip = Image.new("RGB", (width, 26), PAPER)
    ramp = heat(torch.linspace(0, WHITE_AT, 200).expand(1, 12, -1))[0]
    strip.paste(to_pil(ramp), (40, 6))
    draw = ImageDraw.Draw(strip)
    draw.text((34, 12), "0", INK, font(11), anchor="rm")
    draw.text((246, 12), f"{WHITE_AT:g} or more: colour error of a pixel, values 0 to 1", INK, font(11), anchor="lm")
    return strip


def _sized(pictures: Tensor) -> Tensor:
    height, width = pictures.shape[1:3]
    size = [max(1, round(s * SIDE / max(height, width))) for s in (height, width)]
    scaled = interpolate(pictures.detach().float().cpu().movedim(-1, 1), size=size, mode="bilinear", antialias=True)
    return scaled.movedim(1, -1).clamp(0, 1)


def _also(measured: Measured) -> dict[str, str]:
    out = {}
    if measured.odd_even is not None and math.isfinite(measured.odd_even.depth):
        out["odd_even"] = f"depth differs by {100 * measured.odd_even.depth:.2f} %"
    if measured.neighbours is not None:
        out["neighbours"] = f"L1 {measured.neighbour_l1:.4f}"
    return out


def _db(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
