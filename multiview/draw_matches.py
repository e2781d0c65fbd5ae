"""Matched points joined between neighbouring views, coloured by confidence (MIRROR's appendix G)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .cameras import Cameras
from .correspondence import Correspondence, cell_centres, footprints, resample_depth
from .draw import INK, PAPER, SECOND, font, to_pil

# Confidence 0 to 1 in steps from red over yellow to green, and what has no match.
RAMP = ((214, 60, 50), (236, 170, 40), (40, 160, 80))
LOST = (150, 154, 164)
SMALLEST, LARGEST = 256, 512
# The inverse of the plastic number: powers of it fill a square evenly.
R2 = 0.7548776662466927


@dataclass(frozen=True)
class MatchCounts:
    """Shares of the object's cells of a view, looked for in one neighbour; they sum to 1 (all 0 without object).

    hidden: something else is in front, the surface is turned away, or the neighbour shows background there.
    outside: it lies outside the neighbour's picture.
    """

    view: int
    neighbour: int
    matched: float
    hidden: float
    outside: float


def count_matches(matches: Correspondence, free: Correspondence, surface: Tensor) -> list[MatchCounts]:
    """For every view and each of its neighbours. free: the same matches made without the occlusion test.

    surface: (N,H,W) bool, the cells to count, from surface_cells.
    """
    found = []
    own = cell_centres(*free.uv.shape[2:4], free.uv.device)
    for i, row in enumerate(matches.neighbours.tolist()):
        total = max(1, int(surface[i].sum()))
        for k, j in enumerate(row):
            if j < 0:
                continue
            # Positions outside the picture are not kept, the cell's own centre stands there instead.
            inside = free.valid[i, k] | (free.uv[i, k] != own).any(-1)
            matched = int((matches.valid[i, k] & surface[i]).sum())
            outside = int((surface[i] & ~inside).sum())
            hidden = int(surface[i].sum()) - matched - outside
            found.append(MatchCounts(i, j, matched / total, hidden / total, outside / total))
    return found


def surface_cells(matches: Correspondence, cameras: Cameras, depth: Tensor | None) -> Tensor:
    """(N,H,W) bool: cells of the object that have a depth to follow; the object's cells where there is no depth."""
    solid = matches.foreground > 0
    if depth is None:
        return solid
    at_cells, _ = resample_depth(depth.to(solid.device), tuple(solid.shape[1:]), footprints(cameras, depth))
    return solid & (at_cells > 0)


def match_table(counts: list[MatchCounts], cameras: Cameras, mode: str) -> str:
    """The shares as a Markdown table, and their mean."""
    azimuths = [f"{a:.1f}".removesuffix(".0") for a in cameras.azimuths().tolist()]
    lines = [
        f"**Matches between neighbouring views ({mode})**",
        "",
        "| view | neighbour | matched | hidden | outside |",
        "|---|---|---|---|---|",
    ]
    for c in counts:
        names = f"{c.view} ({azimuths[c.view]} deg) | {c.neighbour} ({azimuths[c.neighbour]} deg)"
        lines.append(f"| {names} | {c.matched:.0%} | {c.hidden:.0%} | {c.outside:.0%} |")
    if counts:
        means = [sum(getattr(c, f) for c in counts) / len(counts) for f in ("matched", "hidden", "outside")]
        lines.append("| all | | " + " | ".join(f"{m:.0%}" for m in means) + " |")
    return "\n".join(lines)


def choose_points(surface: Tensor, count: int) -> Tensor:
    """(P,2) long (row, column): at most `count` of the true cells of (H,W), evenly spread, always the same.

    The R2 sequence (Roberts 2018) over the cells' bounding box: even at any count, and hardly ever two in one row,
    where lines would cover each other.
    """
    cells = surface.nonzero()
    if len(cells) <= count:
        return cells
    low, high = cells.amin(0), cells.amax(0) + 1
    index = torch.arange(1, 64 * count + 1, dtype=torch.float64)
    places = torch.stack([(0.5 + index * step) % 1.0 for step in (R2, R2 * R2)], dim=1).to(cells.device)
    tried = low + (places * (high - low)).long()
    tried = tried[surface[tried[:, 0], tried[:, 1]]]
    chosen = dict.fromkeys(map(tuple, tried.tolist()))
    return torch.tensor(list(chosen)[:count], device=cells.device).reshape(-1, 2)


