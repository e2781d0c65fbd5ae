"""Runs and files that several host tests use."""

import numpy as np
import pytest
from PIL import Image
from running_workflows import reduced_checkpoints, run_demo


@pytest.fixture(scope="session")
def demo_run(host, object_info):
    """image_to_splat_demo exactly as shipped: 16 views of 128 px, 30 steps, the fit's own settings; about 40 s."""
    return run_demo(host, object_info, "image_to_splat_demo")


@pytest.fixture(scope="session")
def sv3d_checkpoint(host):
    """sv3d_p.safetensors with random weights where the host looks for checkpoints: 1.9 GB, deleted afterwards."""
    folder = host.base / "models" / "checkpoints"
    path = reduced_checkpoints().write("sv3d_p", folder, host.comfyui, host.python)
    yield path
    host.free()
    path.unlink()


@pytest.fixture(scope="session")
def input_picture(host, tmp_path_factory):
    """example.png: an orange disc on transparent ground, whose hidden colour is green."""
    y, x = np.mgrid[:96, :96]
    disc = (x - 48) ** 2 + (y - 48) ** 2 < 30**2
    pixels = np.where(disc[..., None], [255, 128, 0, 255], [0, 255, 0, 0]).astype(np.uint8)
    path = tmp_path_factory.mktemp("input") / "example.png"
    Image.fromarray(pixels, "RGBA").save(path)
    host.upload_image(path)
