"""Run by test_harmony.py in a process of its own, because it imports ComfyUI's classes (the folder on the path).

    harmony_check.py REPOSITORY small|full

Builds real ComfyUI models with random weights, runs the guider on them and prints one JSON line of findings; the tests
judge them.
"""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import torch

ROOT, SIZE = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
for name, folder in (("mvpack", ROOT), ("mvpack.nodes", ROOT / "nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
sys.path.append(str(ROOT / "tests" / "helpers"))

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.samplers  # noqa: E402
import small_unets  # noqa: E402
from comfy.context_windows import IndexListContextHandler  # noqa: E402
from comfy.hooks import create_hook_lora, set_hooks_for_conditioning  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy_extras.nodes_custom_sampler import Guider_Basic  # noqa: E402
from mvpack.multiview.cameras import orbit  # noqa: E402
from mvpack.multiview.demo.analytic import AnalyticModel, AnalyticOptions  # noqa: E402
from mvpack.multiview.demo.bank import build_bank  # noqa: E402
from mvpack.multiview.demo.video_unet import VideoConfig  # noqa: E402
from mvpack.multiview.harmony import combine  # noqa: E402
from mvpack.nodes.analytic_model import make_analytic_model  # noqa: E402
from mvpack.nodes.attention import CrossFrameAttention  # noqa: E402
from mvpack.nodes.conditioning import ViewConditioning  # noqa: E402
from mvpack.nodes.harmonyview import HarmonyViewGuider, progress_at  # noqa: E402
from mvpack.nodes.trained_model import TrainedConfig  # noqa: E402

VIEWS, SIDE, SIGMA = (4, 8, 3.0) if SIZE == "small" else (2, 8, 3.0)
found: dict = {}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(model, context: int, picture: torch.Tensor, seed=2):
    embedding = random(1, 1, context, seed=seed)
    pose = {"azimuth": [90.0 * i for i in range(VIEWS)], "elevation": [15.0] * VIEWS}
    positive = [[embedding, {"concat_latent_image": picture, **pose}]]
    negative = [[torch.zeros_like(embedding), {"concat_latent_image": torch.zeros_like(picture), **pose}]]
    return positive, negative


def node(model, positive, negative, **changed):
    inputs = {
        "s1": 2.0, "s2": 1.0, "start_percent": 0.0, "end_percent": 1.0, "schedule_s1": "constant",
        "schedule_s2": "constant", "batching": "auto", "ref_latent_scale": 1.0, "zero_embedding": False,
    }  # fmt: skip
    return HarmonyViewGuider.execute(model, positive, negative, **{**inputs, **changed})[0]


def denoised(one, x, sigma=SIGMA):
    """What the guider predicts for x at one noise level, through the host's own sampling."""
    kept = []

    def probe(model, _x, sigmas, extra_args=None, callback=None, disable=None):
        kept.append(model(x, sigmas[0] * x.new_ones(len(x)), **extra_args))
        return x.detach()

    sigmas = torch.tensor([sigma, 0.0])
    one.sample(torch.zeros_like(x).detach(), torch.zeros_like(x).detach(), comfy.samplers.KSAMPLER(probe), sigmas,
               disable_pbar=True, seed=0)  # fmt: skip
    return kept[0]


def watched(model):
    """A clone that notes, for each call of the network, the branches in it and their outputs, and what patches see."""
    calls, seen = [], []

    def outer(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        places = list(transformer_options["cond_or_uncond"])
        out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        calls.append(dict(zip(places, out.chunk(len(places)), strict=True)))
        return out

    def inner(executor, x, t, context, y, control, transformer_options, **kwargs):
        seen.append((transformer_options["cond_or_uncond"], transformer_options.get("mv_views_apart")))
        return executor(x, t, context, y, control, transformer_options, **kwargs)

    clone = model.clone()
    clone.add_wrapper(WrappersMP.APPLY_MODEL, outer)
    clone.add_wrapper(WrappersMP.DIFFUSION_MODEL, inner)
    return clone, calls, seen


def direct(model, positive, x, sigma=SIGMA, **extra):
    """The model alone, called by hand: (embedding, values) -> denoised."""
    embedding, values = positive[0]
    conds = model.model.extra_conds(noise=x, cross_attn=embedding, device="cpu", **values)
    ready = {k: c.process_cond(batch_size=len(x), area=None, device="cpu").cond for k, c in conds.items()}
    if "latent_scale" in extra:
        ready["c_concat"] = ready["c_concat"] * extra.pop("latent_scale")
    if "zero_embedding" in extra:
        ready["c_crossattn"] = torch.zeros_like(ready["c_crossattn"]) if extra.pop("zero_embedding") else None
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0], "sigmas": torch.tensor([sigma])}
    level = torch.full((len(x),), sigma)
    return model.model.apply_model(x, level, **ready, transformer_options=options, **extra).double()


def gap(a, b) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@torch.no_grad()
def formula(model, positive, negative, x, name="") -> None:
    """Eq. 7 in float64 from separate calls."""
    alone = torch.ones(1, VIEWS)
    c, views_only = direct(model, positive, x), direct(model, negative, x)
    reference_only = direct(model, positive, x, image_only_indicator=alone)
    wanted = c + 2.0 * (c - views_only) + 1.0 * (c - reference_only)
    found[f"{name}branches_differ"] = min(gap(c, views_only), gap(c, reference_only), gap(views_only, reference_only))
    one, calls, seen = watched(model)
    found[f"{name}batched"] = gap(denoised(node(one, positive, negative), x), wanted)
    found[f"{name}batched_calls"] = [sorted(call) for call in calls]
    found[f"{name}patches_see"] = seen[0]
    calls.clear()
    found[f"{name}split"] = gap(denoised(node(one, positive, negative, batching="split"), x), wanted)
    found[f"{name}split_calls"] = [sorted(call) for call in calls]
    scaled = direct(model, positive, x, image_only_indicator=alone, latent_scale=4.0)
    found[f"{name}released_scale"] = gap(
        denoised(node(model, positive, negative, ref_latent_scale=4.0), x),
        c + 2.0 * (c - views_only) + 1.0 * (c - scaled),
    )
    found[f"{name}scale_matters"] = gap(scaled, reference_only)
    calls.clear()
    found[f"{name}s1_only"] = gap(denoised(node(one, positive, negative, s2=0.0), x), c + 2.0 * (c - views_only))
    found[f"{name}s2_only"] = gap(denoised(node(one, positive, negative, s1=0.0), x), c + 1.0 * (c - reference_only))
    found[f"{name}one_scale_calls"] = [sorted(call) for call in calls]


@torch.no_grad()
def special_cases(model, positive, negative, x) -> None:
    basic = Guider_Basic(model)
    basic.set_conds(positive)
    cfg = comfy.samplers.CFGGuider(model)
    cfg.set_conds(positive, negative)
    cfg.set_cfg(3.0)
    one, calls, _ = watched(model)
    run = {"sampler": comfy.samplers.sampler_object("euler"), "sigmas": torch.tensor([50.0, 8.0, 1.0, 0.0])}

    def sample(chosen):
        return chosen.sample(x, torch.zeros_like(x), disable_pbar=True, seed=1, **run)

    plain = sample(basic)
    found["zero_is_plain"] = bool(torch.equal(sample(node(one, positive, negative, s1=0.0, s2=0.0)), plain))
    found["zero_calls"] = [sorted(call) for call in calls]
    found["s1_is_cfg"] = bool(torch.equal(sample(node(model, positive, negative, s2=0.0)), sample(cfg)))
    found["guidance_matters"] = gap(sample(node(model, positive, negative)), plain)
    # sigma 8 lies at 39 % of SV3D's range 700..0.002, 50 at 21 %, 1 at 51 %.
    calls.clear()
    sample(node(one, positive, negative, start_percent=0.3, end_percent=0.45))
    found["window_calls"] = [sorted(call) for call in calls]
    sampling = model.model.model_sampling
    found["progress"] = [progress_at(sampling, sampling.percent_to_sigma(p)) for p in (0.1, 0.39, 0.9)]
    c, views_only = direct(model, positive, x), direct(model, negative, x)
    falling = node(model, positive, negative, s2=0.0, schedule_s1="falling")
    left = 1 - math.log(700 / SIGMA) / math.log(700 / 0.002)
    found["falling"] = gap(denoised(falling, x), c + 2.0 * left * (c - views_only))


@torch.no_grad()
def cfg_patches(model, positive, negative, x) -> None:
    """Post-CFG patches get Eq. 7's result once, and parts that fit together; CFG patches are used."""
    told = []

    def after(given):
        told.append(given)
        return given["denoised"] * 0.5

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(after)
    plain = denoised(node(model, positive, negative), x)
    found["post_cfg"] = gap(denoised(node(patched, positive, negative), x), plain * 0.5)
    (given,) = told
    mixed = given["uncond_denoised"] + (given["cond_denoised"] - given["uncond_denoised"]) * given["cond_scale"]
    found["post_cfg_parts"] = gap(mixed, plain)
    replaced = model.clone()
    replaced.set_model_sampler_cfg_function(lambda given: given["cond"])
    found["cfg_function"] = gap(denoised(node(replaced, positive, negative), x), direct(model, positive, x))
    asked = []

    def batch(given):
        asked.append(len(given["conds"]))
        names = ("model", "conds", "input", "sigma", "model_options")
        return comfy.samplers.calc_cond_batch(*(given[name] for name in names))

    other = model.clone()
    other.set_model_sampler_calc_cond_batch_function(batch)
    found["calc_cond_batch"] = [gap(denoised(node(other, positive, negative), x), plain), asked]


def views_apart(model, positive, negative, x) -> None:
    """Which views' inputs each view's output depends on, by branch, in one batched call."""
    one, calls, _ = watched(model)
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        denoised(node(one, positive, negative), x)
    (call,) = calls
    for place, name in enumerate(("everything", "views_only", "reference_only")):
        blocks = []
        for i, out in enumerate(call[place]):
            # A random direction: an entry of the block that is not zero cannot hide.
            (slope,) = torch.autograd.grad((out * random(*out.shape, seed=i)).sum(), x, retain_graph=True)
            blocks.append(slope.abs().amax((1, 2, 3)).tolist())
        found[f"jacobian_{name}"] = blocks


@torch.no_grad()
def reference_dropped(model, context, x, name="") -> None:
    outs = []
    for seed in (5, 6):
        one, calls, _ = watched(model)
        picture = random(1, 4, SIDE, SIDE, seed=seed)
        denoised(node(one, *conditioning(model, context, picture, seed=seed)), x)
        outs.append({place: out for call in calls for place, out in call.items()})
    found[f"{name}views_only_unmoved"] = bool(torch.equal(outs[0][1], outs[1][1]))
    found[f"{name}reference_moves"] = [gap(outs[0][place], outs[1][place]) for place in (0, 2)]


@torch.no_grad()
def single_image_models(x) -> None:
    """SD 1.5 and Stable Zero123 behind our cross-frame attention; reference_only by the model without it."""
    found["refusals"] = {}
    zero123 = small_unets.zero123()
    pictures = conditioning(zero123, 772, random(1, 4, SIDE, SIDE, seed=4))
    prompts = [[random(VIEWS, 7, 64, seed=1), {}]], [[random(1, 7, 64, seed=2), {}]]
    for name, plain, (positive, negative) in (("sd15", small_unets.sd15(), prompts), ("zero123", zero123, pictures)):
        try:
            node(plain, positive, negative)
        except ValueError as error:
            found["refusals"][f"{name} alone"] = str(error)
        model = CrossFrameAttention.execute(plain, "1", "all", 1.0, 0.0, 1.0, 0, "")[0]
        c, views_only = direct(model, positive, x), direct(model, negative, x)
        reference_only = direct(plain, positive, x)
        wanted = c + 2.0 * (c - views_only) + 1.0 * (c - reference_only)
        one, calls, seen = watched(model)
        found[f"{name}_branches_differ"] = min(gap(c, views_only), gap(c, reference_only))
        for mode in ("auto", "split"):
            found[f"{name}_{mode}"] = gap(denoised(node(one, positive, negative, batching=mode), x), wanted)
        found[f"{name}_patches_see"] = seen[0]
        changed = x.clone()
        changed[1] += random(4, SIDE, SIDE, seed=9)
        denoised(node(one, positive, negative), changed)
        found[f"{name}_moved_by_reference_view"] = [
            (calls[-1][place] - calls[0][place]).abs().amax((1, 2, 3)).tolist() for place in (0, 2)
        ]
    zeroed = direct(model, negative, x, zero_embedding=True)
    found["zero123_zeroed"] = gap(
        denoised(node(model, positive, negative, zero_embedding=True), x),
        c + 2.0 * (c - zeroed) + 1.0 * (c - reference_only),
    )
    found["zeroing_matters"] = gap(zeroed, views_only)


@torch.no_grad()
def demo_models() -> None:
    """The analytic model against its own library, the trained model's classes against Eq. 7."""
    bank = build_bank(orbit([90.0 * i for i in range(VIEWS)], 15.0, 1.5, 49.13), 16, 2, 2, 3)
    options = AnalyticOptions(window=9, kappa=0.3)
    model, vae = make_analytic_model(bank, options)
    cameras = bank.cameras
    given = ViewConditioning.execute(bank.references[:1].float() / 255.0, vae, cameras, 16, 16)
    positive, negative = given[0], given[1]
    x = random(VIEWS, 3, 16, 16, seed=3) * 0.7
    reference = bank.references[0].movedim(-1, 0).float() / 127.5 - 1
    library = AnalyticModel(bank, options)
    branches = [
        library.denoise(x, 0.7, reference),
        library.denoise(x, 0.7),
        library.denoise(x, 0.7, reference, torch.zeros(VIEWS, dtype=torch.bool)),
    ]
    found["analytic_differ"] = min(gap(branches[0], branches[i]) for i in (1, 2))
    for mode in ("auto", "split"):
        out = denoised(node(model, positive, negative, batching=mode), x, 0.7)
        found[f"analytic_{mode}"] = gap(out, combine(*(b.double() for b in branches), 2.0, 1.0))
    config = VideoConfig(
        size=64, views=VIEWS, latent_channels=4, model_channels=32, channel_mult=(1, 2), vae_mult=(1, 1, 1, 1)
    )
    described = TrainedConfig(config)
    described.set_inference_dtype(torch.float32, None)
    trained = small_unets.finished(described.get_model({}), torch.float32)
    positive, negative = conditioning(trained, 1024, random(1, 4, SIDE, SIDE, seed=4))
    formula(trained, positive, negative, random(VIEWS, 4, SIDE, SIDE, seed=1) * SIGMA, "trained_")
    reference_dropped(trained, 1024, random(VIEWS, 4, SIDE, SIDE, seed=1), "trained_")


@torch.no_grad()
def lora_hook(model, positive, negative, x) -> None:
    """A LoRA as a hook on the positive conditioning counts in both branches that have it, and nowhere else."""
    change = random(4, 32, 3, 3, seed=8) * 0.2
    hook = create_hook_lora({"diffusion_model.out.2.diff": change}, 1.0, 0.0)
    hooked = set_hooks_for_conditioning(positive, hook)
    out = denoised(node(model, hooked, negative), x)
    views_only = direct(model, negative, x)
    weight = model.model.diffusion_model.out[2].weight
    before = weight.clone()
    weight += change
    c = direct(model, positive, x)
    reference_only = direct(model, positive, x, image_only_indicator=torch.ones(1, VIEWS))
    weight.copy_(before)
    found["hooks"] = gap(out, c + 2.0 * (c - views_only) + 1.0 * (c - reference_only))
    found["hooks_matter"] = gap(out, denoised(node(model, positive, negative), x))


def refusals(model, positive, negative, x) -> None:
    def said(name, *given, **changed):
        try:
            denoised(node(*given, **changed), x)
        except ValueError as error:
            found["refusals"][name] = str(error)

    bare = [[positive[0][0], {}]]
    said("no reference", model, bare, negative)
    said("zero reference", model, negative, negative)
    said("reference in negative", model, positive, positive)
    said("range", model, positive, negative, start_percent=0.6, end_percent=0.4)
    windowed = model.clone()
    windowed.model_options["context_handler"] = IndexListContextHandler(None, None, context_length=2)
    said("context windows", windowed, positive, negative)


def small() -> None:
    model = small_unets.sv3d_p()
    x = random(VIEWS, 4, SIDE, SIDE, seed=1) * SIGMA
    positive, negative = conditioning(model, 64, random(1, 4, SIDE, SIDE, seed=4))
    formula(model, positive, negative, x)
    special_cases(model, positive, negative, x)
    cfg_patches(model, positive, negative, x)
    views_apart(model, positive, negative, x)
    reference_dropped(model, 64, x)
    single_image_models(x)
    refusals(model, positive, negative, x)
    lora_hook(model, positive, negative, x)
    demo_models()


@torch.no_grad()
def full() -> None:
    """SV3D_p in its published size, 1.5 billion parameters, in bf16. As few evaluations as answer the questions."""
    model = small_unets.sv3d_p(320, (1, 2, 4, 4), torch.bfloat16)
    found["parameters"] = sum(p.numel() for p in model.model.diffusion_model.parameters())
    x = random(VIEWS, 4, SIDE, SIDE, seed=1) * SIGMA
    positive, negative = conditioning(model, 1024, random(1, 4, SIDE, SIDE, seed=4))
    alone = torch.ones(1, VIEWS)
    c, views_only = direct(model, positive, x), direct(model, negative, x)
    reference_only = direct(model, positive, x, image_only_indicator=alone)
    found["branches_differ"] = min(gap(c, views_only), gap(c, reference_only), gap(views_only, reference_only))
    one, calls, _ = watched(model)
    wanted = c + 2.0 * (c - views_only) + 1.0 * (c - reference_only)
    found["batched"] = gap(denoised(node(one, positive, negative), x), wanted)
    found["batched_calls"] = [sorted(call) for call in calls]
    x[1] += random(4, SIDE, SIDE, seed=9)
    after = direct(model, positive, x, image_only_indicator=alone)
    found["moved_by_view_1"] = (after - reference_only).abs().amax((1, 2, 3)).tolist()


{"small": small, "full": full}[SIZE]()
print("FOUND " + json.dumps(found))
