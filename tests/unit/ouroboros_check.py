"""Run by test_ouroboros_keys.py in a process of its own, because it imports ComfyUI's classes (the folder on the path).

    ouroboros_check.py REPOSITORY FILE

FILE holds a diffusers UNet's tensors, an input and the output of diffusers' own network. Builds ComfyUI's UNet from
the mapped tensors, then Ouroboros3D's model with an injector of random weights, and prints one JSON line of findings.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch

ROOT = Path(sys.argv[1])
torch.set_num_threads(1)
for name, folder in (("mvpack", ROOT), ("mvpack.nodes", ROOT / "nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
sys.path.append(str(ROOT / "tests" / "helpers"))

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import ouroboros_files  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import (  # noqa: E402
    UNetModel,
    forward_timestep_embed,
    timestep_embedding,
)
from mvpack.multiview.cameras import orbit  # noqa: E402
from mvpack.multiview.ouroboros import Injector, InjectorConfig, ray_frame, released_rays  # noqa: E402
from mvpack.multiview.ouroboros_keys import to_comfy, unet_arguments  # noqa: E402
from mvpack.nodes.ouroboros_model import FEEDBACK, injector_of, load_view_model, with_injection  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

given = load_file(sys.argv[2])
data = {k: given.pop(k) for k in list(given) if k.startswith("data.")}
shapes = {k: tuple(v.shape) for k, v in given.items()}
network = UNetModel(**unet_arguments(shapes, 32), operations=comfy.ops.disable_weight_init).eval()
mapped = to_comfy(given)
wanted = network.state_dict()
found = {"missing": sorted(wanted.keys() - mapped.keys())[:3], "extra": sorted(mapped.keys() - wanted.keys())[:3]}
network.load_state_dict(mapped)
sample = data["data.sample"]
frames = sample.shape[1]
numbers = timestep_embedding(data["data.ids"].flatten(), 256).flatten()[None]
with torch.no_grad():
    out = network(
        sample[0], data["data.time"].expand(frames), data["data.context"].expand(frames, -1, -1),
        numbers.expand(frames, -1), num_video_frames=frames,
    )  # fmt: skip
found["off"] = float((out - data["data.out"][0]).abs().max())
found["size"] = float(data["data.out"].abs().max())

# --- the injector on ComfyUI's model ---------------------------------------------------------------------------------

VIEWS, SIDE = 3, 16
CAMERAS = orbit([0.0, 45.0, 90.0], 0.0, 1.7417, 39.6)


def view_model(injector: Injector):
    file = {f"unet.{k}": v.clone() for k, v in given.items()} | dict(injector.state_dict())
    return load_view_model(file)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_unet(model, x, context, parts, more=None):
    """One run of the UNet with the model's patches and wrappers, as the sampler would make it."""
    options = {**model.model_options["transformer_options"], "cond_or_uncond": list(range(parts)), **(more or {})}
    options["wrappers"] = model.wrappers
    rows = len(x)
    with torch.no_grad():
        return model.model.diffusion_model(
            x, torch.full((rows,), 1.3), context, numbers[:1].expand(rows, -1), transformer_options=options,
            num_video_frames=VIEWS,
        )  # fmt: skip


