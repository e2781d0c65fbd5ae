"""Splat files: round trips, two independent readers' view of the bytes, and every kind of wrong file."""

import io
import os

import numpy as np
import plyfile
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvpack.multiview.splats.gaussians import Gaussians
from mvpack.multiview.splats.ply import load_ply, parse_ply, ply_bytes, save_ply

FIELDS = ("means", "scales", "quats", "opacities", "sh")


def random_splat(count=7, bands=1, seed=0, extent=1.0):
    gen = torch.Generator().manual_seed(seed)
    quats = torch.randn(count, 4, generator=gen)
    return Gaussians(
        means=(torch.rand(count, 3, generator=gen) - 0.5) * extent,
        scales=torch.exp(torch.randn(count, 3, generator=gen) - 4),
        quats=quats / quats.norm(dim=1, keepdim=True),
        opacities=torch.rand(count, generator=gen),
        sh=torch.randn(count, bands, 3, generator=gen),
    )


def assert_same(a, b, tolerance=2e-6):
    for field in FIELDS:
        torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=tolerance, atol=tolerance, msg=field)


def with_plyfile(g, *, text=False, byte_order="<", normals=True, extra=False):
    """The same splat written by another library from formulas spelled out here."""
    rest = [f"f_rest_{i}" for i in range(3 * (g.sh.shape[1] - 1))]
    names = ["x", "y", "z"] + (["nx", "ny", "nz"] if normals else []) + ["f_dc_0", "f_dc_1", "f_dc_2", *rest]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    dtype = ([("label", "u1")] if extra else []) + [(n, "f4") for n in names]
    table = np.zeros(g.num, dtype=dtype)
    for p in range(g.num):
        row = table[p]
        for axis, key in enumerate("xyz"):
            row[key] = g.means[p, axis]
        for channel in range(3):
            row[f"f_dc_{channel}"] = g.sh[p, 0, channel]
            for k in range(1, g.sh.shape[1]):
                row[f"f_rest_{channel * (g.sh.shape[1] - 1) + k - 1}"] = g.sh[p, k, channel]
            row[f"scale_{channel}"] = np.log(float(g.scales[p, channel]))
        opacity = min(max(float(g.opacities[p]), 1e-6), 1 - 1e-6)
        row["opacity"] = np.log(opacity) - np.log1p(-opacity)
        for i in range(4):
            row[f"rot_{i}"] = g.quats[p, i]
    stream = io.BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")], text=text, byte_order=byte_order).write(stream)
    return stream.getvalue()


@given(st.integers(1, 40), st.sampled_from([1, 4, 9, 16]), st.integers(0, 10_000), st.floats(1e-3, 1e4))
@settings(max_examples=40, deadline=None)
def test_round_trip(count, bands, seed, extent):
    g = random_splat(count, bands, seed, extent)
    assert_same(parse_ply(ply_bytes(g)), g)


