"""LGM: tensors of the public files, what its views may look at, what its channels mean, and whose world it is in."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mvpack.multiview.camera_presets import PRESETS, preset
from mvpack.multiview.cameras import Cameras, look_at_pose, orbit
from mvpack.multiview.lgm import BIG, LGM, SMALL, LGMConfig, config_of
from mvpack.multiview.lgm_files import build_lgm, kind_of, load_lgm, read_tensors
from mvpack.multiview.lgm_reconstruct import (
    RIGS,
    Frame,
    Rig,
    choose_views,
    fit_pictures,
    gaussians_of,
    lgm_model,
    matrix_quaternion,
    plucker,
)
from mvpack.multiview.splats.render import render_gaussians
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

_spec = importlib.util.spec_from_file_location("raster_reference", Path(__file__).with_name("raster_reference.py"))
raster_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(raster_reference)

# Six levels as the public files have them; pictures of 64 pixels become 4 x 8 x 8 Gaussians.
NARROW = LGMConfig(
    down=(32,) * 6, down_attention=(False,) * 4 + (True,) * 2, up=(32,) * 3, up_attention=(True, False, False)
)
TINY = LGMConfig(down=(32, 64, 64), down_attention=(False, True, True), up=(64, 64), up_attention=(True, False))


def tiny(timed: bool = False, config: LGMConfig = TINY, seed: int = 0) -> LGM:
    network = LGM(LGMConfig(**{**config.__dict__, "timed": timed}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            fan = value[0].numel() if value.ndim > 1 else 100
            value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(fan))
        for name, value in network.named_parameters():
            if "norm" in name and name.endswith("weight"):
                value.add_(1.0)
    return network.eval()


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def public_shapes(big: bool, timed: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor of the public file, from references.md 3.6 alone."""
    found = {"unet.conv_in.weight": (64, 9, 3, 3), "unet.conv_in.bias": (64,)}

    def affine(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def block(name, i, inside, out, attention):
        net = f"{name}.nets.{i}"
        affine(f"{net}.norm1", inside)
        affine(f"{net}.conv1", out, inside, 3, 3)
        affine(f"{net}.norm2", out)
        affine(f"{net}.conv2", out, out, 3, 3)
        if inside != out:
            affine(f"{net}.shortcut", out, inside, 1, 1)
        if timed:
            affine(f"{net}.emb_layers.1", out, 512)
        if attention is not None:
            affine(f"{name}.attns.{attention}.norm", out)
            found[f"{name}.attns.{attention}.attn.qkv.weight"] = (3 * out, out)
            affine(f"{name}.attns.{attention}.attn.proj", out, out)

    down = [(64, 64), (64, 128), (128, 256), (256, 512), (512, 1024), (1024, 1024)]
    for level, (inside, out) in enumerate(down):
        name = f"unet.down_blocks.{level}"
        for i, width in enumerate((inside, out)):
            block(name, i, width, out, i if level >= 3 else None)
        if level < 5:
            affine(f"{name}.downsample", out, out, 3, 3)
    block("unet.mid_block", 0, 1024, 1024, None)
    block("unet.mid_block", 1, 1024, 1024, 0)
    # in, then for each of the three blocks: width below and width of the skip.
    up = [
        (1024, [2048, 2048, 2048]), (1024, [2048, 2048, 1536]), (512, [1536, 1024, 768]), (256, [768, 512, 384]),
        (128, [384, 256, 192]),
    ]  # fmt: skip
    up = up if big else up[:4]
    for level, (out, widths) in enumerate(up):
        for i, width in enumerate(widths):
            block(f"unet.up_blocks.{level}", i, width, out, i if level < 3 else None)
        if level < len(up) - 1:
            affine(f"unet.up_blocks.{level}.upsample", out, out, 3, 3)
    affine("unet.norm_out", up[-1][0])
    affine("unet.conv_out", 14, up[-1][0], 3, 3)
    affine("conv", 14, 14, 1, 1)
    if timed:
        affine("unet.time_embed.0", 512, 128)
        affine("unet.time_embed.2", 512, 512)
    return found


@pytest.mark.parametrize(("config", "big"), [(BIG, True), (SMALL, False)])
@pytest.mark.parametrize("timed", [False, True])
def test_every_key_and_shape_of_the_public_files(config, big, timed):
    wanted = public_shapes(big, timed)
    config = LGMConfig(**{**config.__dict__, "timed": timed})
    with torch.device("meta"):
        network = LGM(config)
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == wanted
    assert config_of(wanted) == config
    assert config.splat_size() == (128 if big else 64)
    if big and not timed:
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 415.0
        assert wanted["unet.conv_out.weight"] == (14, 128, 3, 3) and wanted["conv.weight"] == (14, 14, 1, 1)


def test_attention_sees_all_four_views_and_only_its_own_object():
    """The Jacobian of one view's output, by perturbation: every view of the same object counts, no other object."""
    network = tiny()
    inputs = random(8, 9, 16, 16)
    with torch.no_grad():
        plain = network(inputs)
        for changed in range(8):
            other = inputs.clone()
            other[changed, :3] += 0.5
            moved = (network(other) - plain).abs().amax((1, 2, 3))
            same = torch.arange(8) // 4 == changed // 4
            assert (moved[same] > 1e-4).all() and (moved[~same] < 1e-5).all(), changed
    alone = LGM(LGMConfig(down=(32, 64, 64), down_attention=(False,) * 3, up=(64, 64), up_attention=(False,) * 2,
                          middle_attention=False))  # fmt: skip
    other = inputs.clone()
    other[0] += 0.5
    with torch.no_grad():
        assert torch.equal(alone(other)[1:4], alone(inputs)[1:4])


def test_attention_is_softmax_over_the_pixels_of_all_views():
    layer = tiny().unet.mid_block.attns[0]
    x = random(4, 64, 2, 2, seed=3)
    tokens = F.group_norm(x.double(), 32, layer.norm.weight.double(), layer.norm.bias.double(), 1e-5)
    tokens = tokens.permute(0, 2, 3, 1).reshape(16, 64)
    q, k, v = (tokens @ layer.attn.qkv.weight.double().T).chunk(3, 1)
    out = []
    for h in range(16):
        part = slice(4 * h, 4 * h + 4)
        weight = torch.softmax(q[:, part] @ k[:, part].T / 2, 1)
        out.append(weight @ v[:, part])
    mixed = torch.cat(out, 1) @ layer.attn.proj.weight.double().T + layer.attn.proj.bias.double()
    wanted = (mixed.view(4, 2, 2, 64).permute(0, 3, 1, 2) + x) / math.sqrt(2)
    with torch.no_grad():
        assert torch.allclose(layer(x, 4).double(), wanted, atol=1e-5)


def test_time_changes_only_the_timed_network():
    inputs = random(4, 9, 16, 16)
    timed, plain = tiny(True), tiny()
    with torch.no_grad():
        assert not torch.allclose(timed(inputs, 0.0), timed(inputs, 1.5), atol=1e-3)
        assert torch.equal(plain(inputs, 0.0), plain(inputs, 1.5))
    # Frequency i is 10000^(-i/64); cosines come first.
    from mvpack.multiview.lgm import time_wave

    wave = time_wave(-1.25)
    for i in (0, 1, 40, 63):
        angle = -1.25 * 10000 ** (-i / 64)
        assert wave[i] == pytest.approx(math.cos(angle), abs=1e-6)
        assert wave[64 + i] == pytest.approx(math.sin(angle), abs=1e-6)


def test_channels():
    """Values worked out by hand: softplus(0) = ln 2, sigmoid(0) = 1/2, tanh(0.5) = 0.46211716."""
    raw = torch.zeros(4, 14, 1, 1)
    raw[0, :, 0, 0] = torch.tensor([2.0, -3.0, 0.25, 0.0, 0.0, 1.0, -1.0, 0.0, 3.0, 0.0, 4.0, 0.5, 0.0, -0.5])
    raw[1:, 3] = -9.0  # fainter than anything kept
    raw[1:, 7] = 1.0
    g = gaussians_of(raw, identity_rotations=False)
    assert g.num == 1
    assert torch.allclose(g.means, torch.tensor([[1.0, -1.0, 0.25]]))
    assert g.opacities.tolist() == [0.5]
    assert torch.allclose(g.scales, 0.1 * torch.tensor([[0.69314718, 1.31326169, 0.31326169]]))
    assert torch.allclose(g.quats, torch.tensor([[0.0, 0.6, 0.0, 0.8]]))
    colour = 0.5 + g.sh[:, 0] * 0.28209479177387814
    assert torch.allclose(colour, torch.tensor([[0.73105858, 0.5, 0.26894142]]), atol=1e-6)
    assert gaussians_of(raw, True).quats.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert gaussians_of(raw, False, min_opacity=0.0).num == 4
    raw[0, 3] = -9.5
    assert gaussians_of(raw, False).num == 3  # nothing is bright enough: the brightest stay


def test_quaternion_of_a_rotation():
    turns = Rotation.random(20, random_state=0)
    for q, m in zip(turns.as_quat(scalar_first=True), turns.as_matrix(), strict=True):
        found = matrix_quaternion(torch.from_numpy(m))
        assert abs(abs(float(found @ torch.from_numpy(q))) - 1) < 1e-12
    assert torch.allclose(
        matrix_quaternion(torch.diag(torch.tensor([1.0, -1, -1]))).abs(), torch.tensor([0.0, 1, 0, 0])
    )


def opengl_camera(azimuth: float, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and OpenGL axes (columns right, up, back) of LGM's own orbit at elevation 0: +azimuth goes to +x."""
    a = math.radians(azimuth)
    back = torch.tensor([math.sin(a), 0.0, math.cos(a)], dtype=torch.float64)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    return back * radius, torch.stack([torch.linalg.cross(up, back), up, back], dim=1)


def test_rays_are_lgms_own():
    """Rays of LGM's four cameras, written in OpenGL's axes, against ours for an orbit in our world."""
    rig = RIGS["lgm"]
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 0.0, rig.radius, rig.fov_y)
    found = plucker(Frame.of(cameras, rig), replace(rig, side=8))
    assert found.shape == (4, 6, 8, 8)
    half = math.tan(math.radians(rig.fov_y) / 2)
    for view, azimuth in enumerate((0, 90, 180, 270)):
        eye, axes = opengl_camera(azimuth, 1.5)
        for row, column in ((0, 0), (3, 6), (7, 2)):
            local = torch.tensor([(column + 0.5 - 4) / 4 * half, -(row + 0.5 - 4) / 4 * half, -1.0]).double()
            direction = axes @ local / local.norm()
            wanted = torch.cat([torch.linalg.cross(eye, direction), direction]).float()
            assert torch.allclose(found[view, :, row, column], wanted, atol=1e-6)


@pytest.mark.parametrize("elevation", [0.0, 25.0])
def test_the_splat_looks_as_it_does_in_lgms_own_world(elevation):
    """Random weights; the reference drawing in LGM's world with its own cameras, against our renderer in ours."""
    rig = RIGS["lgm"]
    cameras = orbit([30.0, 120.0, 210.0, 300.0], elevation, 2.4, rig.fov_y, input_view=None)
    with torch.no_grad():
        raw = tiny()(
            torch.cat([random(4, 3, 16, 16, seed=5), plucker(Frame.of(cameras, rig), replace(rig, side=16))], 1)
        )
    ours = Frame.of(cameras, rig).to_world(gaussians_of(raw, False))
    theirs = gaussians_of(raw, False)
    assert ours.num == theirs.num > 100
    side = 16
    focal = side / 2 / math.tan(math.radians(rig.fov_y) / 2)
    k = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]], dtype=torch.float64)
    # LGM's world: the first camera stands at (0, 0, 1.5); the others are where the first one sees them.
    relative = []
    for index in range(2):
        pose = torch.linalg.inv(cameras.c2w[0].double()) @ cameras.c2w[index].double()
        pose[:3, 3] *= 1.5 / 2.4
        first = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
        first[2, 3] = 1.5
        relative.append(torch.linalg.inv(first @ pose))
    colours = (0.5 + theirs.sh[:, 0] * 0.28209479177387814).double()
    wanted, alpha, depth = raster_reference.draw(
        theirs.means.double(), theirs.quats.double(), theirs.scales.double(), theirs.opacities.double(), colours,
        torch.stack(relative), k.expand(2, 3, 3), side, side, torch.ones(3, dtype=torch.float64),
    )  # fmt: skip
    drawn = render_gaussians(ours, cameras.subset([0, 1]), side, side, backend="torch")
    off = torch.cat([(drawn.features - wanted).abs().flatten(), (drawn.alpha - alpha).abs().flatten(),
                     (drawn.depth * 1.5 / 2.4 - depth).abs().flatten()])  # fmt: skip
    # A footprint whose alpha is 1/255, where it starts to count, may fall on either side.
    assert float(off.max()) < 1 / 255 and float(off.quantile(0.99)) < 2e-6
    assert 0.05 < float(alpha.mean()) and float(wanted.std()) > 0.01


