"""Splats on disk: the .ply layout of 3D Gaussian splatting, which viewers and ComfyUI's own splat nodes open.

One "vertex" per Gaussian, 32-bit floats: x y z, nx ny nz (zero), f_dc_0..2 (band-0 coefficients), f_rest_* (higher
bands, channel-major: all of red, then green, then blue), opacity as a logit, scale_0..2 as natural logarithms,
rot_0..3 as w x y z. No axis is flipped: the file holds the world frame of cameras.py, which is the frame the format
came from. The exporters of gsplat and ComfyUI write the same layout.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import torch

from .gaussians import Gaussians

OPACITY_EPSILON = 1e-6  # logits of 0 and 1 are infinite
SMALLEST_SCALE = 1e-12
MAX_HEADER_BYTES = 1 << 16
REST_COUNTS = {0: 1, 9: 4, 24: 9, 45: 16}  # f_rest_* properties -> coefficients per channel
NEEDED = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
NEEDED += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
ENDIAN = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
NUMBER_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
NUMBER_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
NUMBER_TYPES |= {"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"}


def save_ply(g: Gaussians, path: str | os.PathLike) -> None:
    """Write a splat as a standard 3DGS binary .ply.

    The file appears whole or not at all: it is written beside its place and renamed. ValueError for an empty or
    non-finite splat and for a folder that is missing or cannot be written. Opacities are kept 1e-6 away from 0 and 1.
    """
    data = ply_bytes(g)
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"Cannot save the splat: {target.parent} is not a folder; create it or choose another.")
    if target.is_dir():
        raise ValueError(f"Cannot save the splat: {target} is a folder; give the name of a .ply file.")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.stem[:40]}-", suffix=".part", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(temporary, target)
    except OSError as error:
        raise ValueError(
            f"Cannot save the splat to {target}: {error.strerror or error}; choose a folder that can be written."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def ply_bytes(g: Gaussians) -> bytes:
    """The whole .ply file of a splat. ValueError if the splat is empty or has non-finite values."""
    means, scales, quats, opacities, sh = (t.detach().cpu().double().numpy() for t in g.validate().tensors())
    count = g.num
    opacity = np.clip(opacities, OPACITY_EPSILON, 1 - OPACITY_EPSILON)
    columns = np.concatenate(
        [
            means,
            np.zeros((count, 3)),
            sh[:, 0],
            sh[:, 1:].transpose(0, 2, 1).reshape(count, -1),
            np.log(opacity / (1 - opacity))[:, None],
            np.log(np.maximum(scales, SMALLEST_SCALE)),
            quats,
        ],
        axis=1,
    )
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * (sh.shape[1] - 1))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    table = np.empty(count, dtype=[(name, "<f4") for name in names])
    for i, name in enumerate(names):
        table[name] = columns[:, i]
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    return header.encode("ascii") + table.tobytes()


def load_ply(path: str | os.PathLike) -> Gaussians:
    """Read a 3DGS .ply (binary of either byte order, or ascii; with or without normals and extra properties).

    Returns float32 Gaussians on the CPU. ValueError, in one sentence, for everything that is not a whole 3DGS file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"Cannot read the splat file {path}: {error.strerror or error}.") from error
    return parse_ply(data, path.name)


def parse_ply(data: bytes, name: str = "the file") -> Gaussians:
    """Gaussians from the bytes of a 3DGS .ply; `name` is used in messages. See load_ply."""
    byte_order, elements, body = _read_header(data, name)
    table = _read_vertices(data[body:], byte_order, elements, name)

    def stack(*keys: str) -> np.ndarray:
        return np.stack([table[key] for key in keys], axis=1).astype(np.float64)

    rest = sorted((key for key in table if re.fullmatch(r"f_rest_\d{1,3}", key)), key=lambda key: int(key[7:]))
    if len(rest) not in REST_COUNTS or any(int(key[7:]) != i for i, key in enumerate(rest)):
        raise ValueError(
            f"{name} has {len(rest)} f_rest colour properties; expected f_rest_0 onwards, 0, 9, 24 or 45 of them "
            "(spherical harmonics of degree 0 to 3): export it again with a lower degree."
        )
    count, bands = len(table["x"]), REST_COUNTS[len(rest)]
    sh = np.empty((count, bands, 3))
    sh[:, 0] = stack("f_dc_0", "f_dc_1", "f_dc_2")
    if rest:
        sh[:, 1:] = stack(*rest).reshape(count, 3, bands - 1).transpose(0, 2, 1)
    quats = stack("rot_0", "rot_1", "rot_2", "rot_3")
    with np.errstate(all="ignore"):  # whatever overflows is caught by validate()
        opacity = 1 / (1 + np.exp(-table["opacity"].astype(np.float64)))
        scales = np.exp(stack("scale_0", "scale_1", "scale_2"))
        quats = quats / np.linalg.norm(quats, axis=1, keepdims=True)
        fields = [torch.from_numpy(a.astype(np.float32)) for a in (stack("x", "y", "z"), scales, quats, opacity, sh)]
    try:
        return Gaussians(*fields).validate()
    except ValueError as error:
        raise ValueError(f"{name} is a corrupt splat file. {error}") from error


