"""LGM at full size: parameters, time and memory of one pass, on random weights.

    python tests/benchmarks/bench_lgm.py [--device cuda] [--half] [--threads 1]

Memory on a CPU: how much the pass raised the peak of the process. Weights are random: nothing is said of quality.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import types
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.modules["mvpack"] = types.ModuleType("mvpack")
sys.modules["mvpack"].__path__ = [str(ROOT)]

from mvpack.multiview.camera_presets import preset  # noqa: E402
from mvpack.multiview.lgm import BIG, LGM  # noqa: E402
from mvpack.multiview.lgm_reconstruct import lgm_model  # noqa: E402


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="16-bit weights")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.device("meta"):
        network = LGM(BIG)
    network.to_empty(device=arguments.device)
    generator = torch.Generator(arguments.device).manual_seed(0)
    for name, value in network.named_parameters():
        if value.ndim > 1:
            value.normal_(generator=generator).mul_(value[0].numel() ** -0.5)
        else:
            value.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    network = network.eval().to(torch.float16 if arguments.half else torch.float32)
    count = sum(p.numel() for p in network.parameters())
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    model = lgm_model(network, "lgm", "predicted")
    images = torch.rand(4, 256, 256, 3, generator=generator, device=arguments.device)
    before = peak_bytes(arguments.device)
    start = time.perf_counter()
    splat = model(images, preset("lgm"))
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    more = peak_bytes(arguments.device) - before
    print(
        f"{count / 1e6:.1f} million parameters, {weights / 2**20:.0f} MiB of weights ({network.conv.weight.dtype}); "
        f"one pass on {arguments.device} with {arguments.threads} thread(s): {seconds:.1f} s, "
        f"{more / 2**20:.0f} MiB more at its peak; {splat.num} Gaussians, opacity "
        f"{float(splat.opacities.min()):.3f} to {float(splat.opacities.max()):.3f}"
    )


if __name__ == "__main__":
    main()
