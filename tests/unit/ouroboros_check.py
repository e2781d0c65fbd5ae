"""Run by test_ouroboros_keys.py in a process of its own, because it imports ComfyUI's classes (the folder on the path).

    ouroboros_check.py REPOSITORY FILE

FILE holds a diffusers UNet's tensors, an input and the output of diffusers' own network. Builds ComfyUI's UNet from
the mapped tensors and prints one JSON line of findings.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch

ROOT = Path(sys.argv[1])
torch.set_num_threads(1)
sys.modules["mvpack"] = types.ModuleType("mvpack")
sys.modules["mvpack"].__path__ = [str(ROOT)]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.ops  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, timestep_embedding  # noqa: E402
from mvpack.multiview.ouroboros_keys import to_comfy, unet_arguments  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

given = load_file(sys.argv[2])
data = {k: given.pop(k) for k in list(given) if k.startswith("data.")}
shapes = {k: tuple(v.shape) for k, v in given.items()}
network = UNetModel(**unet_arguments(shapes, 32), operations=comfy.ops.disable_weight_init).eval()
mapped = to_comfy(given)
wanted = network.state_dict()
found = {"missing": sorted(wanted.keys() - mapped.keys())[:3], "extra": sorted(mapped.keys() - wanted.keys())[:3]}
network.load_state_dict(mapped)
sample = data["data.sample"]
frames = sample.shape[1]
numbers = timestep_embedding(data["data.ids"].flatten(), 256).flatten()[None]
with torch.no_grad():
    out = network(
        sample[0], data["data.time"].expand(frames), data["data.context"].expand(frames, -1, -1),
        numbers.expand(frames, -1), num_video_frames=frames,
    )  # fmt: skip
found["off"] = float((out - data["data.out"][0]).abs().max())
found["size"] = float(data["data.out"].abs().max())
print("FOUND " + json.dumps(found))
