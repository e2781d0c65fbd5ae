"""3D feedback on the real sampling code of ComfyUI: against the same steps by hand, and what bad input is answered."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from comfy_host import ComfyHost, find_comfyui

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def found() -> dict:
    env = {**os.environ, "PYTHONPATH": str(find_comfyui()), "OMP_NUM_THREADS": "1"}
    command = [ComfyHost().python, str(HERE / "feedback_check.py"), str(HERE.parents[1])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[-1][6:])


def test_as_by_hand(found):
    """Warm starts, the size of the render, the input view kept and the background left alone."""
    worst = max(found[name] for name in ("by hand", "object only"))
    assert worst < 5e-4
    assert found["feedback matters"] > 20 * worst and found["another seed"] > 2 * worst
    assert found["input view alone"] == 0 and found["input view fed back"] > 1e-3


def test_every_run_starts_anew(found):
    assert found["runs alike"]


def test_off_is_the_model_itself(found):
    assert found["strength 0"] and found["original untouched"] and found["began too late"]


def test_other_samplers_and_parts_of_the_run(found):
    assert found["heun"] > 1e-3 and found["ended early"] > 1e-3


def test_stops_within_a_step(found):
    assert found["cancelled after"] == [0]


WORDS = {
    "percent": "start before it ends",
    "window": "more noise than it ends",
    "no input view": "do not say which view",
    "no input view to weigh": "do not say which view",
    "vae": "4 channels but the model draws 3.*connect the VAE",
    "vae cells": "one latent cell of 8 x 8 pixels but the model draws cells of 1 x 1.*connect the VAE",
    "lgm views": r"these 6 cameras .*within 12 degrees of 90 and 270: .*or use Fit Gaussian Splat",
    "lgm, three views": r"these 3 cameras .*within 12 degrees of 90 and 180 and 270: .*or use Fit Gaussian Splat",
    "lgm, one view": r"these 1 cameras .*of 90 and 180 and 270: .*or use Fit Gaussian Splat",
    "windows": "context windows",
    "count": "2 views",
}


@pytest.mark.parametrize("case", WORDS)
def test_bad_input_is_one_sentence(found, case):
    text = found["said"][case]
    assert re.search(WORDS[case], text), text
    assert "\n" not in text and text.endswith(".") and ". " not in text
