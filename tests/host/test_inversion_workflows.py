"""MVDDIMInvert in the real ComfyUI: round trips by core's own samplers, on the demo model and on every kind of model.

What comes back is compared by a node of the tests, not by the node's own figure.
"""

from __future__ import annotations

import numpy as np
import pytest
from cancelling import cancel_midway
from comfy_host import NodeFailed, PromptRejected, workflow_to_prompt
from running_workflows import find, pictures, psnr, read, text_of

INVERT = {
    "cfg": 1.0, "method": "fixed_point", "iterations": 3, "steps": 4, "scheduler": "karras", "measure": True,
    "start_noise": False, "seed": 0, "start_sigma": 0.0, "stop_at_step": 0, "stop_sigma": 0.0,
}  # fmt: skip
NOISE, LATENT, SIGMAS, ERROR, REPORT, SAMPLER = range(6)
# The scheduler that suits each kind of model.
KINDS = {"eps": "karras", "v": "normal", "flow": "simple", "edm": "karras"}
# Relative to the latent's spread. The random network for eps predicts next to no noise, so its input is nearly flat at
# high levels; its norms blow that up, and the iteration stalls at about 0.02.
COMES_BACK = {"eps": 0.05, "v": 2e-3, "flow": 1e-3, "edm": 5e-3}


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def tiny(kind: str, **settings) -> dict:
    """A tiny model 'm' (latent at 3, empty latent at 4), inverted by 'i', and what is needed to sample again."""
    cfg = settings.get("cfg", 1.0)
    return {
        "m": node("TestTinyModel", kind=kind, seed=0),
        "i": node("MVDDIMInvert", **{**INVERT, "scheduler": KINDS[kind], **settings}, **conditioned("m"),
                  latent=["m", 3]),
        "g": node("CFGGuider", cfg=cfg, **conditioned("m")),
        "e": node("KSamplerSelect", sampler_name="euler"),
        "n": node("DisableNoise"),
    }  # fmt: skip


def conditioned(source: str) -> dict:
    return {"model": [source, 0], "positive": [source, 1], "negative": [source, 2]}


def sampled(noise, latent, sampler=("e", 0)) -> dict:
    return node(
        "SamplerCustomAdvanced", noise=list(noise), guider=["g", 0], sampler=list(sampler), sigmas=["i", SIGMAS],
        latent_image=list(latent),
    )  # fmt: skip


def gap(a, b) -> dict:
    return node("TestLatentGap", a=list(a), b=list(b))


def said(host, prompt: dict) -> str:
    with pytest.raises((NodeFailed, PromptRejected)) as caught:
        host.run(prompt)
    assert host.alive()
    if isinstance(caught.value, NodeFailed):
        assert caught.value.exception_type == "ValueError", caught.value.exception_type
        assert caught.value.exception_message.strip().count(". ") == 0
        return caught.value.exception_message
    return str(caught.value)


def rms(result, name: str) -> float:
    return result.outputs[name]["gap"][0]


def largest(result, name: str) -> float:
    return result.outputs[name]["gap"][1]


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_point_with_guidance_comes_back_in_cores_euler(host, kind):
    """From the noise beside an empty latent, beside the inverted one, and from the noisy latent: one trajectory."""
    prompt = tiny(kind, cfg=3.0, iterations=12)
    prompt |= {
        "a": sampled(("i", NOISE), ("m", 4)),
        "b": sampled(("i", NOISE), ("m", 3)),
        "ga": gap(("m", 3), ("a", 0)),
        "gb": gap(("a", 0), ("b", 0)),
        "t": node("TestInspect", value=["i", ERROR]),
    }
    if kind != "flow":  # At sigma 1 a flow model's sampler takes nothing of the latent.
        prompt |= {"c": sampled(("n", 0), ("i", LATENT)), "gc": gap(("a", 0), ("c", 0))}
    result = host.run(prompt)
    assert rms(result, "ga") < COMES_BACK[kind]
    assert largest(result, "gb") < 1e-3
    assert kind == "flow" or largest(result, "gc") < 1e-3
    error, spread = result.outputs["t"]["report"][0], result.outputs["ga"]["gap"][2]
    assert error / spread == pytest.approx(rms(result, "ga"), rel=0.1, abs=2e-5)
    assert ("flow model" in text_of(result, "i")) == (kind == "flow")


