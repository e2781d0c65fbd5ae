"""Ouroboros3D's injector: tensors and shapes of the released file, its rays with their faults, and its places."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mvpack.multiview.camera_presets import preset
from mvpack.multiview.cameras import orbit
from mvpack.multiview.ouroboros import (
    FeedbackEncoder,
    Injector,
    InjectorConfig,
    harmonics,
    load_injector,
    ray_frame,
    released_rays,
    split_view_model,
)
from ouroboros_files import fill

SMALL = InjectorConfig((8, 16, 32, 32))


def small(seed: int = 0) -> Injector:
    injector = Injector(SMALL)
    fill(injector, seed)
    return injector.eval()


def maps(seed: int = 0, side: int = 64) -> torch.Tensor:
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_tensors_of_the_released_file():
    """references.md 3.1 and 3.5."""
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in Injector().state_dict().items()}
    wanted = {}
    for encoder in ("cond_encoder.0", "cond_encoder.1"):
        wanted[f"{encoder}.conv_in"] = (320, 192, 3, 3)
        for i in range(12):
            width = (320, 640, 1280, 1280)[i // 3]
            wanted[f"{encoder}.body.{i}.block1"] = (width, width, 3, 3)
            wanted[f"{encoder}.body.{i}.block2"] = (width, width, 1, 1)
        wanted[f"{encoder}.body.3.in_conv"] = (640, 320, 1, 1)
        wanted[f"{encoder}.body.6.in_conv"] = (1280, 640, 1, 1)
    rays = {f"down_plucker.{i}": w for i, w in enumerate((320, 320, 640, 1280))} | {"mid_plucker": 1280}
    rays |= {f"up_plucker.{i}": w for i, w in enumerate((1280, 1280, 1280, 640))}
    for name, width in rays.items():
        wanted |= {f"{name}.embed.0": (width, 78), f"{name}.embed.2": (width, width)}
    expected = {f"{k}.weight": v for k, v in wanted.items()} | {f"{k}.bias": v[:1] for k, v in wanted.items()}
    assert shapes == expected


def test_feature_shapes_at_512_pixels():
    with torch.device("meta"):
        encoder = FeedbackEncoder(InjectorConfig(), torch.nn)
    encoder.to_empty(device="cpu")
    with torch.no_grad():
        for value in encoder.parameters():
            value.zero_()
        found = encoder(torch.zeros(1, 3, 512, 512))
    assert [tuple(f.shape) for f in found] == [(1, 320, 64, 64), (1, 640, 32, 32), (1, 1280, 16, 16), (1, 1280, 8, 8)]


def test_encoder_written_out():
    injector, pictures = small(), maps()
    encoder = injector.cond_encoder[0]
    # PixelUnshuffle by hand: channel c, then the row and the column inside the 8 x 8 block.
    blocks = pictures.view(3, 3, 8, 8, 8, 8).permute(0, 1, 3, 5, 2, 4).reshape(3, 192, 8, 8)
    state = {k: v.double() for k, v in encoder.state_dict().items()}

    def conv(x, name):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    x, wanted = conv(blocks.double(), "conv_in"), []
    for i in range(12):
        if i in (3, 6, 9):
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        if i in (3, 6):
            x = conv(x, f"body.{i}.in_conv")
        x = x + conv(conv(x, f"body.{i}.block1").clamp_min(0), f"body.{i}.block2")
        wanted += [x] if i % 3 == 2 else []
    with torch.no_grad():
        for found, one in zip(encoder(pictures), wanted, strict=True):
            assert torch.allclose(found.double(), one, atol=1e-4, rtol=1e-4)


def test_colour_and_coordinates_have_encoders_of_their_own_and_are_summed():
    injector, a, b = small(), maps(1), maps(2)
    with torch.no_grad():
        both = injector(a, b)
        for whole, one, two in zip(both, injector(a, None), injector(None, b), strict=True):
            assert torch.allclose(whole, one + two, atol=1e-5)
        assert not torch.allclose(injector(b, a)[0], both[0], atol=1e-2)
        # All black is a condition of its own, not the absence of one.
        assert float(injector(torch.zeros_like(a), torch.zeros_like(b))[3].abs().max()) > 1e-2
    with pytest.raises(ValueError, match="needs the colour or the coordinate map"):
        injector(None, None)
    with pytest.raises(ValueError, match="multiples of 8"):
        injector(torch.zeros(3, 3, 60, 64), None)


def test_zero_start_adds_nothing_and_can_learn():
    injector = small().zero_start()
    rays = torch.rand(2, 4, 4, 78)
    for feature in injector(maps(1), maps(2)):
        assert (feature == 0).all()
    assert all((e(rays) == 0).all() for e in (*injector.down_plucker, injector.mid_plucker, *injector.up_plucker))
    sum(f.mean() for f in injector(maps(1), maps(2))).backward()
    assert float(injector.cond_encoder[0].conv_in.weight.grad.abs().max()) > 0
    assert float(injector.cond_encoder[1].conv_in.weight.grad.abs().max()) > 0


def test_places():
    """Three down levels with attention, each of 2 blocks and a downsampler: inputs 1-3, 4-6, 7-9; 10 and 11 below."""
    injector = Injector(SMALL)
    rays = {n: injector.ray_embedding("input", n) for n in range(12)}
    assert [n for n, e in rays.items() if e is not None] == [0, 3, 6, 9, 11]
    assert [rays[n] for n in (0, 3, 6, 9)] == list(injector.down_plucker) and rays[11] is injector.mid_plucker
    rays = {n: injector.ray_embedding("output", n) for n in range(12)}
    assert [n for n, e in rays.items() if e is not None] == [0, 3, 6, 9]
    assert [rays[n] for n in (0, 3, 6, 9)] == list(injector.up_plucker)
    assert {n: injector.feedback_level("input", n) for n in range(12)} == {
        **dict.fromkeys(range(12)), 2: 0, 5: 1, 8: 2
    }  # fmt: skip
    assert {n: injector.feedback_level("output", n) for n in range(12)} == {**dict.fromkeys(range(12)), 0: 3}


def test_rays_have_the_faults_the_weights_were_trained_with():
    """Pixel by pixel, from the released table: first camera at (0, 0, 1.7417), fx = 1.3889, axes of OpenCV."""
    cameras = preset("ouroboros3d")
    found = released_rays(ray_frame(cameras), cameras.intrinsics, 4)
    assert found.shape == (8, 4, 4, 78)
    for view, azimuth in ((0, 0.0), (1, 45.0), (7, 337.5)):
        a = math.radians(azimuth)
        centre = [1.7417 * math.sin(a), 0.0, 1.7417 * math.cos(a)]
        # Columns: the camera's x, y (down) and z (ahead) in the world; the released code multiplies by the rows.
        pose = [[math.cos(a), 0.0, -math.sin(a)], [0.0, -1.0, 0.0], [-math.sin(a), 0.0, -math.cos(a)]]
        for row, column in ((0, 3), (2, 1)):
            ray = [((row + 0.5) / 4 - 0.5) / 1.3889, ((column + 0.5) / 4 - 0.5) / 1.3889, 1.0]
            direction = [sum(pose[i][j] * ray[i] for i in range(3)) - centre[j] for j in range(3)]
            length = math.sqrt(sum(d * d for d in direction))
            d = [x / length for x in direction]
            o = centre
            moment = [o[1] * d[2] - o[2] * d[1], o[2] * d[0] - o[0] * d[2], o[0] * d[1] - o[1] * d[0]]
            six = moment + d
            wanted = [math.sin(x * 2**k) for x in six for k in range(6)]
            wanted += [math.cos(x * 2**k) for x in six for k in range(6)] + six
            assert torch.allclose(found[view, row, column], torch.tensor(wanted), atol=3e-4), (view, row, column)


def test_cameras_of_any_place_are_moved_to_the_weights_own():
    """Turned, raised, and at another distance: the same rays."""
    moved = orbit([10.0 + a for a in (0, 45, 90)], 0.0, 2.5, 39.5978)
    own = orbit([0.0, 45.0, 90.0], 0.0, 1.7417, 39.5978)
    a, b = (released_rays(ray_frame(c), c.intrinsics, 4) for c in (moved, own))
    assert torch.allclose(a, b, atol=1e-4)


def test_harmonics_order():
    x = torch.tensor([0.3, -0.7])
    found = harmonics(x)
    assert found.shape == (26,)
    assert found[3] == pytest.approx(math.sin(0.3 * 8)) and found[6] == pytest.approx(math.sin(-0.7))
    assert found[12] == pytest.approx(math.cos(0.3)) and torch.equal(found[24:], x)


def test_loading():
    injector = small()
    state = dict(injector.state_dict())
    loaded = load_injector(state)
    assert loaded.config == SMALL and torch.equal(loaded(maps(), None)[3], injector(maps(), None)[3])
    with pytest.raises(ValueError, match="1 tensors missing"):
        load_injector({k: v for k, v in state.items() if k != "cond_encoder.1.body.5.block1.bias"})
    with pytest.raises(ValueError, match="incomplete"):
        load_injector({k: v for k, v in state.items() if not k.startswith("mid_plucker")})
    whole = {"unet.conv_in.weight": torch.zeros(1), **state}
    unet, rest = split_view_model(whole)
    assert list(unet) == ["conv_in.weight"] and rest.keys() == state.keys()
    with pytest.raises(ValueError, match=r"This file is Ouroboros3D's reconstruction model.*view model is needed"):
        split_view_model(dict.fromkeys(["unet.conv_in.weight", "conv.weight", "unet.time_embed.0.weight"]))
    with pytest.raises(ValueError, match="in diffusers' layout"):
        split_view_model(dict.fromkeys(["down_blocks.0.resnets.0.spatial_res_block.conv1.weight"]))
