"""The training scripts on the smallest sizes: resuming, data, figures, and the way of a trained file into ComfyUI."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfy_host import find_comfyui
from mvpack.multiview.cameras import orbit
from mvpack.multiview.demo.objects import HELD_OUT_SEED
from mvpack.multiview.demo.video_unet import VideoConfig, context_tokens, denoised_from_output
from mvpack.training import depth_data, pool, train_depth
from mvpack.training.checkpoint import read_tensors, write_tensors
from mvpack.training.diffusion import draw_sigmas, karras_sigmas, pose_errors
from mvpack.training.gate import measure, nearest_objects, verdict
from mvpack.training.schedule import cosine, update_average


@pytest.fixture(scope="module")
def small_pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    pool.render_pool(folder, 0, 4, 3, 32, shard=2, supersample=1)
    return folder


# --- pools ------------------------------------------------------------------------------------------------------------


def test_pool_goes_on_where_it_stopped_and_workers_share_it(small_pool, tmp_path):
    assert pool.render_pool(small_pool, 0, 4, 3, 32, shard=2, supersample=1) == 0
    assert (
        sum(pool.render_pool(tmp_path, 0, 4, 3, 32, shard=2, supersample=1, worker=w, workers=2) for w in (1, 0)) == 4
    )
    whole, shared = pool.load_pool(small_pool), pool.load_pool(tmp_path)
    assert all(torch.equal(whole[k], shared[k]) for k in whole)
    assert whole["seed"].tolist() == [0, 1, 2, 3]


def test_pool_refuses_to_mix_training_and_held_out_seeds(tmp_path):
    with pytest.raises(ValueError, match="one side of 1000000"):
        pool.render_pool(tmp_path, HELD_OUT_SEED - 2, 4, 3, 32)


def test_pool_offsets_are_depths_of_the_stored_cameras(small_pool):
    """Back from half-height units to camera depth, by hand: Z = R - offset * R tan(fov/2), and points inside the
    sphere.
    """
    data = pool.load_pool(small_pool)
    radius, fov = data["camera"][..., 2], data["camera"][..., 3]
    unit = radius * torch.tan(torch.deg2rad(fov) / 2)
    offset = data["offset"].float() * unit[..., None, None]
    inside = data["alpha"] == 255
    assert float(offset[inside].abs().max()) <= 0.5 + 1e-2
    assert float(offset[inside].max()) > 0.1
    cameras = pool.random_cameras(2, 3)
    assert torch.allclose(cameras.radii().float(), radius[2], atol=1e-4)
    assert torch.allclose(train_depth.half_height_units(data), unit)


def test_orbit_pool_has_the_demo_orbit():
    ours, demo = pool.orbit_cameras(5, 16), orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13)
    assert torch.allclose(ours.c2w, demo.c2w) and torch.allclose(ours.intrinsics, demo.intrinsics)


# --- depth ------------------------------------------------------------------------------------------------------------


def test_sphere_baseline_is_exact_for_a_disc():
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    square = (x - 30) ** 2 + (y - 36) ** 2
    inside = square < 20**2
    want = (20**2 - square).clamp_min(0).sqrt() / 32
    got = depth_data.sphere_map(inside[None])[0]
    deep = square < 18**2
    assert torch.allclose(got[deep], want[deep], atol=0.02)


def test_smaller_pictures_keep_the_objects_depth_at_edges():
    rgb = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    alpha, offset = torch.zeros(1, 64, 64, dtype=torch.uint8), torch.zeros(1, 64, 64).half()
    alpha[:, 11:41, 13:51], offset[:, 11:41, 13:51] = 255, 0.25
    _, small_alpha, small = depth_data.at_size(rgb, alpha, offset, 32)
    touched = small_alpha > 0
    assert torch.allclose(small[touched], torch.full_like(small[touched], 0.25))
    assert small_alpha.sum() * 4 == 30 * 38


def test_depth_loss_has_its_minimum_at_the_truth():
    offset = torch.full((1, 8, 8), 0.3)
    alpha = torch.ones(1, 8, 8)
    logit = torch.full((1, 8, 8), 9.0)

    def loss(guess, log_b):
        return float(
            depth_data.loss_of((torch.full_like(offset, guess), torch.full_like(offset, log_b), logit), alpha, offset)[
                0
            ]
        )

    assert loss(0.3, -4.0) < loss(0.35, -4.0)
    # For an error of 0.1 the likelihood is best at b = 0.1 (closed form of the Laplace distribution).
    best = loss(0.4, math.log(0.1))
    assert best < loss(0.4, math.log(0.07)) and best < loss(0.4, math.log(0.14))


def test_depth_training_continues_exactly_and_learns(small_pool, tmp_path):
    data = pool.load_pool(small_pool)
    make = lambda: train_depth.DepthTraining(data, seed=3, total=12, batch=2)  # noqa: E731
    whole, first, second = make(), make(), make()
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    first.save(tmp_path / "state.safetensors", {"seconds": 1.0})
    second.load(tmp_path / "state.safetensors")
    for _ in range(3):
        second.step()
    for a, b in ((whole.net, second.net), (whole.average, second.average)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    start = make().net.state_dict()
    assert any(not torch.equal(v, start[k]) for k, v in whole.net.state_dict().items())


def test_depth_state_of_another_network_is_refused(small_pool, tmp_path):
    training = train_depth.DepthTraining(pool.load_pool(small_pool), total=4)
    training.step()
    training.save(tmp_path / "state.safetensors", {"seconds": 0.0})
    tensors, meta = read_tensors(tmp_path / "state.safetensors")
    tensors["module.net.stem.weight"] = torch.zeros(3, 3)
    write_tensors(tmp_path / "other.safetensors", tensors, meta)
    with pytest.raises(ValueError, match="another 'net' model"):
        training.load(tmp_path / "other.safetensors")


# --- schedule, sampling, figures --------------------------------------------------------------------------------------


def test_learning_rate_rises_then_falls():
    values = [cosine(s, 1000, 1.0, warmup=100, floor=0.02) for s in (0, 99, 100, 550, 1000, 5000)]
    assert values == pytest.approx([0.01, 1.0, 1.0, 0.51, 0.02, 0.02])


def test_moving_average_follows_the_formula():
    a, b = torch.nn.PReLU(4, init=0.25), torch.nn.PReLU(4, init=1.5)
    before, target = a.weight.detach().clone(), b.weight.detach().clone()
    update_average(a, b, step=10_000, decay=0.9)
    assert torch.allclose(a.weight, 0.9 * before + 0.1 * target)


def test_sampling_levels_fall_to_zero_and_training_covers_them():
    config = VideoConfig()
    sigmas = karras_sigmas(10, config.sigma_min, config.sigma_max)
    assert (
        sigmas[0] == pytest.approx(config.sigma_max)
        and sigmas[-2] == pytest.approx(config.sigma_min)
        and sigmas[-1] == 0
    )
    assert (sigmas.diff() < 0).all()
    drawn = draw_sigmas(20_000, config, torch.Generator().manual_seed(0))
    assert drawn.min() >= config.sigma_min and drawn.max() <= config.sigma_max * (1 + 1e-6)
    assert float(drawn.log().median()) == pytest.approx(0.8, abs=0.1)
    assert (drawn > 40).float().mean() > 0.02


def test_v_prediction_recovers_the_clean_latent_from_its_target():
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    sigma = torch.tensor([0.5, 20.0])
    s = sigma.view(-1, 1, 1, 1)
    x = clean + s * noise
    # v of the variance-preserving form: x_vp = cos a x0 + sin a n, v = cos a n - sin a x0, with tan a = sigma.
    angle = torch.atan(s)
    v = angle.cos() * noise - angle.sin() * clean
    assert torch.allclose(denoised_from_output(x, v, sigma), clean, atol=1e-4)


def test_pose_error_of_known_sets():
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 8, 5, 5, 3, generator=g)
    assert pose_errors(truth, truth).max() == 0
    assert torch.all(pose_errors(truth.roll(1, dims=1), truth) == 45)
    copied = pose_errors(truth[:, :1].expand_as(truth), truth)
    assert copied[0].tolist() == [45, 90, 135, 180, 135, 90, 45]
    random = pose_errors(torch.rand(200, 16, 12, generator=g), torch.rand(200, 16, 12, generator=g))
    assert float(random.mean()) == pytest.approx(90, abs=4)


def test_gate_figures_and_verdict():
    truth = torch.rand(2, 4, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    row = measure(truth + 0.1, truth)
    assert row["psnr"] == pytest.approx(20.0, abs=1e-3) and row["pose_error"] == 0 and row["within_30"] == 1
    pool_pictures = (torch.stack([truth[1], truth[0]]) * 255).round().to(torch.uint8)
    assert nearest_objects(truth[:, 0], pool_pictures).tolist() == [1, 0]
    good = {"psnr": 20.0, "pose_error": 10.0}
    assert verdict({"model": good, "copy_of_input": {"psnr": 19.0}, "nearest_object": {"psnr": 19.9}})[0]
    assert not verdict({"model": good, "copy_of_input": {"psnr": 19.0}, "nearest_object": {"psnr": 20.1}})[0]
    assert not verdict(
        {"model": {**good, "pose_error": 40.0}, "copy_of_input": {"psnr": 1.0}, "nearest_object": {"psnr": 1.0}}
    )[0]


# --- the video model's description ------------------------------------------------------------------------------------


def test_context_tokens_are_patches_with_their_place():
    latent = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4) + 1
    tokens = context_tokens(latent, 2)
    assert tokens.shape == (2, 4, 3 * 4 + 16)
    # Token 1 is the upper right patch, channel by channel.
    assert tokens[0, 1, :12].tolist() == latent[0, :, 0:2, 2:4].flatten().tolist()
    # First vertical sine: sin(pi (row + 1/2) / rows).
    assert tokens[0, 2, 12].item() == pytest.approx(math.sin(math.pi * 0.75))
    assert torch.equal(tokens[0, :, 12:], tokens[1, :, 12:])


def test_dropped_reference_has_empty_context():
    latent = torch.rand(2, 3, 4, 4)
    latent[1] = 0
    tokens = context_tokens(latent, 2)
    assert tokens[0].abs().max() > 0 and torch.count_nonzero(tokens[1]) == 0


def test_configuration_is_checked_and_round_trips():
    config = VideoConfig(channel_mult=(1, 2))
    assert VideoConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match="multiples of 32"):
        VideoConfig(model_channels=48)
    with pytest.raises(ValueError, match="multiple of 32 with"):
        VideoConfig(size=120)
    with pytest.raises(ValueError, match="exactly the entries"):
        VideoConfig.from_json({"size": 64})


# --- the video model in ComfyUI, in a process of its own --------------------------------------------------------------


# Half a minute: ComfyUI's classes are imported in a fresh process and trained there, once for all of these tests.
in_comfyui = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory, repo):
    comfy = find_comfyui()
    environment = {**os.environ, "PYTHONPATH": str(comfy), "COMFYUI_PATH": str(comfy), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("training_check.py")
    run = subprocess.run(
        [sys.executable, str(script), str(repo), str(tmp_path_factory.mktemp("training"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads(lines[-1][6:])


@in_comfyui
def test_video_trainings_continue_exactly(found):
    assert found["autoencoder_resumes"] and found["video_resumes"]


@in_comfyui
def test_autoencoder_latents_are_normalised_without_changing_the_picture(found):
    assert found["folding_keeps_decoding"] < 1e-4
    assert found["latent_mean"] < 0.2
    assert 0.8 < found["latent_spread"][0] and found["latent_spread"][1] < 1.2


@in_comfyui
def test_orbit_augmentation_is_the_mirrored_object(found):
    assert found["pool_objects"] == 6 and found["mirrored_orbit"]


@in_comfyui
def test_video_loss_falls_from_an_untrained_start(found):
    assert found["fresh_output"] == 0
    assert found["losses"][1] < 0.95 * found["losses"][0]


@in_comfyui
def test_parts_make_the_whole_again(found):
    assert found["parts"] > 1 and found["joined_equal"]


@in_comfyui
def test_comfyui_samples_the_exported_file(found):
    assert found["euler_finite"] and found["dpmpp_2m_finite"]
    assert found["decoded"] == [4, 16, 16, 3]
    assert found["sigmas"] == pytest.approx([VideoConfig().sigma_min, VideoConfig().sigma_max])


@in_comfyui
def test_comfyui_computes_what_was_trained(found):
    """The host's denoised output against the training code's, with and without the reference."""
    for case in ("given", "dropped"):
        assert found[f"host_difference_{case}"] < 1e-4
        assert found[f"pose_difference_{case}"] < 1e-5
    assert found["sinusoid_difference"] == 0


@in_comfyui
def test_wrong_model_files_are_named_in_a_sentence(found):
    words = {
        "absent": "no trained demo model",
        "cut": "truncated",
        "foreign": "not a trained demo model of this pack",
        "missing": "5 tensors missing",
        "misfit": "The UNet weights do",
    }
    for name, text in words.items():
        assert text in found["sentences"][name] and found["sentences"][name].endswith("."), found["sentences"][name]


@in_comfyui
def test_gate_refuses_an_untrained_model(found):
    assert found["gate_exit"] == 1 and found["gate_picture"]
    assert any("not" in line for line in found["gate"])