@pytest.mark.parametrize("kind", KINDS)
def test_belm_comes_back_with_its_sampler_and_stops_where_asked(host, kind):
    """Stopped at step 2: the noise completes any latent there, the noisy latent continues in KSampler (Advanced)."""
    prompt = tiny(kind, cfg=3.0, method="belm", stop_at_step=2)
    prompt |= {
        "a": sampled(("i", NOISE), ("m", 4), ("i", SAMPLER)),
        "b": sampled(("i", NOISE), ("m", 3), ("i", SAMPLER)),
        "c": sampled(("n", 0), ("i", LATENT), ("i", SAMPLER)),
        "d": sampled(("n", 0), ("i", LATENT)),
        "k": node(
            "KSamplerAdvanced", **conditioned("m"), latent_image=["i", LATENT], add_noise="disable", noise_seed=0,
            steps=4, cfg=3.0, sampler_name="euler", scheduler=KINDS[kind], start_at_step=2, end_at_step=10000,
            return_with_leftover_noise="disable",
        ),
        **{f"g{name}": gap(("m", 3), (name, 0)) for name in "abc"},
        "gk": gap(("d", 0), ("k", 0)),
    }  # fmt: skip
    result = host.run(prompt)
    for name in "abc":
        assert rms(result, f"g{name}") < 2e-4
    assert largest(result, "gk") < 1e-4
    assert "start_at_step 2" in text_of(result, "i")


def test_a_latent_that_a_sampler_left_half_way_is_carried_on_from_there(host):
    """Karras' sigmas by their formula; the sampler goes from the top to step 3, the inversion from there to the top."""
    low, high = 0.002 ** (1 / 7), 700.0 ** (1 / 7)
    level = (high + 3 / 4 * (low - high)) ** 7
    prompt = tiny("edm", start_sigma=level, iterations=12, steps=5) | {
        "k": node(
            "KSamplerAdvanced", **conditioned("m"), latent_image=["m", 4], add_noise="enable", noise_seed=7, steps=5,
            cfg=1.0, sampler_name="euler", scheduler="karras", start_at_step=0, end_at_step=3,
            return_with_leftover_noise="enable",
        ),
        "f": node(
            "KSamplerAdvanced", **conditioned("m"), latent_image=["m", 4], add_noise="enable", noise_seed=7, steps=5,
            cfg=1.0, sampler_name="euler", scheduler="karras", start_at_step=0, end_at_step=10000,
            return_with_leftover_noise="disable",
        ),
        "a": sampled(("i", NOISE), ("m", 4)),
        "ga": gap(("f", 0), ("a", 0)),
    }  # fmt: skip
    prompt["i"]["inputs"]["latent"] = ["k", 0]
    assert rms(host.run(prompt), "ga") < 5e-3


def test_demo_model_comes_back_and_the_error_is_the_one_promised(host):
    """On views of the analytic model: what the node measured is what core's sampler leaves."""
    toy = {"seed": 3, "variant": 1, "variants": 3, "size": 48, "background": "white"}
    model = {"kind": "analytic", "resolution": 48, "window": 31, "kappa": 0.02, "front_bias": 0.0, "seed": 3,
             "families": 2, "variants": 3}  # fmt: skip
    settings = {**INVERT, "steps": 20}
    prompt = {
        "o": node("MVDemoObject", **toy),
        "l": node("MVLoadDemoModel", **model),
        "v": node("MVViewConditioning", image=["o", 0], vae=["l", 1], cameras=["l", 2], width=48, height=48),
        "x": node("VAEEncode", pixels=["o", 1], vae=["l", 1]),
    }
    given = {"model": ["l", 0], "positive": ["v", 0], "negative": ["v", 1]}
    prompt |= {
        "g": node("CFGGuider", cfg=1.0, **given),
        "e": node("KSamplerSelect", sampler_name="euler"),
        "i": node("MVDDIMInvert", latent=["x", 0], **settings, **given),
        "a": sampled(("i", NOISE), ("v", 2)),
        "ga": gap(("x", 0), ("a", 0)),
        "k": node(
            "KSamplerAdvanced", **given, latent_image=["i", LATENT], add_noise="disable", noise_seed=0, steps=20,
            cfg=1.0, sampler_name="euler", scheduler="karras", start_at_step=0, end_at_step=10000,
            return_with_leftover_noise="disable",
        ),
        "gk": gap(("x", 0), ("k", 0)),
        "t": node("TestInspect", value=["i", ERROR]),
    }  # fmt: skip
    result = host.run(prompt)
    error, spread = result.outputs["t"]["report"][0], result.outputs["ga"]["gap"][2]
    assert rms(result, "ga") < 0.02
    assert error / spread == pytest.approx(rms(result, "ga"), rel=0.05, abs=1e-4)
    assert rms(result, "gk") == pytest.approx(rms(result, "ga"), rel=0.05, abs=1e-4)


