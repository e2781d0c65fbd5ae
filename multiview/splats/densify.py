"""Where Gaussians grow and go during a fit: gsplat's DefaultStrategy, on any device.

It needs nothing from the rasteriser but positions, radii and gradients in the picture. mcmc.py is the other strategy.
"""

from __future__ import annotations

import importlib.util
import math
from contextlib import contextmanager

import torch

from .fit_config import FitConfig

NEVER = 2**31


def check_gsplat_installed() -> None:
    """ValueError where the package gsplat, whose strategy decides where Gaussians grow, is not installed."""
    if importlib.util.find_spec("gsplat") is None:
        raise ValueError(
            "Fitting a splat needs the package gsplat, which this Python does not have; install the pack's "
            "requirements.txt with ComfyUI's own Python and restart."
        )


class Densifier:
    """gsplat's DefaultStrategy with a bound on the number of Gaussians and its own random numbers."""

    def __init__(self, config: FitConfig, radius: float):
        from gsplat.strategy import DefaultStrategy

        self.config = config
        self.first = int(config.densify_from * config.iterations)
        self.last = int(config.densify_until * config.iterations)
        self.strategy = DefaultStrategy(
            prune_opa=config.prune_opacity,
            grow_scale3d=config.grow_scale3d,
            refine_start_iter=self.first,
            refine_stop_iter=self.last + 1,
            refine_every=config.densify_every,
            reset_every=NEVER,  # gsplat 1.5.3 never resets (an operator precedence slip)
        )
        self.state = self.strategy.initialize_state(scene_scale=radius)

    def after_step(self, params: dict, optimizers: dict, step: int, info: dict) -> None:
        """Collect this step's gradients; at the steps for it, grow, prune and reset."""
        if step % self.config.densify_every or not self.first < step <= self.last:
            self.strategy.step_post_backward(params, optimizers, self.state, step, info)
        else:
            self.strategy.grow_grad2d = self._threshold(len(params["means"]))
            with seeded_global_rng(self.config.seed + step, params["means"].device):
                self.strategy.step_post_backward(params, optimizers, self.state, step, info)
            self._trim(params, optimizers)
            if not len(params["means"]):
                raise ValueError(
                    "Every Gaussian faded away during the fit: the views do not fit the cameras; check that they are "
                    "in the cameras' order and that the masks are not inverted."
                )
        every = self.config.reset_opacity_every
        if every and step % every == 0 and step <= self.last:
            from gsplat.strategy.ops import reset_opa

            reset_opa(params, optimizers, self.state, value=self.config.prune_opacity * 2)

    def _threshold(self, count: int) -> float:
        """The configured gradient, or a higher one if more Gaussians than there is room for lie above it."""
        room = self.config.max_points - count
        grads = self.state["grad2d"]
        if room <= 0:
            return math.inf
        if grads is None or room >= count:
            return self.config.grow_grad2d
        mean = grads / self.state["count"].clamp_min(1)
        return max(self.config.grow_grad2d, float(mean.topk(room + 1).values[-1]))

    def _trim(self, params: dict, optimizers: dict) -> None:
        """Drop the faintest surplus: the threshold did not know the gradients of the very last step."""
        surplus = len(params["means"]) - self.config.max_points
        if surplus > 0:
            from gsplat.strategy.ops import remove

            mask = torch.zeros(len(params["means"]), dtype=torch.bool, device=params["means"].device)
            mask[params["opacities"].topk(surplus, largest=False).indices] = True
            remove(params, optimizers, self.state, mask)


@contextmanager
def seeded_global_rng(seed: int, device: torch.device):
    """gsplat draws from the global generators: seed them, and put them back afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
