"""Helpers of the host tests."""

from __future__ import annotations

import contextlib
import time

import pytest

# Where the host looks for a file that a core loader names.
MODEL_FOLDERS = {
    ("CheckpointLoaderSimple", "ckpt_name"): "models/checkpoints",
    ("ImageOnlyCheckpointLoader", "ckpt_name"): "models/checkpoints",
    ("unCLIPCheckpointLoader", "ckpt_name"): "models/checkpoints",
    ("UNETLoader", "unet_name"): "models/diffusion_models",
    ("VAELoader", "vae_name"): "models/vae",
    ("LoraLoader", "lora_name"): "models/loras",
    ("LoraLoaderModelOnly", "lora_name"): "models/loras",
    ("ControlNetLoader", "control_net_name"): "models/controlnet",
    ("CLIPVisionLoader", "clip_name"): "models/clip_vision",
    ("LoadImage", "image"): "input",
    ("LoadImageMask", "image"): "input",
}


@pytest.fixture
def placeholder_files(host):
    """Context manager: empty files under the names that core loaders in a prompt ask for, so that the host's validation
    gets past them. Only for validation; nothing can be run with them."""

    @contextlib.contextmanager
    def place(prompt: dict):
        made = []
        for node in prompt.values():
            for (kind, name), folder in MODEL_FOLDERS.items():
                value = node["inputs"].get(name)
                if node["class_type"] == kind and isinstance(value, str):
                    path = host.base / folder / value
                    if not path.exists():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.touch()
                        made.append(path)
        try:
            yield
        finally:
            for path in made:
                path.unlink()

    return place


@pytest.fixture
def wait_until():
    """wait_until(condition, seconds) -> whether it came true in time."""

    def wait(condition, seconds: float = 30) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.05)
        return False

    return wait
