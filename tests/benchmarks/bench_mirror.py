"""What MIRROR's pull costs beside the model it is put on, in CPU seconds of one thread.

    .venv/bin/python tests/benchmarks/bench_mirror.py [--frames 2] [--skip-sv3d]

1. The pull with the node's default settings at SV3D's size (21 x 4 x 72 x 72), and the matching that is done once.
2. One step (CFG: two branches) of SV3D's UNet in its published size, random weights, float32, 6 GB. A step of all 21
   frames takes tens of minutes on one core, so --frames of them are run and the time is scaled up; attention over time,
   the only part that grows faster than the frames, then counts too little, so the true share is smaller.
3. Two stages with cached noise against stage 1 alone, the first 10 of 30 steps shared as in the example workflows: on
   the demo model (128 px, 16 views) in one run, and for SV3D from the share of 2. Depth comes from elsewhere and is
   not in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
for name, folder in (("mvpack", ROOT), ("mvpack.nodes", ROOT / "nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
sys.path += [str(ROOT / "scripts"), str(ROOT / "tests" / "helpers")]

from comfy_host import find_comfyui  # noqa: E402

sys.path.append(str(find_comfyui()))
command_line, sys.argv = sys.argv, sys.argv[:1]
from comfy.cli_args import args as comfy_args  # noqa: E402

comfy_args.cpu = True
import comfy.samplers  # noqa: E402
import small_unets  # noqa: E402
from mvpack.multiview.camera_presets import preset  # noqa: E402
from mvpack.multiview.cameras import orbit  # noqa: E402
from mvpack.multiview.demo.analytic import AnalyticOptions  # noqa: E402
from mvpack.multiview.demo.bank import build_bank  # noqa: E402
from mvpack.multiview.demo.objects import make_object  # noqa: E402
from mvpack.multiview.demo.raycast import render_object  # noqa: E402
from mvpack.multiview.depth import DepthMaps  # noqa: E402
from mvpack.multiview.mirror_settings import DEFAULT, Matching, match_views  # noqa: E402
from mvpack.nodes.analytic_model import make_analytic_model  # noqa: E402
from mvpack.nodes.mirror_patch import MirrorPatch  # noqa: E402
from mvpack.nodes.sampling_checks import When  # noqa: E402

FRAMES, LATENT, STEPS, SHARED, BRANCHES = 21, 72, 30, 10, 2
DEMO_SIZE = 128


def seconds(run, rounds: int = 1) -> float:
    """Median CPU time of this thread."""
    found = []
    for _ in range(rounds):
        start = time.thread_time()
        run()
        found.append(time.thread_time() - start)
    return statistics.median(found)


def true_depth(cameras, seed: int, size: int) -> DepthMaps:
    depth = render_object(make_object(seed), cameras, size, 1).depth
    return DepthMaps(depth, (depth > 0).float())


def pull_at_sv3d_size() -> float:
    cameras = preset("sv3d_stability", 0)
    depth = true_depth(cameras, 3, 256)
    size = (LATENT, LATENT)
    once = seconds(lambda: match_views(cameras, size, depth, None, DEFAULT.offsets, Matching()))
    matches = match_views(cameras, size, depth, None, DEFAULT.offsets, Matching())
    x0 = torch.randn(len(cameras), 4, *size)
    laying = seconds(lambda: DEFAULT.lay_out(matches), 5)
    taps = DEFAULT.lay_out(matches)
    pull = seconds(lambda: DEFAULT.apply(x0, matches, 0.75, taps), 9)
    print(f"once a run, depth of 256 px: {1000 * (once + laying):.0f} ms; a step: {1000 * pull:.1f} ms", flush=True)
    return pull


@torch.no_grad()
def sv3d_step(frames: int) -> float:
    network = small_unets.sv3d_p(320, (1, 2, 4, 4)).model.diffusion_model
    x, time_, context = torch.randn(frames, 8, LATENT, LATENT), torch.full((frames,), 0.5), torch.zeros(frames, 1, 1024)
    y = torch.zeros(frames, 1280)
    run = lambda: network(x, time_, context, y, transformer_options={}, num_video_frames=frames)  # noqa: E731
    one = seconds(run)
    step = one / frames * FRAMES * BRANCHES
    weights = sum(p.numel() for p in network.parameters()) / 1e9
    print(f"SV3D, {weights:.2f} billion weights: {one:.1f} s for {frames} frame(s), one branch")
    print(f"that is {step:.0f} s for a step of {FRAMES} frames and {BRANCHES} branches", flush=True)
    return step


def demo_stages() -> None:
    cameras = orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13, input_view=0)
    bank = build_bank(cameras, DEMO_SIZE, 1, 6, 0)
    model, _ = make_analytic_model(bank, AnalyticOptions(window=63, kappa=0.02, front_bias=0.1))
    depth = true_depth(cameras, int(bank.seeds[0]), DEMO_SIZE)
    reference = bank.references[0].movedim(-1, 0).float()[None] / 127.5 - 1
    pose = {"azimuth": cameras.azimuths().tolist(), "elevation": cameras.elevations().tolist()}
    positive = [[torch.zeros(1, 1, 1024), {"concat_latent_image": reference, **pose}]]
    noise = torch.randn(len(cameras), 3, DEMO_SIZE, DEMO_SIZE)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", STEPS)

    def stage(patched, levels) -> None:
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(positive, positive)
        guider.set_cfg(1.0)
        with torch.inference_mode():
            guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), levels,
                          disable_pbar=True, seed=0)  # fmt: skip

    def second() -> None:
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(MirrorPatch(cameras, depth, None, DEFAULT, Matching(), When()))
        stage(patched, sigmas[SHARED:])

    first, again = seconds(lambda: stage(model, sigmas)), seconds(second)
    print(f"demo model: stage 1 {first:.1f} s, stage 2 {again:.1f} s, both {(first + again) / first:.2f} times stage 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--skip-sv3d", action="store_true")
    arguments = parser.parse_args(command_line[1:])
    torch.set_num_threads(1)
    pull = pull_at_sv3d_size()
    demo_stages()
    if not arguments.skip_sv3d:
        share = pull / sv3d_step(arguments.frames)
        both = 1 + (1 - SHARED / STEPS) * (1 + share)
        print(f"share of a step: {100 * share:.4f} %; both stages {both:.3f} times stage 1")


if __name__ == "__main__":
    main()
