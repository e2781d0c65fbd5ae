"""What the tests that run workflows share: reading a workflow, and looking at what a run saved."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import demo
import numpy as np
from comfy_host import workflow_to_prompt
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"


def read(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def find(prompt: dict, kind: str, title: str | None = None) -> str:
    (one,) = [k for k, n in prompt.items() if n["class_type"] == kind and title in (None, n["_meta"]["title"])]
    return one


def with_defaults(object_info: dict, class_type: str, **given) -> dict:
    """A node of a prompt with its own defaults but for what is given."""
    sockets = object_info[class_type]["input"]["required"]
    values = {k: v[1]["default"] for k, v in sockets.items() if len(v) > 1 and "default" in v[1]}
    return {"class_type": class_type, "inputs": values | given, "_meta": {"title": class_type}}


def watch(prompt: dict, name: str, source: list, kind: str = "SaveImage") -> None:
    """Add a node that shows the test a value the workflow itself does not save."""
    inputs = {"images": source, "filename_prefix": f"watched/{name}"} if kind == "SaveImage" else {"value": source}
    prompt[name] = {"class_type": kind, "inputs": inputs, "_meta": {"title": name}}


def pictures(host, result, node_id: str) -> np.ndarray:
    """(N,H,W,3) in [0,1] of what a node saved."""
    loaded = []
    for file in result.files(node_id):
        with Image.open(host.output_path(file)) as one:
            loaded.append(np.asarray(one.convert("RGB"), dtype=np.float64) / 255)
    return np.stack(loaded)


def frames(path: Path) -> np.ndarray:
    with Image.open(path) as one:
        found = []
        for i in range(one.n_frames):
            one.seek(i)
            found.append(np.asarray(one.convert("RGB"), dtype=np.float64) / 255)
    return np.stack(found)


def halved(images: np.ndarray) -> np.ndarray:
    n, h, w, c = images.shape
    return images.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) in dB, written out here so that it does not share our nodes' code."""
    return -10 * np.log10(np.maximum(((a - b) ** 2).mean((1, 2, 3)), 1e-10))


def text_of(result, node_id: str) -> str:
    return result.outputs[node_id]["text"][0]


def the_file(host, result, node_id: str) -> Path:
    (file,) = result.files(node_id)
    return host.output_path(file)


# Views and their size in runs on random weights.
FRAMES, SIDE = 6, 64


def reduced(prompt: dict) -> dict:
    """Fewer and smaller views, two steps, a token fit; nothing else is changed."""
    small = {
        "KSampler": {"steps": 2},
        "MVGaussianReconstruct": {"iterations": 4, "points": 200, "max_points": 500},
        "MVGaussianRender": {"width": SIDE, "height": SIDE},
        "SV3D_Conditioning": {"width": SIDE, "height": SIDE},
        "MVViewConditioning": {"width": SIDE, "height": SIDE},
    }
    for node in prompt.values():
        node["inputs"] |= small.get(node["class_type"], {})
        if node["class_type"] == "MVOrbitCameras":
            turntable = node["inputs"]["preset"] == "custom orbit"
            if not isinstance(node["inputs"]["views"], list):
                node["inputs"]["views"] = 4 if turntable else FRAMES
        if node["class_type"] == "PrimitiveInt":
            node["inputs"]["value"] = FRAMES
        if node["class_type"] == "KSamplerAdvanced":  # one step shared, then one at noise where MIRROR pulls
            node["inputs"] |= {"steps": 3} | {k: 1 for k in ("start_at_step", "end_at_step") if node["inputs"][k] == 10}
    return prompt


def run_demo(host, object_info, name: str):
    prompt = workflow_to_prompt(read(name), object_info)
    watch(prompt, "views", [find(prompt, "VAEDecode"), 0])
    watch(prompt, "renders", [find(prompt, "MVGaussianReconstruct"), 1])
    reporter = demo.Reporter(prompt)
    result = host.run(prompt, reporter, timeout=1500)
    reporter.finish()
    return prompt, result, reporter


def reduced_checkpoints():
    """tests/reduced_checkpoints.py, which is also a script of its own."""
    spec = importlib.util.spec_from_file_location("reduced_checkpoints", ROOT / "tests" / "reduced_checkpoints.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
