"""From views and cameras to a splat with an LGM: which views, which rays, what the channels mean, and whose world.

LGM's world is OpenGL's: x right, y up, z toward the first camera, which stands at (0, 0, radius) and looks at the
origin (references.md 3.6). Ours is turned, so that this camera may stand anywhere, and scaled to its distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras
from .checks import check_images, check_view_count
from .lgm import INPUT_SIZE, LGM, VIEWS
from .splats.gaussians import SH_C0, Gaussians

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AZIMUTHS = (0.0, 90.0, 180.0, 270.0)
TOLERANCE_DEG = 12.0
# LGM's own files leave out what is fainter.
MIN_OPACITY = 0.005
# OpenCV's axes in OpenGL's: y and z point the other way.
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
ROTATIONS = ("auto", "predicted", "identity")


@dataclass(frozen=True)
class Rig:
    """What weights were trained with: the first camera's distance from the origin, its vertical field of view in
    degrees, and the side of the pictures in pixels."""

    radius: float
    fov_y: float
    side: int = INPUT_SIZE


RIGS = {"lgm": Rig(1.5, 49.1), "videomv": Rig(1.7, 39.6), "ouroboros_lgm": Rig(1.7417, 39.5978)}


@dataclass(frozen=True)
class LGMModel:
    """An LGM with what its weights expect: the hook for whoever wants views + cameras -> Gaussians.

    identity_rotations: the weights were trained while a fault made every rotation the identity (references.md 3.4c).
    """

    network: LGM
    kind: str
    rig: Rig
    identity_rotations: bool

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        cameras: Cameras,
        sigma: float | None = None,
        *,
        tolerance_deg: float = TOLERANCE_DEG,
        min_opacity: float = MIN_OPACITY,
    ) -> Gaussians:
        """images (N,H,W,3) in [0,1] on white, one for each of N cameras -> a splat in the cameras' world.

        sigma: noise level of views that are still being made, for a timed network; None for finished ones.
        Runs where the network is; the splat stays there. ValueError: see choose_views, and wrong shapes.
        """
        check_images(images)
        check_view_count(len(images), cameras)
        picked = choose_views(cameras, tolerance_deg)
        frame = Frame.of(cameras.subset(picked), self.rig)
        weight = self.network.conv.weight
        pictures = fit_pictures(images[picked][..., :3].float(), cameras.subset(picked), self.rig)
        inputs = torch.cat([normalise(pictures), plucker(frame, self.rig).to(pictures)], dim=1).to(weight)
        time = 0.25 * math.log(sigma) if sigma else 0.0
        raw = self.network(inputs, time).float()
        return frame.to_world(gaussians_of(raw, self.identity_rotations, min_opacity))


def lgm_model(network: LGM, kind: str, rotations: str = "auto", name: str = "") -> LGMModel:
    """rotations "auto": predicted by LGM files named ...fixrot... and by ours, identity for all others.

    LGM's fault was mended on 2024-04-03; VideoMV's and Ouroboros3D's weights are from before (references.md 3.6).
    """
    if rotations not in ROTATIONS:
        raise ValueError(f"rotations is '{rotations}'; choose one of {', '.join(ROTATIONS)}.")
    mended = network.config.rigged or kind == "lgm" and "fixrot" in name.lower()
    identity = not mended if rotations == "auto" else rotations == "identity"
    return LGMModel(network, kind, rig_of(network) if network.config.rigged else RIGS[kind], identity)


def rig_of(network: LGM) -> Rig:
    """The cameras that a network of this pack's own training says it was trained for."""
    radius, fov_y, side = (round(x, 4) for x in network.rig.tolist())
    return Rig(radius, fov_y, int(side))


