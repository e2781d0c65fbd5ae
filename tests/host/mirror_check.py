"""Run by test_mirror.py in a process of its own, because it imports ComfyUI's classes (the folder on the path).

    mirror_check.py REPOSITORY

Puts the node's pull on real ComfyUI models (the analytic demo model; UNets with random weights), samples, and compares
with the same steps taken by hand. Prints one JSON line of findings, which the tests judge.
"""

from __future__ import annotations

import json
import math
import sys
import time
import types
from dataclasses import replace
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

import comfy.k_diffusion.sampling as k_sampling  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import small_unets  # noqa: E402
from comfy.context_windows import IndexListContextHandler  # noqa: E402
from comfy_extras import nodes_custom_sampler  # noqa: E402
from mvpack.multiview.cameras import orbit  # noqa: E402
from mvpack.multiview.correspondence import track  # noqa: E402
from mvpack.multiview.demo.analytic import AnalyticModel, AnalyticOptions  # noqa: E402
from mvpack.multiview.demo.bank import build_bank  # noqa: E402
from mvpack.multiview.demo.objects import make_object  # noqa: E402
from mvpack.multiview.demo.raycast import render_object  # noqa: E402
from mvpack.multiview.depth import DepthMaps  # noqa: E402
from mvpack.multiview.mirror import MirrorOptions, rectify  # noqa: E402
from mvpack.nodes.analytic_model import make_analytic_model  # noqa: E402
from mvpack.nodes.mirror import CorrespondencePreview, MirrorRectify  # noqa: E402
from mvpack.nodes.mirror_patch import POST_CFG  # noqa: E402

VIEWS, SIDE = 6, 24
CAMERAS = orbit([60.0 * i for i in range(VIEWS)], 15.0, 1.5, 49.13, input_view=0)
SIGMAS = torch.tensor([80.0, 20.0, 6.0, 2.0, 0.7, 0.2, 0.0])
# A pull that acts at all of these sigmas, with sharp edges, so that eta is 0.5 exactly.
PLAIN = {"preset": "custom", "eta": 0.5, "end_noise": 0.0, "softness": 0.0, "iterations": 1, "guidance": 1.0}
found: dict = {}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gap(a, b) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-12))


BANK = build_bank(CAMERAS, SIDE, 2, 2, 0)
SEED = int(BANK.seeds[0])
TRUE = render_object(make_object(SEED, 0, 2), CAMERAS, 4 * SIDE, 1)
DEPTH = DepthMaps(TRUE.depth, (TRUE.depth > 0).float())
MATCHES = track(CAMERAS, (SIDE, SIDE), TRUE.depth, depth_error=0.0)


def node(model, **changed):
    inputs = {
        "cameras": CAMERAS, "preset": "default", "strength": 1.0, "correspondence": "perspective", "start_percent": 0.0,
        "end_percent": 1.0, "pin_input": False, "occlusion": True, "depth_error": 0.0, "jacobian": False, "eta": 0.75,
        "start_noise": 0.0, "end_noise": 0.3, "softness": 0.7, "iterations": 4, "guidance": 1.0, "block": 3,
        "positive": 0.5, "negative": "image", "temperature": 1.0, "neighbours": 1, "falloff": 1.0, "depth": DEPTH,
    }  # fmt: skip
    return MirrorRectify.execute(model, **{**inputs, **changed})[0]


class Demo:
    """The analytic model as MODEL, and by hand."""

    def __init__(self):
        self.analytic = AnalyticModel(BANK, AnalyticOptions(window=9, kappa=0.0))
        self.model, _ = make_analytic_model(BANK, self.analytic.options)
        self.reference = BANK.references[0].movedim(-1, 0).float()[None] / 127.5 - 1
        pose = {"azimuth": CAMERAS.azimuths().tolist(), "elevation": CAMERAS.elevations().tolist()}
        empty = torch.zeros(1, 1, 1024)
        self.positive = [[empty, {"concat_latent_image": self.reference, **pose}]]
        self.negative = [[empty, {"concat_latent_image": torch.zeros_like(self.reference), **pose}]]

    def guider(self, model, cfg=1.0):
        made = comfy.samplers.CFGGuider(model)
        made.set_conds(self.positive, self.negative)
        made.set_cfg(cfg)
        return made

    def by_hand(self, x, sigma, cfg):
        clean = self.analytic.denoise(x, sigma, self.reference)
        if cfg != 1:
            without = self.analytic.denoise(x, sigma, None)
            clean = without + (clean - without) * cfg
        return clean

    def sample(self, model, sampler="euler", cfg=1.0, noise=None, latent=None, sigmas=SIGMAS, **more):
        noise = random(VIEWS, 3, SIDE, SIDE, seed=1) if noise is None else noise
        latent = torch.zeros_like(noise) if latent is None else latent
        with torch.inference_mode():
            return self.guider(model, cfg).sample(
                noise, latent, comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=7, **more
            )


