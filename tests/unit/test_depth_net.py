"""The depth network: interface, the shipped weights against ground truth from the ray caster, and damaged files."""

import math

import pytest
import torch
from mvpack.multiview.cameras import Cameras, orbit
from mvpack.multiview.demo.depth_net import (
    TOLERANCE,
    WEIGHTS,
    DepthNet,
    estimate_depth,
    half_heights,
    load_depth_net,
)
from mvpack.multiview.demo.objects import HELD_OUT_SEED, make_object
from mvpack.multiview.demo.raycast import render_object
from mvpack.training.depth_data import sphere_map
from safetensors.torch import load_file, save_file

# Not among the objects whose errors were watched during training.
SEEDS = range(HELD_OUT_SEED + 500, HELD_OUT_SEED + 508)
AZIMUTHS = [20.0, 110.0, 200.0, 290.0]


@pytest.fixture(scope="module")
def net():
    return load_depth_net()


@pytest.fixture(scope="module")
def held_out():
    """Pictures on white, true depth and cameras of 8 objects in 4 views, on the demo orbit's distance and lens."""
    cameras = orbit(AZIMUTHS, 15.0, 1.5, 49.13)
    shots = [render_object(make_object(seed), cameras, 96) for seed in SEEDS]
    return torch.cat([s.rgb for s in shots]), torch.stack([s.depth for s in shots]), cameras


@pytest.fixture(scope="module")
def estimates(net, held_out):
    images, truth, cameras = held_out
    pairs = [estimate_depth(net, part, cameras) for part in images.split(len(cameras))]
    return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 160)])
def test_network_outputs_have_the_pictures_size(size):
    outputs = DepthNet()(torch.rand(2, 3, *size))
    assert [tuple(o.shape) for o in outputs] == [(2, *size)] * 3


def test_network_refuses_sizes_it_cannot_halve_four_times():
    with pytest.raises(ValueError, match="multiples of 16"):
        DepthNet()(torch.rand(1, 3, 72, 64))


@pytest.mark.parametrize("size", [(40, 40), (64, 100), (200, 150), (576, 576)])
def test_any_picture_size_is_answered_in_that_size(net, size):
    images = torch.rand(2, *size, 3)
    before = images.clone()
    with torch.inference_mode():
        depth, confidence = estimate_depth(net, images, orbit([0.0, 90.0], 10.0, 1.5, 49.13))
    assert depth.shape == confidence.shape == (2, *size)
    assert torch.isfinite(depth).all() and (depth >= 0).all()
    assert (confidence >= 0).all() and (confidence <= 1).all()
    assert torch.equal(images, before)


def test_wrong_input_is_named(net):
    cameras = orbit([0.0, 90.0], 10.0, 1.5, 49.13)
    with pytest.raises(ValueError, match="3 pictures but 2 cameras"):
        estimate_depth(net, torch.rand(3, 64, 64, 3), cameras)
    with pytest.raises(ValueError, match="colour pictures"):
        estimate_depth(net, torch.rand(2, 64, 64), cameras)
    broken = torch.rand(2, 64, 64, 3)
    broken[1, 5, 5] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        estimate_depth(net, broken, cameras)


def test_half_height_is_the_picture_edge_in_the_plane_through_the_origin():
    cameras = orbit([0.0], 0.0, 2.0, 40.0)
    edge = torch.tensor([[0.0, -float(half_heights(cameras)), 0.0]])
    pixel, _ = cameras.project(edge, 64, 64)
    assert pixel[0, 0, 1].item() == pytest.approx(0.0, abs=1e-3)


def test_shipped_weights_beat_the_baselines_on_held_out_objects(held_out, estimates):
    """Baselines that know more: the true silhouette (sphere), or the average of these very objects (mean map)."""
    _, truth, cameras = held_out
    radius, scale = 1.5, float(half_heights(cameras)[0])
    inside = truth > 0
    offset = torch.where(inside, radius - truth, torch.zeros_like(truth))
    found = estimates[0]
    # Where the network sees background it gives no depth: count that as the plane through the origin.
    guess = torch.where(found > 0, radius - found, torch.zeros_like(found))

    def error(estimate):
        return float((estimate - offset).abs()[inside].mean())

    mean_map = offset.sum(0) / inside.sum(0).clamp_min(1)
    sphere = sphere_map(inside.flatten(0, 1)).unflatten(0, inside.shape[:2]) * scale
    mine = error(guess)
    assert mine < 0.35 * error(torch.zeros_like(offset))
    assert mine < 0.65 * error(sphere)
    assert mine < 0.85 * error(mean_map.expand_as(offset))
    assert mine < 0.06


def test_foreground_is_found(held_out, estimates):
    truth, found = held_out[1] > 0, estimates[0] > 0
    assert float((truth & found).sum() / (truth | found).sum()) > 0.93


def test_confidence_means_what_it_says(held_out, estimates):
    """Pixels it is surer of are better, and the stated share within the tolerance holds to 15 points."""
    truth, (depth, confidence) = held_out[1], estimates
    both = (truth > 0) & (depth > 0)
    error, sure = (depth - truth).abs()[both], confidence[both]
    middle = sure.median()
    assert error[sure >= middle].mean() < 0.85 * error[sure < middle].mean()
    assert abs(float((error < TOLERANCE).float().mean() - sure.mean())) < 0.15


def test_mirrored_picture_gives_mirrored_depth(net, held_out):
    images, truth, cameras = held_out
    some = images[: len(cameras)]
    depth, _ = estimate_depth(net, some, cameras)
    mirrored, _ = estimate_depth(net, some.flip(2), cameras)
    both = (depth > 0) & (mirrored.flip(2) > 0)
    assert float((depth - mirrored.flip(2)).abs()[both].mean()) < 0.04


def test_distance_and_zoom_only_scale_the_answer(net, held_out):
    """A picture framed alike from twice the distance has the same offsets from the origin's plane."""
    some = held_out[0][:1]
    near = orbit([20.0], 15.0, 1.5, 49.13)
    far = Cameras(orbit([20.0], 15.0, 3.0, 49.13).c2w, near.intrinsics * torch.tensor([2.0, 2.0, 1.0, 1.0]))
    a, b = (estimate_depth(net, some, cameras)[0] for cameras in (near, far))
    assert torch.equal(a > 0, b > 0)
    assert torch.allclose((1.5 - a)[a > 0], (3.0 - b)[b > 0], atol=1e-5)


def test_shipped_file_is_small():
    assert WEIGHTS.stat().st_size < 2_000_000


def test_damaged_and_foreign_files_are_named_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no depth network file"):
        load_depth_net(tmp_path / "absent.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(WEIGHTS.read_bytes()[:5000])
    with pytest.raises(ValueError, match="truncated"):
        load_depth_net(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, str(foreign))
    with pytest.raises(ValueError, match="another model"):
        load_depth_net(foreign)
    tensors = load_file(str(WEIGHTS))
    tensors["head.weight"] = torch.zeros(5, 16, 3, 3)
    other = tmp_path / "other.safetensors"
    save_file(tensors, str(other))
    with pytest.raises(ValueError, match="another size: head.weight"):
        load_depth_net(other)


def test_network_says_the_same_twice(net, held_out):
    images, _, cameras = held_out
    first, second = (estimate_depth(net, images[: len(cameras)], cameras) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
