"""MIRROR's nodes on real ComfyUI models: the pull against the same steps by hand, and what bad input is answered."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from comfy_host import ComfyHost, Interrupted, find_comfyui

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def found() -> dict:
    """Findings of mirror_check.py; about 35 s on one core, a third of it imports."""
    env = {**os.environ, "PYTHONPATH": str(find_comfyui()), "OMP_NUM_THREADS": "1"}
    command = [ComfyHost().python, str(HERE / "mirror_check.py"), str(ROOT)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[-1][6:])


def test_strength_zero_is_the_model_itself(found):
    assert found["strength 0 same"] and found["strength 0 patches"] == 0
    assert found["original untouched"] == 0
    assert found["strength scales"] < 1e-6


@pytest.mark.parametrize("cfg", ["1.0", "2.5"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "ddim", "euler written out"])
def test_any_sampler_and_guidance_is_pulled_as_by_hand(found, sampler, cfg):
    assert found[f"{sampler} cfg {cfg}"] < 1e-4
    assert found["pull matters"] > 0.1


def test_ksampler_and_sampler_custom_advanced(found):
    assert found["KSampler"] < 1e-4
    assert found["SamplerCustomAdvanced"] < 1e-6


def test_the_pull_acts_when_it_should(found):
    assert found["eta window"] == [0, 0, 0.5, 0.5, 0, 0]  # sigma 80, 20, 6, 2, 0.7, 0.2 between 10 and 1
    # The host's percent on SV3D's range is logarithmic: 0.2 is sigma 54.5, 0.5 is 1.18.
    assert found["eta percent"] == [0, 0.5, 0.5, 0.5, 0, 0]
    assert found["eta flow"] == [0, 0, 0.5, 0.5, 0]
    assert found["pinned view kept"]


def test_the_papers_schedule_goes_by_step_index(found):
    """eta = 2 s(t) sigma^2, at most 1, with Eq. 31's s for t = 50 .. 1."""
    table = [0.0] * 5 + [0.002] * 5 + [0.008] * 10 + [0.005] * 10 + [0.003] * 10 + [0.001] * 10
    expected = [min(1.0, 2 * s * sigma**2) for s, sigma in zip(table, found["sigmas"], strict=False)]
    assert found["eta eq31"] == pytest.approx(expected, rel=1e-5)


def test_layouts_and_types(found):
    for layout in ("two sets", "video", "pictures with a time axis"):
        assert found[layout] < 1e-6
    assert found["torch.float16"][0] == "torch.float16" and found["torch.float16"][1] < 2e-3
    assert found["torch.bfloat16"][0] == "torch.bfloat16" and found["torch.bfloat16"][1] < 2e-2
    assert found["input kept"] and found["two sets sampled"] == [12, 3, 24, 24]


def test_masks_previews_and_other_patches(found):
    assert found["masked part kept"] < 1e-6 and found["rest drawn"] > 0.5
    assert found["chained"] < 1e-5
    assert found["previews"] < 1e-5


def test_the_way_through_the_network(found):
    """J^T d against central differences; weights made in inference mode, as loaders make them, stay what they are."""
    assert found["weights are inference tensors"] and found["weights given back"]
    for model in ("analytic", "video", "sd15", "fp8"):
        error, difference = found[f"jacobian {model}"]
        assert abs(error) < 0.03, model
        assert difference > 0.1, model
    assert "cannot be differentiated" in found["said"]["no gradient"]
    assert "another result" in found["said"]["another result"]


WORDS = {
    "no depth": "needs depth",
    "depth count": "5 depth maps .* 6 views",
    "depth nan": "NaN .*view 2",
    "depth zero": "0 everywhere",
    "depth constant": "1.5 everywhere",
    "depth negative": "negative",
    "no matches": "nothing to pull toward",
    "mask background": "no object",
    "mask count": "2 masks .* 6 views",
    "window": "more noise than it ends",
    "percent": "start before it ends",
    "pin": "input picture",
    "windows before": "context windows",
    "windows after": "context windows",
    "fewer views": "6 views",
    "fewer views sampled": "6 views",
    "no sigmas": "step index",
    "which": "'0, six'",
    "which high": "0 to 5",
    "views count": "3 views .* 6 views",
    "preview depth": "needs depth",
}