def pulled_by_hand(x0):
    return rectify(x0, MATCHES, 0.5, MirrorOptions())


def samplers(demo: Demo) -> None:
    """Core's sampler functions on a denoiser written out here, and Euler and 2M written out as well."""
    patched = node(demo.model, **PLAIN)
    start = random(VIEWS, 3, SIDE, SIDE, seed=1) * SIGMAS[0]
    for cfg in (1.0, 2.5):

        def denoise(x, sigma, cfg=cfg, **_):
            return pulled_by_hand(demo.by_hand(x, sigma, cfg))

        # Some of core's samplers ask which kind of model it is.
        denoise.inner_model = types.SimpleNamespace(inner_model=demo.model.model)
        for name in ("euler", "dpmpp_2m", "euler_ancestral"):
            function = getattr(k_sampling, f"sample_{name}")
            wanted = function(denoise, start.clone(), SIGMAS, extra_args={"seed": 7}, disable=True)
            found[f"{name} cfg {cfg}"] = gap(demo.sample(patched, name, cfg), wanted)
        x = start.clone()
        for now, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
            clean = denoise(x, now)
            x = clean + (x - clean) * (after / now)
        found[f"euler written out cfg {cfg}"] = gap(demo.sample(patched, "euler", cfg), x)
        found[f"ddim cfg {cfg}"] = gap(demo.sample(patched, "ddim", cfg), x)
    found["pull matters"] = gap(demo.sample(patched), demo.sample(demo.model))

    ksampler = comfy.samplers.KSampler(patched, 6, torch.device("cpu"), "euler", "karras")
    noise = random(VIEWS, 3, SIDE, SIDE, seed=1)
    with torch.inference_mode():
        got = ksampler.sample(
            noise, demo.positive, demo.negative, 1.0, latent_image=torch.zeros_like(noise), disable_pbar=True, seed=7
        )
        custom = nodes_custom_sampler.SamplerCustomAdvanced
        run = getattr(custom, "execute", None) or custom().sample
        latent = {"samples": torch.zeros_like(noise)}
        euler = comfy.samplers.sampler_object("euler")
        advanced = run(Fixed(noise), demo.guider(patched), euler, SIGMAS, latent)[0]["samples"]
    found["SamplerCustomAdvanced"] = gap(advanced, demo.sample(patched))
    x = noise * (1 + ksampler.sigmas[0] ** 2).sqrt()
    for now, after in zip(ksampler.sigmas[:-1], ksampler.sigmas[1:], strict=True):
        clean = pulled_by_hand(demo.by_hand(x, now, 1.0))
        x = clean + (x - clean) * (after / now)
    found["KSampler"] = gap(got, x)


class Fixed:
    """Noise that is given."""

    seed = 7

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, _latent):
        return self.noise


def strength(demo: Demo) -> None:
    off = node(demo.model, strength=0.0)
    found["strength 0 same"] = bool(torch.equal(demo.sample(off), demo.sample(demo.model)))
    found["strength 0 patches"] = len(off.model_options.get(POST_CFG, []))
    found["original untouched"] = len(demo.model.model_options.get(POST_CFG, []))
    half = node(demo.model, **{**PLAIN, "strength": 0.5, "eta": 1.0})
    found["strength scales"] = gap(demo.sample(half), demo.sample(node(demo.model, **PLAIN)))


