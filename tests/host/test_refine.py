"""Renoise-restart: what samplers of every kind of model start from (refine_check.py), and the loop inside the host."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from cancelling import cancel_midway
from comfy_host import ComfyHost, NodeFailed, find_comfyui

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KINDS = ("eps", "v", "edm", "flow", "video eps", "video flow")
VIEWS, SIDE, STEPS = 6, 48, 8


@pytest.fixture(scope="module")
def found() -> dict:
    """Findings of refine_check.py; about 15 s on one core, half of it imports."""
    env = {**os.environ, "PYTHONPATH": str(find_comfyui()), "OMP_NUM_THREADS": "1"}
    command = [ComfyHost().python, str(HERE / "refine_check.py"), str(ROOT)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[-1][6:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_sampler_starts_as_from_the_hosts_own_noise(found, kind):
    """With either output, on either latent: RandomNoise of the same seed on the clean latent is the oracle."""
    assert found[f"{kind} starts as the host"] < 1e-6
    assert found[f"{kind} untouched"]


@pytest.mark.parametrize("kind", KINDS)
def test_variance_is_what_the_sampler_expects_at_that_level(found, kind):
    """v0 + sigma^2, and (1 - sigma)^2 v0 + sigma^2 for flow models, for data of variance v0 = 1/4."""
    measured, wanted = found[f"{kind} variance"]
    assert measured == pytest.approx(wanted, rel=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_sigma_max_is_sampling_from_noise(found, kind):
    assert found[f"{kind} highest"] == pytest.approx(1, rel=1e-5)
    keys = [key for key in found if key.startswith(f"{kind} top by ")]
    assert len(keys) == (2 if "flow" in kind else 4)
    assert max(found[key] for key in keys) < 1e-6
    if "video" not in kind:
        assert found[f"{kind} sampled from the top"] < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_sigma_zero_returns_the_input(found, kind):
    assert found[f"{kind} sigma 0"] == [True, True]


def test_a_guider_stands_for_its_model(found):
    assert found["guider instead of model"]


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ("nothing", "either latent, or image together with vae"),
        ("both", "either latent, or image together with vae"),
        ("image alone", "either latent, or image together with vae"),
        ("channels", "16 channels but the model works on 4"),
        ("mask", "noise mask"),
        ("nan", "NaN"),
        ("outside", "outside the schedule, which goes from 14.61 to 0"),
        ("fraction", "between 0 and 1, got 1.5"),
        ("rising", "must fall"),
        ("beyond", "begin at 29.23, but this model knows noise up to 14.61"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(found, trial, words):
    assert words in found[f"said {trial}"]
    assert "\n" not in found[f"said {trial}"]


# --- the loop in the running host -----------------------------------------------------------------------------------


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def refining(*, cameras=("c", 0), sigmas=("s", 0), guider=("g", 0), **changed) -> dict:
    """Views of a toy that contradict each other ("d"), refined ("r"); small enough for a few seconds."""
    refine = {
        "rounds": 2, "restart": "fraction", "values": "0.5, 0.25", "seed": 3, "iterations": 12, "background": "auto",
        "points": 300, "start": "hull", "losses": "custom", "keep_splat": False, "final_iterations": 15, **changed,
    }  # fmt: skip
    return {
        "c": node(
            "MVOrbitCameras", preset="demo", views=VIEWS, preset_elevation=True, elevation=0.0, start_azimuth=0.0,
            span=360.0, radius=1.5, fov=49.13, aspect=1.0,
        ),
        "o": node("MVDemoObject", cameras=["c", 0], seed=3, variant=0, variants=3, size=SIDE, background="white"),
        "m": node(
            "MVLoadDemoModel", cameras=["c", 0], kind="analytic", resolution=SIDE, window=17, kappa=0.02,
            front_bias=0.0, seed=3, families=2, variants=3,
        ),
        "v": node("MVViewConditioning", image=["o", 0], vae=["m", 1], cameras=["c", 0], width=SIDE, height=SIDE),
        "g": node("CFGGuider", model=["m", 0], positive=["v", 0], negative=["v", 1], cfg=1.0),
        "e": node("KSamplerSelect", sampler_name="euler"),
        "s": node("BasicScheduler", model=["m", 0], scheduler="karras", steps=STEPS, denoise=1.0),
        "n": node("RandomNoise", noise_seed=1),
        "k": node(
            "SamplerCustomAdvanced", noise=["n", 0], guider=["g", 0], sampler=["e", 0], sigmas=["s", 0],
            latent_image=["v", 2],
        ),
        "d": node("VAEDecode", samples=["k", 0], vae=["m", 1]),
        "r": node(
            "MVIterativeRefine", images=["d", 0], cameras=list(cameras), vae=["m", 1], guider=list(guider),
            sampler=["e", 0], sigmas=list(sigmas), **refine,
        ),
        "p": node("PreviewImage", images=["r", 0]),
        "t": node("PreviewAny", source=["r", 4]),
    }  # fmt: skip


def inner(result) -> list[str]:
    """What ran of the expansion, without the prefix that the host gives it."""
    return [name.split(".")[-1] for name in result.executed if name.startswith("r.")]


def rounds(*numbers: int) -> set[str]:
    return {f"round{n}_{part}" for n in numbers for part in ("encode", "renoise", "sample", "decode", "collect")}


def test_only_what_a_change_touches_runs_again(host):
    """Every round is a chain of nodes of the host, and its executor keeps those that still hold."""
    prompt = refining() | {"a": node("TestInspect", value=["r", 3]), "w": node("TestInspect", value=["r", 0])}
    first = host.run(prompt)
    assert sorted(inner(first)) == sorted({"fit0", "fit1", "fit2"} | rounds(1, 2))
    lines = first.outputs["t"]["text"][0].splitlines()
    assert [line.split(": ")[0] for line in lines] == ["- round 1", "- round 2"]
    assert [line.split(", ")[1] for line in lines] == ["4 of 8 steps", "2 of 8 steps"]
    (views,), (everything,) = (first.outputs[key]["report"] for key in "wa")
    assert views["shape"] == [VIEWS, SIDE, SIDE, 3]
    assert everything["shape"] == [3 * VIEWS, SIDE, SIDE, 3]

    prompt["r"]["inputs"]["values"] = "0.5, 0.4"
    second = host.run(prompt)
    assert set(inner(second)) == {"fit2"} | rounds(2) - {"round2_encode"}

    prompt["r"]["inputs"]["final_iterations"] = 20
    assert set(inner(host.run(prompt))) == {"fit2"}

    prompt["r"]["inputs"]["rounds"] = 3
    third = host.run(prompt)
    # What was the last fit is now one between rounds, which is shorter.
    assert set(inner(third)) == {"fit2", "fit3"} | rounds(3)
    assert "k" not in third.executed


def test_masks_go_with_the_first_fit_and_the_splats_coverage_with_the_others(host):
    prompt = refining(masks=["o", 2], rounds=1, keep_splat=True)
    result = host.run(prompt | {"w": node("TestInspect", value=["r", 2])})
    assert set(inner(result)) == {"fit0", "fit1", "coverage0"} | rounds(1)
    assert result.outputs["w"]["report"][0]["shape"] == [VIEWS, SIDE, SIDE, 3]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"values": "1.5"}, "between 0 and 1"),
        ({"values": "half"}, "numbers with commas"),
        ({"restart": "sigma", "values": "0.5, 900"}, "outside the schedule"),
        ({"sigmas": ("flipped", 0)}, "must fall"),
        ({"cameras": ("four", 0)}, "cameras describe 4 views"),
        ({"guider": ["foreign", 0]}, "has 3 channels but the model works on 4"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_fit(host, changed, words):
    prompt = refining(**changed) | {
        "flipped": node("FlipSigmas", sigmas=["s", 0]),
        "four": node("MVOrbitCameras", **{**refining()["c"]["inputs"], "views": 4}),
        "tiny": node("TestTinyModel", kind="eps", seed=0),
        "foreign": node("CFGGuider", model=["tiny", 0], positive=["tiny", 1], negative=["tiny", 2], cfg=1.0),
    }
    ran = []
    with pytest.raises(NodeFailed) as caught:
        host.run(prompt, on_progress=lambda event: ran.append(event.node_id))
    assert words in caught.value.exception_message
    assert caught.value.exception_type == "ValueError"
    assert not [name for name in ran if name.startswith("r.")]
    assert host.alive()


def test_cancel_in_a_round_stops_within_a_step(host):
    """The interrupt comes in the second step of 200; the chain must not go on."""
    prompt = refining(values="1.0", seed=77)
    prompt["long"] = node("BasicScheduler", model=["m", 0], scheduler="karras", steps=200, denoise=1.0)
    prompt["r"]["inputs"]["sigmas"] = ["long", 0]
    last = cancel_midway(host, prompt, "r.0.0.round1_sample")
    assert last.value < 10
    assert last.maximum == 200
