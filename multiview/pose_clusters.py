"""Poses of one category of objects, found without labels: MIRAGE, section 3.1 (references.md section 4).

Patch features of a self-supervised vision transformer (DINOv2) go through a first PCA, whose leading component tells
object from background. With these masks every object is brought to the same place and size. A second PCA, of object
patches only, keeps three numbers a patch: which part of the object is where. K-means on these maps groups pictures in
which the same parts are in the same places, that is, pictures of the same pose.

The network is given as a function features_of: (B,S,S,3) in [0,1] -> (B,g,g,D). It sees every picture twice: as it is,
and cut out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_images

FeaturesOf = Callable[[Tensor], Tensor]
# Features of all pictures are kept, in half precision, up to this size; beyond it they are computed again.
KEEP_BYTES = 2 << 30
# An incremental PCA that carries only the components asked for forgets directions that come up late.
CARRIED = 16
TOKENS_AT_ONCE = 2048
PARTS = 3
# Masks and boxes are finer than patches: the first component is interpolated between them.
FINER = 4


@dataclass(frozen=True)
class ClusterSettings:
    """clusters: number of poses. side: pixels of the square pictures the network sees. fill: share of a cut-out that
    the object's longer side takes. threshold: of the first component, in its standard deviations (the paper: 0).
    object_only: background patches count as 0 in the comparison (the paper compares all). batch: pictures at once.
    """

    clusters: int = 10
    side: int = 224
    fill: float = 0.8
    threshold: float = 0.0
    object_only: bool = False
    seed: int = 0
    batch: int = 8

    def __post_init__(self):
        if self.clusters < 1:
            raise ValueError(f"At least one cluster is needed, got {self.clusters}.")
        if not 0.1 <= self.fill <= 1:
            raise ValueError(f"fill is the share of a cut-out the object takes, between 0.1 and 1; got {self.fill}.")


@dataclass(frozen=True)
class Projection:
    """x -> (x - mean) components^T. mean (D,), components (k,D), share (k,): of the variance each explains."""

    mean: Tensor
    components: Tensor
    share: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) @ self.components.T


@dataclass(frozen=True)
class PoseClusters:
    """What was fitted, to give further pictures the labels of the same poses.

    foreground: 1 component, positive on the object; level: its threshold; parts: 3 components; centres (K, g g 3).
    """

    foreground: Projection
    level: float
    parts: Projection
    centres: Tensor
    settings: ClusterSettings


@dataclass(frozen=True)
class Found:
    """labels (N,), distances (N,) to the own centre, masks (N,4g,4g) bool of the padded squares, boxes (N,3) centre x,
    centre y and side of each cut-out in pixels, maps (N,g,g,3), missed: pictures without any object patch.
    """

    labels: Tensor
    distances: Tensor
    masks: Tensor
    boxes: Tensor
    maps: Tensor
    missed: list[int]
    clusters: PoseClusters

    def counts(self) -> list[int]:
        return torch.bincount(self.labels, minlength=len(self.clusters.centres)).tolist()


def fit_pose_clusters(
    images: Tensor, features_of: FeaturesOf, settings: ClusterSettings, on_step: Callable[[int], None] | None = None
) -> Found:
    """Pictures (N,H,W,3) of one category -> poses, numbered from the largest cluster to the smallest.

    on_step is called after each batch with how many pictures it was; twice the number of pictures in all, more where
    their features do not fit into memory. ValueError: no pictures, fewer pictures than clusters, features that are not
    finite or all alike.
    """
    images = check_images(images, "pictures")
    if len(images) < settings.clusters:
        raise ValueError(
            f"{settings.clusters} clusters need at least as many pictures, got {len(images)}; lower the number of "
            "clusters or give more pictures."
        )
    generator = torch.Generator().manual_seed(settings.seed)
    passes = _Passes(images, whole(images), features_of, settings, on_step)
    foreground = fit_projection((f.flatten(0, 2) for f in passes), 1, generator)
    values = torch.cat([foreground(f)[..., 0] for f in passes])
    if border_outshines_centre(values):
        foreground = Projection(foreground.mean, -foreground.components, foreground.share)
        values = -values
    level = settings.threshold * float(values.std())
    masks, boxes, missed = _objects(images, finer(values) > level, settings.fill)

    passes = _Passes(images, boxes, features_of, settings, on_step)
    parts = fit_projection((f[_inside(foreground, level, f)] for f in passes), PARTS, generator)
    maps = torch.cat([_maps(foreground, level, parts, settings, f) for f in passes])
    labels, centres = _k_means(maps.flatten(1), settings)
    clusters = PoseClusters(foreground, level, parts, centres, settings)
    distances = (maps.flatten(1) - centres[labels]).norm(dim=1)
    return Found(labels, distances, masks, boxes, maps, missed, clusters)


def assign_poses(
    images: Tensor, features_of: FeaturesOf, clusters: PoseClusters, on_step: Callable[[int], None] | None = None
) -> Found:
    """Labels of further pictures in clusters that were fitted before: the nearest centre. ValueError for features of
    another network."""
    images = check_images(images, "pictures")
    settings = clusters.settings
    values = []
    for f in _Passes(images, whole(images), features_of, settings, on_step, keep=False):
        if f.shape[-1] != len(clusters.foreground.mean) or f.shape[1] * f.shape[2] * PARTS != clusters.centres.shape[1]:
            raise ValueError(
                f"These clusters were fitted on {len(clusters.foreground.mean)} features a patch, but the network "
                f"gives {f.shape[-1]} on {f.shape[2]} x {f.shape[1]} patches; use the network they were fitted with."
            )
        values.append(clusters.foreground(f)[..., 0])
    masks, boxes, missed = _objects(images, finer(torch.cat(values)) > clusters.level, settings.fill)
    passes = _Passes(images, boxes, features_of, settings, on_step, keep=False)
    maps = torch.cat([_maps(clusters.foreground, clusters.level, clusters.parts, settings, f) for f in passes])
    distances, labels = torch.cdist(maps.flatten(1), clusters.centres).min(dim=1)
    return Found(labels, distances, masks, boxes, maps, missed, clusters)


# --- pictures ---------------------------------------------------------------------------------------------------------


def whole(images: Tensor) -> Tensor:
    """Boxes (N,3) of squares round whole pictures (N,H,W,3)."""
    n, height, width = images.shape[:3]
    return torch.tensor([[width / 2, height / 2, float(max(width, height))]]).expand(n, -1)


def cut(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Squares (N,side,side,3) of the pictures; beyond a picture its border goes on."""
    out = images.new_empty(len(images), 3, side, side)
    for i, (x, y, length) in enumerate(boxes.tolist()):
        pixels = max(1, round(length))
        columns = (torch.arange(pixels) + round(x - pixels / 2)).clamp(0, images.shape[2] - 1)
        rows = (torch.arange(pixels) + round(y - pixels / 2)).clamp(0, images.shape[1] - 1)
        square = images[i, rows][:, columns].movedim(-1, 0)[None].float()
        out[i] = F.interpolate(square, (side, side), mode="bilinear", antialias=True, align_corners=False)[0]
    return out.clamp(0, 1).movedim(1, -1)