def schedules(demo: Demo) -> None:
    """Which steps are pulled, and by how much, read off the patch itself."""

    def etas(model, sigmas=SIGMAS):
        (patch,) = model.model_options[POST_CFG]
        options = {"transformer_options": {"sample_sigmas": sigmas}}
        return [patch.eta(model.get_model_object("model_sampling"), float(s), options) for s in sigmas[:-1]]

    found["eta window"] = etas(node(demo.model, **{**PLAIN, "start_noise": 10.0, "end_noise": 1.0}))
    found["eta percent"] = etas(node(demo.model, **{**PLAIN, "start_percent": 0.2, "end_percent": 0.5}))
    fifty = torch.linspace(14.0, 0.05, 50).tolist() + [0.0]
    found["eta eq31"] = etas(node(demo.model, preset="paper Eq. 31"), torch.tensor(fifty))
    found["sigmas"] = fifty
    pinned = node(demo.model, **{**PLAIN, "pin_input": True}).model_options[POST_CFG][0]
    x0 = random(VIEWS, 3, SIDE, SIDE, seed=3)
    out = pinned(call(demo.model, x0))
    found["pinned view kept"] = bool(torch.equal(out[0], x0[0])) and not torch.equal(out[1], x0[1])
    flow = comfy.model_sampling.ModelSamplingDiscreteFlow
    sampling = type("Flow", (flow, comfy.model_sampling.CONST), {})()
    patch = node(demo.model, **{**PLAIN, "start_noise": 3.0, "end_noise": 0.5}).model_options[POST_CFG][0]
    # S = sigma / (1 - sigma) = 3 at 0.75 and 0.5 at 1/3.
    found["eta flow"] = [patch.eta(sampling, s, {}) for s in (1.0, 0.8, 0.7, 0.4, 0.3)]


def call(model, denoised, sigma=3.0, **more) -> dict:
    """What the host hands to a post-CFG function."""
    return {
        "denoised": denoised, "sigma": torch.full((len(denoised),), sigma), "model": model.model, "input": denoised,
        "model_options": model.model_options, "cond": None, "uncond": None, "cond_scale": 1.0, **more,
    }  # fmt: skip


def shapes_and_types(demo: Demo) -> None:
    patch = node(demo.model, **PLAIN).model_options[POST_CFG][0]
    x0 = random(2, VIEWS, 3, SIDE, SIDE, seed=3)
    each = torch.stack([pulled_by_hand(x) for x in x0])
    found["two sets"] = gap(patch(call(demo.model, x0.flatten(0, 1))), each.flatten(0, 1))
    found["video"] = gap(patch(call(demo.model, x0.movedim(1, 2))), each.movedim(1, 2))
    found["pictures with a time axis"] = gap(patch(call(demo.model, x0[0][:, :, None])), each[0][:, :, None])
    for dtype in (torch.float16, torch.bfloat16):
        out = patch(call(demo.model, x0[0].to(dtype)))
        found[f"{dtype}"] = [str(out.dtype), gap(out.float(), each[0])]
    kept = x0[0].clone()
    patch(call(demo.model, x0[0]))
    found["input kept"] = bool(torch.equal(kept, x0[0]))
    twice = demo.sample(node(demo.model, **PLAIN), noise=random(2 * VIEWS, 3, SIDE, SIDE, seed=1))
    found["two sets sampled"] = list(twice.shape)


