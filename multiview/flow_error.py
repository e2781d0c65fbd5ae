"""HarmonyView's E_flow: optical flow between neighbouring views, against the flow between the true views.

RAFT, 20 iterations; from each view to the next and to the one before, cyclic; the mean absolute difference of the two,
times 0.5, averaged over views (references.md section 1.8). Weights are those of torchvision, from a file that is
already on the machine. The published figures use weights trained on FlyingThings: torchvision's C_T_V1 and C_T_V2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_images

ITERATIONS = 20
# RAFT compares features at four scales of an eighth of the picture; smaller pictures leave it nothing to look up.
SMALLEST = 128
# A tensor that only one of torchvision's two RAFTs has.
LARGE_KEY, SMALL_KEY = "mask_predictor.conv.weight", "update_block.motion_encoder.convcorr1.0.weight"


@dataclass(frozen=True)
class FlowError:
    """error in pixels of the given pictures; forward, backward (N,): mean absolute difference for each view."""

    error: float
    forward: Tensor
    backward: Tensor


def load_raft(path: str | Path) -> nn.Module:
    """torchvision's raft_large or raft_small with the weights of a .pth or .safetensors file.

    ValueError in a sentence: no file, unreadable, not a RAFT of torchvision.
    """
    from torchvision.models.optical_flow import raft_large, raft_small

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There are no RAFT weights at {path}; put torchvision's raft_large file into models/raft.")
    state = _read(path)
    large = LARGE_KEY in state
    network = (raft_large if large else raft_small)(weights=None, progress=False)
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise ValueError(
            f"{path.name} does not hold the weights of torchvision's raft_large or raft_small; download one of those."
        ) from None
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch, pickle or safetensors raises for a damaged file
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__}); copy or download it again.") from None
    return state if isinstance(state, dict) else {}


def flow(network: nn.Module, first: Tensor, second: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Optical flow (N,2,H,W) in pixels from first to second, pictures (N,H,W,3) in [0,1].

    Sides are enlarged to a multiple of 8 of at least 128 for the network, and the flow is scaled back.
    """
    height, width = first.shape[1:3]
    scale = max(1.0, SMALLEST / min(height, width))
    size = tuple(-(-round(scale * side) // 8) * 8 for side in (height, width))
    parameter = next(network.parameters())
    a, b = (_prepared(x, size).to(parameter.device, parameter.dtype) for x in (first, second))
    with torch.no_grad():
        found = network(a, b, num_flow_updates=iterations)[-1].float().cpu()
    back = F.interpolate(found, (height, width), mode="bilinear", align_corners=False)
    return back * torch.tensor([width / size[1], height / size[0]])[:, None, None]


def _prepared(images: Tensor, size: tuple[int, int]) -> Tensor:
    pixels = images.movedim(-1, 1).float().clamp(0, 1) * 2 - 1
    return pixels if pixels.shape[2:] == size else F.interpolate(pixels, size, mode="bilinear", align_corners=False)


def flow_error(
    network: nn.Module,
    views: Tensor,
    truth: Tensor,
    iterations: int = ITERATIONS,
    on_step: Callable[[int, int], None] | None = None,
) -> FlowError:
    """E_flow of views (N,H,W,3) against the true views of the same poses, in order round the object.

    on_step(done, total). ValueError: fewer than 2 views, other numbers or sizes.
    """
    views, truth = check_images(views, "views"), check_images(truth, "true views")
    if views.shape != truth.shape:
        raise ValueError(
            f"The views are {_size(views)} but the true views {_size(truth)}; compare the same poses at the same size."
        )
    n = len(views)
    if n < 2:
        raise ValueError("Flow goes from view to view, so at least 2 are needed, got 1.")
    errors = torch.zeros(2, n)
    for i in range(n):
        for row, step in enumerate((1, -1)):
            pair = torch.tensor([i]), torch.tensor([(i + step) % n])
            first, second = (torch.cat([views[k], truth[k]]) for k in pair)
            made, true = flow(network, first, second, iterations)
            errors[row, i] = (made - true).abs().mean()
        if on_step is not None:
            on_step(i + 1, n)
    return FlowError(float(0.5 * errors.sum(0).mean()), *errors)


def _size(images: Tensor) -> str:
    n, height, width = images.shape[:3]
    return f"{n} pictures of {width} x {height}"
