"""Learning rate, moving average and time budget shared by the training scripts."""

from __future__ import annotations

import math
import time

import torch


def cosine(step: int, total: int, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Linear warm-up, then half a cosine from `peak` to `floor * peak` at step `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    along = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along)))


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module, step: int, decay: float = 0.999) -> None:
    """Exponential moving average of the weights; young averages follow faster, so that short runs have one too."""
    d = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [p.to(a.dtype) for a, p in pairs], 1 - d)
    for a, b in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(b)


class Budget:
    """Wall-clock budget of one call. `used` of earlier calls counts for reports only."""

    def __init__(self, minutes: float, used: float = 0.0):
        self.start, self.minutes, self.used = time.monotonic(), minutes, used

    @property
    def seconds(self) -> float:
        return self.used + time.monotonic() - self.start

    def over(self) -> bool:
        return time.monotonic() - self.start > 60 * self.minutes
