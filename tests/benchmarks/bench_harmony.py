"""Cost of a HarmonyView step against a CFG step: time as a ratio within one run, and peak memory.

    with PYTHONPATH = a ComfyUI folder:  python tests/benchmarks/bench_harmony.py [--rounds 7] [--side 24]

SV3D_p with its temporal layers, reduced to 128 channels and random weights, 6 views, one thread, on the CPU. CFG is the
host's own guider with two branches in one call; HarmonyView has three in one call. Peak memory is what torch holds at
most in one step above what was there before it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
import types
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
VIEWS = 6
CASES = {
    "plain (0, 0)": {"s1": 0.0, "s2": 0.0},
    "CFG 3": None,
    "HarmonyView (2, 1)": {"s1": 2.0, "s2": 1.0},
    "HarmonyView (2, 1), split": {"s1": 2.0, "s2": 1.0, "split": True},
}


def guiders(side: int) -> dict:
    """Case -> a function that runs one step."""
    for name, folder in (("mvpack", ROOT), ("mvpack.nodes", ROOT / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    sys.path.append(str(ROOT / "tests" / "helpers"))
    from comfy.cli_args import args

    args.cpu = True
    import comfy.samplers
    import small_unets
    from mvpack.nodes.harmonyview import HarmonyGuider, Settings

    model = small_unets.sv3d_p(128, (1, 2))
    picture, embedding = torch.randn(1, 4, side, side), torch.randn(1, 1, 64)
    pose = {"azimuth": [60.0 * i for i in range(VIEWS)], "elevation": [15.0] * VIEWS}
    positive = [[embedding, {"concat_latent_image": picture, **pose}]]
    negative = [[embedding * 0, {"concat_latent_image": picture * 0, **pose}]]
    noise = torch.randn(VIEWS, 4, side, side)
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([3.0, 0.0])

    def make(case: dict | None):
        if case is None:
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(3.0)
        else:
            guider = HarmonyGuider(model)
            guider.set_harmony(positive, negative, Settings(**case), True)
        return lambda: guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)

    return {name: make(case) for name, case in CASES.items()}


def peak_of(step) -> float:
    """MiB that a step holds at most above what was there before it, from torch's own record of its allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(changes)) / 2**20


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps = guiders(given.side)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    # In turns, so that another load on the machine hits all cases alike; CPU time of this one thread.
    for _ in range(given.rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    cfg = statistics.median(seconds["CFG 3"])
    print(f"{VIEWS} views of {given.side} x {given.side} latents, median of {given.rounds} rounds")
    print("| case | CPU s a step | of a CFG step | peak MiB |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.3f} | {median / cfg:.2f} | {peak_of(steps[name]):.0f} |")


if __name__ == "__main__":
    main()
