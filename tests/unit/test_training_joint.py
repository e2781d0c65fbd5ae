"""The joint training of injector, LGM and video UNet on the smallest sizes, and its files in ComfyUI."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from comfy_host import ComfyHost, find_comfyui
from mvpack.multiview.demo.video_unet import VideoConfig
from mvpack.multiview.lgm_files import kind_of
from mvpack.multiview.lgm_reconstruct import Rig
from mvpack.multiview.ouroboros import Injector, InjectorConfig, load_injector
from mvpack.training import joint_gate, joint_model, pool, video_data
from torch import nn

# --- sizes and places -------------------------------------------------------------------------------------------------


def test_injector_follows_the_layout_of_the_demo_unet():
    """Blocks of the demo UNet counted by hand: 0 in, 1, 2 down, 3, 4 down, 5, middle; references.md 3.5."""
    injector = joint_model.build_injector(VideoConfig(), layers_of=nn)
    features = injector(torch.rand(2, 3, 128, 128), torch.rand(2, 3, 128, 128))
    assert [tuple(f.shape) for f in features] == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 192, 4, 4)]
    assert not any(f.any() for f in features)
    places = {(side, i): injector.feedback_level(side, i) for side in ("input", "output") for i in range(6)}
    assert {k: v for k, v in places.items() if v is not None} == {("input", 1): 0, ("input", 3): 1, ("output", 0): 2}
    assert injector.config.definition == "canonical" and InjectorConfig().definition == "released"


def test_two_residual_blocks_a_level_are_injected_after_the_second():
    injector = Injector(InjectorConfig((8, 16), layers=2, blocks=1, rays=False))
    assert [injector.feedback_level("input", i) for i in range(6)] == [None, None, 0, None, None, None]
    assert injector.feedback_level("output", 0) == 1
    assert all(injector.ray_embedding("input", i) is None for i in range(6))


def test_the_released_loader_refuses_an_injector_without_rays():
    with pytest.raises(ValueError, match="incomplete"):
        load_injector(Injector(InjectorConfig((8, 16), rays=False)).state_dict())


def test_both_networks_fit_into_24_megabytes():
    networks = joint_model.build_injector(VideoConfig(), layers_of=nn), joint_model.build_lgm(128, layers_of=nn)
    count = sum(p.numel() for network in networks for p in network.parameters())
    assert 5e6 < count and 2 * count < 24e6


def test_small_lgm_knows_its_cameras_and_its_time_starts_without_effect():
    torch.manual_seed(0)
    lgm = joint_model.build_lgm(64, layers_of=nn)
    assert joint_model.rig_of(lgm) == Rig(1.5, 49.13, 64) and kind_of(lgm.state_dict()) == "demo_lgm"
    views = torch.rand(8, 9, 64, 64)
    with torch.no_grad():
        clean, noisy = lgm(views), lgm(views, torch.tensor([0.4, -0.2]))
        assert torch.equal(clean, noisy)
        for name, parameter in lgm.named_parameters():
            if ".emb_layers.1." in name:
                parameter.add_(torch.randn(parameter.shape))
        # Each object has its own time: one after another they give the same as together.
        both = lgm(views, torch.tensor([0.4, -0.2]))
        alone = torch.cat([lgm(views[:4], 0.4), lgm(views[4:], -0.2)])
    assert torch.allclose(both, alone, atol=1e-5) and not torch.allclose(both, clean, atol=1e-3)


def test_gaussians_start_on_their_rays_nearest_to_the_origin():
    """Against rays of the cameras themselves, carried into LGM's world by hand."""
    orbit = joint_model.Orbit.of(8, 15.0, Rig(1.5, 49.13, 64))
    assert orbit.picked == [0, 2, 4, 6]
    points = orbit.surface(6)
    origins, directions = orbit.cameras.subset(orbit.picked).rays(6, 6)
    directions = directions.double() / directions.double().norm(dim=-1, keepdim=True)
    origins = origins.double()[:, None, None].expand_as(directions)
    nearest = origins - (origins * directions).sum(-1, keepdim=True) * directions
    turned = torch.einsum("ij,nhwj->nihw", orbit.frame.turn, nearest)
    assert torch.allclose(points.double(), turned, atol=1e-5)


