"""Run by test_refine.py in a process of its own, because it imports ComfyUI's classes (the folder on the path).

    refine_check.py REPOSITORY

Restarts real ComfyUI models of every parameterisation (one small UNet with random weights under the host's own sampling
classes) through SamplerCustomAdvanced, and looks at what the sampler starts from. Prints one JSON line of findings.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch

ROOT = Path(sys.argv[1])
torch.set_num_threads(1)
for name, folder in (("mvpack", ROOT), ("mvpack.nodes", ROOT / "nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
sys.path.append(str(ROOT / "tests" / "helpers"))

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.latent_formats  # noqa: E402
import comfy.samplers  # noqa: E402
import small_unets  # noqa: E402
from comfy_extras import nodes_custom_sampler, nodes_model_advanced  # noqa: E402
from mvpack.nodes.refine import Renoise  # noqa: E402

SHAPE = (6, 4, 32, 32)
SMALL = (2, 4, 8, 8)
VIDEO = (1, 16, 5, 24, 24)
found: dict = {}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gap(a, b) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-12))


def patched(model, kind: str):
    """The same network under another of the host's sampling classes."""
    advanced = nodes_model_advanced
    if kind == "v":
        return called(advanced.ModelSamplingDiscrete, model, "v_prediction", False)
    if kind == "edm":
        return called(advanced.ModelSamplingContinuousEDM, model, "v_prediction", 120.0, 0.002)
    if kind == "flow":
        return called(advanced.ModelSamplingSD3, model, 3.0)
    return model.clone()


def called(node, *values):
    return (getattr(node, "execute", None) or node().patch)(*values)[0]


def guider(model):
    made = comfy.samplers.CFGGuider(model)
    empty = [[torch.zeros(1, 4, 64), {}]]
    made.set_conds(empty, empty)
    return made


class Probe(comfy.samplers.Sampler):
    """Keeps what the host's own KSAMPLER starts from, and makes no step."""

    def sample(self, *given, **named):
        kept = []

        def function(_model, x, _sigmas, **_):
            kept.append(x.clone())
            return x

        comfy.samplers.KSAMPLER(function).sample(*given, **named)
        self.x = kept[0].cpu()
        return kept[0]


def run(noise, model, sampler, sigmas, latent) -> torch.Tensor:
    custom = nodes_custom_sampler.SamplerCustomAdvanced
    call = getattr(custom, "execute", None) or custom().sample
    with torch.inference_mode():
        return call(noise, guider(model), sampler, sigmas, latent)[0]["samples"]


def start(noise, model, sigmas, latent) -> torch.Tensor:
    probe = Probe()
    run(noise, model, probe, sigmas, latent)
    return probe.x


def renoised(model, sigmas, latent, restart="sigma", value=1.0, seed=5):
    with torch.inference_mode():
        out = Renoise.execute(model, sigmas, restart, value, seed, latent=latent)
    return out[0], out[1], out[2]


