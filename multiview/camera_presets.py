"""Camera tables of published multi-view models (references.md sections 3.3 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .cameras import Cameras, even_azimuths, orbit

# f = 280 px at 256 px (SyncDreamer's camera-16.pkl); MVD-Fusion's NDC focal length 2.1875 is the same camera.
FOV_SYNCDREAMER = math.degrees(2 * math.atan(128 / 280))
# fx = 1.3889 normalised (Ouroboros3D's hyper/*.npy).
FOV_OUROBOROS3D = math.degrees(2 * math.atan(0.5 / 1.3889))


@dataclass(frozen=True)
class Preset:
    """How one model's cameras stand. `azimuths` maps a number of views to their angles in degrees."""

    label: str
    views: int
    azimuths: Callable[[int], list[float]]
    elevation: float
    radius: float
    fov_y: float
    note: str
    fixed_views: bool = True
    input_last: bool = False
    has_input: bool = True


def _sv3d_stability(views: int) -> list[float]:
    # Stability's sampling script: the input picture is the last frame, at azimuth 360 = 0.
    return [360.0 * (i + 1) / views for i in range(views)]


def _sv3d_comfyui(views: int) -> list[float]:
    # ComfyUI's SV3D_Conditioning: first and last frame are the same view.
    return [360.0 * i / (max(views, 2) - 1) for i in range(views)]


def _ouroboros3d(_views: int) -> list[float]:
    return [0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 337.5]


PRESETS: dict[str, Preset] = {
    "syncdreamer": Preset(
        "SyncDreamer", 16, even_azimuths, 30.0, 1.5, FOV_SYNCDREAMER,
        "View 0 has the input's azimuth but elevation 30: the input picture itself is not one of the views.",
        has_input=False,
    ),
    "mvd_fusion": Preset("MVD-Fusion", 16, even_azimuths, 30.0, 1.5, FOV_SYNCDREAMER, "Same cameras as SyncDreamer."),
    "videomv_i2v": Preset("VideoMV image to views", 24, even_azimuths, 5.0, 1.7, 39.6, "Frame 0 is the input."),
    "videomv_t2v": Preset(
        "VideoMV text to views", 24, even_azimuths, 15.0, 2.0, 39.6, "No input picture.", has_input=False
    ),
    "lgm": Preset("LGM", 4, even_azimuths, 0.0, 1.5, 49.1, "The four views LGM reconstructs from."),
    "ouroboros3d": Preset(
        "Ouroboros3D", 8, _ouroboros3d, 0.0, 1.7417, FOV_OUROBOROS3D,
        "Uneven on purpose: the released orbit steps 67.5 degrees before its last view. Elevation is relative.",
    ),
    "mvdream": Preset(
        "MVDream", 4, even_azimuths, 15.0, 1.5, 49.1,
        "The model fixes no metric camera (it is told unit-normalised poses); radius and field of view are nominal.",
        has_input=False,
    ),
    "imagedream": Preset(
        "ImageDream", 4, even_azimuths, 15.0, 1.5, 49.1,
        "The four orbit views; the fifth frame (input picture, zero camera) is not a view. Nominal radius and field "
        "of view, as for MVDream.",
        has_input=False,
    ),
    "sv3d_stability": Preset(
        "SV3D, Stability's table", 21, _sv3d_stability, 0.0, 2.0, 33.8,
        "The orbit SV3D was trained on: steps of 360/21 degrees, the input is the LAST frame. Also the likely true "
        "orbit of SV3D_u under any node, as that model takes no pose.",
        fixed_views=False, input_last=True,
    ),
    "sv3d_comfyui": Preset(
        "SV3D, ComfyUI's SV3D_Conditioning", 21, _sv3d_comfyui, 0.0, 2.0, 33.8,
        "What core's SV3D_Conditioning node tells SV3D_p: steps of 360/20 degrees, first and last frame the same view.",
        fixed_views=False,
    ),
    "stable_zero123": Preset(
        "Stable Zero123", 8, even_azimuths, 0.0, 3.8, 20.0,
        "One view per latent, any pose; elevation is relative to the input's.",
        fixed_views=False,
    ),
    "demo": Preset(
        "Demo models of this pack", 16, even_azimuths, 15.0, 1.5, FOV_SYNCDREAMER,
        "The orbit the demo models draw by default.", fixed_views=False,
    ),
}


def preset(name: str, elevation: float | None = None, views: int | None = None) -> Cameras:
    """Cameras of a published model.

    name: a key of PRESETS. elevation: degrees, None for the model's own. views: None for the model's own number;
    models whose number of views is part of the network refuse another one.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no camera preset '{name}'; choose one of: {', '.join(PRESETS)}.")
    table = PRESETS[name]
    if views is not None and views != table.views and table.fixed_views:
        raise ValueError(f"{table.label} makes {table.views} views, not {views}; use the preset's own number.")
    azimuths = table.azimuths(views or table.views)
    input_view = (len(azimuths) - 1 if table.input_last else 0) if table.has_input else None
    return orbit(
        azimuths,
        table.elevation if elevation is None else elevation,
        table.radius,
        table.fov_y,
        input_view=input_view,
        name=table.label,
    )
