"""Run by test_training_joint.py in a process of its own, because it imports ComfyUI's classes (the folder on the path).

    joint_check.py REPOSITORY FOLDER

Trains a tiny demo model jointly with an injector and an LGM, stops and continues, writes the files, loads them through
the pack's nodes and samples with ComfyUI's own sampler and 3D Feedback. Prints one JSON line of findings; the tests
judge them.
"""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import torch

ROOT, WORK = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
for name, folder in (("mvpack", ROOT), ("mvpack.nodes", ROOT / "nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
from mvpack.multiview.demo.objects import HELD_OUT_SEED  # noqa: E402
from mvpack.multiview.demo.video_unet import VideoConfig, check_weights, read_checkpoint  # noqa: E402
from mvpack.multiview.lgm_files import load_lgm  # noqa: E402
from mvpack.multiview.lgm_reconstruct import lgm_model  # noqa: E402
from mvpack.nodes.feedback import TRAINED, ThreeDFeedback  # noqa: E402
from mvpack.nodes.lgm import LoadLGM  # noqa: E402
from mvpack.nodes.ouroboros_model import injector_of  # noqa: E402
from mvpack.nodes.trained_model import load_demo_model_for, load_trained_demo_model  # noqa: E402
from mvpack.training import (  # noqa: E402
    checkpoint,
    diffusion,
    gate,
    joint_gate,
    joint_model,
    pool,
    train_autoencoder,
    train_joint,
    train_video_unet,
    video_data,
)
from mvpack.training.comfy_classes import build_unet  # noqa: E402

SIZE, VIEWS = 32, 4
CONFIG = VideoConfig(
    size=SIZE, views=VIEWS, latent_channels=4, model_channels=32, channel_mult=(1, 2), vae_mult=(1, 1, 1, 1)
)
TINY = train_joint.LGMConfig(
    (32, 32, 32), (False, False, True), (32, 32), (True, False), layers=1, timed=True, rigged=True
)
found: dict = {}


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- a demo model to start from ---------------------------------------------------------------------------------------

pool.render_pool(WORK / "train", 0, 3, VIEWS, SIZE, "orbit", shard=2, supersample=1)
pool.render_pool(WORK / "held", HELD_OUT_SEED, 2, VIEWS, SIZE, "orbit", supersample=1)
pictures = pool.load_pool(WORK / "train", keys=("rgb", "alpha", "seed"))
coder = train_autoencoder.AutoencoderTraining(CONFIG, pictures, total=20, batch=4, rate=2e-3)
for _ in range(20):
    coder.step()
coder.model.eval()
train_autoencoder.fold_normalisation(coder.model, pictures, "cpu", pictures=64)
train_autoencoder.export(coder.model, CONFIG, WORK / "autoencoder.safetensors", {"steps": 20})
torch.manual_seed(0)
unet = build_unet(CONFIG)
# Trained weights are nowhere zero.
for parameter in unet.parameters():
    if not parameter.any():
        torch.nn.init.normal_(parameter, std=0.02)
train_video_unet.export(unet, WORK / "autoencoder.safetensors", CONFIG, WORK / "base.safetensors", {"steps": 0})
_, _, vae, _ = gate.load_model(WORK / "base.safetensors")
data = video_data.PicturePool(WORK / "train", vae, VIEWS, "cpu")


def networks(feedback="both", seed=0):
    torch.manual_seed(seed)
    config, unet, vae, _ = gate.load_model(WORK / "base.safetensors")
    injector, lgm = joint_model.build_injector(config, 1), joint_model.build_lgm(SIZE, TINY)
    return joint_model.Networks(config, unet, vae, injector, lgm, joint_model.orbit_of(lgm, config, VIEWS), feedback)


def training(n=None, **options):
    given = {"total": 16, "batch": 1, "rate": 2e-3, "unet_rate": 1e-3, "start": 10, "seed": 1, **options}
    return train_joint.JointTraining(n or networks(), data, **given)


def batch(seed=3):
    generator = torch.Generator().manual_seed(seed)
    chosen = data.choose(2, generator)
    return diffusion.add_noise(data.latents_of(*chosen), CONFIG, generator), *data.pictures_of(*chosen)


# --- pictures that belong to the latents ------------------------------------------------------------------------------

chosen = torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([[1, 2, 3, 0], [3, 0, 1, 2]])
shown, covered = data.pictures_of(*chosen)
again = video_data.encode_pictures(vae, shown.flatten(0, 1), "cpu").float().unflatten(0, (2, VIEWS))
found["pictures_are_those_of_the_latents"] = float((again - data.latents_of(*chosen)).abs().max())
found["white_outside"] = float((shown[covered == 0] - 1).abs().max())

# --- what changes nothing, and which way gradients go -----------------------------------------------------------------

n = networks()
noisy, seen, masks = batch()
maps = joint_model.Shots(*(torch.rand(2, VIEWS, SIZE, SIZE, 3) for _ in range(2)), torch.rand(2, VIEWS, SIZE, SIZE))
with torch.no_grad():
    plain = noisy.output(n.unet)
    found["zero_start_is_the_unet"] = bool(torch.equal(plain, noisy.output(n.unet, patches=n.patches(maps, 2))))
    # Any other injector is not: the patches do act.
    for parameter in n.injector.parameters():
        parameter.add_(0.05)
    found["other_injector_acts"] = float((plain - noisy.output(n.unet, patches=n.patches(maps, 2))).abs().max())


def touched(module) -> bool:
    """Whether a backward pass has reached the module."""
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def reached(terms, **options) -> dict[str, list[str]]:
    """Names of the networks that each term of the loss teaches, in a step with a second prediction."""
    t = training(**options)
    n, losses, names = t.networks, t.losses(*batch(), again=True), {}
    for term in terms:
        losses[term].backward(retain_graph=True)
        parts = (("unet", n.unet), ("injector", n.injector), ("lgm", n.lgm), ("vae", n.vae))
        names[term] = [name for name, part in parts if touched(part)]
        t.trained.zero_grad(set_to_none=True)
    return names


found["reached"] = reached(("views", "splat", "clean", "start"))
found["reached_frozen"] = reached(("views",), unet_rate=0)["views"]

with torch.no_grad():
    exact, rounded = (
        training(replace(networks(), dtype=dtype)).losses(*batch(), again=True)
        for dtype in (torch.float32, torch.bfloat16)
    )
found["bfloat16"] = {name: abs(float(rounded[name] / exact[name]) - 1) for name in exact}

t = training(batch=2)
runs = []
t.networks.unet.register_forward_hook(lambda _m, _i, out: runs.append(out.requires_grad))
losses = [t.step() for _ in range(16)]
found["fed_back"], found["runs"], found["without_gradient"] = t.fed_back, len(runs), runs.count(False)
found["losses"] = {
    name: [float(torch.stack([one[name] for one in part]).mean()) for part in (losses[:4], losses[-4:])]
    for name in ("views", "splat", "clean")
}
found["start_ends"] = ["start" in losses[9], "start" in losses[10]]
coin = torch.Generator().manual_seed(5)
found["coins"] = sum(train_joint.fed_back(coin) for _ in range(400))

# --- stop and go on ---------------------------------------------------------------------------------------------------

whole, first, second = training(), training(), training(networks(seed=7))
for _ in range(4):
    whole.step()
for _ in range(2):
    first.step()
first.save(WORK / "state.safetensors", {"seconds": 1.0})
second.load(WORK / "state.safetensors")
for _ in range(2):
    second.step()
found["resumes"] = (
    equal(whole.trained, second.trained) and equal(whole.average, second.average) and whole.fed_back == second.fed_back
)
found["fed_back_twice"] = [first.fed_back, whole.fed_back - first.fed_back]


def sentence(call) -> str:
    try:
        call()
    except (ValueError, SystemExit) as error:
        return str(error)
    return "no error"


# --- the command, its files, and their parts --------------------------------------------------------------------------

command = [
    "--model", str(WORK / "base.safetensors"), "--pool", str(WORK / "train"), "--held-out", str(WORK / "held"),
    "--work", str(WORK), "--lgm-down", "32", "32", "32", "--lgm-up", "32", "32", "--injector-blocks", "1",
    "--batch", "1", "--rate", "2e-3", "--start", "2",
]  # fmt: skip
found["exit"] = [train_joint.main([*command, "--steps", steps, *more]) for steps, more in (
    ("2", []), ("4", ["--parts", str(WORK / "parts")]))]  # fmt: skip
model_file, lgm_file = WORK / train_joint.MODEL_FILE, WORK / train_joint.LGM_FILE
about = checkpoint.read_meta(model_file)
found["steps"], found["described"] = about["joint"]["steps"], about["injector"]
for stem in ("joint_model", "joint_lgm"):
    train_video_unet.join_parts(WORK / "parts", stem, WORK / f"{stem}_joined.safetensors")
found["joined"] = [
    all(torch.equal(a, b) for a, b in zip(*(checkpoint.read_tensors(p)[0].values() for p in pair), strict=True))
    for pair in ((p, p.with_name(f"{p.stem}_joined.safetensors")) for p in (model_file, lgm_file))
]
found["gate_exit"] = joint_gate.main([
    "--model", str(model_file), "--lgm", str(lgm_file), "--held-out", str(WORK / "held"), "--out", str(WORK / "gate"),
    "--steps", "2",
])  # fmt: skip
found["gate"] = json.loads((WORK / "gate" / "joint_gate.json").read_text())

# --- the same files in ComfyUI ----------------------------------------------------------------------------------------

# A model whose injector certainly acts: four steps hardly move it.
acting = training()
for parameter in acting.networks.injector.parameters():
    parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
an = acting.networks
(WORK / "acting").mkdir()
train_joint.export(an, an.injector, an.lgm, an.unet, WORK / "acting", {}, {"steps": 0})
fresh = networks()
(WORK / "fresh").mkdir()
train_joint.export(fresh, fresh.injector, fresh.lgm, fresh.unet, WORK / "fresh", {}, {"steps": 0})

folder_paths.add_model_folder_path("lgm", str(WORK))
LGM, report = LoadLGM.execute("acting/" + train_joint.LGM_FILE, "auto").args
found["lgm_report"] = report
loaded = joint_gate.load_networks(WORK / "acting" / train_joint.MODEL_FILE, WORK / "acting" / train_joint.LGM_FILE)
cameras = replace(loaded.orbit.cameras, input_view=0)
STEPS = 4
SIGMAS = diffusion.karras_sigmas(STEPS, CONFIG.sigma_min, CONFIG.sigma_max)
noise = torch.randn((VIEWS, 4, 4, 4), generator=torch.Generator().manual_seed(2))
reference = video_data.encode_pictures(vae, shown[1, :1], "cpu").float()


def in_comfyui(model):
    pose = {"elevation": [15.0] * VIEWS, "azimuth": [0.0, 90.0, 180.0, 270.0]}
    positive = [[torch.zeros(1, 1, 1024), {"concat_latent_image": reference, **pose}]]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), SIGMAS,
                             disable_pbar=True, seed=7)  # fmt: skip


