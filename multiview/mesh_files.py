"""Meshes on disk: binary glTF (.glb) and .ply, with a colour at each vertex.

.glb (glTF 2.0): y up, metres, counter-clockwise faces, COLOR_0 linear as the format asks, and an unlit material so that
viewers show the colours as they are. .ply: the same frame, colours as 8-bit sRGB, which is what its readers expect.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .camera_convert import FLIP

FLOAT, UNSIGNED = 5126, 5125
VERTEX_BUFFER, INDEX_BUFFER = 34962, 34963
NEUTRAL = 0.5  # of meshes without colours


def world_to_gltf(points: Tensor) -> Tensor:
    """Points (V,3) of our world (y down, z forward) as glTF has them (y up, front toward +z). Its own inverse.

    A half turn about x, so faces keep their direction.
    """
    return points @ FLIP.to(points)


def srgb_to_linear(color: Tensor) -> Tensor:
    """Colours in [0,1] of pictures as light, as glTF and core's MESH want them (IEC 61966-2-1)."""
    return torch.where(color <= 0.04045, color / 12.92, ((color.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(color: Tensor) -> Tensor:
    """The inverse of srgb_to_linear."""
    return torch.where(color <= 0.0031308, color * 12.92, 1.055 * color.clamp_min(0) ** (1 / 2.4) - 0.055)


def glb_bytes(vertices: Tensor, faces: Tensor, linear: Tensor | None) -> bytes:
    """vertices (V,3) in glTF's frame, faces (F,3), linear colours (V,3) in [0,1] or None. ValueError if empty."""
    points, triangles = _checked(vertices, faces)
    blobs = [(points, "VEC3", FLOAT, VERTEX_BUFFER), (triangles.reshape(-1), "SCALAR", UNSIGNED, INDEX_BUFFER)]
    attributes = {"POSITION": 0}
    if linear is not None:
        blobs.append((linear.clamp(0, 1).cpu().numpy().astype("<f4"), "VEC3", FLOAT, VERTEX_BUFFER))
        attributes["COLOR_0"] = 2
    views, accessors, data = [], [], b""
    for i, (values, kind, component, target) in enumerate(blobs):
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": values.nbytes, "target": target})
        accessors.append({"bufferView": i, "componentType": component, "count": len(values), "type": kind})
        data += values.tobytes()  # all are 4 bytes wide, so everything stays aligned
    accessors[0] |= {"min": points.min(0).tolist(), "max": points.max(0).tolist()}
    material = {
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
        "extensions": {"KHR_materials_unlit": {}},
    }
    if linear is None:
        material = {"pbrMetallicRoughness": {"baseColorFactor": [NEUTRAL] * 3 + [1.0], "metallicFactor": 0.0}}
    text = json.dumps(
        {
            "asset": {"version": "2.0", "generator": "multiview-consistency"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [{"attributes": attributes, "indices": 1, "material": 0, "mode": 4}]}],
            "materials": [material],
            "accessors": accessors,
            "bufferViews": views,
            "buffers": [{"byteLength": len(data)}],
        }
        | ({"extensionsUsed": ["KHR_materials_unlit"]} if linear is not None else {})
    ).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(data))
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data


def ply_bytes(vertices: Tensor, faces: Tensor, linear: Tensor | None) -> bytes:
    """The same as a binary .ply with red, green, blue."""
    points, triangles = _checked(vertices, faces)
    color = torch.full_like(vertices, NEUTRAL) if linear is None else linear_to_srgb(linear)
    rows = np.empty(len(points), dtype=[("p", "<f4", 3), ("c", "u1", 3)])
    rows["p"], rows["c"] = points, (color.clamp(0, 1) * 255).round().cpu().numpy().astype("u1")
    corners = np.empty(len(triangles), dtype=[("n", "u1"), ("i", "<i4", 3)])
    corners["n"], corners["i"] = 3, triangles
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    header += [f"element face {len(triangles)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + rows.tobytes() + corners.tobytes()


def write_whole(data: bytes, path: str | os.PathLike) -> None:
    """The file appears whole or not at all. ValueError where it cannot be written."""
    target, temporary = Path(path), None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.stem[:40]}-", suffix=".part", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(temporary, target)
    except OSError as error:
        raise ValueError(
            f"Cannot save the mesh to {target}: {error.strerror or error}; choose a folder that can be written."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _checked(vertices: Tensor, faces: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if len(vertices) == 0 or len(faces) == 0:
        raise ValueError("The mesh has no faces; the node that made it found no surface.")
    if not bool(torch.isfinite(vertices).all()):
        raise ValueError("The mesh's vertices contain NaN or infinity; make it again.")
    if int(faces.min()) < 0 or int(faces.max()) >= len(vertices):
        raise ValueError(
            f"The mesh's faces name vertices up to {int(faces.max())} but it has {len(vertices)}; make it again."
        )
    return vertices.cpu().numpy().astype("<f4"), faces.cpu().numpy().astype("<u4")
