"""Nodes that make, show and convert calibrated cameras."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..multiview.camera_convert import from_da3, from_load3d, to_load3d
from ..multiview.camera_presets import PRESETS
from ..multiview.camera_presets import preset as preset_cameras
from ..multiview.cameras import Cameras, even_azimuths, orbit
from ..multiview.draw import camera_plan, from_pil
from .host import CamerasType, advanced, schema

CATEGORY = "multiview/cameras"
CUSTOM = "custom orbit"


class OrbitCameras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVOrbitCameras",
            display_name="Orbit Cameras (Multi-View)",
            category=CATEGORY,
            description="The cameras a multi-view model draws its views from, or an orbit of your own. Every node that "
            "works in 3D needs to know them; a splat fitted with the wrong table comes out as mush.",
            search_aliases=["camera", "orbit", "azimuth", "elevation", "sv3d", "syncdreamer", "turntable"],
            inputs=[
                io.Combo.Input(
                    "preset", options=[*PRESETS, CUSTOM], default="demo",
                    tooltip="Camera table of the model that made (or will make) the views. sv3d_stability is the orbit "
                    "SV3D was trained on, sv3d_comfyui what core's SV3D_Conditioning node feeds. 'custom orbit' uses "
                    "the angles, radius and field of view below.",
                ),
                io.Int.Input(
                    "views", default=0, min=0, max=256,
                    tooltip="Number of views. 0 = the preset's own number (custom orbit: 16). Models whose number of "
                    "views is fixed refuse another one.",
                ),
                io.Boolean.Input(
                    "preset_elevation", default=True, label_on="preset's elevation", label_off="elevation below",
                    tooltip="On: the elevation the model's authors use. Off: the elevation set below, which for SV3D, "
                    "VideoMV and Zero123 should be that of your input picture.",
                ),
                io.Float.Input(
                    "elevation", default=0.0, min=-89.0, max=89.0, step=0.5,
                    tooltip="Degrees above the horizon (negative: from below). Used by the custom orbit, and by a "
                    "preset when 'preset_elevation' is off.",
                ),
                advanced(
                    io.Float.Input, "start_azimuth", default=0.0, min=-360.0, max=360.0, step=0.5,
                    tooltip="Custom orbit: azimuth of the first view in degrees. 0 is the front; growing azimuth moves "
                    "the camera to the viewer's right.",
                ),
                advanced(
                    io.Float.Input, "span", default=360.0, min=-360.0, max=360.0, step=0.5,
                    tooltip="Custom orbit: degrees covered by all views, in steps of span / views. 360 goes once round "
                    "without repeating the first view; negative turns the other way.",
                ),
                advanced(
                    io.Float.Input, "radius", default=1.5, min=0.1, max=100.0, step=0.05,
                    tooltip="Custom orbit: distance of the camera from the object's centre, in world units. Objects "
                    "usually have a radius of about 0.5.",
                ),
                advanced(
                    io.Float.Input, "fov", default=49.13, min=1.0, max=150.0, step=0.1,
                    tooltip="Custom orbit: vertical field of view in degrees.",
                ),
                advanced(
                    io.Float.Input, "aspect", default=1.0, min=0.1, max=10.0, step=0.01,
                    tooltip="Custom orbit: width divided by height of the views. The presets are square.",
                ),
            ],
            outputs=[
                CamerasType.Output(display_name="cameras", tooltip="N calibrated cameras, in the order of the views."),
                io.String.Output(
                    display_name="description", tooltip="The cameras in words: azimuths, elevation, radius, lens."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, preset, views, preset_elevation, elevation, start_azimuth, span, radius, fov, aspect
    ) -> io.NodeOutput:
        if preset == CUSTOM:
            cameras = orbit(
                even_azimuths(views or 16, start_azimuth, span), elevation, radius, fov, aspect=aspect, name=CUSTOM
            )
        else:
            cameras = preset_cameras(preset, None if preset_elevation else elevation, views or None)
        return io.NodeOutput(cameras, cameras.describe())


class CamerasPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCamerasPreview",
            display_name="Preview Cameras (Multi-View)",
            category=CATEGORY,
            description="Draws the cameras from above and from the side, with their azimuths and the input view in "
            "orange, so that a wrong direction or a wrong table is seen before anything is fitted.",
            inputs=[
                CamerasType.Input("cameras", tooltip="The cameras to draw."),
                io.Int.Input("size", default=512, min=256, max=2048, step=64, tooltip="Side of a drawing in pixels."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Both drawings side by side."),
                io.String.Output(display_name="description", tooltip="The cameras in words."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, cameras: Cameras, size: int) -> io.NodeOutput:
        picture = from_pil(camera_plan(cameras, size))
        return io.NodeOutput(picture, cameras.describe(), ui=ui.PreviewImage(picture, cls=cls))


class CameraToLoad3D(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCameraToLoad3D",
            display_name="Camera to Load3D Camera (Multi-View)",
            category=CATEGORY,
            description="One of the cameras as ComfyUI's own 3D camera, for Preview 3D and core's splat renderer.",
            inputs=[
                CamerasType.Input("cameras", tooltip="The cameras to choose from."),
                io.Int.Input("view", default=0, min=0, max=4095, tooltip="Which view, counted from 0."),
            ],
            outputs=[io.Load3DCamera.Output(display_name="camera_info", tooltip="The view as a LOAD3D_CAMERA.")],
        )

    @classmethod
    def execute(cls, cameras: Cameras, view: int) -> io.NodeOutput:
        return io.NodeOutput(to_load3d(cameras, view))


class CameraFromLoad3D(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCameraFromLoad3D",
            display_name="Camera from Load3D Camera (Multi-View)",
            category=CATEGORY,
            description="A camera set by hand in ComfyUI's 3D viewer, for rendering a splat from there.",
            inputs=[
                io.Load3DCamera.Input("camera_info", tooltip="The camera_info output of a Load 3D node."),
                io.Float.Input(
                    "aspect", default=0.0, min=0.0, max=10.0, step=0.01,
                    tooltip="Width divided by height of the pictures to render. 0 = the camera's own, or square.",
                ),
            ],
            outputs=[CamerasType.Output(display_name="cameras", tooltip="One camera.")],
        )

    @classmethod
    def execute(cls, camera_info, aspect: float) -> io.NodeOutput:
        return io.NodeOutput(from_load3d(camera_info, aspect or None))


class CamerasFromDA3(io.ComfyNode):
    """Registered only where the host has Depth Anything 3 (see nodes/__init__.py)."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCamerasFromDA3",
            display_name="Cameras from Depth Anything 3 (Multi-View)",
            category=CATEGORY,
            description="The cameras that Depth Anything 3 estimated from the views (multi-view mode), moved so that "
            "the object is at the origin.",
            inputs=[
                io.Custom("DA3_GEOMETRY").Input(
                    "da3_geometry", tooltip="Output of core's Depth Anything 3 node in multi-view mode."
                ),
                io.Float.Input(
                    "radius", default=1.5, min=0.0, max=100.0, step=0.05,
                    tooltip="Scale the scene so that the cameras are this far from the object on average. 0 = keep the "
                    "model's own scale.",
                ),
            ],
            outputs=[
                CamerasType.Output(display_name="cameras", tooltip="One camera for each view."),
                io.String.Output(display_name="description", tooltip="The cameras in words."),
            ],
        )

    @classmethod
    def execute(cls, da3_geometry, radius: float) -> io.NodeOutput:
        cameras = from_da3(da3_geometry, radius or None)
        return io.NodeOutput(cameras, cameras.describe())


NODES = [OrbitCameras, CamerasPreview, CameraToLoad3D, CameraFromLoad3D]
