"""Memory that runs out in the middle of a fit and of a sampling with 3D feedback: one sentence, and work goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from comfy_host import NodeFailed
from running_workflows import with_defaults

TOY = {"seed": 3, "variant": 0, "variants": 2, "size": 32, "background": "white"}
MODEL = {"kind": "analytic", "resolution": 32, "window": 9, "kappa": 0.02, "front_bias": 0.0, "seed": 3, "families": 1,
         "variants": 2}  # fmt: skip


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def fitting(object_info: dict, full_at: int | None) -> dict:
    images = ["full", 0] if full_at else ["toy", 1]
    prompt = {
        "cameras": with_defaults(object_info, "MVOrbitCameras", preset="demo", views=4),
        "toy": node("MVDemoObject", cameras=["cameras", 0], **TOY),
        "fit": with_defaults(object_info, "MVGaussianReconstruct", images=images, cameras=["cameras", 0], iterations=12,
                             points=100, max_points=200),
        "file": node("MVSaveSplat", splat=["fit", 0], filename_prefix="3d/full_memory"),
    }  # fmt: skip
    if full_at:
        prompt["full"] = node("TestFullMemory", value=["toy", 1], call=full_at)
    return prompt


def feeding_back(object_info: dict, full_at: int | None) -> dict:
    prompt = {
        "model": node("MVLoadDemoModel", **MODEL),
        "toy": node("MVDemoObject", **TOY),
        "what": node("MVViewConditioning", image=["toy", 0], vae=["model", 1], cameras=["model", 2], width=32,
                     height=32),
        "patch": with_defaults(object_info, "MV3DFeedback", model=["full" if full_at else "model", 0], vae=["model", 1],
                               cameras=["model", 2], preset="Cycle3D (every step)", first_iterations=4, iterations=2,
                               points=100),
        "draw": with_defaults(object_info, "KSampler", model=["patch", 0], positive=["what", 0], negative=["what", 1],
                              latent_image=["what", 2], steps=3, cfg=1.0, sampler_name="euler", scheduler="karras",
                              seed=1),
        "views": node("VAEDecode", samples=["draw", 0], vae=["model", 1]),
        "file": node("SaveImage", images=["views", 0], filename_prefix="full_memory/views"),
    }  # fmt: skip
    if full_at:
        prompt["full"] = node("TestFullMemory", value=["model", 0], call=full_at)
    return prompt


@pytest.mark.parametrize(
    ("prompt", "full_at", "at", "said"),
    [
        (fitting, 5, "MVGaussianReconstruct", "ran out of memory while fitting the splat; lower max_points"),
        (feeding_back, 6, "KSampler", "ran out of memory while reconstructing the views for 3D feedback; draw smaller "
         "or fewer views, or lower points in 3D Feedback."),
    ],
)  # fmt: skip
def test_full_memory(host, object_info, prompt, full_at, at, said):
    """The error says what to lower, nothing half made is left, and the next prompt runs as if nothing had been."""
    before = files(host)
    with pytest.raises(NodeFailed) as caught:
        host.run(prompt(object_info, full_at), timeout=600)
    assert caught.value.node_type == at
    assert caught.value.exception_type == "RuntimeError" and said in caught.value.exception_message
    assert files(host) == before
    assert host.run(prompt(object_info, None), timeout=600).outputs["file"]
    assert files(host) > before


def files(host) -> set[Path]:
    base = Path(host.base)
    return {path for folder in ("output", "temp") for path in (base / folder).rglob("*") if path.is_file()}
