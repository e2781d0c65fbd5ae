"""The Bayes-optimal denoiser of a bank of objects, made local: a multi-view diffusion model that needs no training.

For noisy views x_j = z_j + sigma_j * noise of an unknown bank member, the best guess at pixel u of view i is the mean
of the members' pixels under their posterior. Two relaxations make it err as trained networks do:
- each pixel judges by a window x window box around itself only (a convolutional network sees no further);
- other views count kappa times (0 = views are drawn independently of each other, 1 = exact coupling).
And a front bias lets every view but the input view show the front picture instead: a second face.

Data are in [-1,1]. With S_k(j,u) = sum over channels and the box around u (clipped at the borders) of (x_j - z_kj)^2,
and F_k the same against the member's front picture, the log weights of its own and front picture at u in view i are
    own:   log p(ref|k) + log(1-b) - S_k(i,u)/(2 s_i^2) + kappa * sum over j != i of L_k(j,u)
    front: log p(ref|k) + log(b)   - F_k(i,u)/(2 s_i^2) + kappa * sum over j != i of L_k(j,u)
    L_k(j,u) = log[(1-b) exp(-S_k(j,u)/(2 s_j^2)) + b exp(-F_k(j,u)/(2 s_j^2))]     (b = 0 in the input view)
Whole-picture windows with kappa = 1 are the exact posterior mean of the mixture, for every b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, softplus

from .bank import Bank

# Weights below exp(-60) of the largest vanish in float32 sums, even with a million members: skipping them is exact.
NEGLIGIBLE = 60.0
# p(ref|k) is cut to zero this far (in nats) below the best match, so that other families have no part.
REFERENCE_CUTOFF = 200.0
NEVER = -1e30
HUGE = 1e30
# Above this noise level squared errors are taken relative to the bank's mean picture (see _factors).
FAR_SIGMA = 2.0
MIN_SIGMA = 1e-4


@dataclass(frozen=True)
class AnalyticOptions:
    """How local and how biased the model is.

    window: side of the box in pixels that a pixel judges by (2 * (window // 2) + 1 is used); 0 or at least
        2 * max(H, W) - 1 means the whole picture.
    kappa: weight of the other views, >= 0. front_bias: prior b in [0,1) that a view shows the front picture.
    reference_sigma: width of p(ref|k) = exp(-|ref - reference_k|^2 / (2 reference_sigma^2)).
    """

    window: int = 0
    kappa: float = 1.0
    front_bias: float = 0.0
    reference_sigma: float = 0.05

    def __post_init__(self):
        if self.window < 0:
            raise ValueError(f"The window must be 0 (whole picture) or a number of pixels, got {self.window}.")
        if not (math.isfinite(self.kappa) and self.kappa >= 0):
            raise ValueError(f"kappa, the weight of the other views, must be 0 or more, got {self.kappa}.")
        if not 0 <= self.front_bias < 1:
            raise ValueError(f"front_bias is a probability below 1, got {self.front_bias}.")
        if not self.reference_sigma > 0:
            raise ValueError(f"reference_sigma must be positive, got {self.reference_sigma}.")

    def radius(self, height: int, width: int) -> int | None:
        """Half width of the box in pixels, None for the whole picture."""
        whole = self.window == 0 or self.window >= 2 * max(height, width) - 1
        return None if whole else self.window // 2


class AnalyticModel:
    """The denoiser of a bank. Holds pictures only (uint8); every call is a pure function of its arguments.

    The bank's pictures are resized (area) when asked for another resolution than theirs, and the last size is kept.
    """

    def __init__(self, bank: Bank, options: AnalyticOptions = AnalyticOptions()):
        self.bank = bank
        self.options = options
        _, self.front_of = _unique_pictures(bank.references)
        self._prepared: tuple | None = None

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor | float,
        reference: Tensor | None = None,
        coupled: Tensor | None = None,
        pictures: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Posterior mean of the clean views.

        x: (N,3,H,W) noisy views, data range [-1,1] plus sigma times unit noise.
        sigma: number or (N,), >= 0, inf allowed.
        reference: (3,H,W) or (1,3,H,W) in [-1,1], the input picture; None drops it (all members equally likely).
        coupled: (N,) bool, False where a view must not see the others: their term is dropped for that view. What it
        lends to the views that are coupled stays. None = all coupled.
        pictures: what self.pictures gave, for callers that keep them on the device themselves.
        Returns (N,3,H,W) like x. Memory beyond the bank: 4 to 8 bytes per member, view and pixel.
        """
        n = self.bank.views.shape[1]
        if x.ndim != 4 or x.shape[:2] != (n, 3):
            raise ValueError(
                f"This bank has {n} views of 3 channels, so the model needs noisy views of shape ({n},3,H,W), got "
                f"{tuple(x.shape)}; make the batch as long as the cameras."
            )
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(n)
        if not bool((sigma >= 0).all()):
            raise ValueError("sigma must be 0 or more in every view, without NaN.")
        if coupled is None:
            coupled = torch.ones(n, dtype=torch.bool)
        coupled = coupled.to(x.device, torch.bool)
        if coupled.shape != (n,):
            raise ValueError(f"coupled must hold one flag for each of the {n} views, got shape {tuple(coupled.shape)}.")
        views, fronts = pictures or self.pictures(tuple(x.shape[2:]), x.device)
        log_prior = self.log_prior(reference, fronts)
        alive = (log_prior > -math.inf).nonzero()[:, 0].tolist()
        front_of = self.front_of.tolist()
        allowed = torch.ones(n, dtype=torch.bool, device=x.device)
        if self.bank.cameras.input_view is not None:
            allowed[self.bank.cameras.input_view] = False
        own, front = _log_weights(
            x.float(), sigma, views, fronts, front_of, log_prior, alive, allowed, coupled, self.options
        )
        return _mix(own, front, views, fronts, [front_of[k] for k in alive], alive).to(x.dtype)

    def log_prior(self, reference: Tensor | None, fronts: Tensor | None = None) -> Tensor:
        """(K,) log p(ref|k), the best 0, -inf beyond the cutoff; zeros without a reference."""
        if reference is None:
            return torch.zeros(len(self.bank))
        reference = reference[None] if reference.ndim == 3 else reference
        if reference.ndim != 4 or reference.shape[:2] != (1, 3):
            raise ValueError(f"The reference must be one picture (3,H,W) in [-1,1], got {tuple(reference.shape)}.")
        if fronts is None:
            _, fronts = self.pictures(tuple(reference.shape[2:]), reference.device)
        if reference.shape[2:] != fronts.shape[2:]:
            raise ValueError(
                f"The reference is {tuple(reference.shape[2:])} but the views are {tuple(fronts.shape[2:])} pixels; "
                "resize it first."
            )
        miss = reference.float().to(fronts.device) - (fronts.float() / 127.5 - 1.0)
        log_p = -miss.square().flatten(1).sum(1) / (2 * self.options.reference_sigma**2)
        log_p = (log_p - log_p.max()).cpu()
        log_p = torch.where(log_p < -REFERENCE_CUTOFF, -math.inf, log_p)
        return log_p[self.front_of]

    def pictures(self, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """uint8 views (K,N,3,H,W) and distinct fronts (F,3,H,W) at (height, width) `size` on `device`."""
        prepared = self._prepared
        if prepared is None or prepared[0] != (size, device):
            fronts, _ = _unique_pictures(self.bank.references)
            views = torch.stack([_resized(member, size) for member in self.bank.views])
            prepared = ((size, device), views.to(device), _resized(fronts, size).to(device))
            self._prepared = prepared
        return prepared[1], prepared[2]


def _unique_pictures(references: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pictures (F,H,W,3) and which of them each member (K,) has."""
    distinct: list[Tensor] = []
    which = []
    for picture in references:
        found = next((i for i, other in enumerate(distinct) if torch.equal(picture, other)), len(distinct))
        if found == len(distinct):
            distinct.append(picture)
        which.append(found)
    return torch.stack(distinct), torch.tensor(which)


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (N,h,w,3) -> uint8 (N,3,H,W)."""
    planes = pictures.movedim(-1, 1)
    if tuple(planes.shape[2:]) == tuple(size):
        return planes.contiguous()
    return interpolate(planes.float(), size=size, mode="area").round().to(torch.uint8)


def _factors(x: Tensor, sigma: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b (N,3,H,W) and scale (N,1,1) so that (a - z)(b - z) * scale is a member's energy per pixel, in 0..255 units.

    At small noise a = b = x: the plain squared error, exact where it matters. At large noise all members' errors are
    huge and nearly equal, and float32 would lose their difference; there it is taken relative to a mean picture c:
    (x - z)^2 - (x - c)^2 = (c - z)(2 x - c - z), which changes all members of a view alike and so no weight.
    """
    finite = torch.isfinite(sigma)
    scale = torch.where(finite, 1.0 / (2.0 * (127.5 * sigma.clamp_min(MIN_SIGMA)) ** 2), 0.0)[:, None, None]
    # Far outside anything sampled, but squares and sums stay finite: an infinity times a 0 of the box would be NaN.
    x = torch.where(finite[:, None, None, None], ((x + 1.0) * 127.5).clamp(-1e12, 1e12), mean)
    far = (sigma > FAR_SIGMA)[:, None, None, None]
    return torch.where(far, mean, x), torch.where(far, 2 * x - mean, x), scale


def _energy(a: Tensor, b: Tensor, scale: Tensor, picture: Tensor, box) -> Tensor:
    """(N,H,W) (or (N,1,1) for whole pictures): energies of a picture (N or 1,3,H,W) summed over channels and boxes."""
    total = None
    for channel in range(3):
        left = a[:, channel] - picture[:, channel]
        product = left.mul_(b[:, channel] - picture[:, channel])
        total = product if total is None else total.add_(product)
    return box(total.mul_(scale)).clamp(-HUGE, HUGE)


def _box_sum(height: int, width: int, radius: int | None, device: torch.device):
    """A function that sums (N,H,W) over boxes clipped at the borders.

    Two products with 0/1 band matrices: sums of at most window^2 terms without the cancellation of running sums, and
    the time does not depend on the window. In float64 on CUDA, where float32 products may be rounded to TF32.
    """
    if radius is None:
        return lambda e: e.sum(dim=(1, 2), keepdim=True)
    dtype = torch.float64 if device.type == "cuda" else torch.float32
    rows, columns = (torch.ones(s, s, dtype=dtype, device=device).triu(-radius).tril(radius) for s in (height, width))
    return lambda e: (rows @ e.to(dtype) @ columns).to(e.dtype)


def _log_weights(x, sigma, views, fronts, front_of, log_prior, alive, allowed, coupled, options):
    """Log weights (A,N,h,w) of the own pictures of the members `alive`, and of their front pictures (None if b = 0)."""
    _, _, height, width = x.shape
    box = _box_sum(height, width, options.radius(height, width), x.device)
    # Any common picture will do; every 7th member suffices for one near the middle of the data.
    mean = torch.stack([views[k].float() for k in alive[::7]]).mean(0)
    a, b, scale = _factors(x, sigma, mean)
    kappa = options.kappa * coupled.to(x.dtype)[:, None, None]
    bias = options.front_bias * allowed.to(x.dtype)[:, None, None]
    front_cost = {}
    if options.front_bias > 0:
        used = {front_of[k] for k in alive}
        front_cost = {
            f: bias.log().clamp_min(NEVER) - _energy(a, b, scale, fronts[f : f + 1].float(), box) for f in used
        }
    own, front = [], []
    for k in alive:
        mine = torch.log1p(-bias) - _energy(a, b, scale, views[k].float(), box)
        if options.front_bias == 0:
            total = mine.sum(0, keepdim=True)
            # S_i + kappa * (total - S_i), arranged so that nothing large is added and taken away again.
            own.append(float(log_prior[k]) + kappa * total + (1 - kappa) * mine)
            continue
        face = front_cost[front_of[k]]
        total = float(log_prior[k]) + kappa * torch.logaddexp(mine, face).sum(0, keepdim=True)
        own.append(total + (1 - kappa) * mine - kappa * softplus(face - mine))
        front.append(total + (1 - kappa) * face - kappa * softplus(mine - face))
    return torch.stack(own), torch.stack(front) if front else None


def _mix(
    own: Tensor, front: Tensor | None, views: Tensor, fronts: Tensor, front_of: list[int], alive: list[int]
) -> Tensor:
    """Weighted mean of pictures, back in [-1,1]; members whose weight vanishes everywhere are skipped."""
    best = own.amax(0) if front is None else torch.maximum(own.amax(0), front.amax(0))
    total = torch.zeros_like(best)
    out = torch.zeros(*views.shape[1:], device=best.device)
    pictures = [(own, i, views[k]) for i, k in enumerate(alive)]
    if front is not None:
        # Members with the same front lend one picture: add their weights first.
        for f in sorted(set(front_of)):
            same = [i for i, g in enumerate(front_of) if g == f]
            pictures.append((torch.logsumexp(front[same], dim=0)[None], 0, fronts[f : f + 1]))
    for table, row, picture in pictures:
        gap = table[row] - best
        if bool((gap < -NEGLIGIBLE).all()):
            continue
        weight = gap.exp_()
        total += weight
        out.addcmul_(weight[:, None], picture.float())
    return out.div_(total[:, None]).div_(127.5).sub_(1.0)