def _read_header(data: bytes, name: str) -> tuple[str, list[tuple[str, int, list]], int]:
    """Byte-order mark of numpy ('' = ascii), [(element, count, [(property, numpy type or None for a list)])], body."""
    start = re.match(rb"ply[ \t]*(\r\n|\n|\r)", data[:16])
    if not start:
        raise ValueError(f"{name} is not a .ply file: it starts with {data[:4]!r} instead of a line 'ply'.")
    end = re.search(start[1] + rb"end_header[ \t]*" + start[1], data[:MAX_HEADER_BYTES])
    if not end:
        raise ValueError(f"{name} is a damaged .ply file: its header has no 'end_header' line.")
    form, elements = None, []
    for line in data[start.end() : end.start()].decode("latin-1").splitlines():
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        try:
            if words[0] == "format":
                form = ENDIAN[words[1]]
            elif words[0] == "element":
                elements.append((words[1], _count(words[2]), []))
            elif words[0] == "property" and words[1] == "list":
                elements[-1][2].append((words[4], None))
            elif words[0] == "property":
                elements[-1][2].append((words[2], NUMBER_TYPES[words[1]]))
            else:
                raise KeyError(words[0])
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{name} is a damaged .ply file: its header has the line {line[:80]!r}.") from error
    if form is None:
        raise ValueError(f"{name} is a damaged .ply file: its header has no 'format' line.")
    return form, elements, end.end()


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 16):
        raise ValueError(word)
    return int(word)


def _read_vertices(body: bytes, byte_order: str, elements: list, name: str) -> dict[str, np.ndarray]:
    """{property: (P,) array} of the vertex element; ValueError unless it is whole and has a splat's properties."""
    labels = [element for element, _, _ in elements]
    if "vertex" not in labels:
        raise ValueError(f"{name} holds no vertices, only {_listed(labels)}; expected a 3D Gaussian splat.")
    before = elements[: labels.index("vertex")]
    _, count, properties = elements[len(before)]
    names = [key for key, _ in properties]
    missing = [key for key in NEEDED if key not in names]
    if missing:
        raise ValueError(
            f"{name} is {_kind(names, elements)}, expected a 3D Gaussian splat: it has the properties "
            f"{_listed(names)} but not {_listed(missing)}."
        )
    if count == 0:
        raise ValueError(f"{name} is a splat file without Gaussians (element vertex 0).")
    types = [kind for _, _, entries in before for _, kind in entries] + [kind for _, kind in properties]
    if None in types or len(set(names)) != len(names):
        raise ValueError(f"{name} has repeated or list properties up to its vertices; expected plain numbers.")
    if byte_order == "":
        return _ascii_vertices(body, before, count, names, name)
    skip = sum(n * sum(np.dtype(kind).itemsize for _, kind in entries) for _, n, entries in before)
    row = np.dtype([(key, byte_order + kind) for key, kind in properties])
    _check_whole(count, max(0, len(body) - skip) // row.itemsize, name)
    table = np.frombuffer(body, row, count=count, offset=skip)
    return {key: table[key] for key in names}


def _ascii_vertices(body: bytes, before: list, count: int, names: list[str], name: str) -> dict[str, np.ndarray]:
    words = body.split()[sum(n * len(entries) for _, n, entries in before) :]
    _check_whole(count, len(words) // len(names), name)
    try:
        table = np.array(words[: count * len(names)], dtype=np.float64).reshape(count, len(names))
    except ValueError as error:
        raise ValueError(f"{name} is a damaged ascii .ply file: not every value is a number.") from error
    return {key: table[:, i] for i, key in enumerate(names)}


def _check_whole(announced: int, there: int, name: str) -> None:
    if there < announced:
        raise ValueError(
            f"{name} is cut off: its header announces {announced} Gaussians but only {there} are there; "
            "copy or save it again."
        )


def _kind(names: list[str], elements: list) -> str:
    """What a .ply without Gaussians probably is, for the message."""
    if "packed_position" in names:
        return "a compressed splat (export it uncompressed)"
    if any(element == "face" and count for element, count, _ in elements):
        return "a mesh"
    return "a point cloud" if {"x", "y", "z"} <= set(names) else "another kind of .ply"


def _listed(names) -> str:
    names = list(names)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"
