"""What cross-frame attention and hard-attention guidance cost: python tests/benchmarks/bench_attention.py [--unet]

Part 1: single attention layers of SD 1.5 at 512 x 512, tensors in, tensors out. Plain attention of all views, against
cross-frame attention, which meets one copy of the reference's keys and values, and against its hard form. Processor
time of one thread, the best of several runs that take turns, so that other load on the machine matters little. Peak
memory: what torch allocates above the inputs, from its profiler.

Part 2 (--unet, needs ComfyUI: COMFYUI_PATH, or the one in this environment): a whole evaluation of a UNet of SD 1.5's
architecture at half its width, plain, patched, and in the hard form that the guidance adds to each step.

Nothing is asserted.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
# views, tokens, channels of one picture of 512 x 512 at the four levels of SD 1.5; eight heads.
LAYERS = [(3, 4096, 320), (4, 1024, 640), (4, 256, 1280), (4, 64, 1280)]
HEADS = 8


def load_pack():
    spec = importlib.util.spec_from_file_location(
        "mvpack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["mvpack"] = module
    spec.loader.exec_module(module)


def in_turns(functions: dict, rounds: int) -> dict[str, float]:
    """Seconds of processor time of each, the best of several rounds in which they take turns."""
    best = dict.fromkeys(functions, float("inf"))
    done, began = 0, time.process_time()
    # Quick functions get more rounds: two seconds at least.
    while done <= rounds or time.process_time() - began < 2:
        for name, function in functions.items():
            start = time.process_time()
            function()
            if done:  # the first round warms up
                best[name] = min(best[name], time.process_time() - start)
        done += 1
    return best


def peak_bytes(function) -> int:
    """Most memory that a call holds above what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def layers(rounds: int) -> None:
    from mvpack.multiview.attention import cross_frame, hard_attention, soft_attention

    def soft(q, k, v):
        return soft_attention(q, k, v, HEADS)

    def hard(q, k, v, out):
        hard_attention(q, k, v, HEADS, out=out)

    print("| views x tokens x channels | plain ms | cross-frame | hard form | peak MiB plain | cross | hard |")
    print("|---|---|---|---|---|---|---|")
    totals = {"plain": 0.0, "cross": 0.0, "hard": 0.0}
    for views, tokens, channels in LAYERS:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(views, tokens, channels, generator=generator) for _ in range(3))
        functions = {
            "plain": lambda q=q, k=k, v=v: soft(q, k, v),
            "cross": lambda q=q, k=k, v=v, n=views: cross_frame(q, k, v, n, [0], soft),
            "hard": lambda q=q, k=k, v=v, n=views: cross_frame(q, k, v, n, [0], soft, hard),
        }
        with torch.inference_mode():
            seconds = in_turns(functions, rounds)
            peaks = {name: peak_bytes(function) / 2**20 for name, function in functions.items()}
        for name, value in seconds.items():
            totals[name] += value
        cells = [f"{views} x {tokens} x {channels}", f"{1e3 * seconds['plain']:.1f}"]
        cells += [f"{seconds[name] / seconds['plain']:.2f}" for name in ("cross", "hard")]
        cells += [f"{peaks[name]:.1f}" for name in functions]
        print("| " + " | ".join(cells) + " |", flush=True)
    cells = [f"{totals[name] / totals['plain']:.2f}" for name in ("cross", "hard")]
    print(f"| all four | {1e3 * totals['plain']:.1f} | {' | '.join(cells)} | | | |")


def unet(rounds: int, side: int) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    from comfy_host import find_comfyui

    sys.path.insert(0, str(find_comfyui()))
    from comfy.cli_args import args

    args.cpu = True
    import comfy.samplers

    spec = importlib.util.spec_from_file_location("tiny_unets", ROOT / "tests/host/helper_pack/tiny_unets.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    from mvpack.nodes.attention import CrossFrameAttention

    tiny.KINDS["half"] = (tiny.KINDS["sd15"][0], {**tiny.SD15, "model_channels": 160, "context_dim": 768})
    views = 4
    with torch.inference_mode():
        model, positive, negative, latent = tiny.TinyUNet.execute("half", 0, views, side).result
        patched = CrossFrameAttention.execute(model, "0", "middle and decoder", 1.0, 0.0, 1.0, 0, "").result[0]
        noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(1))

        functions, peaks = {}, {}

        def keep(name, hard):
            """A post-CFG function that takes what the sampler's step has and leaves an evaluation of it behind."""

            def grab(args):
                options = dict(args["model_options"])
                options["transformer_options"] = {**options["transformer_options"], "mv_hard_attention": hard}

                def evaluate():
                    return comfy.samplers.calc_cond_batch(
                        args["model"], [args["cond"]], args["input"], args["sigma"], options
                    )

                functions[name] = evaluate
                if len(functions) == 3:
                    peaks.update({key: peak_bytes(function) / 2**20 for key, function in functions.items()})
                    seconds = in_turns(functions, rounds)
                    report(seconds, peaks)
                return args["denoised"]

            return grab

        def report(seconds, peaks):
            print(f"\nUNet of SD 1.5's architecture, 160 channels, {views} views, latents {side} x {side}:")
            for key, value in seconds.items():
                ratio = value / seconds["plain"]
                print(f"  {key}: {1e3 * value:.0f} ms, {ratio:.3f} of plain, peak {peaks[key]:.0f} MiB", flush=True)

        # One sampling, whose single step all three evaluations share.
        for name, source, hard in (("plain", model, False), ("cross-frame", patched, False), ("hard", patched, True)):
            one = source.clone()
            one.set_model_sampler_post_cfg_function(keep(name, hard))
            import comfy.sample

            comfy.sample.sample(
                one, noise, 1, 1.0, "euler", "simple", positive, negative, latent["samples"], disable_pbar=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unet", action="store_true", help="also time whole evaluations in ComfyUI")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=64, help="latent size of part 2")
    given = parser.parse_args()
    sys.argv = sys.argv[:1]  # ComfyUI reads it as well
    torch.set_num_threads(1)
    load_pack()
    layers(given.rounds)
    if given.unet:
        unet(given.rounds, given.side)


if __name__ == "__main__":
    main()
