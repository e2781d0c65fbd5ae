"""Depth that something else has made, in the form calibrate() takes (depth_calibrate.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Cameras
from .checks import check_images, check_view_count
from .depth_calibrate import object_masks


@dataclass(frozen=True)
class DepthSource:
    """maps (N,H,W) finite; masks (N,H,W) in [0,1]; kind "disparity" or "depth"; metric: maps are camera z already."""

    maps: Tensor
    masks: Tensor
    kind: str
    near_is_large: bool
    metric: bool = False


def from_picture(
    image: Tensor, cameras: Cameras, masks: Tensor | None, kind: str = "disparity", near_is_bright: bool = True
) -> DepthSource:
    """Depth or disparity maps as pictures (N,H,W,3 or 4), mean of the colours. Without masks: alpha or estimated."""
    check_images(image, "depth maps")
    check_view_count(image.shape[0], cameras, "depth maps")
    return DepthSource(image[..., :3].float().mean(-1).cpu(), object_masks(image, masks), kind, near_is_bright)


def from_da3_geometry(geometry: dict, cameras: Cameras, masks: Tensor | None) -> DepthSource:
    """Core's DA3_GEOMETRY: depth (N,H,W) linear, image (N,H,W,3), in multi-view mode also extrinsics (1,N,3,4).

    With extrinsics the maps share one scale. It is fixed by how far apart the cameras stand here and there, so that
    calibration "none" is right for the cameras of the same geometry, however they were scaled.
    """
    depth, image = _geometry_maps(geometry, "DA3_GEOMETRY", cameras)
    masks = object_masks(image, masks)
    extrinsics = geometry.get("extrinsics")
    if extrinsics is None or len(cameras) < 2:
        return DepthSource(depth, masks, "depth", False)
    w2c = extrinsics[0].double().cpu()
    if w2c.shape[0] != len(cameras) or not torch.isfinite(w2c).all():
        raise ValueError(
            f"DA3_GEOMETRY holds {w2c.shape[0]} cameras, {len(cameras)} finite ones were expected; run it again on "
            "these views."
        )
    theirs = -(w2c[:, :3, :3].transpose(1, 2) @ w2c[:, :3, 3:])[..., 0]
    scale = _spread(cameras.centers().double().cpu()) / _spread(theirs).clamp_min(1e-12)
    # All cameras in one place (the host's stand-in where a model has no pose head) fix no scale.
    usable = bool(_spread(theirs) > 1e-9)
    return DepthSource(depth * float(scale) if usable else depth, masks, "depth", False, usable)


def from_moge_geometry(geometry: dict, cameras: Cameras, masks: Tensor | None) -> DepthSource:
    """Core's MOGE_GEOMETRY: depth (N,H,W), infinite where there is nothing, mask (N,H,W) bool, image (N,H,W,3)."""
    depth, image = _geometry_maps(geometry, "MOGE_GEOMETRY", cameras, holes=True)
    masks = object_masks(image, masks)
    valid = torch.isfinite(depth) & (depth > 0)
    if geometry.get("mask") is not None:
        valid &= geometry["mask"].cpu().bool()
    if tuple(masks.shape) != tuple(depth.shape):
        raise ValueError(
            f"The masks are {tuple(masks.shape)} but MoGe's depth is {tuple(depth.shape)}; give one mask for each view."
        )
    return DepthSource(torch.where(valid, depth, torch.zeros_like(depth)), masks * valid, "depth", False)


def _geometry_maps(geometry, label: str, cameras: Cameras, holes: bool = False) -> tuple[Tensor, Tensor]:
    if not isinstance(geometry, dict) or geometry.get("depth") is None or geometry.get("image") is None:
        raise ValueError(f"This {label} has no depth or no picture; connect the output of core's node that makes it.")
    depth, image = geometry["depth"].detach().float().cpu(), check_images(geometry["image"], "pictures").cpu()
    if depth.ndim != 3:
        raise ValueError(f"The depth in {label} must be (views, height, width), got {tuple(depth.shape)}.")
    check_view_count(depth.shape[0], cameras, "depth maps")
    if not holes and not torch.isfinite(depth).all():
        raise ValueError(f"The depth in {label} contains NaN or infinity; run the depth model in fp32.")
    return depth, image


def _spread(centres: Tensor) -> Tensor:
    """Root mean square distance from the mean."""
    return (centres - centres.mean(0)).square().sum(1).mean().sqrt()
