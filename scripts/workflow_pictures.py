"""Makes the picture that lies beside each workflow: python scripts/workflow_pictures.py [names]

Workflows that run anywhere are run, and their contact sheet is the picture. The SV3D ones, which need the user's
checkpoint, are shown as the graph in ComfyUI's page; that takes a browser (browser_session.py). Those whose result
lives in the page are run and shown there.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from browser_session import Browser
from build_workflows import WORKFLOWS
from comfy_host import ComfyHost, workflow_to_prompt
from comfy_page import ComfyPage
from PIL import Image

LARGEST_BYTES = 250_000
# In this order: splat_files_and_cameras loads a file that the first one saves.
RUNNABLE = (
    "image_to_splat_demo",
    "contradicting_views_demo",
    "splat_files_and_cameras",
    "harmonyview_demo",
    "depth_demo",
    "invert_demo",
    "measure_consistency",
    "mirror_two_stages_demo",
    "refine_demo",
    "mirror_refine_demo",
    "feedback_demo",
)
SHOWN = (
    "sv3d_image_to_splat",
    "sv3d_stability_cameras_to_splat",
    "harmonyview_sv3d",
    "cross_frame_sd15",
    "cross_frame_zero123",
    "cluster_poses",
    "mirage_generate",
    "quality_scores",
    "sv3d_lgm_splat",
    "ouroboros3d",
    "mirror_two_stages_sv3d",
    "refine_sv3d",
    "feedback_sv3d",
    "feedback_sv3d_lgm",
)
# They load the turntable that the demo saves.
RUN_IN_PAGE = ("views_to_mesh",)


TOY = {"seed": 23, "variant": 0, "variants": 6, "size": 576, "background": "white"}


def save(picture: Image.Image, name: str, widest: int = 1600) -> None:
    """As .jpg, as good as the size limit allows."""
    picture = picture.convert("RGB")
    picture.thumbnail((widest, widest), Image.Resampling.LANCZOS)
    path = WORKFLOWS / f"{name}.jpg"
    for quality in (92, 85, 75, 60):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LARGEST_BYTES:
            break
    print(f"{path.name}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB", flush=True)


def run(host: ComfyHost, name: str, object_info: dict) -> None:
    prompt = workflow_to_prompt(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), object_info)
    result = host.run(prompt, timeout=1800)
    sheet = next(node for node, entry in prompt.items() if entry["class_type"] == "MVContactSheet")
    (file,) = result.files(sheet)
    with Image.open(host.output_path(file)) as picture:
        save(picture, name)


def put_example(host: ComfyHost) -> None:
    """The picture that LoadImage names; an own ComfyUI brings one, a fresh base folder does not."""
    toy = {
        "1": {"class_type": "MVDemoObject", "inputs": TOY},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    (file,) = host.run(toy).files("2")
    host.upload_image(host.output_path(file), "example.png")


def show(page: ComfyPage, name: str, folder: Path) -> None:
    page.open(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), name)
    # Otherwise the front end leaves out texts that it thinks too small to read.
    page.browser.evaluate("app.ui.settings.setSettingValue('LiteGraph.Canvas.MinFontSizeForLOD', 0)")
    page.picture(folder / "page.png")
    with Image.open(folder / "page.png") as picture:
        save(picture, name, 2000)


def run_in_page(page: ComfyPage, name: str, folder: Path) -> None:
    page.open(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), name)
    page.browser.evaluate("app.queuePrompt(0).then(() => true)")
    while page.host.queued():
        time.sleep(1)
    time.sleep(3)  # the page loads what was made
    page.picture(folder / "page.png")
    with Image.open(folder / "page.png") as picture:
        save(picture, name, 2000)


def main(names: list[str]) -> int:
    wanted = names or [*RUNNABLE, *SHOWN, *RUN_IN_PAGE]
    with tempfile.TemporaryDirectory() as folder, ComfyHost(Path(folder, "base"), threads=1) as host:
        object_info = host.object_info()
        in_page = [n for n in RUN_IN_PAGE if n in wanted]
        for name in [n for n in RUNNABLE if n in wanted or (in_page and n == RUNNABLE[0])]:
            run(host, name, object_info)
        shown = [n for n in SHOWN if n in wanted]
        if shown or in_page:
            put_example(host)
            with Browser((2560, 1440)) as browser:
                page = ComfyPage(browser, host)
                for name in shown:
                    show(page, name, Path(folder))
                for name in in_page:
                    run_in_page(page, name, Path(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