def together(demo: Demo) -> None:
    """Masks, previews, and other packs' post-CFG functions."""
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1
    latent = random(VIEWS, 3, SIDE, SIDE, seed=5)
    inside = demo.sample(node(demo.model, **PLAIN), latent=latent, denoise_mask=mask)
    found["masked part kept"] = float((inside - latent)[..., : SIDE // 2].abs().max())
    found["rest drawn"] = float((inside - latent)[..., SIDE // 2 :].abs().max())
    seen, noted = [], []

    def before(given):
        noted.append(given["denoised"])
        return given["denoised"] * 0.9

    def after(given):
        noted.append(given["denoised"])
        return given["denoised"]

    chained = demo.model.clone()
    chained.set_model_sampler_post_cfg_function(before)
    chained = node(chained, **PLAIN).clone()
    chained.set_model_sampler_post_cfg_function(after)
    demo.sample(chained, callback=lambda step, x0, x, total: seen.append(x0.clone()))
    found["chained"] = max(gap(b, pulled_by_hand(a * 0.9)) for a, b in zip(noted[::2], noted[1::2], strict=True))
    found["previews"] = max(gap(a, b) for a, b in zip(seen, noted[1::2], strict=True))


def said(name: str, run) -> None:
    try:
        run()
        found["said"][name] = ""
    except ValueError as error:
        found["said"][name] = str(error)


def changed_depth(change) -> DepthMaps:
    depth = TRUE.depth.clone()
    return DepthMaps(change(depth), (TRUE.depth > 0).float())


def refusals(demo: Demo) -> None:
    found["said"] = {}
    model = demo.model
    spot = torch.zeros(TRUE.depth.shape, dtype=torch.bool)
    spot[2, 9, 9] = True
    nan = changed_depth(lambda d: d.masked_fill(spot, math.nan))
    constant = changed_depth(lambda d: torch.where(d > 0, 1.5, 0.0))
    said("no depth", lambda: node(model, depth=None))
    said("depth count", lambda: node(model, depth=DepthMaps(TRUE.depth[:5], TRUE.depth[:5])))
    said("depth nan", lambda: node(model, depth=nan))
    said("depth zero", lambda: node(model, depth=changed_depth(torch.zeros_like)))
    said("depth constant", lambda: node(model, depth=constant))
    said("depth negative", lambda: node(model, depth=changed_depth(torch.neg)))
    lone = changed_depth(lambda d: torch.where(spot, 1.2, torch.zeros_like(d)))
    said("no matches", lambda: node(model, depth=lone))
    said("mask background", lambda: node(model, mask=torch.zeros(VIEWS, 8, 8)))
    said("mask count", lambda: node(model, mask=torch.ones(2, 8, 8)))
    said("window", lambda: node(model, **{**PLAIN, "start_noise": 1.0, "end_noise": 2.0}))
    said("percent", lambda: node(model, start_percent=0.6, end_percent=0.5))
    said("pin", lambda: node(model, cameras=replace(CAMERAS, input_view=None), pin_input=True))
    windowed = model.clone()
    windowed.model_options["context_handler"] = IndexListContextHandler(None, None, context_length=4)
    said("windows before", lambda: node(windowed))
    late = node(model)
    late.model_options["context_handler"] = IndexListContextHandler(None, None, context_length=4)
    x0 = random(VIEWS, 3, SIDE, SIDE)
    (patch,) = late.model_options[POST_CFG]
    said("windows after", lambda: patch(call(late, x0)))
    said("fewer views", lambda: patch(call(model, x0[:4])))
    said("no sigmas", lambda: node(model, preset="paper Eq. 31").model_options[POST_CFG][0](call(model, x0)))
    said("fewer views sampled", lambda: unet_sample(node(small_unets.sd15(), depth=DEPTH), views=4))
    pictures = torch.rand(VIEWS, 48, 48, 3)
    look = {
        "views": pictures, "cameras": CAMERAS, "which": "0", "points": 5, "neighbours": 1, "occlusion": True,
        "correspondence": "perspective", "depth_error": 0.0, "cell": 2, "depth": DEPTH,
    }  # fmt: skip
    for name, change in (("which", {"which": "0, six"}), ("which high", {"which": "6"}),
                         ("views count", {"views": pictures[:3]}), ("preview depth", {"depth": None})):  # fmt: skip
        said(name, lambda change=change: CorrespondencePreview.execute(**{**look, **change}))
    # The harm of constant depth, were it let through: how many matches would be left, and how many cells they miss by.
    flat = track(CAMERAS, (SIDE, SIDE), constant.depth, depth_error=0.02)
    both = flat.valid & MATCHES.valid
    off = (flat.uv - MATCHES.uv).norm(dim=-1)[both].mean()
    found["constant depth matches"] = [float(flat.valid.sum() / MATCHES.valid.sum()), float(off)]


def unet_sample(model, views=VIEWS, sigmas=(5.0, 1.0, 0.0), cfg=2.0):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[random(1, 4, 64, seed=2), {}]], [[random(1, 4, 64, seed=3), {}]])
    guider.set_cfg(cfg)
    noise = random(views, 4, SIDE, SIDE, seed=1)
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"),
                             torch.tensor(sigmas), disable_pbar=True, seed=7)  # fmt: skip


def jacobian_product(model, sample, sigma, step=2e-2) -> list[float]:
    """[<d, J p> / <p, p> - 1, |p - d| / |d|] for p = J^T d as the node gives it; the first is 0 if p is right.

    d: what the detached pull does. J p: central differences of the model without the node. Everything runs in inference
    mode, as in the host.
    """
    outs = {}

    def probe(kind, shift=None, **changed):
        clone = node(model, **{**PLAIN, **changed}) if changed else model.clone()

        def watch(given):
            outs[kind] = given["denoised"].double()
            return given["denoised"]

        clone.set_model_sampler_post_cfg_function(watch)
        sample(clone, sigma, shift)
        return outs[kind]

    plain, detached, through = probe("plain"), probe("detached", jacobian=False), probe("through", jacobian=True)
    direction, product = detached - plain, through - plain
    way = (product / product.square().mean().sqrt() * step * sigma).float()
    slope = (probe("ahead", way) - probe("behind", -way)) / 2
    length = float(way.double().norm() / product.norm())
    ratio = float((direction * slope).sum() / length / product.square().sum())
    return [ratio - 1, float((product - direction).norm() / direction.norm())]


def jacobians(demo: Demo) -> None:
    noise = random(VIEWS, 3, SIDE, SIDE, seed=1)

    def on_demo(model, sigma, shift):
        start = noise if shift is None else noise + shift / sigma
        demo.sample(model, noise=start, sigmas=torch.tensor([sigma, 0.0]), cfg=1.5)

    found["jacobian analytic"] = jacobian_product(demo.model, on_demo, 2.0, 5e-4)
    # Weights made in inference mode, as ComfyUI's loaders make them.
    with torch.inference_mode():
        video, sd15 = small_unets.sv3d_p(), small_unets.sd15()
    found["weights are inference tensors"] = next(sd15.model.diffusion_model.parameters()).is_inference()
    picture = random(1, 4, SIDE, SIDE, seed=4)
    pose = {"azimuth": [60.0 * i for i in range(VIEWS)], "elevation": [15.0] * VIEWS}
    embedding = random(1, 1, 64, seed=2)
    latent_noise = random(VIEWS, 4, SIDE, SIDE, seed=1)

    def on_unet(positive, negative):
        def sample(model, sigma, shift):
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(1.5)
            start = latent_noise if shift is None else latent_noise + shift / sigma
            with torch.inference_mode():
                guider.sample(start, torch.zeros_like(start), comfy.samplers.sampler_object("euler"),
                              torch.tensor([sigma, 0.0]), disable_pbar=True, seed=7)  # fmt: skip

        return sample

    conds = [[[embedding, {"concat_latent_image": p, **pose}]] for p in (picture, torch.zeros_like(picture))]
    found["jacobian video"] = jacobian_product(video, on_unet(*conds), 2.0)
    text = [[[random(1, 4, 64, seed=s), {}]] for s in (2, 3)]
    found["jacobian sd15"] = jacobian_product(sd15, on_unet(*text), 2.0)
    with torch.inference_mode():
        described = comfy.supported_models.SD15(small_unets.unet_config(4, 32, [1, 2], 64, None, [1, 1, 1, 1]))
        described.unet_config |= {"num_head_channels": 32, "num_heads": -1}
        described.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
        eight = small_unets.finished(described.get_model({}, ""), torch.float8_e4m3fn)
    found["jacobian fp8"] = jacobian_product(eight, on_unet(*text), 2.0)
    cut = sd15.clone()
    cut.set_model_unet_function_wrapper(lambda run, a: run(a["input"], a["timestep"], **a["c"]).detach())
    through = {**PLAIN, "jacobian": True}
    said("no gradient", lambda: unet_sample(node(cut, **through)))
    moody = sd15.clone()
    moody.set_model_unet_function_wrapper(lambda run, a: run(a["input"], a["timestep"], **a["c"]) + torch.randn(1))
    said("another result", lambda: unet_sample(node(moody, **through)))
    found["weights given back"] = next(sd15.model.diffusion_model.parameters()).is_inference()


def main() -> None:
    demo = Demo()
    for part in (strength, samplers, schedules, shapes_and_types, together, refusals, jacobians):
        start = time.process_time()
        part(demo)
        found[f"seconds {part.__name__}"] = time.process_time() - start
    print("FOUND " + json.dumps(found))


main()
