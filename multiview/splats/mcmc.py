"""Growing by "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al. 2024), in torch, on any device.

Faint Gaussians are moved onto opaque ones, new ones are added there, up to a bound, and every step shakes the faint
ones. Where several Gaussians share a place, opacity and size change so that the picture stays nearly the same (their
Eq. 9). gsplat's MCMCStrategy does the same with CUDA kernels only. Random numbers come from a generator of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fit_config import FitConfig
from .projection import rotation_matrices

# Of the paper and its code: opacity below which a Gaussian is dead, growth per round, weights of the regularisers,
# most copies in one place, steepness and middle of the noise's fall with opacity.
DEAD_OPACITY = 0.005
GROWTH = 1.05
W_OPACITY = W_SCALE = 0.01
MOST_COPIES = 51
NOISE_STEEP, NOISE_MIDDLE = 100.0, 0.005
NOISE = 80.0  # 5e5 x 1.6e-4, per unit of the scene's radius
LARGEST_OPACITY = 1 - 1e-6


def relocation(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacities (P,) and scales (P,3) for `copies` (P,) >= 1 Gaussians each in the place of one.

    Along a line through the centre they then cover as much as the one did (Eq. 9). The double sum of the paper is
    sum over j = 1..N of C(N,j) (-1)^(j+1) o^j / sqrt(j), the inner binomials being a hockey stick. In float64, since
    the terms alternate; results have the inputs' types.
    """
    n = copies.double().clamp(1, MOST_COPIES)
    old = opacities.double().clamp(1e-12, LARGEST_OPACITY)
    new = -torch.expm1(torch.log1p(-old) / n)
    j = torch.arange(1, MOST_COPIES + 1, dtype=torch.float64, device=n.device)
    inside = j <= n[:, None]
    left = (n[:, None] - j).clamp_min(0)
    log_choose = torch.lgamma(n + 1)[:, None] - torch.lgamma(j + 1) - torch.lgamma(left + 1)
    terms = torch.exp(log_choose + j * new.log()[:, None]) / j.sqrt() * (1 - 2 * ((j + 1) % 2))
    covered = torch.where(inside, terms, 0.0).sum(1)
    return new.to(opacities), (scales.double() * (old / covered)[:, None]).to(scales)


class Mcmc:
    """The strategy of one fit; the counterpart of densify.Densifier."""

    def __init__(self, config: FitConfig, radius: float):
        self.config, self.radius = config, radius
        self.first = int(config.densify_from * config.iterations)
        self.last = int(config.densify_until * config.iterations)
        self.generator = torch.Generator().manual_seed(config.seed)

    def penalty(self, params: dict) -> Tensor:
        """What the paper adds to the loss: mean opacity and mean size (in units of the scene's radius), times 0.01."""
        opacity = torch.sigmoid(params["opacities"]).mean()
        return W_OPACITY * opacity + W_SCALE * params["scales"].exp().mean() / self.radius

    @torch.no_grad()
    def after_step(self, params: dict, optimizers: dict, step: int, info: dict) -> None:
        every = self.config.densify_every
        if every and step % every == 0 and self.first < step <= self.last:
            self._revive(params, optimizers)
            self._grow(params, optimizers)
        # The noise falls with the rate of the positions.
        falling = self.config.lr_means_final ** ((step - 1) / self.config.iterations)
        self._shake(params, NOISE / self.radius * falling)

    def _revive(self, params: dict, optimizers: dict) -> None:
        opacities = torch.sigmoid(params["opacities"])
        dead = (opacities <= DEAD_OPACITY).nonzero().flatten()
        if len(dead) in (0, len(opacities)):
            return
        alive = (opacities > DEAD_OPACITY).nonzero().flatten()
        self._copy(params, optimizers, alive[self._draw(opacities[alive], len(dead))], dead)

    def _grow(self, params: dict, optimizers: dict) -> None:
        count = len(params["means"])
        more = min(self.config.max_points, int(GROWTH * count)) - count
        if more > 0:
            self._copy(params, optimizers, self._draw(torch.sigmoid(params["opacities"]), more), None)

    def _draw(self, weights: Tensor, count: int) -> Tensor:
        """`count` indices with replacement, on the device of the weights but with the fit's own random numbers."""
        drawn = torch.multinomial(weights.double().cpu(), count, replacement=True, generator=self.generator)
        return drawn.to(weights.device)

    def _copy(self, params: dict, optimizers: dict, source: Tensor, target: Tensor | None) -> None:
        """Put copies of `source` in the places of `target`, or at the end, and share opacity and size among them."""
        copies = torch.bincount(source, minlength=len(params["means"]))[source] + 1
        opacities, scales = relocation(
            torch.sigmoid(params["opacities"][source]), params["scales"][source].exp(), copies
        )
        shared = {"opacities": torch.logit(opacities.clamp(DEAD_OPACITY, LARGEST_OPACITY)), "scales": scales.log()}
        for name, old in list(params.items()):
            values = old.detach().clone()
            if name in shared:
                values[source] = shared[name]
            params[name] = torch.nn.Parameter(_with_copies(values, values[source], target))
            state = optimizers[name].state.pop(old, {})
            for key, moment in state.items():
                if isinstance(moment, Tensor) and moment.shape == old.shape:
                    moment[source] = 0
                    state[key] = _with_copies(moment, torch.zeros_like(moment[source]), target)
            optimizers[name].param_groups[0]["params"] = [params[name]]
            optimizers[name].state[params[name]] = state

    def _shake(self, params: dict, strength: float) -> None:
        """Noise along each Gaussian's own axes, for those that are nearly transparent."""
        opacities = torch.sigmoid(params["opacities"])
        faint = torch.sigmoid(-NOISE_STEEP * (opacities - NOISE_MIDDLE))
        noise = torch.randn(params["means"].shape, generator=self.generator).to(params["means"])
        axes = rotation_matrices(params["quats"])
        variance = (2 * params["scales"]).exp()
        along = torch.einsum("pij,pi->pj", axes, noise) * variance
        params["means"] += torch.einsum("pij,pj->pi", axes, along) * (strength * faint)[:, None]


def _with_copies(values: Tensor, copies: Tensor, target: Tensor | None) -> Tensor:
    if target is None:
        return torch.cat([values, copies])
    values[target] = copies
    return values
