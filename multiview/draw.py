"""Pictures for people: contact sheets, camera plans, curves. PIL only; colours readable on ComfyUI's dark canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .cameras import Cameras

PAPER, INK, SOFT, ACCENT, SECOND = (250, 250, 248), (38, 40, 48), (176, 180, 190), (226, 98, 32), (42, 104, 196)
SERIES = [SECOND, ACCENT, (30, 150, 96), (140, 80, 190), (190, 140, 20), (90, 90, 100)]


def font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def to_pil(image: Tensor) -> Image.Image:
    """(H,W,3) in [0,1] -> picture."""
    return Image.fromarray((image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def from_pil(picture: Image.Image) -> Tensor:
    """Picture -> (1,H,W,3) in [0,1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def contact_sheet(rows: Sequence[tuple[str, Tensor]], labels: Sequence[str] = (), columns: int = 8) -> Image.Image:
    """Several batches of views under each other, column by column, broken into blocks of `columns`.

    rows: (title, images (N,H,W,3)); batches may have different sizes and counts. labels: one per column.
    """
    if not rows:
        raise ValueError("A contact sheet needs at least one batch of pictures.")
    count = max(images.shape[0] for _, images in rows)
    side = max(64, max(images.shape[1] for _, images in rows))
    cells = [[_fit(images[i], side) if i < images.shape[0] else None for i in range(count)] for _, images in rows]
    width = max(max(c.width for c in row if c) for row in cells)
    title_size, gap = max(11, side // 10), max(2, side // 40)
    text = font(title_size)
    title_width = 2 * gap + int(max(text.getlength(title) for title, _ in rows))
    blocks = math.ceil(count / columns)
    label_height = title_size + 2 * gap if labels else 0
    block_height = label_height + len(rows) * (side + gap)
    sheet_columns = min(columns, count)
    sheet = Image.new("RGB", (title_width + sheet_columns * (width + gap) + gap, blocks * (block_height + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for block in range(blocks):
        top = block * (block_height + gap)
        for r, (title, _) in enumerate(rows):
            y = top + label_height + r * (side + gap)
            draw.text((gap, y + side // 2), title, INK, text, anchor="lm")
            for c in range(columns):
                i = block * columns + c
                if i >= count:
                    break
                x = title_width + c * (width + gap)
                if r == 0 and i < len(labels):
                    draw.text((x + width // 2, top + gap), labels[i], INK, text, anchor="mt")
                if cells[r][i] is not None:
                    sheet.paste(cells[r][i], (x, y))
    return sheet


def camera_plan(cameras: Cameras, size: int = 512, object_radius: float = 0.5) -> Image.Image:
    """The cameras from above (left) and from the side (right): frustums, azimuth labels, the input view marked.

    From above the viewer of azimuth 0 stands at the bottom; growing azimuth goes to the right, counter-clockwise.
    The side view looks along +x -> -x, front to the left, up is up.
    """
    sheet = Image.new("RGB", (2 * size, size + size // 8), PAPER)
    draw = ImageDraw.Draw(sheet)
    reach = float(cameras.radii().max()) * 1.32
    scale = size / 2 / reach
    # (world axes on the page: right, up), origin on the page, title
    panels = [
        (((1, 0, 0), (0, 0, 1)), (size / 2, size / 2), "from above"),
        (((0, 0, 1), (0, -1, 0)), (size * 1.5, size / 2), "from the side"),
    ]
    small = font(max(10, size // 36))
    for axes, origin, title in panels:
        basis = torch.tensor(axes, dtype=torch.float64)

        def page(p, basis=basis, origin=origin):
            right, up = (basis @ p.double()).tolist()
            return origin[0] + right * scale, origin[1] - up * scale

        r = object_radius * scale
        draw.ellipse([origin[0] - r, origin[1] - r, origin[0] + r, origin[1] + r], fill=(232, 232, 228), outline=SOFT)
        front = page(torch.tensor([0.0, 0.0, -object_radius]))
        draw.line([origin, front], SOFT, 2)
        draw.text(front, "front", SOFT, small, anchor="mt" if front[1] > origin[1] else "rm")
        draw.text((origin[0] - size / 2 + 8, 8), title, INK, font(max(12, size // 28)))
        order = [i for i in range(len(cameras)) if i != cameras.input_view]
        for i in order + ([] if cameras.input_view is None else [cameras.input_view]):
            _frustum(draw, cameras, i, page, origin, size, small, azimuth_label="above" in title)
    closing = "closed orbit" if cameras.closed else "open orbit"
    marked = f"view {cameras.input_view} (orange) is the input"
    if cameras.input_view is None:
        marked = "no view is the input"
    line = (
        f"{cameras.name}: {len(cameras)} views, {closing}, {marked}; elevation {_range(cameras.elevations())}, "
        f"radius {_range(cameras.radii())}, vertical field of view {_range(cameras.fov_y())}"
    )
    draw.text((10, size + 4), line, INK, font(max(11, size // 34)))
    draw.text(
        (10, size + 4 + size // 24),
        "Labels: azimuth in degrees. Growing azimuth = camera moves to the viewer's right; growing elevation = up.",
        INK,
        font(max(10, size // 40)),
    )
    return sheet


def curves(
    series: dict[str, Sequence[float]], title: str, x: Sequence[float] | None = None, size=(640, 360), log=False
) -> Image.Image:
    """Line chart of several series over a common x (default: 0, 1, 2, ...). Non-finite points are left out."""
    width, height = size
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    left, right, top, bottom = 64, width - 14, 34, height - 30
    draw.text((10, 8), title, INK, font(15))
    transform = (lambda v: math.log10(max(v, 1e-12))) if log else (lambda v: v)
    points = {
        name: [
            (float(i if x is None else x[i]), transform(float(v))) for i, v in enumerate(values) if math.isfinite(v)
        ]
        for name, values in series.items()
    }
    flat = [p for ps in points.values() for p in ps]
    if not flat:
        draw.text((left, height // 2), "no finite values", INK, font(13))
        return sheet
    x0, x1 = min(p[0] for p in flat), max(p[0] for p in flat)
    y0, y1 = min(p[1] for p in flat), max(p[1] for p in flat)
    x1, y1 = x1 if x1 > x0 else x0 + 1, y1 if y1 > y0 else y0 + 1

    def at(p):
        return left + (p[0] - x0) / (x1 - x0) * (right - left), bottom - (p[1] - y0) / (y1 - y0) * (bottom - top)

    for k in range(5):
        value = y0 + (y1 - y0) * k / 4
        y = at((x0, value))[1]
        draw.line([left, y, right, y], (228, 228, 224))
        draw.text((left - 6, y), f"{10**value if log else value:.3g}", INK, font(11), anchor="rm")
        position = x0 + (x1 - x0) * k / 4
        draw.text((at((position, y0))[0], bottom + 6), f"{position:.4g}", INK, font(11), anchor="mt")
    for k, (name, ps) in enumerate(points.items()):
        colour = SERIES[k % len(SERIES)]
        if len(ps) > 1:
            draw.line([at(p) for p in ps], colour, 2)
        for p in ps if len(ps) <= 24 else []:
            px, py = at(p)
            draw.ellipse([px - 3, py - 3, px + 3, py + 3], fill=colour)
        draw.text((right - 4, top + 16 * k), name, colour, font(13), anchor="rt")
    return sheet


def _fit(image: Tensor, height: int) -> Image.Image:
    picture = to_pil(image)
    if picture.height == height:
        return picture
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _frustum(draw, cameras: Cameras, i: int, page, origin, size: int, text, azimuth_label: bool) -> None:
    depth = 0.16 * float(cameras.radii()[i])
    fx, fy, cx, cy = cameras.intrinsics[i].double().tolist()
    corners = [((u - cx) / fx * depth, (v - cy) / fy * depth, depth) for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))]
    pose = cameras.c2w[i].double()
    world = torch.tensor(corners, dtype=torch.float64) @ pose[:3, :3].T + pose[:3, 3]
    colour = ACCENT if i == cameras.input_view else SECOND
    width = 3 if i == cameras.input_view else 1
    apex, ends = page(pose[:3, 3]), [page(p) for p in world]
    for a, b in zip(ends, ends[1:] + ends[:1], strict=True):
        draw.line([a, b], colour, width)
        draw.line([apex, a], colour, width)
    if azimuth_label:
        dx, dy = apex[0] - origin[0], apex[1] - origin[1]
        far = math.hypot(dx, dy) or 1.0
        # Views that repeat an azimuth (ComfyUI's SV3D table) would print over each other: one ring further out.
        azimuths = cameras.azimuths()
        ring = sum(1 for k in range(i) if abs(float(azimuths[k] - azimuths[i])) < 0.5)
        shift = size / 22 * (1 + ring)
        label = f"{float(azimuths[i]):.1f}".removesuffix(".0")
        draw.text((apex[0] + dx / far * shift, apex[1] + dy / far * shift), label, colour, text, anchor="mm")


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
