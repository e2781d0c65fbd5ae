"""The mesh and turntable nodes and the workflow views_to_mesh in the real ComfyUI."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from comfy_host import NodeFailed, PromptRejected, workflow_to_prompt
from PIL import Image
from plyfile import PlyData
from running_workflows import find, pictures, read, text_of, the_file, watch

ORBIT = {
    "preset": "custom orbit", "views": 8, "preset_elevation": False, "elevation": 15.0, "start_azimuth": 0.0,
    "span": 360.0, "radius": 1.5, "fov": 49.13, "aspect": 1.0,
}  # fmt: skip
TOY = {"seed": 3, "variant": 1, "variants": 3, "size": 64, "background": "white"}
VIEWS_FILE = "multiview/test/views.webp"


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def scene() -> dict:
    return {"c": node("MVOrbitCameras", **ORBIT), "o": node("MVDemoObject", cameras=["c", 0], **TOY)}


def glb(path: Path) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray | None]:
    """The JSON, positions, faces and colours of a .glb with one mesh, read by the letter of glTF 2.0."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    gltf, body = json.loads(data[20 : 20 + length]), 20 + length + 8
    (primitive,) = gltf["meshes"][0]["primitives"]

    def values(accessor: int, dtype: str) -> np.ndarray:
        one = gltf["accessors"][accessor]
        view = gltf["bufferViews"][one["bufferView"]]
        return np.frombuffer(data, dtype, view["byteLength"] // 4, body + view["byteOffset"]).reshape(-1, 3)

    color = primitive["attributes"].get("COLOR_0")
    points, faces = values(primitive["attributes"]["POSITION"], "<f4"), values(primitive["indices"], "<u4")
    return gltf, points, faces, None if color is None else values(color, "<f4")


def seen_from_the_front(points: np.ndarray, color: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (side,side,3) and mask of vertices, by a pinhole camera of glTF's world in front of the object."""
    elevation, distance, focal = np.radians(15.0), 1.5, 0.5 / np.tan(np.radians(49.13) / 2)
    back = np.array([0.0, np.sin(elevation), np.cos(elevation)])  # y up, the front looks along +z
    up = np.array([0.0, np.cos(elevation), -np.sin(elevation)])
    depth = distance - points @ back
    u = (0.5 + focal * points[:, 0] / depth) * side
    v = (0.5 - focal * (points @ up) / depth) * side
    picture, mask = np.ones((side, side, 3)), np.zeros((side, side), bool)
    for i in np.argsort(-depth):  # the nearest vertex last
        picture[int(v[i]), int(u[i])], mask[int(v[i]), int(u[i])] = color[i], True
    return picture, mask


@pytest.fixture(scope="module")
def workflow_run(host, object_info):
    """views_to_mesh with eight views of 64 px in its file, a short fit and a coarse mesh."""
    shown = host.run({**scene(), "p": node("PreviewImage", images=["o", 1])})
    frames = [Image.fromarray((one * 255).round().astype(np.uint8)) for one in pictures(host, shown, "p")]
    path = host.base / "output" / VIEWS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True, duration=100)
    prompt = workflow_to_prompt(read("views_to_mesh"), object_info)
    prompt[find(prompt, "LoadImage")]["inputs"]["image"] = f"{VIEWS_FILE} [output]"
    prompt[find(prompt, "MVOrbitCameras")]["inputs"]["views"] = 8
    prompt[find(prompt, "MVGaussianReconstruct")]["inputs"] |= {"iterations": 60, "points": 600, "max_points": 1500}
    prompt[find(prompt, "MVSplatToMesh")]["inputs"]["resolution"] = 48
    watch(prompt, "views", [find(prompt, "LoadImage"), 0])
    prompt["ply"] = {
        "class_type": "MVSaveMesh", "_meta": {"title": "ply"},
        "inputs": {"mesh": [find(prompt, "MVSplatToMesh"), 0], "filename_prefix": "multiview/test/m", "format": "ply"},
    }  # fmt: skip
    return prompt, host.run(prompt, timeout=600)


def test_mesh_is_closed_upright_and_coloured_like_the_views(host, workflow_run):
    prompt, result = workflow_run
    assert "; closed, Euler characteristic" in text_of(result, find(prompt, "PreviewAny"))
    _, points, faces, linear = glb(the_file(host, result, find(prompt, "MVSaveMesh", "Save the mesh with colours")))
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed)
    assert np.array_equal(np.unique(directed, axis=0), np.unique(directed[:, ::-1], axis=0))
    a, b, c = (points[faces[:, i]].astype(np.float64) for i in range(3))
    assert (a * np.cross(b, c)).sum() > 0  # counter-clockwise from outside
    shown = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    picture, mask = seen_from_the_front(points, shown, 64)
    front = pictures(host, result, "views")[0]
    toy = (front < 0.97).any(-1)
    assert (mask & toy).sum() / (mask | toy).sum() > 0.8
    right, turned = np.abs(picture - front)[mask & toy].mean(), np.abs(picture[::-1] - front)[mask[::-1] & toy].mean()
    assert right < 0.08 < turned


