"""What generated views show, by comparison with the bank: which object, whether they agree, second faces."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import Bank

# Root mean square difference ([0,1] units) from which two variants count as different in a view.
TELLS_APART = 0.02
# Views closer to the front than this may show the face by right.
FRONT_DEGREES = 60.0


@dataclass(frozen=True)
class Verdict:
    """members: (N,) nearest bank member of each view; telling: (N,) bool, the views in which variants differ;
    faces: (N,) bool, views that show a second face; agreement: share of telling views that show the most common
    variant (1 = all the same object; a second face agrees with nothing; nan if no view tells);
    nearest: the bank member nearest to all views together; object_psnr: dB of all views together against it;
    view_psnr: dB of the views against the nearest own picture of each.
    """

    members: Tensor
    nearest: int
    telling: Tensor
    faces: Tensor
    agreement: float
    object_psnr: float
    view_psnr: float

    @property
    def second_faces(self) -> int:
        return int(self.faces.sum())


def distances(views: Tensor, bank: Bank) -> tuple[Tensor, Tensor]:
    """Mean squared error of views (N,H,W,3) in [0,1] to each member's own view and to its front picture, both (K,N)."""
    if views.shape != bank.views.shape[1:]:
        raise ValueError(
            f"The bank's views are {tuple(bank.views.shape[1:])}, got {tuple(views.shape)}; "
            "measure at the bank's size and cameras."
        )
    x = views.detach().float().cpu()
    own = torch.stack([(x - member.float() / 255.0).square().mean((1, 2, 3)) for member in bank.views])
    front = torch.stack([(x - picture.float() / 255.0).square().mean((1, 2, 3)) for picture in bank.references])
    return own, front


def which_member(views: Tensor, bank: Bank, family: int | None = None) -> Tensor:
    """(N,) index of the nearest bank member of each view, of one family only if given."""
    own, _ = distances(views, bank)
    return _of_family(own, bank, family).argmin(0)


def telling_views(bank: Bank, family: int) -> Tensor:
    """(N,) bool: views in which every two variants of the family can be told apart."""
    pictures = bank.views[bank.family == family].float() / 255.0
    if len(pictures) < 2:
        return torch.zeros(pictures.shape[1], dtype=torch.bool)
    gaps = [(pictures[i] - pictures[j]).square().mean((1, 2, 3)).sqrt() for i in range(len(pictures)) for j in range(i)]
    return torch.stack(gaps).amin(0) > TELLS_APART


def judge(views: Tensor, bank: Bank, family: int | None = None) -> Verdict:
    """Verdict on views (N,H,W,3) in [0,1]. family: the reference's, None = the family nearest to the views."""
    own, front = distances(views, bank)
    if family is None:
        family = int(bank.family[own.sum(1).argmin()])
    own = _of_family(own, bank, family)
    members = own.argmin(0)
    telling = telling_views(bank, family)
    turn = bank.cameras.azimuths().cpu()
    away = torch.minimum(turn, 360.0 - turn) > FRONT_DEGREES
    faces = away & (_of_family(front, bank, family).amin(0) < own.amin(0))
    votes = torch.where(faces, -1, bank.variant[members])[telling]
    counts = torch.bincount(votes[votes >= 0], minlength=1)
    agreement = float(counts.max()) / len(votes) if len(votes) else math.nan
    together = own.mean(1)
    nearest = int(together.argmin())
    return Verdict(members, nearest, telling, faces, agreement, _psnr(together[nearest]), _psnr(own.amin(0).mean()))


def _of_family(table: Tensor, bank: Bank, family: int | None) -> Tensor:
    if family is None:
        return table
    keep = bank.family == family
    if not bool(keep.any()):
        raise ValueError(f"The bank has families 0 to {int(bank.family.max())}, not {family}.")
    return table.masked_fill(~keep[:, None], torch.inf)


def _psnr(mse: Tensor) -> float:
    return float(-10.0 * torch.log10(mse.clamp_min(1e-10)))