def fed_back(model, vae, lgm):
    plain = {
        "strength": 1.0, "keep_input": False, "start_percent": 0.0, "end_percent": 1.0, "input_weight": 1.0,
        "object_only": False, "weight": 2.0, "every": 1, "start_noise": 0.0, "end_noise": 0.3, "seed": 3,
        "first_iterations": 5, "iterations": 2, "points": 100, "coordinates": "auto",
    }  # fmt: skip
    return ThreeDFeedback.execute(model, vae=vae, cameras=cameras, preset=TRAINED, lgm=lgm, **plain)[0]


host_model, host_vae = load_demo_model_for(WORK / "acting" / train_joint.MODEL_FILE, cameras)
given = in_comfyui(fed_back(host_model, host_vae, LGM))
ours, black = (
    joint_gate.sample_fed_back(replace(loaded, feedback=kind), reference, torch.Generator().manual_seed(2), STEPS)[0]
    for kind in ("both", "none")
)
found["host_difference"] = float((given - ours[0]).abs().max())
found["host_difference_black"] = float((in_comfyui(host_model) - black[0]).abs().max())
found["feedback_matters"] = float((ours - black).abs().max())
found["fit_matters"] = float((in_comfyui(fed_back(host_model, host_vae, None)) - black[0]).abs().max())