def pixel_masks(found: Found, height: int, width: int) -> Tensor:
    """(N,H,W) 0 or 1 at the size of the pictures: the patches stretched over the padded square."""
    side = max(height, width)
    square = F.interpolate(found.masks[:, None].float(), (side, side), mode="nearest")[:, 0]
    top, left = round(side / 2 - height / 2), round(side / 2 - width / 2)
    return square[:, top : top + height, left : left + width]


class _Passes:
    """Features (b,g,g,D) of all pictures, batch by batch, as often as asked."""

    def __init__(self, images, boxes, features_of, settings: ClusterSettings, on_step, keep: bool = True):
        self.images, self.boxes, self.features_of, self.settings = images, boxes, features_of, settings
        self.on_step, self.keep, self.kept = on_step, keep, None

    def __iter__(self) -> Iterator[Tensor]:
        if self.kept is not None:
            yield from self.kept
            return
        kept: list[Tensor] = []
        for rows in torch.arange(len(self.images)).split(self.settings.batch):
            # Always rounded, so that kept and repeated features are the same.
            features = self.features_of(cut(self.images[rows], self.boxes[rows], self.settings.side)).cpu().half()
            if not torch.isfinite(features).all():
                raise ValueError("The network's features contain NaN or infinity; run ComfyUI with --force-fp32.")
            if self.on_step is not None:
                self.on_step(len(rows))
            size = features.numel() * 2 // len(rows) * len(self.images)
            self.keep = self.keep and size <= KEEP_BYTES
            if self.keep:
                kept.append(features)
            yield features
        if self.keep:
            self.kept = kept


# --- the two PCAs, masks and boxes ------------------------------------------------------------------------------------