def choose_views(cameras: Cameras, tolerance_deg: float = TOLERANCE_DEG) -> list[int]:
    """Indices of the views nearest to 0, 90, 180 and 270 degrees right of the input view (or else the first).

    ValueError if one is further off than tolerance_deg; it says which are missing.
    """
    first = 0 if cameras.input_view is None else cameras.input_view
    azimuths = cameras.azimuths()
    turned = azimuths - azimuths[first]
    apart = torch.stack([((turned - wanted + 180.0) % 360.0 - 180.0).abs() for wanted in AZIMUTHS])
    # The first view itself stands for 0, even where another has the same azimuth.
    nearest = [first, *apart[1:].argmin(1).tolist()]
    missing = [w for w, row, i in zip(AZIMUTHS, apart, nearest, strict=True) if row[i] > tolerance_deg]
    if missing:
        raise ValueError(
            f"LGM needs views at {', '.join(f'{a:g}' for a in AZIMUTHS)} degrees from the first; these {len(cameras)} "
            f"cameras ({cameras.name}) have none within {tolerance_deg:g} degrees of "
            f"{' and '.join(f'{a:g}' for a in missing)}: make views there, or use Fit Gaussian Splat "
            "(MVGaussianReconstruct), which takes any cameras."
        )
    return nearest


@dataclass(frozen=True)
class Frame:
    """Four cameras in LGM's world, and the way back. c2w (4,4,4) float64, OpenCV camera axes.

    point = turn^T (p - (0, 0, radius)) / scale + eye, for p in LGM's world.
    """

    c2w: Tensor
    turn: Tensor
    scale: float
    eye: Tensor
    radius: float

    @staticmethod
    def of(cameras: Cameras, rig: Rig) -> Frame:
        c2w = cameras.c2w.double().cpu()
        eye = c2w[0, :3, 3]
        distance = float((cameras.focus().cpu() - eye) @ c2w[0, :3, 2])
        if distance <= 1e-6:
            raise ValueError("LGM's cameras must look at the object; these look away from where their axes meet.")
        scale, turn = rig.radius / distance, FLIP @ c2w[0, :3, :3].T
        moved = c2w.clone()
        moved[:, :3, :3] = turn @ c2w[:, :3, :3]
        moved[:, :3, 3] = (c2w[:, :3, 3] - eye) @ turn.T * scale + torch.tensor([0.0, 0.0, rig.radius]).double()
        return Frame(moved, turn, scale, eye, rig.radius)

    def to_world(self, gaussians: Gaussians) -> Gaussians:
        """Gaussians in LGM's world -> the same in the cameras' world."""
        means = gaussians.means
        turn, eye = self.turn.to(means), self.eye.to(means)
        start = means.new_tensor([0.0, 0.0, self.radius])
        quats = multiply(matrix_quaternion(self.turn.T).to(means), gaussians.quats)
        return Gaussians(
            (means - start) @ turn / self.scale + eye, gaussians.scales / self.scale, quats, gaussians.opacities,
            gaussians.sh,
        )  # fmt: skip