def test_the_model_takes_views_and_cameras():
    """Of 16 views it reads the four it needs, whatever the others show; half the frames' size is all the same."""
    cameras = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.1)
    model = replace(lgm_model(tiny(config=NARROW), "lgm"), rig=Rig(1.5, 49.1, 64))
    images = torch.rand(16, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    first = model(images, cameras)
    assert torch.equal(images, before) and first.num > 200
    others = images.clone()
    others[[1, 2, 3, 5, 9, 15]] = 0
    again = model(others, cameras)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    others[8] = 0
    assert not torch.equal(model(others, cameras).sh[:50], first.sh[:50])
    assert (first.quats[:, 0].abs() < 1 - 1e-3).any()  # the world is turned, though rotations are the identity
    timed = replace(lgm_model(tiny(True, NARROW), "ouroboros_lgm"), rig=Rig(1.7417, 39.6, 64))
    assert not torch.equal(timed(images, cameras, 700.0).sh[:50], timed(images, cameras).sh[:50])


def test_which_rotations():
    network = tiny()
    assert not lgm_model(network, "lgm", "auto", "model_fp16_fixrot.safetensors").identity_rotations
    assert lgm_model(network, "lgm", "auto", "model_fp16.safetensors").identity_rotations
    assert lgm_model(network, "videomv", "auto", "fixrot").identity_rotations
    assert lgm_model(network, "ouroboros_lgm", "auto").identity_rotations
    assert not lgm_model(network, "ouroboros_lgm", "predicted").identity_rotations
    with pytest.raises(ValueError, match="choose one of auto, predicted, identity"):
        lgm_model(network, "lgm", "maybe")


def test_which_views():
    assert choose_views(preset("ouroboros3d")) == [0, 2, 4, 6]
    assert choose_views(preset("videomv_i2v")) == [0, 6, 12, 18]
    assert choose_views(preset("lgm")) == [0, 1, 2, 3]
    # The input is SV3D's last view, at azimuth 0; steps of 17.14 degrees miss 90 by 4.3.
    azimuths = [17.142857 * (i + 1) for i in range(21)]
    picked = choose_views(preset("sv3d_stability"))
    assert picked[0] == 20
    for wanted, i in zip((90, 180, 270), picked[1:], strict=True):
        assert abs(azimuths[i] - wanted) < min(abs(a - wanted) for a in azimuths) + 1e-5 < 8.6
    with pytest.raises(ValueError, match=r"none within 12 degrees of 90 and 180.*MVGaussianReconstruct"):
        choose_views(orbit([0.0, 30.0, 60.0, 270.0], 0.0, 1.5, 49.1))
    with pytest.raises(ValueError, match="of 90 and 180 and 270"):
        choose_views(orbit([0.0, 10.0, 20.0], 0.0, 1.5, 49.1))
    model = lgm_model(tiny(), "lgm")
    with pytest.raises(ValueError, match="4 views.*|3 images but the cameras describe 4"):
        model(torch.rand(3, 8, 8, 3), preset("lgm"))
    with pytest.raises(ValueError, match="NaN"):
        model(torch.full((4, 8, 8, 3), math.nan), preset("lgm"))


@pytest.mark.parametrize("fov", [30.0, 49.1, 70.0])
def test_pictures_of_another_field_of_view(fov):
    """A linear function of the ray's slope is photographed exactly at every focal length."""
    rig = RIGS["lgm"]
    side = 512
    cameras = orbit([0.0], 0.0, 1.5, fov)
    half = math.tan(math.radians(fov) / 2)
    ramp = ((torch.arange(side) + 0.5) / side * 2 - 1) * half
    picture = torch.stack([0.5 + 0.4 * ramp.expand(side, side), 0.5 + 0.4 * ramp[:, None].expand(side, side),
                           torch.zeros(side, side)], dim=-1)[None]  # fmt: skip
    found = fit_pictures(picture, cameras, rig)[0]
    wanted_half = math.tan(math.radians(rig.fov_y) / 2)
    slopes = ((torch.arange(256) + 0.5) / 128 - 1) * wanted_half
    inside = slopes.abs() < half * 0.98
    assert float((found[0][:, inside][inside] - (0.5 + 0.4 * slopes[inside])).abs().max()) < 2e-3
    assert float((found[1][:, inside][inside] - (0.5 + 0.4 * slopes[inside])[:, None]).abs().max()) < 2e-3
    outside = slopes.abs() > half * 1.02
    assert (found[:, outside] == 1).all()  # white where there was no picture


def test_files(tmp_path):
    network = tiny()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "b.ckpt")
    torch.save({"lgm_big." + k: v for k, v in state.items()} | {"other": torch.zeros(1)}, tmp_path / "c.pth")
    torch.save(tiny(True).state_dict(), tmp_path / "d.pth")
    inputs = random(4, 9, 16, 16)
    with torch.no_grad():
        for name, kind in (("a.safetensors", "lgm"), ("b.ckpt", "lgm"), ("c.pth", "videomv")):
            loaded, found = load_lgm(tmp_path / name)
            assert found == kind and torch.equal(loaded(inputs), network(inputs))
        loaded, found = load_lgm(tmp_path / "d.pth")
        assert found == "ouroboros_lgm" and torch.equal(loaded(inputs, 0.5), tiny(True)(inputs, 0.5))
    damaged = {k: v for k, v in state.items() if k != "unet.mid_block.attns.0.attn.proj.bias"}
    with pytest.raises(ValueError, match="1 tensors missing.*mid_block.attns.0.attn.proj.bias"):
        build_lgm(damaged)
    with pytest.raises(ValueError, match="expected"):
        build_lgm(state | {"unet.conv_in.weight": torch.zeros(32, 3, 3, 3)})
    (tmp_path / "e.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "f.pth").write_bytes(b"PK" + b"x" * 100)
    for name in ("e.safetensors", "f.pth"):
        with pytest.raises(ValueError, match="cannot be read as weights"):
            read_tensors(tmp_path / name)


class Surprise:
    """Code that an ordinary unpickling would run."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_pickles_run_nothing(tmp_path, capsys):
    torch.save({"unet.conv_in.weight": Surprise()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_tensors(tmp_path / "bad.pth")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["unet.conv_in.weight", "cond_encoder.0.conv_in.weight"], "Ouroboros3D's view model"),
        (["conv_in.weight", "down_blocks.0.resnets.0.spatial_res_block.conv1.weight"], "in diffusers' layout"),
        (["model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight"], "Stable Video Diffusion or SV3D"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a Stable Diffusion checkpoint"),
        (["spatial_volume.target_encoder.x", "model.diffusion_model.y"], "a SyncDreamer checkpoint"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "a VAE"),
        (["lora_unet_x.alpha"], "a LoRA"),
        (["zebra"], "an unknown file .*'zebra'"),
    ],
)
def test_other_files_are_named(keys, said):
    with pytest.raises(ValueError, match=f"This file is .*{said}.*an LGM is needed"):
        build_lgm({k: torch.zeros(1) for k in keys})


def test_kinds():
    assert kind_of(["unet.conv_in.weight", "conv.weight", "unet.mid_block.nets.0.conv1.weight"]) == "lgm"
    assert PRESETS["lgm"].fov_y == RIGS["lgm"].fov_y and PRESETS["lgm"].radius == RIGS["lgm"].radius
    assert RIGS["ouroboros_lgm"].fov_y == pytest.approx(PRESETS["ouroboros3d"].fov_y, abs=1e-2)


def test_cameras_that_look_away():
    pose = look_at_pose(0.0, 0.0, 1.5)
    away = torch.stack([pose, look_at_pose(90.0, 0.0, 1.5)]).float()
    away[:, :3, :2] *= -1  # keeps right-handedness
    away[:, :3, 2] = -away[:, :3, 2]
    away[:, :3, 0] *= -1
    with pytest.raises(ValueError, match="look at the object"):
        Frame.of(Cameras(away, torch.tensor([[1.0, 1.0, 0.5, 0.5]] * 2)), RIGS["lgm"])
