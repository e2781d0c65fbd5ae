"""Cross-frame attention and its hard form (MIRAGE, Eqs. 5 to 7; Text2Video-Zero for the idea), on plain tensors.

Self-attention of one view (Eq. 5):      softmax(Q K^T / sqrt(d)) V
Cross-frame attention of view j (Eq. 6): softmax(Q_j K_ref^T / sqrt(d)) V_ref
Its hard form:                           V_ref[argmax_k (Q_j K_ref^T)_k], for each query and head
Guidance away from the hard form (Eq. 7): eps = (1 - gamma) eps_hard + gamma eps_soft; gamma 1 is off

Tokens are (B, T, C) with the heads side by side in C, as ComfyUI's UNets have them. B = groups * views with the views
inside: one group for each part of the batch that belongs together (conditional and unconditional, several objects).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (q, k, v), each (b, tokens, C) -> (b, tokens of q, C).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# The same with a fourth tensor, into which the result is written.
Fill = Callable[[Tensor, Tensor, Tensor, Tensor], None]
# Scores held at once on a CPU: 2 MB of float32 stay in its cache. Elsewhere the query's own size is the only limit.
CACHED_SCORES = 2**19
# From this many keys on, the largest score is found among the largest of 32 groups: a plain argmax is slow on CPUs.
GROUPED_KEYS, GROUPS = 1024, 32


def soft_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Eq. 5. q (B,T,C), k and v (B,S,C) -> (B,T,C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def hard_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, upcast: bool = False, out: Tensor | None = None
) -> Tensor:
    """Attention with all weight on the best key: for each query and head V[argmax_k Q K^T]. Shapes of soft_attention.

    upcast: compare scores in float32 whatever the dtype. out: where to write the result. Scores are never all in
    memory: at most half as many as q has numbers, and on a CPU at most 2^19. Of equal scores one is taken, always the
    same.
    """
    batch, tokens, channels = q.shape
    width, keys = channels // heads, k.shape[1]
    limit = min(q.numel() // 2, CACHED_SCORES) if q.device.type == "cpu" else q.numel() // 2
    some_heads = min(heads, max(1, limit // (tokens * keys)))
    step = max(1, limit // (some_heads * keys))
    out = q.new_empty(q.shape) if out is None else out
    # (B, heads, tokens, width)
    q, k, v, into = (x.unflatten(-1, (heads, width)).transpose(1, 2) for x in (q, k, v, out))
    for item in range(batch):
        for head in range(0, heads, some_heads):
            part = (item, slice(head, head + some_heads))
            turned = k[part].transpose(1, 2)
            turned = turned.float() if upcast else turned
            for start in range(0, tokens, step):
                asking = q[part][:, start : start + step]
                # Scaled as in Eq. 6: the largest stays the largest, and half precision does not overflow.
                scores = (asking.float() if upcast else asking) * width**-0.5 @ turned
                best = _largest(scores)[..., None].expand(-1, -1, width)
                into[part][:, start : start + step] = v[part].gather(1, best)
    return out


def _largest(scores: Tensor) -> Tensor:
    """(H,Q,S) -> (H,Q), where each row is largest."""
    keys = scores.shape[-1]
    if keys < GROUPED_KEYS or keys % GROUPS:
        return scores.argmax(-1)
    grouped = scores.unflatten(-1, (GROUPS, -1))
    column = grouped.amax(-2).argmax(-1)
    row = grouped.gather(-1, column[..., None, None].expand(-1, -1, GROUPS, 1)).squeeze(-1).argmax(-1)
    return row * grouped.shape[-1] + column


def cross_frame(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    views: int,
    references: Sequence[int],
    attend: Attend,
    fill: Fill | None = None,
    strength: float = 1.0,
    whole: bool = False,
) -> Tensor:
    """Eq. 6 for every view but the references, Eq. 5 for these. q, k, v as (B,T,C), B a multiple of `views` -> (B,T,C).

    references: the views (0 to views - 1) whose keys and values all others get; those of several are joined.
    attend computes attention (Eq. 5). It is called with the whole batch, in which the references meet their own keys:
    so their rows are what they are without all this, to the last bit, also where a matrix product rounds differently
    in a batch of another size. One reference and strength 1 take one call; otherwise a second one computes what all
    views see by themselves.
    fill: writes what views take from the references, instead of attend. It gets rows of some views only, and so does
    attend for the references then, unless `whole`: that is for an attend that knows which row is which view.
    strength: weight of what comes from the references; the rest is the view's own attention. 0 is plain attention.

    q may have more rows than k and v where somebody has cut each view's queries into tiles; keys and values are then
    cut alike, as the host's attention does it. ValueError for a wrong batch or index.
    """
    check_references(references, views)
    check_batch(k.shape[0], views)
    others = [i for i in range(views) if i not in references]
    if not others or strength == 0:
        return attend(q, k, v)
    tiles = q.shape[0] // k.shape[0]
    shape = (-1, views, tiles)
    asking = q.unflatten(0, shape)
    keys, values = (x.reshape(q.shape[0], -1, x.shape[-1]).unflatten(0, shape) for x in (k, v))
    seen = [_shared(x, references) for x in (keys, values)]
    if fill is None:
        out = attend(q, *(_rows(x) for x in seen))
        if len(references) == 1 and strength == 1:
            return out
    else:
        out = q.new_empty(q.shape)
        groups, into = range(len(asking)), out.unflatten(0, shape)
        for group, some in itertools.product(groups, _runs(others)):
            fill(*(_joined(x[group, some]) for x in (asking, *seen, into)))
        if strength == 1 and not whole:
            for group, some in itertools.product(groups, _runs(references)):
                own = attend(*(_joined(x[group, some]) for x in (asking, keys, values)))
                _joined(into[group, some]).copy_(own)
            return out
    by_view, own = out.unflatten(0, shape), attend(q, k, v).unflatten(0, shape)
    by_view[:, list(references)] = own[:, list(references)]
    by_view[:, others] = torch.lerp(own[:, others], by_view[:, others], strength)
    return out


def _shared(x: Tensor, references: Sequence[int]) -> Tensor:
    """(groups, views, tiles, S, C) -> (groups, views, tiles, R S, C): the references' tokens, the same for every view.

    All views have the same memory; that of x, if there is one reference.
    """
    one = len(references) == 1
    joined = x[:, references[0]] if one else x[:, list(references)].movedim(1, 2).flatten(2, 3)
    return joined[:, None].expand(-1, x.shape[1], -1, -1, -1)


def _rows(x: Tensor) -> Tensor:
    """(groups, views, tiles, S, C) -> (B,S,C). Only on a CPU still the one copy: not every kernel of a graphics card
    takes tensors whose rows lie on each other."""
    rows = _joined(x[0]) if x.shape[0] == 1 else x.flatten(0, 2)
    return rows if rows.device.type == "cpu" else rows.contiguous()


def _joined(x: Tensor) -> Tensor:
    """(views, tiles, S, C) -> (rows, S, C), of the same memory if there is one tile."""
    return x.squeeze(1) if x.shape[1] == 1 else x.flatten(0, 1)


def _runs(index: Sequence[int]) -> list[slice]:
    """The slices that hold these numbers, each as long as possible."""
    found = []
    for i in sorted(index):
        if found and found[-1].stop == i:
            found[-1] = slice(found[-1].start, i + 1)
        else:
            found.append(slice(i, i + 1))
    return found


def in_parts(
    apart: Sequence[bool], tensors: Sequence[Tensor], talking: Attend, attend: Attend, whole: bool
) -> Tensor:
    """`attend` for the parts of a batch that are apart, `talking` for the others; both as in cross_frame.

    apart: one entry for each part, in the order in which the parts lie in the batch. whole as in cross_frame.
    """
    if not any(apart):
        return talking(*tensors)
    if all(apart):
        return attend(*tensors)
    parts = list(zip(*(x.chunk(len(apart)) for x in tensors), strict=True))
    if whole:
        own, taken = (f(*tensors).chunk(len(apart)) for f in (attend, talking))
        return torch.cat([own[i] if alone else taken[i] for i, alone in enumerate(apart)])
    return torch.cat([(attend if alone else talking)(*part) for part, alone in zip(parts, apart, strict=True)])


def guide_away(denoised: Tensor, soft: Tensor, hard: Tensor, gamma: float, views: int, references: Sequence[int]):
    """Eq. 7 on denoised predictions (N,...): denoised + (gamma - 1) (soft - hard), and nothing for the references.

    With denoised = soft this is (1 - gamma) hard + gamma soft; its weights sum to 1, so that it is the same for eps, v
    and denoised predictions. The references attend to themselves in both branches: what little soft and hard differ
    there is rounding.
    """
    push = (gamma - 1) * (soft - hard)
    by_view = push.unflatten(0, (-1, views)).clone()
    by_view[:, list(references)] = 0
    return denoised + by_view.flatten(0, 1)


def check_batch(batch: int, views: int) -> None:
    """ValueError unless a batch holds whole sets of views."""
    if batch % views or batch == 0:
        raise ValueError(
            f"The batch of {batch} pictures cannot be divided into sets of {views} views; give the latent one entry "
            "for each view, or correct the number of views."
        )


def check_references(references: Sequence[int], views: int) -> None:
    """ValueError unless there is a reference and all are views."""
    if not references:
        raise ValueError("No reference view is named; give the number of at least one, for example 0.")
    wrong = [i for i in references if not 0 <= i < views]
    if wrong:
        raise ValueError(
            f"There is no view {wrong[0]} among {views} views to take as reference; the first is 0, the last "
            f"{views - 1}."
        )