def plucker(frame: Frame, rig: Rig) -> Tensor:
    """(4,6,side,side) float32 [origin x direction, direction] of the rays in LGM's world, directions of length 1."""
    side = rig.side
    ramp = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1) * math.tan(math.radians(rig.fov_y) / 2)
    y, x = torch.meshgrid(ramp, ramp, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    directions = F.normalize(torch.einsum("nij,hwj->nhwi", frame.c2w[:, :3, :3], rays), dim=-1)
    origins = frame.c2w[:, None, None, :3, 3].expand_as(directions)
    moments = torch.linalg.cross(origins, directions, dim=-1)
    return torch.cat([moments, directions], dim=-1).permute(0, 3, 1, 2).float()


def fit_pictures(images: Tensor, cameras: Cameras, rig: Rig) -> Tensor:
    """(N,H,W,3) -> (N,3,side,side), as a camera with the rig's field of view would have taken them from the same place.

    A change of focal length about the optical axis, so nothing is lost but pixels; white where the picture ends.
    """
    height, width, side = *images.shape[1:3], rig.side
    pictures = images.permute(0, 3, 1, 2)
    fx, fy, cx, cy = cameras.intrinsics.to(images).unbind(1)
    half = math.tan(math.radians(rig.fov_y) / 2)
    spread_x, spread_y = 2 * half * fx, 2 * half * fy
    centred = float((torch.stack([cx, cy]) - 0.5).abs().max()) < 1e-4
    if centred and float((torch.stack([spread_x, spread_y]) - 1).abs().max()) < 2e-3:
        return F.interpolate(pictures, size=(side, side), mode="bilinear", align_corners=False)
    # Finer pictures are shrunk first, to as many pixels as will be read of them, or their detail would alias.
    size = [
        min(n, max(1, round(side / float(spread.max())))) for n, spread in ((height, spread_y), (width, spread_x))
    ]
    pictures = F.interpolate(pictures, size=size, mode="bilinear", align_corners=False, antialias=True)
    ramp = (torch.arange(side, dtype=images.dtype, device=images.device) + 0.5) / side * 2 - 1
    grid_x = (ramp * spread_x[:, None] + 2 * cx[:, None] - 1)[:, None, :].expand(-1, side, -1)
    grid_y = (ramp * spread_y[:, None] + 2 * cy[:, None] - 1)[:, :, None].expand(-1, -1, side)
    grid = torch.stack([grid_x, grid_y], dim=-1)
    return F.grid_sample(pictures - 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 1


def normalise(pictures: Tensor) -> Tensor:
    """(N,3,h,w) in [0,1] -> ImageNet's mean 0 and spread 1."""
    mean, std = (pictures.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pictures - mean) / std


def gaussians_of(raw: Tensor, identity_rotations: bool, min_opacity: float = MIN_OPACITY) -> Gaussians:
    """(4,14,h,w) raw channels -> Gaussians in LGM's world, at most one for each pixel (references.md 3.6).

    Positions within [-1,1], opacity by sigmoid, scales 0.1 softplus, rotations wxyz, colour 0.5 tanh + 0.5.
    """
    if raw.ndim != 4 or raw.shape[:2] != (VIEWS, 14):
        raise ValueError(f"LGM's output should have shape (4,14,h,w), got {tuple(raw.shape)}.")
    flat = raw.permute(0, 2, 3, 1).reshape(-1, 14)
    opacities = torch.sigmoid(flat[:, 3])
    # The most opaque one stays in any case: a splat is never empty.
    keep = (opacities >= min_opacity) | (opacities == opacities.max())
    flat, opacities = flat[keep], opacities[keep]
    quats = F.normalize(flat[:, 7:11], dim=1)
    if identity_rotations:
        quats = flat.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(flat), 4).clone()
    colours = 0.5 * torch.tanh(flat[:, 11:]) + 0.5
    sh = ((colours - 0.5) / SH_C0)[:, None]
    return Gaussians(flat[:, :3].clamp(-1, 1), 0.1 * F.softplus(flat[:, 4:7]), quats, opacities, sh).validate()


def matrix_quaternion(rotation: Tensor) -> Tensor:
    """(4,) wxyz unit quaternion of a (3,3) rotation, w >= 0."""
    # The quaternion is the eigenvector of the largest eigenvalue (Bar-Itzhack 2000): no case is special.
    m = rotation.double()
    k = torch.zeros(4, 4, dtype=torch.float64)
    k[0, 0] = m.trace()
    k[0, 1:] = k[1:, 0] = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    k[1:, 1:] = m + m.T - m.trace() * torch.eye(3, dtype=torch.float64)
    vector = torch.linalg.eigh(k)[1][:, -1]
    return (vector if vector[0] >= 0 else -vector).to(rotation.dtype)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Quaternion products wxyz: (4,) times (P,4), the rotation b first."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack([
        aw * bw - ax * bx - ay * by - az * bz, aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx, aw * bz + ax * by - ay * bx + az * bw,
    ], dim=-1)  # fmt: skip