def by_hand(unet, injector, x, context, maps):
    """The UNet's blocks one after another with what references.md 3.4b and 3.5 add between them."""
    frame, k = ray_frame(CAMERAS), CAMERAS.intrinsics
    rays = lambda layer, h: layer(released_rays(frame, k, h.shape[-1]))  # noqa: E731
    features = injector(maps["colour"], maps["coordinates"])
    rows = len(x)
    emb = unet.time_embed(timestep_embedding(torch.full((rows,), 1.3), unet.model_channels))
    emb = emb + unet.label_emb(numbers[:1].expand(rows, -1))
    block = lambda part, h, shape=None: forward_timestep_embed(  # noqa: E731
        part, h, emb, context, {}, shape, num_video_frames=VIEWS
    )
    h, kept = x, []
    for number, part in enumerate(unet.input_blocks):
        h = block(part, h)
        if number in (0, 3, 6, 9):
            h = h + rays(injector.down_plucker[number // 3], h)
        if number == 11:
            h = h + rays(injector.mid_plucker, h)
        kept.append(h)
        if number in (2, 5, 8):
            h = h + features[number // 3]
    h = block(unet.middle_block, h) + features[3]
    for number, part in enumerate(unet.output_blocks):
        if number % 3 == 0:
            h = h + rays(injector.up_plucker[number // 3], h)
        h = torch.cat([h, kept.pop()], dim=1)
        h = block(part, h, kept[-1].shape if kept else None)
    return unet.out(h)


def sampled(model, cfg=2.0):
    picture, embedding = random(1, 4, SIDE, SIDE, seed=4), random(1, 1, 48, seed=5)
    positive = [[embedding, {"concat_latent_image": picture}]]
    negative = [[torch.zeros_like(embedding), {"concat_latent_image": torch.zeros_like(picture)}]]
    latent = torch.zeros(VIEWS, 4, SIDE, SIDE)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, random(VIEWS, 4, SIDE, SIDE, seed=6), 2, cfg, "euler", "karras", positive, negative, latent,
            disable_pbar=True,
        )  # fmt: skip


def refused(text, act):
    try:
        act()
    except ValueError as error:
        return "" if text in str(error) else str(error)
    return f"nothing was refused for: {text}"


widths = InjectorConfig((32, 64, 128, 128))
zero, alive = Injector(widths), Injector(widths)
ouroboros_files.fill(zero, 7)
ouroboros_files.fill(alive, 8, 0.5)
plain = view_model(zero.zero_start())
found["zero_start_is_unpatched"] = torch.equal(sampled(plain), sampled(with_injection(plain, CAMERAS)))
base = view_model(alive)
live = with_injection(base, CAMERAS)
found["injector_changes"] = float((sampled(live) - sampled(base)).abs().max())
x, context = random(VIEWS, 8, SIDE, SIDE, seed=1), random(1, 1, 48, seed=2).expand(VIEWS, -1, -1)
maps = {name: torch.rand(VIEWS, 3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(i)) for i, name in
        enumerate(("colour", "coordinates"))}  # fmt: skip
black = {name: torch.zeros_like(value) for name, value in maps.items()}
unet, injector = live.model.diffusion_model, injector_of(live)
with torch.no_grad():
    wanted = by_hand(unet, injector, x, context, maps)
fed = run_unet(live, x, context, 1, {FEEDBACK: maps})
found["by_hand_off"] = float((fed - wanted).abs().max())
found["fed_maps_matter"] = float((fed - run_unet(live, x, context, 1)).abs().max())
found["nothing_fed_is_black"] = torch.equal(
    run_unet(live, x, context, 1, {FEEDBACK: black}), run_unet(live, x, context, 1)
)
both = run_unet(live, x.repeat(2, 1, 1, 1), torch.cat([context, 0 * context]), 2, {FEEDBACK: maps})
apart = torch.cat([fed, run_unet(live, x, 0 * context, 1, {FEEDBACK: maps})])
found["halves_off"] = float((both - apart).abs().max())
found["maps_of_the_node"] = torch.equal(run_unet(with_injection(base, CAMERAS, maps), x, context, 1), fed)
found["loaded_with_the_model"] = live.get_nested_additional_models()[0].model is injector
found["refusals"] = [
    refused("2 views at a time but its cameras describe 3", lambda: run_unet(live, x[:2], context[:2], 1)),
    refused("square views", lambda: run_unet(live, x[..., :8], context, 1)),
    refused("Feedback maps should have shape", lambda: run_unet(
        live, x, context, 1, {FEEDBACK: {k: v[..., :64] for k, v in maps.items()}})),
    refused("has its Ouroboros3D cameras already", lambda: with_injection(live, CAMERAS)),
]  # fmt: skip
print("FOUND " + json.dumps(found))