without, _ = load_trained_demo_model(WORK / "fresh" / train_joint.MODEL_FILE)
zero, zero_vae = load_demo_model_for(WORK / "fresh" / train_joint.MODEL_FILE, cameras)
untouched = in_comfyui(without)
found["zero_start_in_comfyui"] = bool(torch.equal(untouched, in_comfyui(fed_back(zero, zero_vae, LGM))))
found["injector_in_comfyui"] = float((given - untouched).abs().max())
found["base_has_none"] = sentence(lambda: injector_of(load_demo_model_for(WORK / "base.safetensors", cameras)[0]))

# The host's reconstruction is the one that was trained.
with torch.no_grad():
    mine = loaded.splats(loaded.reconstruct(shown[1:, loaded.orbit.picked], torch.tensor([3.0])))[0]
    theirs = lgm_model(*load_lgm(WORK / "acting" / train_joint.LGM_FILE))
    theirs.network.float()
    theirs = theirs(shown[1], cameras, 3.0, min_opacity=0.0)
found["lgm_difference"] = max(float((a - b).abs().max()) for a, b in zip(mine.tensors(), theirs.tensors(), strict=True))
wanted = {"injector": an.injector.state_dict(), "unet": an.unet.state_dict()}
check_weights("UNet", read_checkpoint(WORK / "acting" / train_joint.MODEL_FILE)[1], wanted["unet"])

