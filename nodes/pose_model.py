"""A trained pose model (multiview/pose_unet.py) in ComfyUI's own classes, and its conditioning."""

from __future__ import annotations

import re
from pathlib import Path

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import torch
from comfy_api.latest import io

from ..multiview.draw import contact_sheet, from_pil
from ..multiview.pose_unet import (
    BETA_FIRST,
    BETA_LAST,
    STEPS,
    PoseConfig,
    pose_unet_config,
    pose_vectors,
    read_pose_checkpoint,
)
from . import host
from .analytic_model import PixelFormat
from .cross_frame_patch import PROMPTS
from .host import schema
from .trained_model import build_model

CATEGORY = "multiview/poses"


class PoseModelConfig(comfy.supported_models_base.BASE):
    unet_extra_config: dict = {}
    latent_format = PixelFormat
    # ComfyUI's name for betas that rise in even steps, DDIM's schedule.
    sampling_settings = {
        "beta_schedule": "sqrt_linear", "linear_start": BETA_FIRST, "linear_end": BETA_LAST, "timesteps": STEPS,
    }  # fmt: skip
    memory_usage_factor = 2.0

    def __init__(self, config: PoseConfig):
        super().__init__(pose_unet_config(config))
        self.pose_config = config

    def get_model(self, state_dict, prefix="", device=None):
        kinds = comfy.model_base.ModelType
        kind = kinds.EPS if self.pose_config.prediction == "noise" else kinds.V_PREDICTION
        return PoseModel(self, kind, device=device)


class PoseModel(comfy.model_base.BaseModel):
    """A UNet on pixels; the pose comes as the conditioning's pooled output."""

    def extra_conds(self, **kwargs):
        poses = self.model_config.pose_config.poses
        pose, noise = kwargs.get("pooled_output"), kwargs.get("noise")
        if pose is None or pose.ndim != 2 or pose.shape[1] != poses:
            raise ValueError(
                f"A pose model of {poses} poses takes its conditioning from Pose Conditioning connected to the same "
                "model, not from a text prompt or another model's."
            )
        if noise is not None and pose.shape[0] not in (1, noise.shape[0]):
            raise ValueError(
                f"The conditioning names {pose.shape[0]} poses but the latent holds {noise.shape[0]} pictures; repeat "
                "the latent as often as Pose Conditioning's count says."
            )
        out = super().extra_conds(**{key: value for key, value in kwargs.items() if key != "cross_attn"})
        out["y"] = comfy.conds.CONDRegular(pose)
        out["c_crossattn"] = comfy.conds.CONDCrossAttn(pose[:, None])
        return out


def load_pose_model(path: str | Path):
    """File -> MODEL, VAE (pixels), mean picture of each pose (P,S,S,3), header. ValueError as read_pose_checkpoint."""
    config, weights, means, meta = read_pose_checkpoint(path)
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    return build_model(PoseModelConfig(config), weights), vae, means, meta


def pose_config_of(model) -> PoseConfig:
    """ValueError for a MODEL that is no pose model."""
    config = getattr(model.model.model_config, "pose_config", None)
    if config is None:
        raise ValueError(
            f"This model ({type(model.model).__name__}) knows no numbered poses; connect the model of Load Pose Model."
        )
    return config


class LoadPoseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVLoadPoseModel",
            display_name="Load Pose Model (Multi-View)",
            category=CATEGORY,
            description="A model trained on one kind of object that draws it in numbered poses (MIRAGE). Train one "
            "with `python training pose` on a folder that Pose Clusters saved.",
            search_aliases=["mirage", "class conditional", "pose diffusion"],
            inputs=[
                io.Combo.Input("file", options=pose_files(),
                               tooltip="A file in models/multiview/pose. See docs/pose_model.md for how to train one."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For any sampler, with Pose Conditioning."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE: pixels, nothing is lost."),
                io.Image.Output(display_name="sheet", tooltip="The mean training picture of each pose, with its "
                                "number."),
                io.Int.Output(display_name="poses", tooltip="How many poses there are; numbers go from 0."),
                io.Int.Output(display_name="size", tooltip="Side of its pictures in pixels."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        # Taking `file` here also stops the host from refusing files that were saved after the list was made.
        return True if file in pose_files() else (
            f"There is no pose model '{file}' in models/multiview/pose; train one (docs/pose_model.md) and reload."
        )

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        state = Path(host.cache_folder("pose"), file).stat()
        return f"{file}|{state.st_mtime_ns}|{state.st_size}"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        if file not in pose_files():
            raise ValueError(f"There is no pose model '{file}' in models/multiview/pose; train one and reload.")
        model, vae, means, _ = load_pose_model(Path(host.cache_folder("pose"), file))
        names = [str(i) for i in range(len(means))]
        sheet = from_pil(contact_sheet([("pose", means)], names, 10))
        return io.NodeOutput(model, vae, sheet, len(means), means.shape[1])


def pose_files() -> list[str]:
    return sorted(path.name for path in Path(host.cache_folder("pose")).glob("*.safetensors"))


class PoseConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVPoseConditioning",
            display_name="Pose Conditioning (Multi-View)",
            category=CATEGORY,
            description="Tells a pose model which poses to draw: one picture of the batch for each.",
            search_aliases=["mirage", "class label", "viewpoint"],
            inputs=[
                io.Model.Input("model", tooltip="The pose model; it knows how many poses there are."),
                io.String.Input("poses", default="all",
                                tooltip="Numbers separated by commas, as in 0, 3, 5, or 'all'. Empty: only the one in "
                                "'first'."),
                io.Int.Input("first", default=-1, min=-1, max=999,
                             tooltip="The pose of the input picture, put in front of the others, so that it is view 0 "
                             "for Cross-Frame Attention. -1 = none."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The poses, one for each picture."),
                io.Conditioning.Output(display_name="negative", tooltip="No pose, for CFG above 1."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent with a picture for each pose."),
                io.Int.Output(display_name="count", tooltip="How many pictures that are, to repeat a latent as often."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, poses: str, first: int) -> io.NodeOutput:
        config = pose_config_of(model)
        vectors = pose_vectors(torch.tensor(read_poses(poses, first, config.poses)), config.poses)
        count = len(vectors)
        told = {PROMPTS: count} if count > 1 else {}
        positive = [[vectors[:, None], {"pooled_output": vectors, **told}]]
        nothing = torch.zeros(1, config.poses)
        negative = [[nothing[:, None], {"pooled_output": nothing}]]
        device = comfy.model_management.intermediate_device()
        latent = torch.zeros(count, 3, config.size, config.size, device=device)
        return io.NodeOutput(positive, negative, {"samples": latent, "downscale_ratio_spacial": 1}, count)


def read_poses(text: str, first: int, count: int) -> list[int]:
    """ "0, 3" or "all", with `first` (if not -1) in front. ValueError for anything else, and for no pose at all."""
    if text.strip().lower() == "all":
        listed = [pose for pose in range(count) if pose != first]
    elif re.fullmatch(r"\s*(\d+\s*(,\s*\d+\s*)*)?", text):
        listed = [int(part) for part in text.split(",") if part.strip()]
    else:
        raise ValueError(f"poses is '{text}'; write numbers separated by commas, as in 0, 3, 5, or all.")
    found = [first, *listed] if first >= 0 else listed
    if not found:
        raise ValueError("No pose is named: write numbers or 'all' into poses, or a number into first.")
    return found


NODES = [LoadPoseModel, PoseConditioning]