def fit_projection(batches: Iterable[Tensor], components: int, generator: torch.Generator) -> Projection:
    """Leading principal components of tokens (M,D) that come batch by batch (scikit-learn's IncrementalPCA).

    Of each batch at most TOKENS_AT_ONCE tokens are drawn. ValueError where there are too few, or all are alike.
    """
    try:
        from sklearn.decomposition import IncrementalPCA
    except ImportError as error:
        raise ValueError(
            "Clustering needs scikit-learn, which is not installed; install this pack's requirements.txt."
        ) from error

    pca, waiting = None, []
    for tokens in batches:
        drawn = torch.randperm(len(tokens), generator=generator)[:TOKENS_AT_ONCE]
        waiting.append(tokens[drawn])
        if sum(map(len, waiting)) >= TOKENS_AT_ONCE:
            pca = pca or IncrementalPCA(min(CARRIED, tokens.shape[1]))
            _learn(pca, torch.cat(waiting).double().numpy())
            waiting = []
    rest = torch.cat(waiting).double().numpy() if waiting else np.empty((0, 0))
    if pca is None:
        if len(rest) <= components:
            raise ValueError(
                f"Only {len(rest)} object patches were found in all pictures; lower the threshold or use pictures in "
                "which one object stands out."
            )
        pca = IncrementalPCA(min(CARRIED, *rest.shape))
    if len(rest) >= pca.n_components:
        _learn(pca, rest)
    if not pca.explained_variance_.sum() > 1e-12:
        raise ValueError("All patches have the same features; the pictures are blank or the network is broken.")
    kept = [np.ascontiguousarray(a[:components]) for a in (pca.components_, pca.explained_variance_ratio_)]
    return Projection(*(torch.from_numpy(a).float() for a in (pca.mean_, *kept)))


def _learn(pca, tokens: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):  # 0/0 where all are alike; fit_projection says so
        pca.partial_fit(tokens)


def border_outshines_centre(values: Tensor) -> bool:
    """Whether a component (N,g,g) is larger at the pictures' border than in their middle half: its sign is arbitrary,
    and objects are in the middle (references.md section 4)."""
    g = values.shape[1]
    centre = values[:, g // 4 : g - g // 4, g // 4 : g - g // 4].mean()
    ring = torch.ones(g, g, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    return bool(values[:, ring].mean() > centre)


def finer(values: Tensor) -> Tensor:
    """(N,g,g) -> (N,4g,4g), bilinear."""
    return F.interpolate(values[:, None], scale_factor=FINER, mode="bilinear", align_corners=False)[:, 0]


def largest_part(masks: Tensor) -> Tensor:
    """(N,g,g) bool with only the largest connected part of each."""
    from scipy.ndimage import label

    out = torch.zeros_like(masks)
    for i, mask in enumerate(masks.numpy()):
        numbered, count = label(mask)
        if count:
            out[i] = torch.from_numpy(numbered == 1 + np.bincount(numbered.ravel())[1:].argmax())
    return out


def _objects(images: Tensor, positive: Tensor, fill: float) -> tuple[Tensor, Tensor, list[int]]:
    """Masks, boxes of the cut-outs, and which pictures have no object."""
    masks = largest_part(positive)
    boxes, missed = whole(images).clone(), []
    height, width = images.shape[1:3]
    side = max(height, width)
    cell = side / masks.shape[1]
    for i, mask in enumerate(masks):
        if not mask.any():
            missed.append(i)
            continue
        (top, bottom), (left, right) = ((int(a.min()), int(a.max()) + 1) for a in mask.nonzero(as_tuple=True))
        boxes[i, 0] = (left + right) / 2 * cell - (side - width) / 2
        boxes[i, 1] = (top + bottom) / 2 * cell - (side - height) / 2
        boxes[i, 2] = max(right - left, bottom - top) * cell / fill
    return masks, boxes, missed


def _inside(foreground: Projection, level: float, features: Tensor) -> Tensor:
    return largest_part(foreground(features)[..., 0] > level)


def _maps(foreground: Projection, level: float, parts: Projection, settings: ClusterSettings, f: Tensor) -> Tensor:
    """(b,g,g,3): the parts, with 0 for what the second PCA lacks (fewer than 3 components in the data)."""
    maps = parts(f)
    maps = F.pad(maps, (0, PARTS - maps.shape[-1]))
    return maps * _inside(foreground, level, f)[..., None] if settings.object_only else maps


def _k_means(maps: Tensor, settings: ClusterSettings) -> tuple[Tensor, Tensor]:
    """Labels (N,) and centres (K,M), from the largest cluster to the smallest."""
    from sklearn.cluster import KMeans

    fitted = KMeans(settings.clusters, n_init=10, random_state=settings.seed % 2**32).fit(maps.numpy())
    labels = torch.from_numpy(fitted.labels_).long()
    order = torch.bincount(labels, minlength=settings.clusters).argsort(descending=True, stable=True)
    return order.argsort()[labels], torch.from_numpy(fitted.cluster_centers_).float()[order]


def patch_grid(tokens: Tensor) -> Tensor:
    """Tokens (B,T,D) of a vision transformer -> (B,g,g,D): its patches, without the class and register tokens in front.

    ValueError when what is left is no square grid.
    """
    side = math.isqrt(tokens.shape[1])
    extra = tokens.shape[1] - side * side
    if side < 4 or extra > 5:
        raise ValueError(
            f"The vision model gives {tokens.shape[1]} tokens, which is no square of patches; use a DINOv2 model."
        )
    return tokens[:, extra:].unflatten(1, (side, side))
