"""Meshes of splats against closed forms, the ray-cast truth and a reader of another library."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
import torch
from mvpack.multiview import mesh_files
from mvpack.multiview.cameras import orbit
from mvpack.multiview.splat_mesh import Mesh, edge_report, splat_to_mesh, vertex_normals
from mvpack.multiview.splats.gaussians import SH_C0, Gaussians
from mvpack.multiview.splats.render import render_gaussians
from plyfile import PlyData

RADIUS, CENTER = 0.4, (0.1, -0.05, 0.2)


def ball(radius: float = RADIUS, center=CENTER, count: int = 1500) -> Gaussians:
    """Flat Gaussians that tile a sphere; red grows with x, green with y (down), blue with z."""
    i = torch.arange(count) + 0.5
    polar, turn = torch.acos(1 - 2 * i / count), math.pi * (1 + 5**0.5) * i
    out = torch.stack([turn.cos() * polar.sin(), turn.sin() * polar.sin(), polar.cos()], 1)
    # Turns z to the normal: the half-way quaternion.
    quats = torch.nn.functional.normalize(torch.stack([1 + out[:, 2], -out[:, 1], out[:, 0], 0 * i], 1), dim=1)
    side = 0.7 * radius * math.sqrt(4 * math.pi / count)
    scales = torch.tensor([side, side, 0.02 * side]).repeat(count, 1)
    colors = ((out + 1) / 2 - 0.5) / SH_C0
    return Gaussians(
        out * radius + torch.tensor(center), scales, quats, torch.full((count,), 0.98), colors[:, None]
    ).validate()


def joined(*splats: Gaussians) -> Gaussians:
    return Gaussians(*(torch.cat(parts) for parts in zip(*(s.tensors() for s in splats), strict=True)))


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices.double()[mesh.faces[:, i]] for i in range(3))
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


@pytest.fixture(scope="module")
def sphere_mesh() -> Mesh:
    return splat_to_mesh(ball(), 40)


def test_sphere_has_its_radius_volume_and_colours(sphere_mesh):
    out = sphere_mesh.vertices - torch.tensor(CENTER)
    distance = out.norm(dim=1)
    voxel = 2 * RADIUS / 37
    assert abs(float(distance.mean()) - RADIUS) < 0.8 * voxel
    assert float(distance.std()) < 0.25 * voxel
    # Positive: the faces turn their counter-clockwise side outward.
    assert volume(sphere_mesh) == pytest.approx(4 / 3 * math.pi * float(distance.mean()) ** 3, rel=0.03)
    expected = (out / distance[:, None] + 1) / 2
    assert float((sphere_mesh.colors - expected).abs().mean()) < 0.015
    normals = vertex_normals(sphere_mesh.vertices, sphere_mesh.faces)
    assert float((normals * out / distance[:, None]).sum(1).min()) > 0.9


def test_sphere_is_closed(sphere_mesh):
    edges, open_edges, euler = edge_report(sphere_mesh.faces)
    assert (open_edges, euler) == (0, 2)
    assert 2 * edges == 3 * len(sphere_mesh.faces)


def test_edge_report_sees_holes_and_turned_faces():
    tetrahedron = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    assert edge_report(tetrahedron) == (6, 0, 2)
    assert edge_report(tetrahedron[:3])[1] == 3
    assert edge_report(torch.cat([tetrahedron[:3], tetrahedron[3:].flip(1)]))[1] > 0


def test_inner_walls_and_specks_are_gone_unless_wanted():
    splat = joined(ball(0.3, (0, 0, 0), 500), ball(0.12, (0, 0, 0), 100), ball(0.06, (0.45, 0, 0), 60))
    one, all_pieces = (splat_to_mesh(splat, 32, largest_only=largest) for largest in (True, False))
    assert edge_report(one.faces)[1:] == (0, 2)
    assert edge_report(all_pieces.faces)[1:] == (0, 4)  # two spheres, and still no inner one
    assert float(one.vertices[:, 0].max()) < 0.36 < float(all_pieces.vertices[:, 0].max())


def test_masks_cut_what_lies_outside_them():
    cameras = orbit([0.0, 90.0], 0.0, 2.0, 40.0)
    masks = torch.ones(2, 32, 32)
    masks[0, :, 16:] = 0  # seen from the front: nothing right of the middle
    cut = splat_to_mesh(ball(center=(0, 0, 0), count=400), 32, cameras=cameras, masks=masks)
    assert float(cut.vertices[:, 0].max()) < 0.06
    assert float(cut.vertices[:, 0].min()) < -0.36
    assert edge_report(cut.faces)[1] == 0


def test_inputs_stay_as_they_are_and_runs_repeat():
    splat = ball(count=150)
    before = [t.clone() for t in splat.tensors()]
    first, second = splat_to_mesh(splat, 16), splat_to_mesh(splat, 16)
    assert all(torch.equal(a, b) for a, b in zip(before, splat.tensors(), strict=True))
    assert torch.equal(first.vertices, second.vertices) and torch.equal(first.colors, second.colors)


def test_mesh_looks_like_the_render_of_its_splat(sphere_mesh):
    """Vertices projected into a camera meet the colour and the depth that the rasteriser draws there."""
    camera = orbit([35.0], 20.0, 2.0, 50.0)
    seen = render_gaussians(ball(), camera, 128, 128)
    uv, z = camera.project(sphere_mesh.vertices, 128, 128)
    column, row = uv[0].floor().long().clamp(0, 127).unbind(1)
    drawn, alpha = seen.depth[0, row, column, 0], seen.alpha[0, row, column, 0]
    front = (alpha > 0.9) & (z[0] < drawn + 0.03)
    assert float(front.float().mean()) > 0.25
    assert float((z[0] - drawn)[front].abs().median()) < 0.02
    assert float((sphere_mesh.colors[front] - seen.features[0, row, column][front]).abs().mean()) < 0.03


# --- what it says to bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resolution": 8}, "between 16 and 512 voxels, got 8"),
        ({"resolution": 512, "memory_bytes": 1 << 30}, "GiB but only 1.0 GiB are free; lower the resolution"),
        ({"masks": torch.ones(3, 8, 8)}, "need the cameras they belong to"),
        ({"masks": torch.ones(3, 8, 8), "cameras": orbit([0.0, 90.0], 0.0, 2.0, 40.0)}, "for 2 cameras"),
        ({"masks": torch.zeros(1, 8, 8), "cameras": orbit([0.0], 0.0, 2.0, 40.0)}, "inside all masks"),
    ],
    ids=["resolution", "memory", "no cameras", "count", "black masks"],
)
def test_refusals(change, says):
    with pytest.raises(ValueError, match=says):
        splat_to_mesh(ball(count=200), **{"resolution": 16, **change})


def test_fog_is_refused():
    means, scales, quats, opacities, sh = ball(count=200).tensors()
    with pytest.raises(ValueError, match="opaque enough"):
        splat_to_mesh(Gaussians(means, scales, quats, opacities * 0.05, sh), 16)
    with pytest.raises(ValueError, match="transparent from every side"):
        splat_to_mesh(Gaussians(means, scales * 0.1, quats, opacities * 0 + 0.11, sh), 16)


# --- files ----------------------------------------------------------------------------------------------------------


def in_file(mesh: Mesh):
    return mesh_files.world_to_gltf(mesh.vertices), mesh.faces, mesh_files.srgb_to_linear(mesh.colors)


def test_ply_as_another_library_reads_it(sphere_mesh, tmp_path):
    path = tmp_path / "ball.ply"
    mesh_files.write_whole(mesh_files.ply_bytes(*in_file(sphere_mesh)), path)
    assert [p.name for p in tmp_path.iterdir()] == ["ball.ply"]
    read = PlyData.read(path)
    x, y, z = (np.asarray(read["vertex"][axis]) for axis in "xyz")
    own = sphere_mesh.vertices.numpy()
    assert np.array_equal(x, own[:, 0]) and np.array_equal(y, -own[:, 1]) and np.array_equal(z, -own[:, 2])
    # Green grows downward in the world, so it falls along the file's y.
    assert np.corrcoef(y, read["vertex"]["green"])[0, 1] < -0.95
    assert np.abs(read["vertex"]["red"] / 255 - sphere_mesh.colors[:, 0].numpy()).max() < 0.5 / 255 + 1e-4
    assert np.array_equal(np.stack(read["face"]["vertex_indices"]), sphere_mesh.faces.numpy())


def test_glb_by_the_letter_of_the_format(sphere_mesh):
    data = mesh_files.glb_bytes(*in_file(sphere_mesh))
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    text_length, kind = struct.unpack_from("<I4s", data, 12)
    gltf, rest = json.loads(data[20 : 20 + text_length]), 20 + text_length
    assert kind == b"JSON" and text_length % 4 == 0
    assert struct.unpack_from("<I4s", data, rest) == (gltf["buffers"][0]["byteLength"], b"BIN\0")

    def values(accessor: int, dtype: str) -> np.ndarray:
        one = gltf["accessors"][accessor]
        view = gltf["bufferViews"][one["bufferView"]]
        found = np.frombuffer(data, dtype, view["byteLength"] // 4, rest + 8 + view["byteOffset"])
        return found.reshape(one["count"], -1)

    (primitive,) = gltf["meshes"][0]["primitives"]
    points, colors = (values(primitive["attributes"][name], "<f4") for name in ("POSITION", "COLOR_0"))
    assert np.array_equal(points * [1, -1, -1], sphere_mesh.vertices.numpy())
    assert points.min(0).tolist() == gltf["accessors"][0]["min"]
    shown = np.where(colors <= 0.0031308, colors * 12.92, 1.055 * colors ** (1 / 2.4) - 0.055)
    assert np.abs(shown - sphere_mesh.colors.numpy()).max() < 1e-5
    assert np.array_equal(values(primitive["indices"], "<u4").reshape(-1, 3), sphere_mesh.faces.numpy())
    assert "KHR_materials_unlit" in gltf["extensionsUsed"]


def test_colours_of_light_and_of_pictures():
    """0.5 of sRGB is 0.21404 of linear light, by IEC 61966-2-1."""
    assert float(mesh_files.srgb_to_linear(torch.tensor(0.5))) == pytest.approx(0.2140411, abs=1e-6)
    steps = torch.linspace(0, 1, 101)
    assert torch.allclose(mesh_files.linear_to_srgb(mesh_files.srgb_to_linear(steps)), steps, atol=1e-6)


def test_files_refuse_what_is_no_mesh(tmp_path):
    points, faces = torch.rand(3, 3), torch.tensor([[0, 1, 2]])
    for vertices, corners, says in (
        (points, faces[:0], "no faces"),
        (points * math.nan, faces, "NaN"),
        (points, faces + 1, "up to 3 but it has 3"),
    ):
        with pytest.raises(ValueError, match=says):
            mesh_files.glb_bytes(vertices, corners, None)
    with pytest.raises(ValueError, match="Cannot save the mesh"):
        mesh_files.write_whole(mesh_files.ply_bytes(points, faces, None), tmp_path / "missing" / "a.ply")
    assert list(tmp_path.iterdir()) == []
