"""The demo: one picture -> 16 views -> a Gaussian splat, in a real ComfyUI without a window.

    python run.py demo [--toy NUMBER]

Runs workflows/image_to_splat_demo.json as it is shipped and says where the results are. Nothing is downloaded; ComfyUI
keeps everything below .host/ in the repository folder.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

from comfy_host import ComfyHost, HostError, Progress, RunResult, WorkflowError, workflow_to_prompt

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "workflows" / "image_to_splat_demo.json"
PLAN = """
  1. start ComfyUI (headless) with this pack
  2. draw a toy, and the small demo diffusion model that knows it
  3. its picture from the front -> 16 views around it       (KSampler, 30 steps)
  4. views -> Gaussian splat                                (150 iterations)
  5. contact sheet, turntable, figures

It takes 1 to 2 minutes on 2 CPU cores (6 on a busy machine) and needs neither a graphics card nor a download."""
# Results to name at the end: what, and which node saves it.
RESULTS = (
    ("contact sheet (views, truth, splat)", "SaveImage"),
    ("splat, for any 3DGS viewer", "MVSaveSplat"),
    ("turntable animation", "SaveAnimatedWEBP"),
)
TIMEOUT_SECONDS = 1800
SAY_EVERY_SECONDS = 5.0


class Reporter:
    """Prints what the host does, and remembers how long each node took."""

    def __init__(self, prompt: dict):
        self.prompt = prompt
        self.seconds: dict[str, float] = {}
        self.started = self.node_started = self.said = time.monotonic()
        self.node: str | None = None

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        if event.value is None:
            self.finish(now)
            self.node, self.node_started = event.node_id, now
            self.say(self.title(event.node_id), now)
        elif now - self.said > SAY_EVERY_SECONDS:
            self.say(f"    {event.value:.0f} of {event.maximum:.0f}", now)

    def finish(self, now: float | None = None) -> None:
        now = now or time.monotonic()
        if self.node is not None:
            title = self.title(self.node)
            self.seconds[title] = self.seconds.get(title, 0.0) + now - self.node_started
        self.node = None

    def title(self, node_id: str) -> str:
        return self.prompt[node_id]["_meta"]["title"].removesuffix(" (Multi-View)")

    def say(self, text: str, now: float) -> None:
        self.said = now
        print(f"  {now - self.started:5.0f} s  {text}", flush=True)


def nodes_of(prompt: dict, kind: str) -> list[str]:
    return [node_id for node_id, node in prompt.items() if node["class_type"] == kind]


def choose_toy(prompt: dict, toy: int) -> None:
    """The one number that decides which toy is drawn and which toys the model knows."""
    (demo_object,) = nodes_of(prompt, "MVDemoObject")
    source = prompt[demo_object]["inputs"]["seed"]
    prompt[source[0]]["inputs"]["value"] = toy


def saved_files(host: ComfyHost, prompt: dict, result: RunResult) -> list[tuple[str, Path]]:
    found = []
    for what, kind in RESULTS:
        files = [host.output_path(f) for node_id in nodes_of(prompt, kind) for f in result.files(node_id)]
        if not files or not all(path.is_file() and path.stat().st_size for path in files):
            raise HostError(f"the run ended without an error, but the {what} is missing; see {host.log_path}")
        found += [(what, path) for path in files]
    return found


def figures(prompt: dict, result: RunResult) -> list[str]:
    """Mean PSNR and SSIM of each comparison, and the judge's verdict."""
    lines = [f"{'':28} {'PSNR dB':>8} {'SSIM':>7}   (99 = the same picture)"]
    for node_id in nodes_of(prompt, "MVCompareViews"):
        text = result.outputs[node_id]["text"][0]
        overall = re.search(r"\ball\b\D+([\d.]+)\D+([\d.]+)", text)
        if overall is None:
            raise HostError(f"no line for all views in the table of node {node_id}:\n{text}")
        lines.append(f"{prompt[node_id]['inputs']['title']:28} {float(overall[1]):8.2f} {float(overall[2]):7.4f}")
    for node_id in nodes_of(prompt, "MVDemoJudge"):
        lines += ["", *result.outputs[node_id]["text"][0].splitlines()]
    return lines


def run(toy: int | None) -> None:
    print("One picture -> 16 views -> a Gaussian splat, in a real ComfyUI" + PLAN, flush=True)
    began = time.monotonic()
    # One thread: the small tensors of this demo gain nothing from a second one, and lose much when the cores are busy.
    with ComfyHost(threads=1) as host:
        ready = time.monotonic()
        print(f"\n{host.version()}, started in {ready - began:.0f} s", flush=True)
        prompt = workflow_to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), host.object_info())
        if toy is not None:
            choose_toy(prompt, toy)
        print(f"running {WORKFLOW.relative_to(ROOT)}", flush=True)
        reporter = Reporter(prompt)
        result = host.run(prompt, reporter, timeout=TIMEOUT_SECONDS)
        reporter.finish()
        files = saved_files(host, prompt, result)
        table = figures(prompt, result)
    section("Seconds")
    slow = {title: seconds for title, seconds in reporter.seconds.items() if seconds >= 0.5}
    parts = {"start ComfyUI": ready - began} | slow
    parts["everything else"] = time.monotonic() - began - sum(parts.values())
    for title, seconds in parts.items():
        print(f"  {title:28} {seconds:6.1f}")
    print(f"  {'total':28} {sum(parts.values()):6.1f}")
    section("Figures")
    print("\n".join(f"  {line}".rstrip() for line in table))
    section("Results")
    for what, path in files:
        print(f"  {what}:\n    {path}")


def section(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py demo", description="One picture to 16 views to a Gaussian splat.")
    parser.add_argument("--toy", type=int, help="which toy (0 to 2147483647); the workflow's own when left out")
    arguments = parser.parse_args()
    if arguments.toy is not None and not 0 <= arguments.toy < 2**31:
        parser.error("--toy must be between 0 and 2147483647")
    try:
        run(arguments.toy)
    except (HostError, WorkflowError, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
