"""Pictures for the model cards."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor


def write_png(path: Path, pixels: Tensor) -> None:
    """(H,W,3) uint8 as a PNG, with the standard library only: training machines may lack an image library."""
    height, width = pixels.shape[:2]
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), pixels.reshape(height, -1)], dim=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.numpy().tobytes(), 9)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def shade(values: Tensor, low: float, high: float, inside: Tensor) -> Tensor:
    """(...,) -> (...,3) uint8: dark blue at `low` through green to yellow at `high`, white outside the mask."""
    t = ((values - low) / (high - low)).clamp(0, 1)[..., None]
    stops = torch.tensor([[0.20, 0.05, 0.35], [0.15, 0.45, 0.55], [0.35, 0.75, 0.40], [0.99, 0.90, 0.15]])
    place = t * (len(stops) - 1)
    index = place.long().clamp(max=len(stops) - 2)
    colours = torch.lerp(stops[index[..., 0]], stops[index[..., 0] + 1], place - index)
    return (torch.where(inside[..., None], colours, torch.ones(3)) * 255).round().to(torch.uint8)


def depth_sheet(
    images: Tensor,
    truth: Tensor,
    estimate: Tensor,
    confidence: Tensor,
    path: Path,
    reach: float = 0.5,
    worst: float = 0.15,
) -> None:
    """A column for each picture: input, true offset, estimated offset (same scale), error (0 dark to `worst`
    yellow), confidence.

    images (N,S,S,3) in [0,1]; truth, estimate (N,S,S) offsets from the plane through the origin in world units, NaN
    outside.
    """
    both = truth.isfinite() & estimate.isfinite()
    rows = [
        (images * 255).round().to(torch.uint8),
        shade(truth.nan_to_num(), -reach, reach, truth.isfinite()),
        shade(estimate.nan_to_num(), -reach, reach, estimate.isfinite()),
        shade((truth - estimate).abs().nan_to_num(), 0, worst, both),
        shade(confidence, 0, 1, estimate.isfinite()),
    ]
    write_png(path, torch.cat([torch.cat(list(row), dim=1) for row in rows]))