# --- files and sizes that do not fit ----------------------------------------------------------------------------------

tensors, header = checkpoint.read_tensors(model_file)
cut = {k: v for k, v in tensors.items() if k != "injector.cond_encoder.1.body.1.block2.bias"}
checkpoint.write_tensors(WORK / "cut.safetensors", cut, header)
header.pop("injector")
checkpoint.write_tensors(WORK / "undescribed.safetensors", tensors, header)
tensors, header = checkpoint.read_tensors(lgm_file)
checkpoint.write_tensors(WORK / "larger.safetensors", {**tensors, "rig": torch.tensor([1.5, 49.13, 64.0])}, header)
found["sentences"] = {
    "cut": sentence(lambda: load_demo_model_for(WORK / "cut.safetensors", cameras)),
    "undescribed": sentence(lambda: load_demo_model_for(WORK / "undescribed.safetensors", cameras)),
    "no injector": sentence(lambda: joint_gate.load_networks(WORK / "base.safetensors", lgm_file)),
    "no lgm": sentence(lambda: joint_gate.load_networks(model_file, model_file)),
    "other size": sentence(lambda: joint_gate.load_networks(model_file, WORK / "larger.safetensors")),
    "autoencoder": sentence(lambda: joint_model.build_injector(VideoConfig(size=32, vae_mult=(1, 1)))),
    "views": sentence(lambda: train_joint.main([*command, "--views", "2"])),
    "state": sentence(lambda: train_joint.main([*command, "--unet-rate", "0"])),
}
print("FOUND " + json.dumps(found))
