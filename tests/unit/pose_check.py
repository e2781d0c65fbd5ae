"""Run by test_pose_model.py in a process of its own, because it imports ComfyUI's classes (COMFY: on the path).

MIRAGE's way on a generated category: cluster, save the folder, train a tiny pose model (stopped and continued), load it
through nodes/pose_model.py and sample with ComfyUI's own sampler. Prints one JSON line of findings; the tests judge.
"""

import importlib.util
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

import comfy.sample  # noqa: E402
from mvpack.multiview import pose_clusters  # noqa: E402
from mvpack.multiview.pose_folder import read_pose_folder, write_pose_folder  # noqa: E402
from mvpack.multiview.pose_unet import PoseConfig, noise_levels, pose_vectors  # noqa: E402
from mvpack.nodes import pose_model  # noqa: E402
from mvpack.training import train_pose_unet as tp  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

POSES, SIDE, STEPS = 4, 16, 110
found = {"sentences": {}}


def sentence(name, call):
    try:
        call()
    except (ValueError, SystemExit) as error:
        found["sentences"][name] = str(error)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- the folder: a category with known poses, clustered ---------------------------------------------------------------

spec = importlib.util.spec_from_file_location("category", Path(__file__).with_name("test_pose_clusters.py"))
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
made.POSES = POSES
pictures, truth, _ = made.category(120, seed=4)
settings = pose_clusters.ClusterSettings(POSES, side=made.SIDE, batch=30)
clusters = pose_clusters.fit_pose_clusters(pictures, made.features_of, settings)
found["purity"] = made.purity(clusters.labels, truth)
folder = WORK / "category"
write_pose_folder(folder, pose_clusters.cut(pictures, clusters.boxes, SIDE), clusters.labels, POSES)
images, labels, poses = read_pose_folder(folder)
found["folder"] = [list(images.shape), torch.equal(labels, clusters.labels), poses]

# --- training ---------------------------------------------------------------------------------------------------------

config = PoseConfig(POSES, SIDE, model_channels=32, channel_mult=(1, 2), num_res_blocks=1)


def start():
    return tp.PoseTraining(config, images, labels, seed=3, batch=12, rate=2e-3, decay=0.95)


whole, first, second = start(), start(), start()
for _ in range(4):
    whole.step()
for _ in range(2):
    first.step()
first.save(WORK / "state.safetensors", {"seconds": 1.0})
second.load(WORK / "state.safetensors")
for _ in range(2):
    second.step()
whole.export(WORK / "noise.safetensors", {"steps": 4})
found["resumes"] = equal(whole.unet, second.unet) and equal(whole.average, second.average)
found["fresh_loss"] = start().check()
options = ["--folder", folder, "--work", WORK, "--channels", 32, "--mult", 1, 2, "--res-blocks", 1, "--batch", 12,
           "--rate", 2e-3, "--decay", 0.95, "--steps", STEPS, "--seed", 3, "--prediction", "v"]  # fmt: skip
found["exit"] = tp.main([str(o) for o in options])
path = WORK / "pose_model.safetensors"

# --- in ComfyUI -------------------------------------------------------------------------------------------------------

model, vae, means, meta = pose_model.load_pose_model(path)
found["trained_loss"] = meta["check"]
found["means"] = list(means.shape)
sampling = model.get_model_object("model_sampling")
found["levels"] = float((sampling.sigmas.double() / noise_levels() - 1).abs().max())

g = torch.Generator().manual_seed(0)
t = torch.tensor([3, 250, 600, 990])
sigma = noise_levels().float()[t]
level = sigma.view(-1, 1, 1, 1)
x = torch.randn(4, 3, SIDE, SIDE, generator=g) * level
vectors = pose_vectors(torch.tensor([0, 1, 3, -1]), POSES)
found["host_difference"] = []
for file, kind in ((WORK / "noise.safetensors", "noise"), (path, "v")):
    stored = load_file(file)
    weights = {k.removeprefix("model.diffusion_model."): v for k, v in stored.items() if k.startswith("model.")}
    network = start().unet.eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        answer = tp.predict(network, x, t, vectors)
        # The clean picture from the noise, x = clean + sigma noise; and from v = (noise - sigma clean) / root.
        root = (level.square() + 1).sqrt()
        want = x - level * answer if kind == "noise" else x / root.square() - level * answer / root
        ours = pose_model.load_pose_model(file)[0].model.apply_model(x, sigma, c_crossattn=vectors[:, None], y=vectors)
    found["host_difference"].append(float((ours - want).abs().max() / want.abs().max()))


def conditioning(text="all", first=-1):
    return pose_model.PoseConditioning.execute(model, text, first).result


def draw(positive, negative, latent, seed, cfg=1.0, steps=10):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 3, SIDE, SIDE, generator=generator).expand(len(latent), -1, -1, -1)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=seed
    )


positive, negative, latent, count = conditioning()
found["count"] = [count, list(latent["samples"].shape)]
drawn = torch.stack([vae.decode(draw(positive, negative, latent["samples"], seed)) for seed in range(3)])
found["drawn"] = list(drawn.shape)
found["same_noise_spread"] = float((drawn[:, 0] - drawn[:, 1]).abs().mean())
distance = (drawn[:, :, None] - means).square().mean((3, 4, 5))  # (seed, pose asked for, pose compared with)
found["right_pose"] = float((distance.argmin(2) == torch.arange(POSES)).float().mean())
guided = draw(positive, negative, latent["samples"], 0, cfg=2.0)
found["guidance_acts"] = float((vae.decode(guided) - drawn[0]).abs().mean())
found["first"] = conditioning("all", 2)[0][0][1]["pooled_output"].argmax(1).tolist()
found["listed"] = conditioning(" 3, 0 ")[0][0][1]["pooled_output"].argmax(1).tolist()
found["alone"] = conditioning("", 1)[0][0][1]["pooled_output"].argmax(1).tolist()

# --- sentences --------------------------------------------------------------------------------------------------------

sentence("pose", lambda: conditioning("4"))
sentence("text", lambda: conditioning("front"))
sentence("nothing", lambda: conditioning(""))
sentence("count", lambda: draw(positive, negative, latent["samples"][:3], 0))
sentence("prompt", lambda: draw([[torch.zeros(1, 77, 768), {}]], negative, latent["samples"], 0))
sentence("absent", lambda: pose_model.load_pose_model(WORK / "no.safetensors"))
(WORK / "cut.safetensors").write_bytes(path.read_bytes()[:2000])
sentence("cut", lambda: pose_model.load_pose_model(WORK / "cut.safetensors"))
save_file({"a": torch.zeros(1)}, WORK / "foreign.safetensors")
sentence("foreign", lambda: pose_model.load_pose_model(WORK / "foreign.safetensors"))
sentence("folder", lambda: tp.main(["--folder", str(WORK / "nothing")]))
sentence("resumed", lambda: tp.PoseTraining(PoseConfig(POSES, SIDE, 64, (1, 2), 1), images, labels).load(
    WORK / "state.safetensors"))  # fmt: skip
sheet = (torch.cat([torch.cat(list(row), 1) for row in [means, *drawn]]).clamp(0, 1) * 255).to(torch.uint8)
from mvpack.training.pictures import write_png  # noqa: E402

write_png(WORK / "drawn.png", sheet.repeat_interleave(4, 0).repeat_interleave(4, 1))
print("FOUND " + json.dumps(found))
