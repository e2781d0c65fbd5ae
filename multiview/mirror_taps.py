"""Repeated pulls toward the match alone, as one sparse product each.

With a block of 1 the fused value M of mirror.fuse is linear in the views: every matched cell is a weighted sum of four
cells in each neighbour. The indices and weights are laid out once and then serve all repetitions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .correspondence import Correspondence


class Taps:
    """Which cells of the neighbours every matched cell looks at, and with what weight.

    Cells are numbered view by view, row by row. rows (R,): the matched ones; cells, weights (R,4K): where they look,
    weights adding up to 1; trust (R,): the largest confidence among the neighbours that count.
    """

    def __init__(self, matches: Correspondence, neighbour_weights: Tensor, skip_background: bool = True):
        """neighbour_weights: (K,), 0 or more. skip_background: a neighbour that shows background does not count."""
        height, width = matches.confidence.shape[2:]
        view, row, column = (matches.confidence > 0).any(1).nonzero(as_tuple=True)
        uv, confidence = matches.uv[view, :, row, column], matches.confidence[view, :, row, column]  # (R,K,2), (R,K)
        u, v = uv.unbind(-1)
        confidence = confidence * ((u >= 0) & (u <= width) & (v >= 0) & (v <= height))
        (left, right, across), (up, down, along) = bracket(u, width), bracket(v, height)
        first = matches.neighbours.clamp_min(0)[view] * height * width
        cells = torch.stack([first + y * width + x for y in (up, down) for x in (left, right)], dim=-1)
        weights = torch.stack([a * b for a in (1 - along, along) for b in (1 - across, across)], dim=-1)
        if skip_background:
            confidence = confidence * ((matches.foreground.flatten()[cells] * weights).sum(-1) > 0)
        omega = neighbour_weights.to(confidence)
        norm = (omega * confidence).sum(1)
        found = norm > 0
        self.rows = ((view * height + row) * width + column)[found]
        self.trust = (confidence * (omega > 0)).amax(1)[found]
        self.cells = cells.flatten(1)[found]
        self.weights = ((weights * (omega * confidence)[..., None]).flatten(1) / norm.clamp_min(1e-12)[:, None])[found]
        self.cells_per_view = height * width

    def pull(self, x0: Tensor, eta: Tensor, iterations: int) -> Tensor:
        """Views (N,C,H,W) float32, every matched cell moved toward its match by eta times trust, `iterations` times.

        eta: (N,) in [0,1].
        """
        flat = x0.movedim(1, -1).flatten(0, -2).clone()
        share = (eta[self.rows // self.cells_per_view] * self.trust)[:, None]
        for _ in range(iterations):
            flat[self.rows] += share * (self._look(flat) - flat[self.rows])
        return flat.view(x0.movedim(1, -1).shape).movedim(-1, 1)

    def _look(self, flat: Tensor) -> Tensor:
        """(R,C) what the matched cells see in their neighbours."""
        if flat.device.type in ("cpu", "cuda"):
            return embedding_bag(self.cells, flat, per_sample_weights=self.weights, mode="sum")
        return (flat[self.cells] * self.weights[..., None]).sum(1)


def bracket(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells around a position (their centres are at +0.5; the border repeats), and the share of the second."""
    at = (position - 0.5).clamp(0, size - 1)
    low = at.floor()
    return low.long(), (low + 1).clamp_max(size - 1).long(), at - low
