"""Loads the pack the way ComfyUI does, orders the tests, and runs the one ComfyUI that all host tests share."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from comfy_host import ComfyHost

ROOT = Path(__file__).resolve().parents[1]
# What a change most likely breaks, and what answers soonest, comes first.
ORDER = {"unit": 0, "host": 1, "browser": 2}

# Several jobs share the cores of a test machine; OpenMP threads that wait for each other made runs 7 times slower.
torch.set_num_threads(1)


def _load_pack() -> None:
    """The checkout as package `mvpack`; the root stays off sys.path. Needs no ComfyUI unless nodes/ is imported."""
    spec = importlib.util.spec_from_file_location(
        "mvpack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["mvpack"] = module
    spec.loader.exec_module(module)


_load_pack()


def _kind(item) -> str:
    return item.path.relative_to(ROOT / "tests").parts[0]


def pytest_collection_modifyitems(items):
    for item in items:
        if _kind(item) in ("host", "browser"):
            item.add_marker(getattr(pytest.mark, _kind(item)))
    items.sort(key=lambda item: (ORDER.get(_kind(item), 9), item.get_closest_marker("slow") is not None))


_notes = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[_notes] = []


def pytest_terminal_summary(terminalreporter, config):
    """Which host was tested, and, loudly, what could not be tested on this machine."""
    for text in config.stash[_notes]:
        terminalreporter.write_line(text, red="NOT RUN" in text, bold=True)


@pytest.fixture(scope="session")
def summary_note(pytestconfig):
    """Call it with a line that belongs at the end of the run's output."""

    def note(text: str) -> None:
        if text not in pytestconfig.stash[_notes]:
            pytestconfig.stash[_notes].append(text)

    return note


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def host_factory(tmp_path_factory):
    """Makes ComfyHost objects (not yet started) with a fresh base folder; all are stopped at the end of the session.

    The helper pack (tests/host/helper_pack) is installed beside ours; pass extra_packs={} to do without.
    """
    made = []

    def make(**options) -> ComfyHost:
        options.setdefault("extra_packs", {"mv-test-helpers": ROOT / "tests" / "host" / "helper_pack"})
        options.setdefault("threads", int(os.environ.get("MV_TEST_THREADS", "1")))
        base = options.pop("base", None) or tmp_path_factory.mktemp("comfyui")
        made.append(ComfyHost(base, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="session")
def host(host_factory, summary_note) -> ComfyHost:
    """The real ComfyUI, started once for the whole run. If it cannot start, every test that asks for it fails."""
    comfy = host_factory()
    comfy.start()
    summary_note(f"host: {comfy.version()}, {'CPU' if '--cpu' in comfy.command_line() else 'GPU'}")
    return comfy


@pytest.fixture(scope="session")
def object_info(host) -> dict:
    """Every node definition of the running host."""
    return host.object_info()


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
    ("CLIPLoader", "clip_name"): "models/text_encoders",
    ("MVDepthEstimate", "model"): "models/depthanything",
    ("MVPoseClusters", "dinov2"): "models/dinov2",
    ("MVLoadPoseModel", "file"): "models/multiview/pose",
    ("MVFlowError", "weights"): "models/raft",
    ("MVLoadLGM", "file"): "models/lgm",
    ("MVLoadOuroboros3D", "file"): "models/ouroboros3d",
    ("MVLoadOuroboros3D", "checkpoint"): "models/checkpoints",
    ("LoadImage", "image"): "input",
    ("LoadImageMask", "image"): "input",
    ("MVLoadSplat", "file"): "input",
}


# A black pixel as .gif; pictures are recognised by their content, so any name will do.
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAAAAAAALAAAAAABAAEAAAIBRAA7")


@pytest.fixture
def placeholder_files(host):
    """Context manager: stand-ins for the files that core loaders in a prompt ask for, so that the host's validation
    and the page accept the names. Nothing can be run with them."""

    @contextlib.contextmanager
    def place(prompt: dict):
        made = []
        for node in prompt.values():
            for (kind, name), folder in MODEL_FOLDERS.items():
                value = node["inputs"].get(name)
                # A name without an ending is built in ("demo depth net").
                if node["class_type"] == kind and isinstance(value, str) and "." in value:
                    # "name [output]": a file that an earlier run saved.
                    name_only, mark = value.removesuffix(" [output]"), value.endswith(" [output]")
                    path = host.base / ("output" if mark else folder) / name_only
                    if not path.exists():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        # The page shows input pictures; model files are only listed.
                        path.write_bytes(PIXEL if folder == "input" else b"")
                        made.append(path)
        try:
            yield
        finally:
            for path in made:
                path.unlink()

    return place
