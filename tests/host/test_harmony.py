"""The HarmonyView guider on real ComfyUI models with random weights (harmony_check.py), and as a node in a graph."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from cancelling import cancel_midway
from comfy_host import NodeFailed

GUIDER = {
    "s1": 2.0, "s2": 1.0, "start_percent": 0.0, "end_percent": 1.0, "schedule_s1": "constant",
    "schedule_s2": "constant", "batching": "auto", "ref_latent_scale": 1.0, "zero_embedding": False,
}  # fmt: skip


SIZE = 48


def node(kind, /, **inputs):
    return {"class_type": kind, "inputs": inputs}


def run_check(host, repo: Path, size: str) -> dict:
    script = Path(__file__).with_name("harmony_check.py")
    env = {**os.environ, "PYTHONPATH": str(host.comfyui), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([host.python, script, repo, size], env=env, capture_output=True, text=True, timeout=1500)
    lines = [line for line in run.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads(lines[-1][6:])


@pytest.fixture(scope="module")
def found(host, repo):
    return run_check(host, repo, "small")


# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["", "trained_"], ids=["sv3d_p", "trained demo model"])
def test_guider_is_its_formula(found, model):
    """Against Eq. 7 in float64 from three calls of the model by hand, one with image_only_indicator."""
    assert found[f"{model}branches_differ"] > 0.1
    for case in ("batched", "split", "s1_only", "s2_only", "released_scale"):
        assert found[f"{model}{case}"] < 1e-5, case
    assert found[f"{model}scale_matters"] > 0.1


def test_analytic_model_against_its_library(found):
    assert found["analytic_differ"] > 0.1
    assert found["analytic_auto"] < 1e-5
    assert found["analytic_split"] < 1e-5


@pytest.mark.parametrize("model", ["", "trained_"])
def test_branches_are_evaluated_together_or_apart(found, model):
    assert found[f"{model}batched_calls"] == [[0, 1, 2]]
    assert found[f"{model}split_calls"] == [[0], [1], [2]]
    assert found[f"{model}one_scale_calls"] == [[0, 1], [0, 2]], "a branch of scale 0 was evaluated"


def test_zero_scales_are_the_plain_model(found):
    """Bit for bit over three steps, with one evaluation a step."""
    assert found["zero_is_plain"]
    assert found["zero_calls"] == [[0], [0], [0]]
    assert found["guidance_matters"] > 0.05


def test_s1_alone_is_cfg(found):
    assert found["s1_is_cfg"]


def test_range_and_schedule_follow_the_noise_level(found):
    assert found["window_calls"] == [[0], [0, 1, 2], [0]]
    assert found["progress"] == pytest.approx([0.1, 0.39, 0.9], abs=1e-6)
    assert found["falling"] < 1e-5


# --- the branches -----------------------------------------------------------------------------------------------------


def test_in_reference_only_no_view_influences_another(found):
    """Jacobian blocks of the branches inside one batched call of a UNet with temporal layers."""
    for i, row in enumerate(found["jacobian_reference_only"]):
        assert [value for j, value in enumerate(row) if j != i] == [0.0, 0.0, 0.0]
        assert row[i] > 0.1
    for branch in ("everything", "views_only"):
        assert min(min(row) for row in found[f"jacobian_{branch}"]) > 0.01, branch


@pytest.mark.parametrize("model", ["", "trained_"])
def test_in_views_only_nothing_of_the_reference_is_left(found, model):
    assert found[f"{model}views_only_unmoved"]
    assert min(found[f"{model}reference_moves"]) > 0.1


def test_patches_see_known_branches(found):
    """Attention patches of other packs know 0 and 1; ours reads which parts of the batch keep their views apart."""
    for name in ("patches_see", "trained_patches_see", "sd15_patches_see", "zero123_patches_see"):
        places, apart = found[name]
        assert sorted(places) == [0, 0, 1], name
        assert sum(apart) == 1 and places[apart.index(True)] == 0, name


@pytest.mark.parametrize("model", ["sd15", "zero123"])
def test_views_of_a_single_image_model(found, model):
    """Behind cross-frame attention; reference_only is the model without it, and there no view moves another."""
    assert found[f"{model}_branches_differ"] > 0.01
    assert found[f"{model}_auto"] < 1e-5
    assert found[f"{model}_split"] < 1e-5
    everything, reference_only = found[f"{model}_moved_by_reference_view"]
    assert min(everything) > 1e-3
    assert [value for view, value in enumerate(reference_only) if view != 1] == [0.0, 0.0, 0.0]
    assert reference_only[1] > 0.1


def test_released_codes_zero_embedding(found):
    """Stable Zero123: zero after the projection, where the host's own negative is the projection's bias."""
    assert found["zero123_zeroed"] < 1e-5
    assert found["zeroing_matters"] > 1e-3


def test_patches_of_guidance_act_on_it(found):
    assert found["post_cfg"] < 1e-6 and found["post_cfg_parts"] < 1e-5
    assert found["cfg_function"] < 1e-5
    assert found["calc_cond_batch"] == [pytest.approx(0, abs=1e-6), [3]]


def test_lora_as_a_hook_counts_where_its_conditioning_does(found):
    assert found["hooks"] < 1e-5
    assert found["hooks_matter"] > 0.1


def test_what_it_refuses(found):
    said = found["refusals"]
    for name in ("sd15 alone", "zero123 alone"):
        assert "no view sees another" in said[name] and "MVCrossFrameAttention" in said[name]
    for name in ("no reference", "zero reference"):
        assert "carries no input picture" in said[name]
    assert "branch without it" in said["reference in negative"]
    assert "must start before it ends" in said["range"]
    assert "context windows" in said["context windows"]


@pytest.mark.slow  # 1.5 billion random weights in bf16, evaluated on one core: about a minute of computing
def test_published_size_of_sv3d(host, repo):
    found = run_check(host, repo, "full")
    assert found["parameters"] > 1.5e9
    assert found["branches_differ"] > 0.05
    assert found["batched_calls"] == [[0, 1, 2]]
    # bf16 carries 3 digits.
    assert found["batched"] < 0.02
    assert found["moved_by_view_1"][0] == 0.0 and found["moved_by_view_1"][1] > 0.05


# --- as a node --------------------------------------------------------------------------------------------------------


def guided(kind="MVHarmonyViewGuider", positive=("v", 0), **inputs) -> dict:
    """Six small views of a toy by a near-sighted demo model, sampled with a guider of that kind."""
    toy = {"seed": 3, "variants": 3}
    own = {**GUIDER, "negative": ["v", 1], "positive": list(positive), **inputs}
    if kind == "BasicGuider":
        own = {"conditioning": list(positive)}
    return {
        "c": node("MVOrbitCameras", preset="demo", views=6, preset_elevation=True, elevation=0.0, start_azimuth=0.0,
                  span=360.0, radius=1.5, fov=49.13, aspect=1.0),
        "o": node("MVDemoObject", cameras=["c", 0], variant=1, size=SIZE, background="white", **toy),
        "m": node("MVLoadDemoModel", cameras=["c", 0], kind="analytic", resolution=SIZE, window=15, kappa=0.2,
                  front_bias=0.0, families=2, **toy),
        "v": node("MVViewConditioning", image=["o", 0], vae=["m", 1], cameras=["c", 0], width=SIZE, height=SIZE),
        "g": node(kind, model=["m", 0], **own),
        "n": node("RandomNoise", noise_seed=3),
        "e": node("KSamplerSelect", sampler_name="euler"),
        "s": node("BasicScheduler", model=["m", 0], scheduler="karras", steps=6, denoise=1.0),
        "k": node("SamplerCustomAdvanced", noise=["n", 0], guider=["g", 0], sampler=["e", 0], sigmas=["s", 0],
                  latent_image=["v", 2]),
        "i": node("TestInspect", value=["k", 0]),
    }  # fmt: skip


def sampled(host, *how, **inputs) -> dict:
    return host.run(guided(*how, **inputs)).outputs["i"]["report"][0]["samples"]


def said(host, **inputs) -> str:
    with pytest.raises(NodeFailed) as caught:
        host.run(guided(**inputs))
    assert caught.value.exception_type == "ValueError"
    return caught.value.exception_message


def test_in_a_graph(host):
    plain, zero, guidance = sampled(host, "BasicGuider"), sampled(host, s1=0.0, s2=0.0), sampled(host)
    assert zero == plain
    assert guidance["shape"] == plain["shape"] == [6, 3, SIZE, SIZE]
    assert guidance["mean"] != plain["mean"]


def test_bad_input_in_a_graph(host):
    assert "carries no input picture" in said(host, positive=("v", 1))
    assert "must start before it ends" in said(host, start_percent=0.7, end_percent=0.2)


def test_cancel_while_it_guides(host):
    prompt = guided()
    prompt["s"]["inputs"]["steps"] = 500
    last = cancel_midway(host, prompt, "k")
    assert last.value < last.maximum / 4
