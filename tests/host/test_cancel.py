"""A cancelled prompt stops soon, leaves no half-written file, and the server runs the next one."""

from __future__ import annotations

import time

from cancelling import cancel_midway


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def fit_prompt(iterations: int, seed: int) -> dict:
    return {
        "1": node("MVDemoObject", seed=seed, variant=0, variants=2, size=64, background="white"),
        "2": node(
            "MVGaussianReconstruct", images=["1", 1], cameras=["1", 4], masks=["1", 2], iterations=iterations, seed=0,
            start="hull", background="auto", points=1000, max_points=2000, sh_degree=0,
            weight_l1=1.0, weight_ms_ssim=0.0, weight_mask=0.1,
        ),
        "3": node("MVSaveSplat", splat=["2", 0], filename_prefix="cancel/splat"),
    }  # fmt: skip


def model_prompt(seed: int, steps: int) -> dict:
    return {
        "1": node("MVDemoObject", seed=seed, variant=0, variants=2, size=64, background="white"),
        "2": node(
            "MVLoadDemoModel", kind="analytic", resolution=64, window=9, kappa=0.3, front_bias=0.0, seed=seed,
            families=4, variants=2,
        ),
        "3": node("MVViewConditioning", image=["1", 0], vae=["2", 1], cameras=["2", 2], width=64, height=64),
        "4": node(
            "KSampler", model=["2", 0], seed=0, steps=steps, cfg=1.0, sampler_name="euler", scheduler="normal",
            positive=["3", 0], negative=["3", 1], latent_image=["3", 2], denoise=1.0,
        ),
        "5": node("VAEDecode", samples=["4", 0], vae=["2", 1]),
        "6": node("SaveImage", images=["5", 0], filename_prefix="cancel/views"),
    }  # fmt: skip


def test_cancel_a_fit(host):
    last = cancel_midway(host, fit_prompt(iterations=5000, seed=901), "2")
    assert last.value < last.maximum / 4


def test_cancel_building_a_bank_and_load_it_afterwards(host):
    prompt = {key: value for key, value in model_prompt(seed=902, steps=2).items() if key == "2"}
    prompt["9"] = node("TestInspect", value=["2", 0])
    last = cancel_midway(host, prompt, "2", after=1)
    assert last.value < last.maximum
    # The half-made bank must not be taken for a whole one.
    assert "2" in host.run(prompt).executed


def test_cancel_sampling(host):
    last = cancel_midway(host, model_prompt(seed=902, steps=1000), "4")
    assert last.value < last.maximum / 4


def test_a_prompt_that_waits_can_be_taken_out(host):
    """Cancelling one prompt must not touch the others."""
    running = host.queue({"1": node("TestWait", steps=40, salt=time.time_ns() % 10**9)})
    waiting = host.queue({"1": node("TestWait", steps=100000, salt=7)})
    host.drop(waiting)
    deadline = time.monotonic() + 60
    while host.history(running) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert host.history(running)["status"]["status_str"] == "success"
    assert host.history(waiting) is None
