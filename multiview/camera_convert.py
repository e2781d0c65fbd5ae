"""Cameras of other programs: ComfyUI's LOAD3D_CAMERA (three.js) and DA3_GEOMETRY (Depth Anything 3).

LOAD3D_CAMERA: right-handed, y up, the camera looks down its own -z; fov is vertical, in degrees. Its world maps to
ours by (x, y, z) -> (x, -y, -z), a half turn about x; camera axes flip the same way.
DA3_GEOMETRY: extrinsics (1,S,3,4) world-to-camera and pixel intrinsics (1,S,3,3), OpenCV (ecosystem.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .cameras import Cameras, axes_meet, look_at_pose, orbit

# Half turn about x: three.js world or camera axes <-> OpenCV / 3DGS. Its own inverse.
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))


def to_load3d(cameras: Cameras, index: int) -> dict[str, Any]:
    """One view as a LOAD3D_CAMERA dict. The target is the point on the view axis that is nearest to the origin."""
    view = cameras.subset([index])
    intrinsics = view.intrinsics[0].double()
    off = (intrinsics[2:] - 0.5).abs().max()
    if off > 1e-3:
        raise ValueError(
            f"View {index} has its principal point {float(off):.3f} of the picture away from the centre, which "
            "LOAD3D_CAMERA cannot express; crop the pictures so that it is central."
        )
    pose = view.c2w[0].double()
    position = FLIP @ pose[:3, 3]
    rotation = FLIP @ pose[:3, :3] @ FLIP
    forward = -rotation[:, 2]
    distance = (-(position @ forward)).clamp_min(1e-3)
    w, x, y, z = rotation_to_quaternion(rotation).tolist()
    return {
        "position": _xyz(position),
        "target": _xyz(position + distance * forward),
        "quaternion": {"x": x, "y": y, "z": z, "w": w},
        "fov": float(view.fov_y()[0]),
        "aspect": float(intrinsics[1] / intrinsics[0]),
        "near": 0.01,
        "far": 1000.0,
        "zoom": 1,
        "cameraType": "perspective",
    }


def from_load3d(info: dict[str, Any], aspect: float | None = None) -> Cameras:
    """A LOAD3D_CAMERA dict as one camera. Zoom multiplies the focal length; without a quaternion it faces the target.

    aspect: width / height of the pictures; None takes the camera's own, or 1.
    """
    if not isinstance(info, dict) or "position" not in info:
        raise ValueError("Expected a LOAD3D_CAMERA with a position; connect a camera_info output of Load 3D.")
    if str(info.get("cameraType", "perspective")).lower().startswith("ortho"):
        raise ValueError("This camera is orthographic; the methods here need a perspective camera: switch its type.")
    position = FLIP @ _vector(info["position"], "position")
    quaternion = info.get("quaternion")
    if quaternion:
        wxyz = torch.tensor([float(quaternion.get(k, 0.0)) for k in "wxyz"], dtype=torch.float64)
        if wxyz.norm() < 1e-8:
            raise ValueError("The camera's quaternion is zero; it must be a unit quaternion.")
        rotation = FLIP @ quaternion_to_rotation(wxyz) @ FLIP
    else:
        target = FLIP @ _vector(info.get("target") or {}, "target")
        offset = position - target
        radius = offset.norm()
        if radius < 1e-8:
            raise ValueError("The camera's position and target are the same point, so it looks nowhere; move one.")
        azimuth = math.degrees(math.atan2(float(offset[0]), -float(offset[2])))
        elevation = math.degrees(math.asin(max(-1.0, min(1.0, float(-offset[1] / radius)))))
        rotation = look_at_pose(azimuth, elevation, 1.0)[:3, :3]
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = rotation, position
    fov, zoom = float(info.get("fov") or 35.0), float(info.get("zoom") or 1.0)
    lens = orbit([0.0], 0.0, 1.0, fov, aspect=aspect or float(info.get("aspect") or 1.0), input_view=None)
    intrinsics = lens.intrinsics.clone()
    intrinsics[:, :2] *= zoom
    return Cameras(pose[None].float(), intrinsics, False, None, "Load 3D camera")


def from_da3(geometry: dict[str, Any], radius: float | None = None) -> Cameras:
    """Cameras of a multi-view DA3_GEOMETRY.

    The model's frame is arbitrary; it is moved so that the point all view axes pass nearest to becomes the origin
    and, if `radius` is given, scaled so that the mean distance of the cameras is `radius`.
    Its pixel intrinsics belong to the size the model worked at, which is taken to be twice the principal point.
    """
    if not isinstance(geometry, dict) or geometry.get("extrinsics") is None or geometry.get("intrinsics") is None:
        raise ValueError(
            "This DA3_GEOMETRY has no cameras; run Depth Anything 3 (Small or Base) in its multi-view mode."
        )
    w2c, k = geometry["extrinsics"][0].double(), geometry["intrinsics"][0].double()
    if w2c.ndim != 3 or w2c.shape[1] < 3 or w2c.shape[2] != 4 or k.shape != (w2c.shape[0], 3, 3):
        raise ValueError(
            f"DA3_GEOMETRY must hold extrinsics (1,S,3,4) and intrinsics (1,S,3,3), got "
            f"{tuple(geometry['extrinsics'].shape)} and {tuple(geometry['intrinsics'].shape)}."
        )
    if not (torch.isfinite(w2c).all() and torch.isfinite(k).all()):
        raise ValueError("DA3_GEOMETRY holds NaN or infinity in its cameras; the pose estimate failed on these views.")
    rotation = _nearest_rotation(w2c[:, :3, :3].transpose(1, 2))
    centers = -(w2c[:, :3, :3].transpose(1, 2) @ w2c[:, :3, 3:])[..., 0]
    centers = centers - axes_meet(centers, rotation[:, :, 2])
    if radius is not None:
        centers = centers * (radius / centers.norm(dim=1).mean().clamp_min(1e-12))
    pose = torch.eye(4, dtype=torch.float64).repeat(len(w2c), 1, 1)
    pose[:, :3, :3], pose[:, :3, 3] = rotation, centers
    width, height = 2 * k[:, 0, 2], 2 * k[:, 1, 2]
    half = torch.full_like(width, 0.5)
    intrinsics = torch.stack([k[:, 0, 0] / width, k[:, 1, 1] / height, half, half], dim=1)
    return Cameras(pose.float(), intrinsics.float(), False, None, "Depth Anything 3")


def quaternion_to_rotation(wxyz: Tensor) -> Tensor:
    """(...,4) quaternion, any norm, scalar first -> (...,3,3) rotation."""
    w, x, y, z = (wxyz / wxyz.norm(dim=-1, keepdim=True).clamp_min(1e-12)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def rotation_to_quaternion(rotation: Tensor) -> Tensor:
    """(3,3) rotation -> (4,) unit quaternion, scalar first and not negative.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric 4x4 matrix built from the rotation
    (Bar-Itzhack 2000), which has no special cases at half turns.
    """
    m = rotation.double()
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    k = torch.zeros(4, 4, dtype=torch.float64)
    k[0, 0] = trace
    k[1:, 1:] = m + m.T - trace * torch.eye(3, dtype=torch.float64)
    axis = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    k[0, 1:], k[1:, 0] = axis, axis
    quaternion = torch.linalg.eigh(k).eigenvectors[:, -1]
    return -quaternion if quaternion[0] < 0 else quaternion


def _nearest_rotation(matrices: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrices)
    sign = torch.ones(matrices.shape[0], 3, dtype=matrices.dtype)
    sign[:, 2] = torch.sign(torch.linalg.det(u @ vh))
    return u * sign[:, None, :] @ vh


def _vector(xyz: dict[str, float], label: str) -> Tensor:
    values = [float(xyz.get(k, 0.0)) for k in "xyz"]
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"The camera's {label} is not a finite point: {values}.")
    return torch.tensor(values, dtype=torch.float64)


def _xyz(vector: Tensor) -> dict[str, float]:
    return dict(zip("xyz", vector.tolist(), strict=True))
