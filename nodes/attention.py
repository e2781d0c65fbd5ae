"""Nodes that let views of a single-image model look at a reference view."""

from __future__ import annotations

import re

import comfy.samplers
from comfy_api.latest import io

from ..multiview.attention import check_references, guide_away
from .cross_frame_patch import CHOICES, HARD, KEY, Settings, choose_blocks, with_cross_frame
from .host import CamerasType, advanced, schema

CATEGORY = "multiview/guidance"


def sigma_range(model, start_percent: float, end_percent: float) -> tuple[float, float]:
    """Noise levels between which something acts, the host's way. ValueError if the end is before the start."""
    if end_percent < start_percent:
        raise ValueError(
            f"end_percent {end_percent} is before start_percent {start_percent}; the part of the sampling in which "
            "this acts would be empty."
        )
    sampling = model.get_model_object("model_sampling")
    return float(sampling.percent_to_sigma(start_percent)), float(sampling.percent_to_sigma(end_percent))


class CrossFrameAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCrossFrameAttention",
            display_name="Cross-Frame Attention (Multi-View)",
            category=CATEGORY,
            description="Makes a batch of pictures of a single-image model show the same object: in self-attention "
            "every view looks at the reference view instead of at itself (MIRAGE). For SD 1.5, SD 2, SDXL and Stable "
            "Zero123; video models keep their own attention over time.",
            search_aliases=["mirage", "shared attention", "reference only", "consistent", "text2video-zero"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a UNet: SD 1.5, SD 2, SDXL, Stable Zero123, SVD, SV3D, "
                               "or the trained demo model. LoRAs may come before or after."),
                io.String.Input("reference_views", default="0",
                                tooltip="The view that all others look at, counted from 0. Several, separated by "
                                "commas: all others look at all of them; attention then costs as many times as "
                                "much, and once more. A reference view comes out as it would without this node."),
                io.Combo.Input("blocks", options=list(CHOICES), default="middle and decoder",
                               tooltip="Which self-attention layers look at the reference. The paper takes the middle "
                               "and the decoder and found no effect of the encoder. 'listed': those named below."),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="1 = views take everything from the reference, as in the paper. 0 = off. "
                               "Between: a blend with the view's own attention, at the cost of a second attention in "
                               "these layers."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="From which part of the sampling on. 0 = from the first step."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Up to which part of the sampling. 1 = to the last step, as in the paper."),
                io.Int.Input("views", default=0, min=0, max=1024,
                             tooltip="Number of views of one object. 0 = the whole batch. With 4 and a batch of 8 "
                             "there are two objects of 4 views, each with a reference of its own. Cameras, if "
                             "connected, decide instead."),
                advanced(io.String.Input, "listed_blocks", default="middle, output 3, output 4",
                         tooltip="For blocks = listed: names as in 'input 4', 'middle', 'output 3', or 'output 3.1' "
                         "for one layer of a block that has several (SDXL). A wrong name is answered with all names."),
                CamerasType.Input("cameras", optional=True, tooltip="Only counted: one view for each camera."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model, patched. The one that came in is as "
                                     "it was.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, reference_views: str, blocks: str, strength: float, start_percent: float,
                end_percent: float, views: int, listed_blocks: str, cameras=None) -> io.NodeOutput:  # fmt: skip
        views = views if cameras is None else len(cameras)
        references = read_references(reference_views)
        check_references(references, views or max((*references, 0)) + 1)
        start, end = sigma_range(model, start_percent, end_percent)
        chosen = choose_blocks(model, blocks, listed_blocks)
        settings = Settings(views, references, start, end, strength, start_percent == 0 and end_percent == 1)
        return io.NodeOutput(with_cross_frame(model, chosen, settings))


def read_references(text: str) -> tuple[int, ...]:
    """ "0, 3" -> (0, 3), each once. ValueError for anything else."""
    if not re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)*", text):
        raise ValueError(f"reference_views is '{text}'; write numbers of views separated by commas, as in 0 or 0, 3.")
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


class HardAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVHardAttentionGuidance",
            display_name="Hard-Attention Guidance (Multi-View)",
            category=CATEGORY,
            description="Guides views away from copying single spots of the reference (MIRAGE's HAG). Comes after "
            "Cross-Frame Attention. Costs one more evaluation of the positive conditioning in each step.",
            search_aliases=["mirage", "hag", "argmax attention", "guidance"],
            inputs=[
                io.Model.Input("model", tooltip="A model that has been through Cross-Frame Attention."),
                io.Float.Input("gamma", default=1.5, min=0.0, max=10.0, step=0.05, round=0.001,
                               tooltip="1 = off, at no cost. The paper uses 1.5. More pushes harder away from the hard "
                               "attention, less than 1 goes towards it. Anything but 1 costs one more evaluation of "
                               "the positive conditioning in each step: with CFG three instead of two."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="From which part of the sampling on. Before it nothing is added and nothing "
                               "extra is computed."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Up to which part of the sampling. 1 = to the last step, as in the paper."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with this guidance, for any sampler or "
                                     "guider; CFG works as before.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, gamma: float, start_percent: float, end_percent: float) -> io.NodeOutput:
        settings = model.model_options.get("transformer_options", {}).get(KEY)
        if settings is None:
            raise ValueError(
                "This model has no cross-frame attention to compare with its hard form; put Cross-Frame Attention "
                "before Hard-Attention Guidance."
            )
        start, end = sigma_range(model, start_percent, end_percent)
        patched = model.clone()
        if gamma != 1:
            patched.set_model_sampler_post_cfg_function(hard_guidance(gamma, start, end))
        return io.NodeOutput(patched)


def hard_guidance(gamma: float, start_sigma: float, end_sigma: float):
    """A post-CFG function that adds (gamma - 1) (soft - hard) between two noise levels, where there is a soft form."""

    def guide(args: dict):
        options = args["model_options"]
        settings = Settings(**options["transformer_options"][KEY])
        sigma = float(args["sigma"].max())
        top, bottom = min(start_sigma, settings.start_sigma), max(end_sigma, settings.end_sigma)
        if not bottom <= sigma <= top or settings.strength == 0 or args["cond"] is None:
            return args["denoised"]
        hard_options = {**options, "transformer_options": {**options["transformer_options"], HARD: True}}
        (hard,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], hard_options
        )
        views = settings.count(hard.shape[0])
        return guide_away(args["denoised"], args["cond_denoised"], hard, gamma, views, settings.references)

    return guide


NODES = [CrossFrameAttention, HardAttentionGuidance]
