"""Run by test_training.py in a process of its own, because it imports ComfyUI's classes (COMFY: the folder on the
path).

Trains the smallest possible autoencoder and video UNet for a few steps, stops and continues, exports, loads the file
through nodes/trained_model.py and samples with ComfyUI's own sampler. Prints one JSON line of findings; the tests
judge them.
"""

import copy
import json
import sys
import types
from pathlib import Path

import torch

ROOT, WORK = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
for name, folder in (("mvpack", ROOT), ("mvpack.nodes", ROOT / "nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.ldm.modules.diffusionmodules.util as comfy_util  # noqa: E402
import comfy.sample  # noqa: E402
from mvpack.multiview.demo.objects import HELD_OUT_SEED  # noqa: E402
from mvpack.multiview.demo.video_unet import (  # noqa: E402
    VideoConfig,
    denoised_from_output,
    pose_vector,
    read_checkpoint,
    sinusoids,
)
from mvpack.nodes.trained_model import load_trained_demo_model  # noqa: E402
from mvpack.training import diffusion, gate, pool, train_autoencoder, train_video_unet, video_data  # noqa: E402
from mvpack.training.comfy_classes import build_unet  # noqa: E402

CONFIG = VideoConfig(size=16, views=4, latent_channels=4, model_channels=32, channel_mult=(1, 2), vae_mult=(1, 1))
found = {}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def resumed(make, steps=2):
    """Whether steps + steps with a stop in between end exactly where 2*steps without one do."""
    whole, first, second = make(), make(), make()
    for _ in range(2 * steps):
        whole.step()
    for _ in range(steps):
        first.step()
    first.save(WORK / "state.safetensors", {"seconds": 1.0})
    second.load(WORK / "state.safetensors")
    for _ in range(steps):
        second.step()
    return whole, second


pool.render_pool(WORK / "train", 0, 6, 4, 16, "orbit", shard=3, supersample=1)
pool.render_pool(WORK / "held", HELD_OUT_SEED, 2, 4, 16, "orbit", supersample=1)
pictures = pool.load_pool(WORK / "train", keys=("rgb", "alpha", "seed"))

a, b = resumed(lambda: train_autoencoder.AutoencoderTraining(CONFIG, pictures, total=8, batch=2))
found["autoencoder_resumes"] = equal(a.model, b.model)
vae = a.model.eval()
images = video_data.white_pictures(pictures)[0].permute(0, 3, 1, 2) * 2 - 1
with torch.no_grad():
    before = vae.decode(vae.encode(images))
    train_autoencoder.fold_normalisation(vae, pictures, "cpu", pictures=64)
    latents = torch.cat(
        [
            vae.encode(train_autoencoder.picture_batch(pictures, 32, torch.Generator().manual_seed(i), "cpu") * 2 - 1)
            for i in range(4)
        ]
    )
    found["folding_keeps_decoding"] = float((vae.decode(vae.encode(images)) - before).abs().max())
found["latent_mean"] = float(latents.mean(dim=(0, 2, 3)).abs().max())
found["latent_spread"] = [float(s) for s in latents.std(dim=(0, 2, 3)).aminmax()]
train_autoencoder.export(vae, CONFIG, WORK / "autoencoder.safetensors", {"steps": 4})
vae, _, _ = train_autoencoder.load_autoencoder(WORK / "autoencoder.safetensors")

latent_pool = video_data.LatentPool(WORK / "train", vae, 4, "cpu")
found["pool_objects"] = len(latent_pool)
mirrored = pictures["rgb"][0, [0, 3, 2, 1]].flip(2)
direct = video_data.encode_pictures(
    vae,
    video_data.white_pictures({"rgb": mirrored[None], "alpha": pictures["alpha"][:1, [0, 3, 2, 1]].flip(3)})[0],
    "cpu",
)
found["mirrored_orbit"] = bool(torch.equal(direct, latent_pool.latents[0, 1]))

a, b = resumed(lambda: train_video_unet.VideoTraining(CONFIG, latent_pool, total=8, batch=2))
found["video_resumes"] = equal(a.unet, b.unet) and equal(a.average, b.average)
found["check"] = a.check(latent_pool, scenes=2, steps=2)

torch.manual_seed(0)
unet = build_unet(CONFIG)
fresh_zero = float(
    unet(
        torch.randn(4, 8, 8, 8),
        torch.zeros(4),
        context=torch.randn(4, 64, 20),
        y=torch.randn(4, 1280),
        num_video_frames=4,
    )
    .abs()
    .max()
)
found["fresh_output"] = fresh_zero
loss_batch = latent_pool.batch(4, torch.Generator().manual_seed(0))
training = train_video_unet.VideoTraining(CONFIG, latent_pool, total=60, batch=4, rate=2e-3)
losses = [float(training.step()) for _ in range(40)]
found["losses"] = [sum(losses[:8]) / 8, sum(losses[-8:]) / 8]

model = training.unet.eval()
train_video_unet.export(model, WORK / "autoencoder.safetensors", CONFIG, WORK / "model.safetensors", {"steps": 40})
train_video_unet.write_parts(WORK / "model.safetensors", WORK / "parts", limit=500_000)
train_video_unet.join_parts(WORK / "parts", "model", WORK / "joined.safetensors")
one, two = (read_checkpoint(WORK / f"{n}.safetensors") for n in ("model", "joined"))
found["parts"] = len(list((WORK / "parts").iterdir()))
found["joined_equal"] = (
    one[0] == two[0] and one[3] == two[3] and all(torch.equal(one[i][k], two[i][k]) for i in (1, 2) for k in one[i])
)

# The same file through ComfyUI.
patcher, host_vae = load_trained_demo_model(WORK / "model.safetensors")
picture = video_data.white_pictures(pictures)[0, :1]
with torch.inference_mode():
    z = host_vae.encode(picture)
    pose = {"elevation": [15.0] * 4, "azimuth": [0.0, 90.0, 180.0, 270.0]}
    embedding = torch.ones(1, 1, 1024)
    positive = [[embedding, {"concat_latent_image": z, **pose}]]
    negative = [[embedding, {"concat_latent_image": torch.zeros_like(z), **pose}]]
    noise = torch.randn((4, *z.shape[1:]), generator=torch.Generator().manual_seed(3))
    for sampler, cfg in (("euler", 1.0), ("dpmpp_2m", 2.0)):
        out = comfy.sample.sample(
            patcher,
            noise,
            4,
            cfg,
            sampler,
            "karras",
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=1,
        )
        found[f"{sampler}_finite"] = bool(torch.isfinite(out).all()) and tuple(out.shape) == tuple(noise.shape)
    found["decoded"] = list(host_vae.decode(out).shape)
found["sigmas"] = [float(patcher.model.model_sampling.sigma_min), float(patcher.model.model_sampling.sigma_max)]

# One denoising step by ComfyUI against the training code's own formula on the same weights.
plain = copy.deepcopy(model)
plain.load_state_dict({k: v.float() for k, v in patcher.model.diffusion_model.state_dict().items()})
x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(5)) * 3
sigma = torch.full((4,), 3.0)
z = z.clone()
with torch.no_grad():
    for name, reference in (("given", z), ("dropped", torch.zeros_like(z))):
        cond = video_data.conditioning(CONFIG, reference, 4)
        want = denoised_from_output(x, diffusion.apply_unet(plain, x, sigma, cond, 4), sigma)
        conds = patcher.model.extra_conds(
            noise=x, concat_latent_image=reference, device="cpu", cross_attn=embedding.clone(), **pose
        )
        ready = {k: c.process_cond(batch_size=4, area=None, device="cpu").cond for k, c in conds.items()}
        got = patcher.model.apply_model(x, sigma, **ready)
        found[f"host_difference_{name}"] = float((got - want).abs().max() / want.abs().max())
        found[f"pose_difference_{name}"] = float(
            (ready["y"] - pose_vector(torch.tensor(pose["elevation"]), torch.tensor(pose["azimuth"]))).abs().max()
        )
values = torch.tensor([0.0, 0.3, 2.0, 6.1])
found["sinusoid_difference"] = float((sinusoids(values, 512) - comfy_util.timestep_embedding(values, 512)).abs().max())


def sentence(path):
    try:
        load_trained_demo_model(path)
    except ValueError as error:
        return str(error)
    return "no error"


data = (WORK / "model.safetensors").read_bytes()
(WORK / "cut.safetensors").write_bytes(data[: len(data) // 2])
train_video_unet.write_tensors(WORK / "foreign.safetensors", {"x": torch.zeros(2)}, {"format": "something"})
config, unet_weights, _, meta = one
tensors, header = train_video_unet.read_tensors(WORK / "model.safetensors")
train_video_unet.write_tensors(WORK / "missing.safetensors", dict(list(tensors.items())[5:]), header)
other = {**header, "config": {**header["config"], "model_channels": 64}}
train_video_unet.write_tensors(WORK / "misfit.safetensors", tensors, other)
found["sentences"] = {
    name: sentence(WORK / f"{name}.safetensors") for name in ("absent", "cut", "foreign", "missing", "misfit")
}

found["gate_exit"] = gate.main(
    [
        "--model",
        str(WORK / "model.safetensors"),
        "--pool",
        str(WORK / "train"),
        "--held-out",
        str(WORK / "held"),
        "--out",
        str(WORK / "gate"),
        "--steps",
        "3",
    ]
)
found["gate"] = json.loads((WORK / "gate" / "gate.json").read_text())["verdict"]
found["gate_picture"] = (WORK / "gate" / "gate_views.png").stat().st_size > 0
print("FOUND " + json.dumps(found))
