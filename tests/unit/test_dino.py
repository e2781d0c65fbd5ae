"""DINOv2 from a Hugging Face folder and through ComfyUI's CLIP vision, true architectures with random weights."""

import json
import os
import subprocess
import sys

import pytest
import random_weights
import torch
from comfy_host import find_comfyui
from mvpack.multiview.dino import load_dino
from transformers import Dinov2Config, Dinov2Model

SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518, "patch_size": 14}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """facebook/dinov2-small as it would be downloaded: ViT-S/14, 22 million parameters."""
    path = tmp_path_factory.mktemp("models") / "dinov2-small" / "model.safetensors"
    return random_weights.write(Dinov2Model, Dinov2Config(**SMALL), path).parent


def test_patches_are_the_networks_own_at_any_size(folder):
    dino = load_dino(folder / "model.safetensors")
    assert sum(p.numel() for p in dino.network.parameters()) > 21e6 and dino.side(60) == 56 and dino.side(10) == 56
    pictures = torch.rand(2, 70, 70, 3, generator=torch.Generator().manual_seed(0))
    plain = Dinov2Model.from_pretrained(folder, local_files_only=True).float().eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        tokens = plain(pixel_values=((pictures - mean) / std).permute(0, 3, 1, 2)).last_hidden_state
    ours = dino(pictures)
    assert ours.shape == (2, 5, 5, 384)
    # Token 0 is the class; patches follow line by line.
    for row, column in ((0, 0), (1, 3), (4, 4)):
        assert torch.allclose(ours[:, row, column], tokens[:, 1 + 5 * row + column], atol=1e-5)
    assert float(ours.std()) > 0.1


def test_wrong_folders_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="does not hold a DINOv2 model"):
        load_dino(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_dino(tmp_path)
    from safetensors.torch import load_file, save_file

    part = {k: v for k, v in load_file(folder / "model.safetensors").items() if "layer.11." not in k}
    save_file(part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is incomplete: .* tensors are missing"):
        load_dino(tmp_path)


CHECK = """
import json, sys, types
import torch
torch.set_num_threads(1)
root, path = sys.argv[1:]
for name, folder in (("mvpack", root), ("mvpack.nodes", root + "/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from comfy.cli_args import args
args.cpu = True
import comfy.clip_vision
from mvpack.nodes.clusters import CONNECTED, _network
features_of, side = _network(CONNECTED, comfy.clip_vision.load(path), 224)
with torch.inference_mode():
    found = features_of(torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0)))
print("FOUND " + json.dumps([side, list(found.shape), bool(found.isfinite().all()), float(found.std())]))
"""


@pytest.mark.slow  # one picture through DINOv2 large at 518 pixels, the smallest that ComfyUI knows: 20 CPU-seconds
def test_comfyuis_dinov2_gives_patches(tmp_path, repo):
    path = random_weights.write(Dinov2Model, Dinov2Config(**LARGE), tmp_path / "large" / "dinov2_large.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(find_comfyui()), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", CHECK, str(repo), str(path)], env=environment, capture_output=True,
                         text=True, timeout=900)  # fmt: skip
    path.unlink()
    lines = [line for line in run.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, run.stdout[-2000:] + run.stderr[-4000:]
    side, shape, finite, spread = json.loads(lines[0][6:])
    assert side == 518 and shape == [1, 37, 37, 1024] and finite and spread > 0.1
    assert "missing clip vision" not in run.stderr
