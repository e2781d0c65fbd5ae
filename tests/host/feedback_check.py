"""Run by test_feedback.py in a process of its own, because it imports ComfyUI's classes (the folder on the path).

    feedback_check.py REPOSITORY

Puts MV3DFeedback on the analytic demo model, samples, and compares with the same steps taken by hand. Prints one JSON
line of findings, which the tests judge.
"""

from __future__ import annotations

import copy
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(sys.argv[1])
torch.set_num_threads(1)
for name, folder in (("mvpack", ROOT), ("mvpack.nodes", ROOT / "nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.model_management  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.taesd.taesd  # noqa: E402
from comfy.context_windows import IndexListContextHandler  # noqa: E402
from mvpack.multiview.cameras import orbit  # noqa: E402
from mvpack.multiview.demo.analytic import AnalyticModel, AnalyticOptions  # noqa: E402
from mvpack.multiview.demo.bank import build_bank  # noqa: E402
from mvpack.multiview.feedback import QuickFit  # noqa: E402
from mvpack.multiview.lgm import LGM, LGMConfig  # noqa: E402
from mvpack.multiview.lgm_reconstruct import lgm_model  # noqa: E402
from mvpack.multiview.splats.render import render_gaussians  # noqa: E402
from mvpack.nodes.analytic_model import make_analytic_model  # noqa: E402
from mvpack.nodes.feedback import ThreeDFeedback  # noqa: E402

VIEWS, SIDE = 6, 32
CAMERAS = orbit([60.0 * i for i in range(VIEWS)], 15.0, 1.5, 49.13, input_view=0)
SIGMAS = torch.tensor([40.0, 8.0, 2.0, 0.5, 0.0])
BANK = build_bank(CAMERAS, SIDE, 1, 2, 0)
ANALYTIC = AnalyticModel(BANK, AnalyticOptions(window=9, kappa=0.0))
MODEL, VAE = make_analytic_model(BANK, ANALYTIC.options)
REFERENCE = BANK.references[0].movedim(-1, 0).float()[None] / 127.5 - 1
FIT = {"first_iterations": 6, "iterations": 3, "points": 200}
# At the first and third step, sigma 40 and 2.
PLAIN = {"preset": "custom", "weight": 1.5, "every": 2, "start_noise": 1000.0, "end_noise": 0.1}
found: dict = {}


def node(model=MODEL, **changed):
    inputs = {
        "vae": VAE, "cameras": CAMERAS, "preset": "default", "strength": 1.0, "keep_input": False, "start_percent": 0.0,
        "end_percent": 1.0, "input_weight": 1.0, "object_only": False, "weight": 2.0, "every": 1, "start_noise": 0.0,
        "end_noise": 0.3, "seed": 3, "coordinates": "released", **FIT,
    }  # fmt: skip
    return ThreeDFeedback.execute(model, **{**inputs, **changed})[0]


def noise():
    return torch.randn(VIEWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def sample(model, callback=None, sampler="euler"):
    pose = {"azimuth": CAMERAS.azimuths().tolist(), "elevation": CAMERAS.elevations().tolist()}
    positive = [[torch.zeros(1, 1, 1024), {"concat_latent_image": REFERENCE, **pose}]]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    start = noise()
    with torch.inference_mode():
        return guider.sample(start, torch.zeros_like(start), comfy.samplers.sampler_object(sampler), SIGMAS,
                             callback=callback, disable_pbar=True, seed=7)  # fmt: skip


def by_hand(object_only=False):
    """Euler's method with feedback at the first and third step, written out."""
    fit, last = QuickFit(CAMERAS, 6, 3, 200, seed=3), None
    x = noise() * SIGMAS[0]
    for step, (now, after) in enumerate(zip(SIGMAS[:-1], SIGMAS[1:], strict=True)):
        clean = ANALYTIC.denoise(x, float(now), REFERENCE)
        if step % 2 == 0:
            images = (clean / 2 + 0.5).clamp(0, 1).movedim(1, -1)
            last = fit(images, last)
            with torch.no_grad():
                edge = torch.cat([images[:, [0, -1]].flatten(0, 2), images[:, :, [0, -1]].flatten(0, 2)])
                drawn = render_gaussians(last, CAMERAS, SIDE, SIDE, edge.median(dim=0).values)
            target = drawn.features.clamp(0, 1).movedim(-1, 1) * 2 - 1
            weight = 1.5 * torch.ones(VIEWS, 1, 1, 1)
            if object_only:
                weight = weight * drawn.alpha.movedim(-1, 1)
            clean = clean + weight * (target - clean)
        x = clean + (x - clean) * (after / now)
    return x


def gap(a, b) -> float:
    """Mean, not largest: a fit turns the last digits of its pictures into visible differences in single pixels."""
    return float((a - b).abs().mean())


def sampling() -> None:
    plain = sample(MODEL)
    first = sample(node(**PLAIN))
    found["feedback matters"] = gap(first, plain)
    found["by hand"] = gap(first, by_hand())
    kept = sample(node(**{**PLAIN, "every": 1}, keep_input=True))
    found["input view alone"] = gap(kept[0], plain[0])
    found["input view fed back"] = gap(sample(node(**{**PLAIN, "every": 1}))[0], plain[0])
    found["object only"] = gap(sample(node(**PLAIN, object_only=True)), by_hand(object_only=True))
    found["another seed"] = gap(sample(node(**PLAIN, seed=4)), first)
    again = node(**PLAIN)
    found["runs alike"] = torch.equal(sample(again), sample(again)) and torch.equal(sample(again), first)
    off = node(strength=0.0)
    found["strength 0"] = torch.equal(sample(off), plain) and "sampler_post_cfg_function" not in off.model_options
    found["original untouched"] = "sampler_post_cfg_function" not in MODEL.model_options
    found["heun"] = gap(sample(node(**PLAIN), sampler="heun"), plain)
    early = node(preset="Cycle3D (every step)", end_percent=0.3)
    found["ended early"] = gap(sample(early), plain)
    never = node(preset="Cycle3D (every step)", start_percent=0.95)
    found["began too late"] = torch.equal(sample(never), plain)


def cancelling() -> None:
    steps = []

    def stop(step, *_):
        steps.append(step)
        comfy.model_management.interrupt_current_processing(True)

    try:
        sample(node(preset="Cycle3D (every step)"), callback=stop)
    except comfy.model_management.InterruptProcessingException:
        found["cancelled after"] = steps


def said(name: str, run) -> None:
    try:
        run()
        found["said"][name] = "nothing"
    except ValueError as error:
        found["said"][name] = str(error)


def refusals() -> None:
    found["said"] = {}
    nameless = replace(CAMERAS, input_view=None)
    said("percent", lambda: node(start_percent=0.6, end_percent=0.5))
    said("window", lambda: node(preset="custom", start_noise=1.0, end_noise=2.0))
    said("no input view", lambda: node(cameras=nameless, keep_input=True))
    said("no input view to weigh", lambda: node(cameras=nameless, input_weight=3.0))
    # Real VAEs: the tiny one of SD, with 4 channels, and the model's own as if its cells were larger.
    said("vae", lambda: node(vae=comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())))
    coarse = copy.copy(VAE)
    coarse.downscale_ratio = coarse.upscale_ratio = 8
    said("vae cells", lambda: node(vae=coarse))
    lgm = lgm_model(LGM(LGMConfig((32,) * 3, (False,) * 3, (32,) * 2, (False,) * 2)), "lgm")
    said("lgm views", lambda: node(lgm=lgm))
    said("lgm, three views", lambda: node(lgm=lgm, cameras=CAMERAS.subset([0, 2, 4])))
    said("lgm, one view", lambda: node(lgm=lgm, cameras=CAMERAS.subset([0])))
    windowed = MODEL.clone()
    windowed.model_options["context_handler"] = IndexListContextHandler(None, None, context_length=4)
    said("windows", lambda: node(windowed))
    said("count", lambda: sample(node(cameras=orbit([0.0, 90.0], 15.0, 1.5, 49.13))))


sampling()
cancelling()
refusals()
print("FOUND " + json.dumps(found))
