"""The node Splat Preview in the real ComfyUI, over its API: files, pictures, messages."""

from __future__ import annotations

import urllib.request

import numpy as np
import pytest
from comfy_host import ComfyHost, NodeFailed
from mvpack.multiview.cameras import orbit
from mvpack.multiview.splats.ply import load_ply, save_ply
from mvpack.multiview.splats.render import render_gaussians
from PIL import Image
from running_workflows import psnr
from splat_letter import letter

ORBIT = {
    "preset": "custom orbit", "views": 8, "preset_elevation": False, "elevation": 15.0, "start_azimuth": 30.0,
    "span": 360.0, "radius": 1.5, "fov": 49.13, "aspect": 1.0,
}  # fmt: skip


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def preview(host: ComfyHost, file: str, **more):
    """What the node tells the page: pictures (4,256,256,3), and the rest."""
    graph = {"c": node("MVOrbitCameras", **ORBIT), "s": node("MVLoadSplat", file=file)}
    graph["p"] = node("MVSplatPreview", splat=["s", 0], background="grey", **more)
    shown = host.run(graph).outputs["p"]
    pictures = []
    for one in shown["images"]:
        assert one["type"] == "temp"
        with Image.open(host.output_path(one)) as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.float64) / 255)
    (view,) = shown["mv_splat_preview"]
    return np.stack(pictures), view


def test_pictures_file_and_start(host):
    save_ply(letter(), host.base / "input" / "mv_letter.ply")
    pictures, view = preview(host, "mv_letter.ply", cameras=["c", 0])
    cameras = orbit([30.0, 120.0, 210.0, 300.0], 15.0, 1.5, 49.13)
    expected = render_gaussians(letter(), cameras, 256, 256, (0.5, 0.5, 0.5)).features.clamp(0, 1).numpy()
    assert pictures.shape == expected.shape
    assert (psnr(pictures, expected) > 45).all()
    start = view["start"]
    assert [start[name] for name in ("azimuth", "elevation", "distance")] == pytest.approx([30, 15, 1.5], abs=1e-3)
    assert start["target"] == pytest.approx([0, 0, 0], abs=1e-4)
    assert view["background"] == [128, 128, 128] and view["gaussians"] == letter().num
    assert view["file"]["type"] == "temp"
    kept = load_ply(host.output_path(view["file"]))
    for ours, theirs in zip(kept.tensors(), letter().tensors(), strict=True):
        assert (ours - theirs).abs().max() < 1e-4
    served = host.request(
        f"/view?filename={view['file']['filename']}&subfolder={view['file']['subfolder']}&type=temp"
    )
    assert served == host.output_path(view["file"]).read_bytes()
    again = preview(host, "mv_letter.ply")[1]
    assert again["file"] != view["file"]
    assert (again["start"]["azimuth"], again["start"]["elevation"]) == (0, 15)


@pytest.mark.parametrize("how, says", [("empty_splat", "The splat has no Gaussians"), ("nan_splat", "contain NaN")])
def test_a_broken_splat_is_refused(host, how, says):
    save_ply(letter(), host.base / "input" / "mv_letter.ply")
    graph = {"s": node("MVLoadSplat", file="mv_letter.ply"), "b": node("TestAlter", value=["s", 0], how=how)}
    graph["p"] = node("MVSplatPreview", splat=["b", 0], background="white")
    with pytest.raises(NodeFailed, match=says) as caught:
        host.run(graph)
    assert caught.value.exception_type == "ValueError"
    assert host.alive()


def test_the_host_serves_the_viewer_as_a_module_and_does_not_load_it_by_itself(host):
    listed = host.get_json("/extensions")
    (script,) = [path for path in listed if path.endswith("/js/splat_preview.js")]
    assert not [path for path in listed if "vendor" in path]
    address = host.url + script.replace("splat_preview.js", "vendor/gsplat-1.2.9/gsplat.mjs")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        assert answer.headers.get_content_type() in ("text/javascript", "application/javascript")
        assert b"WebGLRenderer" in answer.read()