def defaults(object_info: dict, kind: str) -> dict:
    """What a node's widgets are set to, so that hosts of different age can be asked alike."""
    found = {}
    for section in ("required", "optional"):
        for name, (type_, *options) in object_info[kind]["input"].get(section, {}).items():
            settings = options[0] if options else {}
            if isinstance(type_, list) or "default" in settings or type_ == "COMBO":
                choices = type_ if isinstance(type_, list) else settings.get("options", [None])
                found[name] = settings.get("default", choices[0])
    return found


def test_bad_input_is_answered_in_one_sentence(host, object_info):
    good = tiny("eps")

    def bad(extra=None, **inputs) -> str:
        changed = {**good["i"], "inputs": {**good["i"]["inputs"], **inputs}}
        out = node("TestInspect", value=["i", ERROR])
        return said(host, {"m": good["m"], "i": changed, "o": out, **(extra or {})})

    assert "empty" in bad(latent=["m", 4])
    assert "NaN" in bad({"x": node("TestAlter", value=["m", 3], how="nan")}, latent=["x", 0])
    mask = {"w": node("SolidMask", value=1.0, width=64, height=64),
            "x": node("SetLatentNoiseMask", samples=["m", 3], mask=["w", 0])}  # fmt: skip
    assert "mask" in bad(mask, latent=["x", 0])
    karras = {"s": node("KarrasScheduler", steps=5, sigma_max=14.0, sigma_min=0.1, rho=7.0)}
    assert "fall" in bad(karras | {"f": node("FlipSigmas", sigmas=["s", 0])}, sigmas=["f", 0])
    karras["s"]["inputs"]["sigma_max"] = 80.0
    assert "knows noise up to 14.6" in bad(karras, sigmas=["s", 0])
    assert "cfg" in bad(cfg=0.5)
    assert "stop at step 4" in bad(stop_at_step=4)
    assert "begins at 14.6" in bad(stop_sigma=20.0)
    assert "not between" in bad(start_sigma=15.0)
    assert "clean latent" in bad(start_sigma=1.0, start_noise=True)
    window = defaults(object_info, "ContextWindowsManual") | {"context_length": 2, "context_overlap": 1, "dim": 0}
    assert "indows" in bad({"x": node("ContextWindowsManual", model=["m", 0], **window)}, model=["x", 0])
    other = {"z": node("TestTinyModel", kind="flow", seed=0)}
    assert "4" in bad(other, latent=["z", 3]) and "16" in bad(other, latent=["z", 3])
    wrong = {**good, "h": node("LatentFromBatch", samples=["m", 4], batch_index=0, length=2)}
    wrong |= {"a": sampled(("i", NOISE), ("h", 0)), "o": gap(("m", 3), ("a", 0))}
    assert "shape" in said(host, wrong)


def test_cancel_an_inversion(host):
    prompt = tiny("edm", steps=2000)
    prompt = {"m": prompt["m"], "i": prompt["i"], "o": node("TestInspect", value=["i", ERROR])}
    last = cancel_midway(host, prompt, "i")
    assert last.maximum == 2000 * 4
    assert last.value < last.maximum / 4


def test_workflow_invert_demo_as_shipped(host, object_info):
    prompt = workflow_to_prompt(read("invert_demo"), object_info)
    for name, kind in (("before", "MVDemoObject"), ("after", "VAEDecode")):
        slot = 1 if kind == "MVDemoObject" else 0
        prompt[name] = node("SaveImage", images=[find(prompt, kind), slot], filename_prefix=f"watched/{name}")
        prompt[name]["_meta"] = {"title": name}
    result = host.run(prompt, timeout=900)
    before, after = (pictures(host, result, name) for name in ("before", "after"))
    assert before.shape == after.shape == (16, 64, 64, 3)
    assert psnr(before.reshape(1, -1, 64, 3), after.reshape(1, -1, 64, 3))[0] > 35
    assert np.abs(after[0] - after[8]).mean() > 0.01
    report = text_of(result, find(prompt, "MVDDIMInvert"))
    assert "19 steps" in report and "start_at_step 0" in report