def draw_matches(
    views: Tensor, matches: Correspondence, surface: Tensor, cameras: Cameras, chosen: list[int], count: int
) -> Image.Image:
    """One row for each chosen view: it stands in the middle, its neighbours left and right, the nearest innermost.

    views: (N,h,w,3) pictures of any size. surface: (N,H,W) bool, cells to follow points from. Points are joined from
    view to view outward; grey rings have no match in any neighbour.
    """
    side = min(max(views.shape[1], SMALLEST), LARGEST)
    page = _Page(matches.neighbours.shape[1] + 1, side, round(views.shape[2] * side / views.shape[1]), len(chosen))
    angles = [f"{a:.1f}".removesuffix(".0") + "\u00b0" for a in cameras.azimuths().tolist()]
    middle = page.columns // 2
    scale = matches.uv.new_tensor([page.width / matches.uv.shape[3], side / matches.uv.shape[2]])
    for r, view in enumerate(chosen):
        row = matches.neighbours[view].tolist()
        for column, other in enumerate([*row[:middle], view, *row[middle:]]):
            picture = None if other < 0 else to_pil(views[other])
            title = "end of the orbit" if other < 0 else f"view {other}, {angles[other]}"
            page.panel(r, column, picture, title, SECOND if column == middle else INK)
        for cell in choose_points(surface[view], count).tolist():
            _join(page, r, matches, view, cell, scale)
    page.legend()
    return page.sheet


def _join(page: _Page, r: int, matches: Correspondence, view: int, cell: list[int], scale: Tensor) -> None:
    """A point of a view, its matches, and lines between them from the middle outward."""
    row, column = cell
    middle = page.columns // 2
    centre = scale.new_tensor([column + 0.5, row + 0.5])
    start = page.place(r, middle, centre * scale)
    dots = []
    for side in (reversed(range(middle)), range(middle, page.columns - 1)):
        here = start
        for k in side:
            confidence = float(matches.confidence[view, k, row, column])
            if confidence <= 0:
                continue
            there = page.place(r, k if k < middle else k + 1, matches.uv[view, k, row, column] * scale)
            page.draw.line([here, there], confidence_colour(confidence), 1)
            dots.append((confidence, there))
            here = there
    for confidence, at in dots:
        page.dot(at, confidence_colour(confidence))
    if dots:
        page.dot(start, confidence_colour(max(dots)[0]))
    else:
        page.ring(start)


class _Page:
    """A sheet of panels in rows and columns, with a title above each and a legend below all."""

    GAP, TITLE, LEGEND = 12, 22, 28

    def __init__(self, columns: int, height: int, width: int, rows: int):
        self.columns, self.height, self.width = columns, height, width
        size = columns * (width + self.GAP) - self.GAP, rows * (height + self.TITLE + self.GAP) + self.LEGEND
        self.sheet = Image.new("RGB", (max(size[0], 300), size[1]), PAPER)
        self.draw = ImageDraw.Draw(self.sheet)
        self.text = font(13)

    def place(self, row: int, column: int, at: Tensor) -> tuple[float, float]:
        """A position in a panel (x, y), on the sheet."""
        x, y = at.tolist()
        left, top = column * (self.width + self.GAP), row * (self.height + self.TITLE + self.GAP) + self.TITLE
        return left + x, top + y

    def panel(self, row: int, column: int, picture: Image.Image | None, title: str, colour) -> None:
        left, top = self.place(row, column, torch.zeros(2))
        if picture is not None:
            picture = picture.resize((self.width, self.height), Image.Resampling.LANCZOS)
            self.sheet.paste(picture, (round(left), round(top)))
        self.draw.text((left + 2, top - 4), title, colour, self.text, anchor="lb")

    def dot(self, at: tuple[float, float], colour) -> None:
        self.draw.ellipse([at[0] - 3, at[1] - 3, at[0] + 3, at[1] + 3], fill=colour, outline=PAPER)

    def ring(self, at: tuple[float, float]) -> None:
        self.draw.ellipse([at[0] - 3, at[1] - 3, at[0] + 3, at[1] + 3], outline=LOST, width=2)

    def legend(self) -> None:
        x, y = 2, self.sheet.height - 22
        self.draw.text((x, y), "confidence 0", INK, self.text)
        x += int(self.text.getlength("confidence 0")) + 8
        for i in range(60):
            self.draw.line([x + i, y + 2, x + i, y + 14], confidence_colour(i / 59))
        self.draw.text((x + 66, y), "1", INK, self.text)
        self.ring((x + 95, y + 8))
        self.draw.text((x + 104, y), "no match", INK, self.text)


def confidence_colour(confidence: float) -> tuple[int, int, int]:
    """Red (0) over yellow to green (1)."""
    at = min(max(confidence, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    return tuple(round(a + (b - a) * (at - low)) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True))