@pytest.mark.parametrize("case", WORDS)
def test_bad_input_is_one_sentence(found, case):
    text = found["said"][case]
    assert re.search(WORDS[case], text), text
    assert "\n" not in text and text.endswith(".") and ". " not in text.replace("Eq. ", "Eq ")


def test_constant_depth_would_have_done_harm(found):
    """Why it is refused: half of the matches would stay, and miss by cells."""
    share, cells = found["constant depth matches"]
    assert share > 0.3 and cells > 2


# --- in the running host ----------------------------------------------------------------------------------------------


def sampled(steps: int, rectified: bool = True) -> dict:
    """16 views of a toy by an uncoupled demo model, pulled by the toy's true depth, and the judge's verdict on them."""
    settings = {
        "preset": "default", "strength": 1.0, "correspondence": "perspective", "start_percent": 0.0, "end_percent": 1.0,
        "pin_input": False, "occlusion": True, "depth_error": 0.02, "jacobian": False, "eta": 0.75, "start_noise": 0.0,
        "end_noise": 0.3, "softness": 0.7, "iterations": 4, "guidance": 2.0, "block": 1, "positive": 0.5,
        "negative": "image", "temperature": 1.0, "neighbours": 1, "falloff": 1.0,
    }  # fmt: skip
    return {
        "1": node("MVDemoObject", seed=902, variant=0, variants=2, size=64, background="white"),
        "2": node(
            "MVLoadDemoModel", kind="analytic", resolution=64, window=31, kappa=0.0, front_bias=0.0, seed=902,
            families=4, variants=2,
        ),
        "3": node("MVViewConditioning", image=["1", 0], vae=["2", 1], cameras=["2", 2], width=64, height=64),
        "4": node(
            "KSampler", model=["7" if rectified else "2", 0], seed=0, steps=steps, cfg=1.0, sampler_name="euler",
            scheduler="karras", positive=["3", 0], negative=["3", 1], latent_image=["3", 2], denoise=1.0,
        ),
        "5": node("VAEDecode", samples=["4", 0], vae=["2", 1]),
        "7": node("MVMirrorRectify", model=["2", 0], cameras=["2", 2], depth=["1", 3], **settings),
        "8": node("MVDemoJudge", model=["2", 0], views=["5", 0]),
    }  # fmt: skip


def agreement(result) -> float:
    return float(re.search(r"agreement ([\d.]+)", result.outputs["8"]["text"][0])[1])


def test_views_agree_more_with_than_without(host):
    with_pull, without = (agreement(host.run(sampled(12, rectified))) for rectified in (True, False))
    assert with_pull > without + 0.1


def test_preview_gives_picture_and_table(host):
    prompt = {
        "1": node("MVDemoObject", seed=902, variant=0, variants=2, size=64, background="white"),
        "2": node(
            "MVCorrespondencePreview", views=["1", 1], cameras=["1", 4], depth=["1", 3], which="0, 3", points=10,
            neighbours=1, correspondence="perspective", occlusion=True, depth_error=0.02, cell=2,
        ),
        "3": node("PreviewAny", source=["2", 1]),
    }  # fmt: skip
    result = host.run(prompt)
    assert list(result.files("2"))
    rows = result.outputs["3"]["text"][0].splitlines()
    assert len(rows) == 4 + 2 * 16 + 1 and rows[-1].startswith("| all ")
    for row in rows[4:]:
        shares = [int(x) for x in re.findall(r"(\d+)%", row)]
        assert sum(shares) == pytest.approx(100, abs=2) and shares[0] > 50 and shares[2] < 5


def test_cancel_a_rectified_run(host):
    seen = []

    def watch(event) -> None:
        if event.node_id == "4" and event.value is not None:
            seen.append(event)
            if event.value >= 2:
                host.interrupt()

    with pytest.raises(Interrupted):
        host.run(sampled(1000), on_progress=watch)
    assert seen[-1].value < seen[-1].maximum / 4 and host.alive()
