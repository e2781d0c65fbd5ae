"""Words for views, prompts made of them, and conditionings and noise for a batch of views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PLACEHOLDER = "{view}"
MOST_REPEATS = 12


def words_for(azimuth: float, elevation: float = 0.0) -> str:
    """What a camera sees, in words that picture models know. Degrees as in docs/conventions.md.

    Eight sectors of 45 degrees round azimuths 0, 45, ...; from azimuth 0 to 180 the front of the object points to the
    left of the picture. From 60 degrees of elevation on only "view from above" (or below), from 25 on it is added.
    """
    if abs(elevation) >= 60:
        return "view from above" if elevation > 0 else "view from below"
    sector = round((azimuth % 360.0) / 45.0) % 8
    facing = "facing left" if sector < 4 else "facing right"
    base = {0: "front view", 4: "back view"}.get(sector)
    if base is None:
        kind = {1: "three-quarter front view", 2: "side view", 3: "three-quarter back view"}[min(sector, 8 - sector)]
        base = f"{kind}, {facing}"
    if abs(elevation) >= 25:
        base += ", from above" if elevation > 0 else ", from below"
    return base


def make_prompts(subject: str, views: Sequence[str]) -> list[str]:
    """One prompt for each view: {view} in the subject replaced, or the words put after it.

    ValueError without a view or with nothing to draw.
    """
    if not views:
        raise ValueError("There are no views to write prompts for; write one line for each, or connect cameras.")
    if not subject.replace(PLACEHOLDER, "").strip():
        raise ValueError("The subject is empty; describe the object that all views show.")
    subject = " ".join(subject.split())
    template = subject if PLACEHOLDER in subject else f"{subject.rstrip(' ,.')}, {PLACEHOLDER}"
    return [template.replace(PLACEHOLDER, view) for view in views]


def view_lines(text: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def join_tokens(embeddings: Sequence[Tensor]) -> Tensor:
    """Text embeddings (1,T_i,C) or masks (1,T_i) -> (N,T,...), where T is the least common multiple of all T_i.

    Shorter ones are repeated whole, which leaves what cross-attention makes of them as it was: every key has the same
    number of copies, so the softmax gives them together the weight that it gave the one. ValueError if that would take
    more than 12 copies of the longest prompt.
    """
    lengths = [x.shape[1] for x in embeddings]
    length = math.lcm(*lengths)
    if length > MOST_REPEATS * max(lengths):
        raise ValueError(
            f"The prompts of the views have very different lengths ({min(lengths)} to {max(lengths)} tokens); "
            "make them about equally long."
        )
    return torch.cat([x.repeat(1, length // x.shape[1], *[1] * (x.ndim - 2)) for x in embeddings])


def shared_noise(
    shape: Sequence[int], seed: int, independence: float = 0.0, views: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Starting noise (N,C,...) of standard normal numbers that is the same for all views of a set.

    independence b: each view is sqrt(1 - b) shared + sqrt(b) own, so that it stays standard normal and two views
    correlate by 1 - b. views: how many rows form a set (0 = all); each set has shared noise of its own. Made on the
    CPU, so that all machines get the same. ValueError for a b outside 0 to 1 and rows that are not whole sets.
    """
    if not 0 <= independence <= 1:
        raise ValueError(f"independence is {independence}; it must be from 0 (same noise) to 1 (independent).")
    rows, views = shape[0], views or shape[0]
    if rows % views:
        raise ValueError(
            f"The batch of {rows} latents cannot be divided into sets of {views} views; correct the number of views."
        )
    generator = torch.Generator().manual_seed(seed)
    shared = torch.cat([torch.randn(1, *shape[1:], generator=generator, dtype=dtype) for _ in range(rows // views)])
    shared = shared.repeat_interleave(views, 0)
    if independence == 0:
        return shared
    own = torch.randn(*shape, generator=generator, dtype=dtype)
    return math.sqrt(1 - independence) * shared + math.sqrt(independence) * own