def schedule(model, steps=6):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def parameterisation(model, kind: str, shape: tuple[int, ...], found: dict) -> None:
    sampling = model.get_model_object("model_sampling")
    sigmas = schedule(model)
    # As the host scales data of its own into the latent: spread 0.5 in the sampler's units.
    form = model.get_model_object("latent_format")
    latent = {"samples": form.process_out(0.5 * random(*shape, seed=1))}
    given = latent["samples"].clone()
    random_noise, nothing = nodes_custom_sampler.Noise_RandomNoise(5), nodes_custom_sampler.Noise_EmptyNoise()
    gaps, variances, wanted = [], [], []
    for sigma in (0.7, 0.3) if kind == "flow" else (3.0, 0.5):
        noised, left, noise = renoised(model, sigmas, latent, value=sigma)
        assert float(left[0]) == torch.tensor(sigma)
        # The host's own way there: its noise on the clean latent.
        core = start(random_noise, model, left, latent)
        gaps += [gap(start(n, model, left, x), core) for n, x in ((nothing, noised), (noise, noised), (noise, latent))]
        variances.append(float(core.var()))
        wanted.append((1 - sigma) ** 2 * 0.25 + sigma**2 if kind == "flow" else 0.25 + sigma**2)
    found[f"{kind} starts as the host"] = max(gaps)
    found[f"{kind} variance"] = [variances, wanted]
    found[f"{kind} untouched"] = bool(torch.equal(latent["samples"], given))
    noised, left, noise = renoised(model, sigmas, latent, value=0.0)
    found[f"{kind} sigma 0"] = [
        bool(torch.equal(run(n, model, comfy.samplers.sampler_object("euler"), left, noised), latent["samples"]))
        for n in (nothing, noise)
    ]
    empty = {"samples": torch.zeros(shape)}
    for how, value in (("fraction", 1.0), ("sigma", float(sigmas[0]))):
        noised, left, noise = renoised(model, sigmas, latent, how, value)
        top = start(random_noise, model, sigmas, empty)
        found[f"{kind} top by {how}"] = gap(start(noise, model, left, noised), top)
        if kind != "flow":
            found[f"{kind} top by {how}, no noise added"] = gap(start(nothing, model, left, noised), top)
    found[f"{kind} highest"] = float(sigmas[0]) / float(sampling.sigma_max)


def sampled(model, kind: str) -> None:
    """All the way down on the real network: from the highest level as from noise."""
    sigmas, latent = schedule(model, 3), {"samples": 0.5 * random(*SMALL, seed=1)}
    euler = comfy.samplers.sampler_object("euler")
    noised, left, noise = renoised(model, sigmas, latent, "fraction", 1.0)
    fresh = run(nodes_custom_sampler.Noise_RandomNoise(5), model, euler, sigmas, {"samples": torch.zeros(SMALL)})
    found[f"{kind} sampled from the top"] = gap(run(noise, model, euler, left, noised), fresh)
    assert float(fresh.std()) > 0


def sentences(model) -> None:
    """What bad input is answered."""
    sigmas, latent = schedule(model), {"samples": random(*SHAPE)}
    picture = torch.rand(2, 16, 16, 3)
    trials = {
        "nothing": {"latent": None},
        "both": {"latent": latent, "image": picture},
        "image alone": {"latent": None, "image": picture},
        "channels": {"latent": {"samples": random(2, 16, 8, 8)}},
        "mask": {"latent": {**latent, "noise_mask": torch.ones(1, 8, 8)}},
        "nan": {"latent": {"samples": latent["samples"] * float("nan")}},
        "outside": {"value": 14.9},
        "fraction": {"restart": "fraction", "value": 1.5},
        "rising": {"sigmas": sigmas.flip(0)},
        "beyond": {"sigmas": sigmas * 2},
    }
    for name, changed in trials.items():
        inputs = {"sigmas": sigmas, "restart": "sigma", "value": 1.0, "seed": 0, "latent": latent, **changed}
        try:
            Renoise.execute(model, **inputs)
            found[f"said {name}"] = "nothing"
        except ValueError as error:
            found[f"said {name}"] = str(error)


def main() -> None:
    network = small_unets.sd15()
    for kind in ("eps", "v", "edm", "flow"):
        model = patched(network, kind)
        parameterisation(model, kind, SHAPE, found)
        sampled(model, kind)
    # Views along the time axis, in a latent space that has a mean and a spread for each channel.
    for kind in ("eps", "flow"):
        video = patched(network, kind)
        video.add_object_patch("latent_format", comfy.latent_formats.Wan21())
        of_video: dict = {}
        parameterisation(video, kind, VIDEO, of_video)
        found.update({f"video {name}": value for name, value in of_video.items()})
    model = network.clone()
    one, two = (renoised(m, schedule(model), {"samples": random(*SHAPE)}) for m in (model, guider(model)))
    found["guider instead of model"] = bool(torch.equal(one[0]["samples"], two[0]["samples"]))
    sentences(model)
    print("FOUND " + json.dumps(found))


main()
