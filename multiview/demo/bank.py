"""Banks of demo objects: the pictures of some families and variants in every view of some cameras, and their files.

A bank is what the analytic model (analytic.py) believes the world consists of. Its reference pictures are what
the input view would see from azimuth 0; they are the same for all variants of a family.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import Cameras, orbit
from .objects import GENERATOR_VERSION, MAX_VARIANTS, make_object
from .raycast import render_object

FILE_KIND = "multiview-demo-bank"
SUPERSAMPLE = 2
_SHAPES = {"views": 5, "references": 4, "family": 1, "variant": 1, "seeds": 1, "c2w": 3, "intrinsics": 2}


@dataclass(frozen=True)
class Bank:
    """K members, each an object seen in N views.

    views: uint8 (K,N,H,W,3); references: uint8 (K,H,W,3), the front picture; family, variant: int64 (K,);
    seeds: int64 (K,), make_object's seed of each member; cameras: the N cameras; key: bank_key of the content.
    """

    views: Tensor
    references: Tensor
    family: Tensor
    variant: Tensor
    seeds: Tensor
    cameras: Cameras
    key: str = ""

    def __len__(self) -> int:
        return self.views.shape[0]

    @property
    def variants(self) -> int:
        return int(self.variant.max()) + 1

    def member(self, family: int, variant: int) -> int:
        """Index of a family's variant; ValueError if the bank has none such."""
        found = ((self.family == family) & (self.variant == variant)).nonzero()
        if len(found) == 0:
            raise ValueError(
                f"The bank has {int(self.family.max()) + 1} families of {self.variants} variants; "
                f"there is no family {family}, variant {variant}."
            )
        return int(found[0])


def family_seeds(seed: int, families: int) -> list[int]:
    """make_object seeds of a bank's families: counting up from `seed`, each of another kind (up to twelve kinds)."""
    chosen, kinds, candidate = [], set(), seed
    while len(chosen) < families:
        kind = make_object(candidate, 0, 1).name
        if kind not in kinds or len(kinds) >= 12:
            chosen.append(candidate)
            kinds.add(kind)
        candidate += 1
    return chosen


