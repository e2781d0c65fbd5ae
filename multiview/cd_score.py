"""HarmonyView's CD score (section 3.3, Eq. 8-10) on CLIP embeddings, in both readings (references.md section 1.8).

Diversity D: how unlike a reference picture the views are. Semantic variance S_var: how much the fit to the words "An
image of {OBJECT}" changes from view to view. CD = D / S_var.

reading          reference           D                      S_var
paper            the input picture   mean of 1 - cos        variance of cos, divided by N
released code    generated view 0    sum of 1 - cos         variance of 100 max(cos, 0), divided by N - 1

CLIP's cosines with a prompt differ between views by about 0.01, so the paper's formulas as printed give scores of
hundreds to thousands; the published 0.7 to 0.8 are in the released code's units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

PAPER, CODE = "paper (Eq. 8-10)", "released code"
READINGS = (PAPER, CODE)


@dataclass(frozen=True)
class CDScore:
    """score is infinite where the variance is 0. image, text: (N,) cosines of each view with reference and prompt."""

    diversity: float
    variance: float
    score: float
    image: Tensor
    text: Tensor


def prompt_of(name: str, reading: str) -> str:
    """ "An image of {OBJECT}"; the released code takes names of folders: digits go, _ becomes a space.

    ValueError if nothing is left of the name.
    """
    if reading == CODE:
        name = re.sub(r"\d", "", name).replace("_", " ")
    if not name.strip():
        raise ValueError("The object has no name for the prompt 'An image of ...'; write what it is: teddy bear.")
    return f"An image of {name.strip()}"


def cd_score(views: Tensor, text: Tensor, reference: Tensor | None, reading: str) -> CDScore:
    """views (N,D), text (D,), reference (D,): CLIP embeddings of any length. The released code uses no reference.

    ValueError: fewer than 2 views, embeddings of different sizes, the paper's reading without a reference.
    """
    if reading not in READINGS:
        raise ValueError(f"Unknown reading '{reading}'; choose one of {', '.join(READINGS)}.")
    if len(views) < 2:
        raise ValueError(f"The CD score compares views with each other and needs at least 2, got {len(views)}.")
    if reading == PAPER and reference is None:
        raise ValueError("The paper compares the views with the input picture; connect it as reference.")
    reference = views[0] if reading == CODE else reference
    for name, other in (("text", text), ("reference", reference)):
        if other.shape != views.shape[1:]:
            raise ValueError(
                f"CLIP's picture embeddings have {views.shape[1]} numbers but the {name}'s {other.numel()}; load CLIP "
                "and CLIP vision of the same model (ViT-L/14 in the paper)."
            )
    views, text, reference = (unit(x.double()) for x in (views, text, reference))
    image, words = views @ reference, views @ text
    if reading == PAPER:
        diversity, variance = (1 - image).mean(), words.var(correction=0)
    else:
        diversity, variance = (1 - image).sum(), (100 * words.clamp_min(0)).var(correction=1)
    score = float(diversity / variance) if variance > 0 else float("inf")
    return CDScore(float(diversity), float(variance), score, image, words)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
