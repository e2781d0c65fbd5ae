"""Cost of a HarmonyView step against a CFG step: time as a ratio within one run, and peak memory.

    with PYTHONPATH = a ComfyUI folder:  python tests/benchmarks/bench_harmony.py [--rounds 7] [--side 24]

SV3D_p with its temporal layers, reduced to 128 channels and random weights, 6 views, one thread, on the CPU. CFG is the
host's own guider with two branches in one call; HarmonyView has three in one call. Peak memory is what one step
allocates above what was there before it, in a process of its own for each case.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
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


def peak_of(case: str, side: int) -> float:
    """MB that a step adds to the resident memory of a new process."""
    command = [sys.executable, __file__, "--side", str(side), "--peak", case]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=24)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps = guiders(given.side)
    if given.peak:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps[given.peak]()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        return
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
    print("| case | CPU s a step | of a CFG step | peak memory of a step, MB |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.3f} | {median / cfg:.2f} | {peak_of(name, given.side):.0f} |")


if __name__ == "__main__":
    main()
