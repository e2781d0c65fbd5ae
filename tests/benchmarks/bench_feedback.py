"""What 3D feedback costs beside the sampling it is put into: CPU seconds of one thread, and memory.

    .venv/bin/python tests/benchmarks/bench_feedback.py [--parts demo lgm sv3d] [--step SECONDS]

demo  whole runs of the demo workflow (analytic model, 64 px, 16 views, 24 steps), plain and with each preset; by the
      workflow's short fit, and by an LGM of 32 channels with random weights.
lgm   the same reconstruction by LGM's public configurations with random weights, one pass each.
sv3d  one feedback at SV3D's size (21 views of 576 px) from its parts: a VAE of the published size on one view, some
      iterations of the workflow's fit, a render; then as a share of runs of 30 steps. A step of the UNet is measured
      as bench_mirror.py does, from one frame of one branch (6 GB, a minute), unless --step gives its figure.

Memory is what torch holds at most above what was there before (bench_harmony.py).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import bench_mirror as bench  # first: it makes ComfyUI and the pack importable
import torch
import torch.nn.functional as F
from bench_harmony import peak_of

sys.path.append(str(bench.ROOT / "tests"))

import comfy.samplers  # noqa: E402
import ouroboros_files  # noqa: E402
import reduced_checkpoints  # noqa: E402
import small_unets  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from mvpack.multiview.feedback import PRESETS, Moments, QuickFit, render_views  # noqa: E402
from mvpack.multiview.lgm import BIG, LGM, SMALL, LGMConfig  # noqa: E402
from mvpack.multiview.lgm_reconstruct import LGMModel, lgm_model  # noqa: E402
from mvpack.multiview.splats.gaussians import Gaussians  # noqa: E402
from mvpack.nodes.feedback_patch import Feedback, FeedbackPatch, by_lgm  # noqa: E402

NARROW = LGMConfig((32,) * 6, (False,) * 4 + (True,) * 2, (32,) * 3, (True, False, False))
CASES = PRESETS | {
    "custom: every step until S = 1": replace(PRESETS["default"], every=1),
    "custom: every step from S = 4 until S = 1": replace(PRESETS["default"], start=4.0, every=1),
}
# The settings of feedback_demo and of feedback_sv3d.
DEMO_FIT = {"first": 30, "again": 12, "points": 800}
SV3D_FIT = {"first": 150, "again": 80, "points": 8000}
SIZE, STEPS, SV3D_SIDE = 64, 24, 576


class Counted:
    """A reconstruction that knows how often it was asked."""

    def __init__(self, reconstruct):
        self.reconstruct, self.calls = reconstruct, 0

    def __call__(self, *given) -> Gaussians:
        self.calls += 1
        return self.reconstruct(*given)


class Demo:
    """The demo workflow's sampling."""

    def __init__(self):
        self.cameras = bench.orbit([22.5 * i for i in range(16)], 15.0, 1.5, 49.13, input_view=0)
        bank = bench.build_bank(self.cameras, SIZE, 1, 6, 0)
        options = bench.AnalyticOptions(window=SIZE // 2 - 1, kappa=0.02, front_bias=0.1)
        self.model, self.vae = bench.make_analytic_model(bank, options)
        self.views = bench.render_object(bench.make_object(int(bank.seeds[0])), self.cameras, SIZE, 1).rgb
        reference = bank.references[0].movedim(-1, 0).float()[None] / 127.5 - 1
        pose = {"azimuth": self.cameras.azimuths().tolist(), "elevation": self.cameras.elevations().tolist()}
        self.positive = [[torch.zeros(1, 1, 1024), {"concat_latent_image": reference, **pose}]]
        self.noise = torch.randn(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def sample(self, moments: Moments | None = None, reconstruct=None, steps: int = STEPS) -> None:
        """steps: only so many of the run's, from its start."""
        model = self.model.clone()
        if moments:
            told = Feedback(self.cameras, self.vae, reconstruct, moments, torch.ones(16), False, bench.When())
            model.set_model_sampler_post_cfg_function(FeedbackPatch(told))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.positive, self.positive)
        guider.set_cfg(1.0)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", STEPS)[: steps + 1]
        with torch.inference_mode():
            guider.sample(self.noise, torch.zeros_like(self.noise), comfy.samplers.sampler_object("euler"), sigmas,
                          disable_pbar=True, seed=0)  # fmt: skip


def random_lgm(config: LGMConfig) -> LGMModel:
    network = LGM(config).eval().requires_grad_(False)
    ouroboros_files.fill(network)
    return lgm_model(network, "lgm", "predicted")


def demo_runs() -> None:
    demo = Demo()
    ways = {
        "fit": QuickFit(demo.cameras, **DEMO_FIT), "LGM, 32 channels": by_lgm(random_lgm(NARROW), demo.cameras)
    }  # fmt: skip
    demo.sample(steps=1)
    plain = bench.seconds(demo.sample, 3)
    print(f"demo: plain run of {STEPS} steps {plain:.2f} s\n")
    print("| by | preset | steps fed back | run, of plain | a fed step, of a plain step | a feedback, s |")
    print("|---|---|---|---|---|---|")
    for way, reconstruct in ways.items():
        for name, moments in CASES.items():
            counted = Counted(reconstruct)
            run = bench.seconds(lambda: demo.sample(moments, counted))  # noqa: B023
            each = (run - plain) / max(1, counted.calls)
            of_step = 1 + each / (plain / STEPS)
            print(f"| {way} | {name} | {counted.calls} | {run / plain:.1f} | {of_step:.1f} | {each:.2f} |", flush=True)
    print()
    print(f"memory of a plain step: {peak_of(lambda: demo.sample(steps=1)):.0f} MiB")
    for way, reconstruct in ways.items():
        peak = peak_of(lambda: reconstruct(demo.views, None))  # noqa: B023
        print(f"memory of a reconstruction, {way}: {peak:.0f} MiB", flush=True)


def lgm_passes() -> None:
    demo = Demo()
    fit = QuickFit(demo.cameras, **DEMO_FIT)
    first = bench.seconds(lambda: fit(demo.views, None))
    print(f"fit of {fit.first} iterations, {fit.points} Gaussians: {first:.2f} s")
    for name, config in (("32 channels", NARROW), ("small", SMALL), ("big", BIG)):
        model, found = random_lgm(config), []
        peak = peak_of(lambda: found.append(bench.seconds(lambda: model(demo.views, demo.cameras))))  # noqa: B023
        weights = sum(p.numel() for p in model.network.parameters()) * 4 / 2**20
        print(f"LGM, {name}: {found[0]:.1f} s a pass, {peak:.0f} MiB beside {weights:.0f} MiB of weights", flush=True)


@torch.no_grad()
def vae_view() -> tuple[float, float]:
    """CPU seconds to decode and to encode one view."""
    vae = AutoencoderKL(ddconfig=reduced_checkpoints.SD_VAE, embed_dim=4).eval()
    ouroboros_files.fill(vae)
    latent, picture = torch.randn(1, 4, 72, 72), torch.rand(1, 3, SV3D_SIDE, SV3D_SIDE)
    found = []
    for name, run in (("decode", lambda: vae.decode(latent)), ("encode", lambda: vae.encode(picture))):
        peak = peak_of(lambda: found.append(bench.seconds(run)))  # noqa: B023
        print(f"SV3D, VAE: {name} one view {found[-1]:.1f} s, {peak:.0f} MiB", flush=True)
    return tuple(found)


def sv3d_parts() -> tuple[float, float, float, float]:
    """CPU seconds of the VAE both ways, of starting a fit, of one of its iterations, and of rendering; for 21 views."""
    cameras = bench.preset("sv3d_stability", 0)
    small = bench.render_object(bench.make_object(3), cameras, 144, 1).rgb.movedim(-1, 1)
    views = F.interpolate(small, size=(SV3D_SIDE, SV3D_SIDE), mode="bilinear").movedim(1, -1)
    fit = QuickFit(cameras, first=1, again=1, points=SV3D_FIT["points"])
    made = []
    once = bench.seconds(lambda: made.append(fit(views, None)))
    splat = made[0]
    more = bench.seconds(lambda: replace(fit, first=9)(views, None))
    iteration = (more - once) / 8
    peak = peak_of(lambda: fit(views, splat))
    render = len(cameras) * bench.seconds(lambda: render_views(splat, cameras.subset([0]), views[:1]))
    start = max(0.0, once - iteration)
    print(f"SV3D, fit: start {start:.1f} s, an iteration {iteration:.2f} s, {peak:.0f} MiB; 21 renders {render:.1f} s")
    return len(cameras) * sum(vae_view()), start, iteration, render


def sv3d_runs(step: float | None, frames: int, lgm: float) -> None:
    vae, start, iteration, render = sv3d_parts()
    step = step or bench.sv3d_step(frames)
    sampling = small_unets.sv3d_p(32).get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", bench.STEPS)[:-1].tolist()
    print(f"SV3D, a step of the UNet {step:.0f} s; VAE both ways {vae:.0f} s\n")
    print("| preset | steps fed back of 30 | run, of plain, by fit | by LGM | of a plain run: VAE, fit |")
    print("|---|---|---|---|---|")
    for name, moments in CASES.items():
        fed = sum(moments.weight_at(s, i, len(sigmas)) > 0 for i, s in enumerate(sigmas))
        iterations = SV3D_FIT["first"] + (fed - 1) * SV3D_FIT["again"]
        fits = fed * start + iterations * iteration
        whole = len(sigmas) * step
        by_fit, by_net = fed * (vae + render) + fits, fed * (vae + render + lgm)
        print(
            f"| {name} | {fed} | {1 + by_fit / whole:.2f} | {1 + by_net / whole:.2f} | "
            f"{100 * fed * vae / whole:.0f} %, {100 * fits / whole:.0f} % |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=("demo", "lgm", "sv3d"), default=["demo", "lgm", "sv3d"])
    parser.add_argument("--frames", type=int, default=1, help="SV3D's frames that are run and scaled to 21")
    parser.add_argument("--step", type=float, help="seconds of a step of SV3D's UNet, if measured before")
    parser.add_argument("--lgm", type=float, default=25.0, help="seconds of a pass of LGM (part lgm prints it)")
    arguments = parser.parse_args(bench.command_line[1:])
    torch.set_num_threads(1)
    if "demo" in arguments.parts:
        demo_runs()
    if "lgm" in arguments.parts:
        lgm_passes()
    if "sv3d" in arguments.parts:
        sv3d_runs(arguments.step, arguments.frames, arguments.lgm)


if __name__ == "__main__":
    main()