def test_start_loss_is_zero_there_and_nowhere_else():
    orbit = joint_model.Orbit.of(4, 15.0, Rig(1.5, 49.13, 32))
    raw = torch.zeros(2, 4, 14, 8, 8)
    raw[:, :, :3] = orbit.surface(8)
    assert float(joint_model.start_loss(raw, orbit)) == 0
    assert float(joint_model.start_loss(raw + 0.5, orbit)) == pytest.approx(0.25, rel=1e-5)


def test_orbits_without_views_at_right_angles_are_refused():
    with pytest.raises(ValueError, match="LGM needs views"):
        joint_model.Orbit.of(6, 15.0, Rig(1.5, 49.13, 64))


def test_gate_compares_views_and_renders():
    truth = torch.rand(2, 4, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    row = joint_gate.figures(truth + 0.1, truth + 0.2, truth)
    # -20 log10 of the offset.
    assert row["views"]["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert row["psnr_difference"] == pytest.approx(6.0206, abs=1e-3)
    table = {"none": joint_gate.figures(truth + 0.3, truth + 0.3, truth), "both": row}
    assert joint_gate.verdict(table)[0] is True
    assert joint_gate.verdict({"none": row, "both": table["none"]})[0] is False
    assert joint_gate.verdict({"both": row})[0] is None
    # One object 6 dB better and the other 6 dB worse is no gain.
    mixed = truth + torch.tensor([0.15, 0.6])[:, None, None, None, None]
    assert joint_gate.verdict({"none": table["none"], "both": joint_gate.figures(mixed, mixed, truth)})[0] is False
    assert row["views"]["psnr_by_object"] == pytest.approx([20.0, 20.0], abs=1e-3)


class Averages(nn.Module):
    """An autoencoder that can be checked by eye: means over 8 x 8 pixels."""

    def encode(self, images):
        return nn.functional.avg_pool2d(images, 8)


def test_pictures_stay_with_their_latents_while_the_pool_grows(tmp_path):
    """A shard that comes later may be an earlier one by name: several workers render into one folder."""
    render = lambda first: pool.render_pool(tmp_path, first, 1, 4, 16, "orbit", shard=1, supersample=1)  # noqa: E731
    render(2)
    grown = video_data.PicturePool(tmp_path, Averages(), 4, "cpu")
    render(0)
    render(5)
    assert grown.refresh() == 3 and grown.seeds.tolist() == [2, 0, 5]
    order = torch.tensor([[0, 1, 2, 3], [3, 0, 1, 2], [1, 2, 3, 0]])
    chosen = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), order
    pictures, masks = grown.pictures_of(*chosen)
    means = Averages().encode(pictures.flatten(0, 1).permute(0, 3, 1, 2) * 2 - 1).unflatten(0, (3, 4))
    assert torch.allclose(means, grown.latents_of(*chosen), atol=2e-3)
    assert pictures.shape == (3, 4, 16, 16, 3) and masks.shape == (3, 4, 16, 16)
    assert video_data.PicturePool(tmp_path, Averages(), 4, "cpu", limit=2).rgb.shape[0] == 2


# --- training, and ComfyUI, in a process of its own -------------------------------------------------------------------


# Most of a minute: ComfyUI's classes are imported in a fresh process and trained there, once for all of these tests.
in_comfyui = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory, repo):
    comfy = find_comfyui()
    environment = {**os.environ, "PYTHONPATH": str(comfy), "COMFYUI_PATH": str(comfy), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("joint_check.py")
    run = subprocess.run(
        [ComfyHost().python, str(script), str(repo), str(tmp_path_factory.mktemp("joint"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads(lines[-1][6:])


@in_comfyui
def test_pictures_belong_to_the_latents(found):
    """Mirrored and rolled alike; latents are kept in half precision."""
    assert found["pictures_are_those_of_the_latents"] < 5e-3
    assert found["white_outside"] == 0


@in_comfyui
def test_injector_that_starts_at_zero_leaves_the_unet_as_it_is(found):
    assert found["zero_start_is_the_unet"] and found["other_injector_acts"] > 1e-3


@in_comfyui
def test_each_loss_teaches_its_own_networks(found):
    assert found["reached"] == {
        "views": ["unet", "injector"],
        "splat": ["lgm"],
        "clean": ["lgm"],
        "start": ["lgm"],
    }
    assert found["reached_frozen"] == ["injector"]


@in_comfyui
def test_losses_are_alike_in_bfloat16(found):
    """As on a GPU with --bf16; 8 bits of mantissa."""
    assert set(found["bfloat16"]) == {"views", "splat", "clean", "start"}
    assert max(found["bfloat16"].values()) < 0.05, found["bfloat16"]


@in_comfyui
def test_half_of_the_steps_are_fed_back_after_a_pass_without_gradient(found):
    """400 fair coins: 200, standard deviation 10. The UNet runs twice in steps that are fed back, once in others."""
    assert 160 <= found["coins"] <= 240 and 2 <= found["fed_back"] <= 14
    assert found["runs"] == 16 + found["fed_back"] and found["without_gradient"] == found["fed_back"]


@in_comfyui
def test_losses_fall(found):
    """From the first 4 steps of 16 to the last 4. A step's noise level moves the loss of the views most."""
    for name, share in (("views", 0.95), ("splat", 0.8), ("clean", 0.8)):
        first, last = found["losses"][name]
        assert last < share * first, (name, first, last)
    assert found["start_ends"] == [True, False]


@in_comfyui
def test_stopped_training_continues_exactly(found):
    assert found["resumes"] and found["fed_back_twice"] == [1, 1]
    assert found["exit"] == [0, 0] and found["steps"] == 4


@in_comfyui
def test_files_say_what_they_are_and_come_in_parts(found):
    assert found["described"] == {"channels": [32, 64], "layers": 1, "blocks": 1, "rays": False}
    assert found["joined"] == [True, True]
    assert "trained with this pack" in found["lgm_report"] and "49.13" in found["lgm_report"]
    assert "rotations: as predicted" in found["lgm_report"] and "of 32 pixels" in found["lgm_report"]


@in_comfyui
def test_gate_measures_four_ways_of_feedback(found):
    gate = found["gate"]
    assert list(gate["table"]) == ["none", "coordinates", "colour", "both"]
    for row in gate["table"].values():
        assert row["psnr_difference"] == pytest.approx(abs(row["views"]["psnr"] - row["splat"]["psnr"]))
    assert found["gate_exit"] == (0 if gate["passed"] else 1) and gate["training"]["steps"] == 4


@in_comfyui
def test_comfyui_runs_the_loop_that_was_trained(found):
    """3D Feedback with the preset Ouroboros3D (trained) against the training's own sampler, in latents of spread 1."""
    assert found["host_difference_black"] < 2e-3 and found["host_difference"] < 2e-3
    assert found["lgm_difference"] < 1e-4
    assert found["feedback_matters"] > 20 * found["host_difference"]
    assert found["injector_in_comfyui"] > 20 * found["host_difference"]


@in_comfyui
def test_injector_at_its_zero_start_changes_nothing_in_comfyui(found):
    assert found["zero_start_in_comfyui"]
    assert "has no feedback encoders" in found["base_has_none"]


@in_comfyui
def test_wrong_files_are_named_in_a_sentence(found):
    words = {
        "cut": "1 tensors missing",
        "undescribed": "header does not describe",
        "no injector": "no feedback encoders",
        "no lgm": "an LGM is needed",
        "other size": "views of 64 pixels",
        "autoencoder": "8 times smaller",
        "views": "LGM needs views",
        "state": "another 'trained' model",
    }
    for name, text in words.items():
        said = found["sentences"][name]
        assert text in said and said.endswith("."), (name, said)