def bank_key(cameras: Cameras, size: int, families: int, variants: int, seed: int) -> str:
    """16 hex digits that change with anything that changes a bank's pictures, the generator's version included."""
    what = {
        "size": int(size),
        "families": int(families),
        "variants": int(variants),
        "seed": int(seed),
        "generator": GENERATOR_VERSION,
        "supersample": SUPERSAMPLE,
        "input_view": cameras.input_view,
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    # Rounded, so that a last-bit difference between machines does not build the bank again.
    for tensor in (cameras.c2w, cameras.intrinsics):
        digest.update((tensor.detach().cpu().double() * 1e5).round().to(torch.int64).numpy().tobytes())
    return digest.hexdigest()[:16]


def reference_camera(cameras: Cameras) -> Cameras:
    """One camera at azimuth 0 with the elevation, radius and lens of the input view (of view 0 if none is marked)."""
    index = cameras.input_view or 0
    one = cameras.subset([index])
    elevation, radius = float(one.elevations()[0]), float(one.radii()[0])
    front = orbit([0.0], elevation, radius, float(one.fov_y()[0]), name="reference")
    return Cameras(front.c2w, one.intrinsics.cpu(), False, 0, "reference")


def build_bank(
    cameras: Cameras,
    size: int,
    families: int = 4,
    variants: int = 6,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Bank:
    """Render families x variants objects in every view, size x size pixels on white.

    on_step(i, total) is called before each object and once at the end; what it raises (to cancel) passes through.
    ValueError if the front view could see a variant's back: elevation outside -5..35 degrees or radius below 1.4.
    """
    if size < 8 or families < 1 or not 1 <= variants <= MAX_VARIANTS or seed < 0:
        raise ValueError(
            f"A bank needs size >= 8, families >= 1, variants 1 to {MAX_VARIANTS} and seed >= 0; "
            f"got size {size}, families {families}, variants {variants}, seed {seed}."
        )
    front = reference_camera(cameras)
    elevation, radius = float(front.elevations()[0]), float(front.radii()[0])
    if not -5.01 <= elevation <= 35.01 or radius < 1.399:
        raise ValueError(
            f"The input view is at elevation {elevation:.1f} and radius {radius:.2f}, from where the demo objects "
            "show part of their back; use an elevation between -5 and 35 degrees and a radius of at least 1.4."
        )
    cameras = cameras.to("cpu")
    total = families * variants
    views = torch.empty(total, len(cameras), size, size, 3, dtype=torch.uint8)
    references = torch.empty(total, size, size, 3, dtype=torch.uint8)
    seeds = family_seeds(seed, families)
    for index in range(total):
        if on_step is not None:
            on_step(index, total)
        family, variant = divmod(index, variants)
        spec = make_object(seeds[family], variant, variants)
        views[index] = to_uint8(render_object(spec, cameras, size, SUPERSAMPLE).rgb)
        references[index] = to_uint8(render_object(spec, front, size, SUPERSAMPLE).rgb[0])
    if on_step is not None:
        on_step(total, total)
    index = torch.arange(total)
    key = bank_key(cameras, size, families, variants, seed)
    return Bank(
        views, references, index // variants, index % variants, torch.tensor(seeds)[index // variants], cameras, key
    )


def to_uint8(image: Tensor) -> Tensor:
    """[0,1] floats to the nearest of 0..255."""
    return (image * 255.0).round().clamp(0, 255).to(torch.uint8)


def bank_path(folder: str | Path, key: str) -> Path:
    return Path(folder) / f"bank-{key}.safetensors"


def save_bank(bank: Bank, path: str | Path) -> Path:
    """Write a .safetensors file, whole or not at all: under a temporary name first, then renamed."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    cameras = bank.cameras
    tensors = {name: getattr(bank, name).contiguous() for name in ("views", "references", "family", "variant", "seeds")}
    tensors |= {"c2w": cameras.c2w.contiguous(), "intrinsics": cameras.intrinsics.contiguous()}
    about = {
        "kind": FILE_KIND,
        "key": bank.key,
        "name": cameras.name,
        "closed": str(int(cameras.closed)),
        "input_view": "" if cameras.input_view is None else str(cameras.input_view),
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=about)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return path


def load_bank(path: str | Path) -> Bank:
    """Read a bank; ValueError in one sentence when the file is missing, truncated, or not a bank."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no bank file at {path}; build the bank first.")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path.name} is not a whole safetensors file ({error}); delete it and build the bank again."
        ) from error
    if about.get("kind") != FILE_KIND:
        raise ValueError(f"{path.name} is a safetensors file but not a demo bank; choose a file that save_bank wrote.")
    _check(path.name, tensors)
    view = about.get("input_view", "")
    cameras = Cameras(
        tensors["c2w"],
        tensors["intrinsics"],
        about.get("closed") == "1",
        int(view) if view else None,
        about.get("name", ""),
    )
    parts = (tensors[name] for name in ("views", "references", "family", "variant", "seeds"))
    return Bank(*parts, cameras, about.get("key", ""))


def _check(name: str, tensors: dict[str, Tensor]) -> None:
    missing = sorted(set(_SHAPES) - set(tensors))
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}; delete it and build the bank again.")
    wrong = [key for key, dims in _SHAPES.items() if tensors[key].ndim != dims]
    k, n, h, w = (tensors["views"].shape + (0,) * 5)[:4]
    expected = {
        "views": (k, n, h, w, 3),
        "references": (k, h, w, 3),
        "family": (k,),
        "variant": (k,),
        "seeds": (k,),
        "c2w": (n, 4, 4),
        "intrinsics": (n, 4),
    }
    wrong += [key for key, shape in expected.items() if tuple(tensors[key].shape) != shape]
    wrong += [key for key in ("views", "references") if tensors[key].dtype != torch.uint8]
    if wrong:
        found = {key: tuple(tensors[key].shape) for key in sorted(set(wrong))}
        raise ValueError(f"{name} has tensors of the wrong shape or type, {found}; delete it and build the bank again.")