def test_both_saving_nodes_and_both_formats_hold_the_same_mesh(host, workflow_run):
    prompt, result = workflow_run
    _, ours, faces, linear = glb(the_file(host, result, find(prompt, "MVSaveMesh", "Save the mesh with colours")))
    gltf, core, core_faces, core_linear = glb(the_file(host, result, find(prompt, "SaveGLB")))
    assert np.array_equal(ours, core) and np.array_equal(faces, core_faces)
    if core_linear is not None:  # hosts since vertex colours came
        assert np.array_equal(core_linear, linear)
        assert "KHR_materials_unlit" in gltf["extensionsUsed"]
    ply = PlyData.read(the_file(host, result, "ply"))["vertex"]
    assert np.array_equal(np.stack([ply["x"], ply["y"], ply["z"]], 1), ours)


def test_turntable_keeps_its_pictures(host, workflow_run):
    prompt, result = workflow_run
    key = find(prompt, "MVTurntablePreview")
    shown, (extra,) = result.outputs[key]["images"], result.outputs[key]["mv_turntable"]
    assert len(shown) == len(extra["before"]) == 8
    assert extra["azimuths"] == pytest.approx([45.0 * i for i in range(8)], abs=0.01)
    assert {one["type"] for one in shown + extra["before"]} == {"temp"}
    with Image.open(host.output_path(extra["before"][0])) as before:
        loaded = np.asarray(before.convert("RGB"), dtype=np.float64) / 255
    assert np.abs(loaded - pictures(host, result, "views")[0]).max() < 2 / 255


def said(host, prompt: dict) -> str:
    with pytest.raises((NodeFailed, PromptRejected)) as caught:
        host.run(prompt)
    assert host.alive()
    error = caught.value
    if isinstance(error, NodeFailed):
        assert error.exception_type == "ValueError", error.exception_type
        return error.exception_message
    return str(error)


def test_what_the_nodes_say_to_bad_input(host, workflow_run):
    prompt, result = workflow_run
    saved = the_file(host, result, find(prompt, "MVSaveSplat"))
    splat = f"{saved.relative_to(host.base / 'output').as_posix()} [output]"
    base = {**scene(), "s": node("MVLoadSplat", file=splat)}
    mesh = {"splat": ["s", 0], "resolution": 32, "largest_only": True}
    few = {"b": node("ImageFromBatch", image=["o", 1], batch_index=0, length=3)}
    dark = {"e": node("EmptyImage", width=64, height=64, batch_size=8, color=0),
            "k": node("ImageToMask", image=["e", 0], channel="red")}  # fmt: skip
    show = {"fps": 8.0, "views": ["o", 1]}
    for inputs, extra, says in (
        ({"masks": ["o", 2]}, {}, "need the cameras they belong to"),
        ({"masks": ["k", 0], "cameras": ["c", 0]}, dark, "lies inside all masks"),
        ({"resolution": 600}, {}, "bigger than max of 512"),
    ):
        asked = {**base, **extra, "m": node("MVSplatToMesh", **mesh | inputs), "p": node("PreviewAny", source=["m", 1])}
        assert says in said(host, asked)
    for inputs, says in (
        ({"before": ["b", 0]}, "There are 8 views but 3 in 'before'"),
        ({"views": ["b", 0], "cameras": ["c", 0]}, "There are 3 views but the cameras describe 8 views"),
    ):
        assert says in said(host, {**base, **few, "t": node("MVTurntablePreview", **show | inputs)})
    outside = {"mesh": ["m", 0], "filename_prefix": "../../out", "format": "glb"}
    asked = {**base, "m": node("MVSplatToMesh", **mesh), "p": node("MVSaveMesh", **outside)}
    assert "leads outside ComfyUI's output folder" in said(host, asked)