def test_opacity_zero_and_one_survive():
    g = random_splat(2)
    g = Gaussians(g.means, g.scales, g.quats, torch.tensor([0.0, 1.0]), g.sh)
    torch.testing.assert_close(parse_ply(ply_bytes(g)).opacities, torch.tensor([0.0, 1.0]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("bands", [1, 4, 9, 16])
def test_bytes_are_what_an_independent_reader_expects(bands):
    g = random_splat(5, bands, seed=3)
    ours = plyfile.PlyData.read(io.BytesIO(ply_bytes(g)))["vertex"].data
    theirs = plyfile.PlyData.read(io.BytesIO(with_plyfile(g)))["vertex"].data
    assert ours.dtype.names == theirs.dtype.names
    for name in ours.dtype.names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("text, order", [(False, "<"), (False, ">"), (True, "=")])
@pytest.mark.parametrize("normals, extra", [(True, False), (False, True)])
def test_reads_other_writers(text, order, normals, extra):
    g = random_splat(6, 4, seed=5)
    assert_same(parse_ply(with_plyfile(g, text=text, byte_order=order, normals=normals, extra=extra)), g, 1e-5)


def test_reads_windows_line_ends_and_an_element_before_the_vertices():
    g = random_splat(3)
    header, body = ply_bytes(g).split(b"end_header\n", 1)
    header = header.replace(
        b"element vertex", b"comment end_header is near\nelement camera 2\nproperty short a\nelement vertex"
    )
    data = (header + b"end_header\n").replace(b"\n", b"\r\n") + b"\1\2\3\4" + body
    assert_same(parse_ply(data), g)


def test_quaternions_of_any_length_are_normalised():
    g = random_splat(3)
    long = Gaussians(g.means, g.scales, g.quats * 5, g.opacities, g.sh)
    assert_same(parse_ply(ply_bytes(long)), g)


def test_save_is_atomic_and_leaves_nothing_behind(tmp_path, monkeypatch):
    g, path = random_splat(4), tmp_path / "a.ply"
    save_ply(g, path)
    assert_same(load_ply(path), g)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ValueError, match="No space left on device"):
        save_ply(random_splat(9), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    assert path.read_bytes() == before


def test_inputs_are_not_modified():
    g = random_splat(4, 4)
    copies = [t.clone() for t in g.tensors()]
    ply_bytes(g)
    assert all(torch.equal(a, b) for a, b in zip(g.tensors(), copies, strict=True))


def test_save_refuses(tmp_path):
    g = random_splat(4)
    with pytest.raises(ValueError, match="is not a folder"):
        save_ply(g, tmp_path / "missing" / "a.ply")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is not a folder"):
        save_ply(g, tmp_path / "file" / "a.ply")
    with pytest.raises(ValueError, match="is a folder"):
        save_ply(g, tmp_path)
    with pytest.raises(ValueError, match="no Gaussians"):
        save_ply(Gaussians(*(t[:0] for t in g.tensors())), tmp_path / "empty.ply")
    with pytest.raises(ValueError, match="NaN"):
        save_ply(Gaussians(g.means * float("nan"), *g.tensors()[1:]), tmp_path / "nan.ply")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root cannot write to")
def test_folder_that_cannot_be_written():
    with pytest.raises(ValueError, match="choose a folder that can be written"):
        save_ply(random_splat(4), "/proc/self/a.ply")


def header(*lines, form="binary_little_endian"):
    return "\n".join(["ply", f"format {form} 1.0", *lines, "end_header", ""]).encode()


SPLAT = ply_bytes(random_splat(4, 4))
MESH = header(
    "element vertex 1", "property float x", "property float y", "property float z",
    "element face 1", "property list uchar int vertex_indices",
)  # fmt: skip
CLOUD = header(
    "element vertex 1", *(f"property float {c}" for c in "xyz"), *(f"property uchar {c}" for c in ("red", "green"))
)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "not a .ply file"),
        (b"glTF\x02\0\0\0", "starts with b'glTF'"),
        (b"plyx\n", "not a .ply file"),
        (SPLAT[:100], "no 'end_header'"),
        (SPLAT[:-1], "announces 4 Gaussians but only 3"),
        (SPLAT[: SPLAT.index(b"end_header") + 11], "only 0 are there"),
        (MESH, "is a mesh"),
        (CLOUD, "is a point cloud.*red, green but not f_dc_0"),
        (
            header("element chunk 1", "property float min_x", "element vertex 1", "property uint packed_position"),
            "compressed splat",
        ),
        (header("element face 3"), "holds no vertices, only face"),
        (header("element vertex -1"), "element vertex -1"),
        (header("element vertex 1", "property quux x"), "property quux x"),
        (header("property float x"), "property float x"),
        (header("hello"), "'hello'"),
        (header(form="utf8"), "format utf8"),
        (SPLAT.replace(b"format binary_little_endian 1.0\n", b""), "no 'format' line"),
        (SPLAT.replace(b"vertex 4", b"vertex 0"), "without Gaussians"),
        (SPLAT.replace(b"vertex 4", b"vertex 999999999999999"), "only 4 are there"),
        (SPLAT.replace(b"property float f_rest_8\n", b"property float f_rest_9\n"), "f_rest colour properties"),
        (SPLAT.replace(b"property float nx\n", b"property float x\n"), "repeated"),
        (SPLAT.replace(b"float nx", b"list uchar int nx"), "list properties"),
        (SPLAT[:-4] + b"\xff" * 4, "quats contain NaN"),
        (SPLAT[:-16] + b"\0" * 16, "quats contain NaN"),
        (with_plyfile(random_splat(2), text=True) + b"", None),
        (with_plyfile(random_splat(2), text=True)[:-40], "announces 2 Gaussians"),
        (with_plyfile(random_splat(2), text=True).replace(b".", b"x"), "not a .ply|header|not every value"),
    ],
)
def test_wrong_files_are_named_in_one_sentence(data, said):
    if said is None:
        assert parse_ply(data).num == 2
        return
    with pytest.raises(ValueError, match=said) as caught:
        parse_ply(data, "thing.ply")
    assert "thing.ply" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        load_ply(tmp_path / "none.ply")
    with pytest.raises(ValueError, match="Cannot read the splat file"):
        load_ply(tmp_path)


def survives(data):
    try:
        parse_ply(data).validate()
    except ValueError:
        pass


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_raise_only_value_errors(data):
    survives(data)
    survives(b"ply\n" + data)
    survives(b"ply\nformat ascii 1.0\n" + data + b"\nend_header\n")


@given(
    st.lists(st.tuples(st.integers(0, len(SPLAT) - 1), st.binary(max_size=6)), max_size=6), st.integers(0, len(SPLAT))
)
@settings(max_examples=200, deadline=None)
def test_damaged_splats_raise_only_value_errors(edits, length):
    data = bytearray(SPLAT)
    for position, patch in edits:
        data[position : position + len(patch)] = patch
    survives(bytes(data))
    survives(bytes(data[:length]))


WORDS = [
    "ply",
    "format",
    "ascii",
    "binary_big_endian",
    "element",
    "vertex",
    "face",
    "property",
    "list",
    "float",
    "uchar",
    "x",
    "1",
    "-3",
    "99999999",
]


@given(st.lists(st.lists(st.sampled_from([*WORDS, "opacity", "rot_0", "1e9"]), max_size=5), max_size=12))
@settings(max_examples=200, deadline=None)
def test_scrambled_headers_raise_only_value_errors(lines):
    survives(header(*(" ".join(line) for line in lines)) + b"1 2 3")
