"""MIRROR: pull views toward each other while they are denoised, and look at the matches it goes by."""

from __future__ import annotations

import math

from comfy_api.latest import io, ui

from ..multiview.checks import check_images, check_view_count
from ..multiview.correspondence import MODES
from ..multiview.draw import from_pil
from ..multiview.draw_matches import count_matches, draw_matches, match_table, surface_cells
from ..multiview.mirror import ANCHORS, MirrorOptions
from ..multiview.mirror_settings import CUSTOM, PRESETS, Matching, Pull, match_views
from .host import CamerasType, DepthType, advanced, schema
from .mirror_patch import WINDOWS, MirrorPatch
from .sampling_checks import When, check_windows

# Depth, masks and matches are checked at this size before the sampling starts.
TRIAL = (32, 32)


def shared_inputs() -> list:
    """How views are matched: the same for both nodes."""
    return [
        DepthType.Input("depth", optional=True, tooltip="Metric depth of the views, from Estimate Depth, a splat or a "
                        "demo object, at any resolution. Without it only the correspondences paper and identity work."),
        io.Mask.Input("mask", optional=True, tooltip="Object masks of the views, 1 = object, at any resolution. "
                      "Without one the object is wherever there is depth."),
    ]  # fmt: skip


def matching_inputs() -> list:
    return [
        io.Combo.Input("correspondence", options=list(MODES), default="perspective",
                       tooltip="How a point's place in the neighbouring view is found. perspective: exactly, from "
                       "depth and cameras. paper: MIRROR's Eq. 4, which knows no perspective and no elevation. "
                       "orthographic: Eq. 4 with elevation. identity: the same pixel."),
        advanced(io.Boolean.Input, "occlusion", default=True,
                 tooltip="Drop points that the neighbour cannot see. Needs depth; the paper does not do it."),
        advanced(io.Float.Input, "depth_error", default=0.02, min=0.0, max=1.0, step=0.005, round=0.0001,
                 tooltip="Relative error of the depth that the test for hidden points makes room for. 0.02 is fair for "
                 "estimated depth, 0 for true depth."),
    ]  # fmt: skip


class MirrorRectify(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        default = PRESETS["default"]
        return schema(
            node_id="MVMirrorRectify",
            display_name="MIRROR Rectify (Multi-View)",
            category="multiview/guidance",
            description="While views are denoised, pulls each toward what its neighbours show of the same surface "
            "point, so that they come to agree. Works after CFG with any sampler and guider. Give it depth and cameras "
            "of the same views: draw them once without it, estimate the depth, draw them again with it.",
            search_aliases=["mirror", "consistency", "rectification", "janus"],
            inputs=[
                io.Model.Input("model", tooltip="The model that draws all views together: SV3D, SVD, a demo model, or "
                               "any model with the views as batch."),
                CamerasType.Input("cameras", tooltip="The cameras the views are drawn from, in the same order."),
                io.Combo.Input("preset", options=[*PRESETS, CUSTOM], default="default",
                               tooltip="default: what did best in our tables. paper: MIRROR's own schedules by step "
                               "index, one pull a step over a 3 x 3 block (choose correspondence paper as well for all "
                               "of the paper). custom: the settings marked custom below."),
                io.Float.Input("strength", default=1.0, min=0.0, max=4.0, step=0.05, round=0.001,
                               tooltip="Factor on the pull; more than the whole way to the neighbours is never gone. 0 "
                               "leaves the model exactly as it is."),
                *matching_inputs()[:1],
                *shared_inputs(),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="From which part of the sampling to pull, with every preset. 0 = from the first "
                               "step."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Up to which part of the sampling to pull, with every preset. 1 = as far as the "
                               "preset goes."),
                io.Boolean.Input("pin_input", default=False,
                                 tooltip="Leave the view of the input picture as the model draws it, so that the "
                                 "others come to it and it does not come to them. Needs cameras that know their input "
                                 "view."),
                *matching_inputs()[1:],
                advanced(io.Boolean.Input, "jacobian", default=False,
                         tooltip="Take the pull through the network (the paper's Eq. 12). Costs a second run of the "
                         "model and a backward pass at every pulled step, and much memory. For comparison."),
                advanced(io.Float.Input, "eta", default=default.eta, min=0.0, max=1.0, step=0.05, round=0.001,
                         tooltip="custom: fraction of the way to the neighbours' value in one pull."),
                advanced(io.Float.Input, "start_noise", default=0.0, min=0.0, max=100000.0, step=0.1, round=0.0001,
                         tooltip="custom: noise-to-signal ratio (sigma; sigma/(1-sigma) for flow models) below which "
                         "to pull. 0 = from the first step."),
                advanced(io.Float.Input, "end_noise", default=default.end, min=0.0, max=100000.0, step=0.05,
                         round=0.0001, tooltip="custom: noise-to-signal ratio below which to stop. Views need some "
                         "steps on their own at the end to become sharp. 0 = pull to the end."),
                advanced(io.Float.Input, "softness", default=default.softness, min=0.0, max=5.0, step=0.1,
                         tooltip="custom: how gradually the pull sets in and stops, in natural logarithms of the noise "
                         "ratio. 0 = at once."),
                advanced(io.Int.Input, "iterations", default=default.iterations, min=1, max=64,
                         tooltip="custom: pulls in one step. One carries agreement to the next view only, more carry "
                         "it further round the orbit. Costs no runs of the model."),
                advanced(io.Float.Input, "guidance", default=default.guidance, min=0.0, max=10.0, step=0.1, round=0.01,
                         tooltip="custom: how far to go along the way the pulls have moved a view. 1 = there; more = "
                         "beyond, which outweighs what the model would do by itself."),
                advanced(io.Int.Input, "block", default=default.options.block, min=1, max=9, step=2,
                         tooltip="custom: side of the block around a match that is fused. 1 = the match alone, which "
                         "is sharpest; the paper: 3."),
                advanced(io.Float.Input, "positive", default=0.5, min=0.0, max=1.0, step=0.05,
                         tooltip="custom: share m+ of the block's weights for likeness to the point itself; the rest, "
                         "m-, is for being unlike the negative anchor. No effect with block 1."),
                advanced(io.Combo.Input, "negative", options=list(ANCHORS), default="image",
                         tooltip="custom: the negative anchor. image: mean of the neighbour's four corners, that is "
                         "background. block: mean of the block's corners. No effect with block 1."),
                advanced(io.Float.Input, "temperature", default=1.0, min=0.001, max=100.0, step=0.05, round=0.001,
                         tooltip="custom: of the block's weights. 1 is the paper's and nearly a plain mean; small "
                         "picks the best cell. No effect with block 1."),
                advanced(io.Int.Input, "neighbours", default=default.neighbours, min=1, max=4,
                         tooltip="custom: neighbours on each side that a view is pulled toward."),
                advanced(io.Float.Input, "falloff", default=default.falloff, min=0.0, max=1.0, step=0.05,
                         tooltip="custom: weight of each further neighbour relative to the one before it. 1 = all "
                         "alike."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with the pull, for any sampler or "
                                     "guider.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, cameras, preset, strength, correspondence, start_percent, end_percent, pin_input, occlusion,
        depth_error, jacobian, eta, start_noise, end_noise, softness, iterations, guidance, block, positive,
        negative, temperature, neighbours, falloff, depth=None, mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        when = When(strength, start_percent, end_percent).check("pull")
        pull = PRESETS.get(preset) or Pull(
            eta=eta, start=start_noise or math.inf, end=end_noise, softness=softness, iterations=iterations,
            guidance=guidance,
            options=MirrorOptions(positive=positive, negative=negative, temperature=temperature, block=block),
            neighbours=neighbours, falloff=falloff,
        )  # fmt: skip
        matching = Matching(correspondence, occlusion, depth_error)
        if not bool(match_views(cameras, TRIAL, depth, mask, pull.offsets, matching).valid.any()):
            raise ValueError(
                "Not one point of these views is found in a neighbouring view, so there is nothing to pull toward; "
                "look at the matches with Preview Correspondence, and check that depth, masks and cameras belong to "
                "the same views."
            )
        check_windows(model, cameras, WINDOWS)
        if pin_input and cameras.input_view is None:
            raise ValueError(
                f"These cameras ({cameras.name}) do not say which view shows the input picture; switch pin_input off "
                "or use cameras that do."
            )
        patched = model.clone()
        if strength > 0:
            patch = MirrorPatch(cameras, depth, mask, pull, matching, when, pin_input, jacobian)
            patched.set_model_sampler_post_cfg_function(patch)
        return io.NodeOutput(patched)


class CorrespondencePreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCorrespondencePreview",
            display_name="Preview Correspondence (Multi-View)",
            category="multiview/look",
            description="Draws which points of neighbouring views show the same place on the object, as MIRROR uses "
            "them: matched points are joined, green is sure, red is not, grey rings have no match.",
            search_aliases=["matches", "trajectory", "tracking", "mirror"],
            inputs=[
                io.Image.Input("views", tooltip="The views, one for each camera."),
                CamerasType.Input("cameras", tooltip="The cameras the views were drawn from, in the same order."),
                io.String.Input("which", default="0", tooltip="Which views to draw, counted from 0, with commas: "
                                "0, 4, 8. One row for each, with its neighbours left and right."),
                io.Int.Input("points", default=40, min=1, max=2000, tooltip="How many points of each view to follow at "
                             "most, evenly over the object."),
                io.Int.Input("neighbours", default=1, min=1, max=4, tooltip="Neighbours on each side to draw."),
                *matching_inputs()[:1],
                *shared_inputs(),
                *matching_inputs()[1:],
                advanced(io.Int.Input, "cell", default=8, min=1, max=64,
                         tooltip="Pixels along the side of a cell in which matches are made. 8 is what latents of most "
                         "models have; 1 for the analytic demo model."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="One picture with a row for each chosen view."),
                io.String.Output(display_name="table", tooltip="For every view and neighbour: share of the object's "
                                 "cells that are matched, hidden or outside the picture, as Markdown."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, views, cameras, which, points, neighbours, correspondence, occlusion, depth_error, cell, depth=None,
        mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        views = check_images(views, "views")
        check_view_count(len(views), cameras, "views")
        chosen = views_named(which, len(views))
        size = tuple(max(1, side // cell) for side in views.shape[1:3])
        offsets = Pull(neighbours=neighbours).offsets
        found = [
            match_views(cameras, size, depth, mask, offsets, Matching(correspondence, tested, depth_error))
            for tested in (occlusion, False)
        ]
        surface = surface_cells(found[0], cameras, None if depth is None else depth.depth)
        table = match_table(count_matches(*found, surface), cameras, correspondence)
        picture = from_pil(draw_matches(views, found[0], surface, cameras, chosen, points))
        return io.NodeOutput(picture, table, ui=ui.PreviewImage(picture, cls=cls))


def views_named(text: str, count: int) -> list[int]:
    """Numbers of views from what a user typed; ValueError for anything else than numbers below `count`."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and int(word) < count for word in words):
        raise ValueError(
            f"'{text}' names no views; write numbers from 0 to {count - 1} with commas between them, such as 0, 1."
        )
    return [int(word) for word in words]


NODES = [MirrorRectify, CorrespondencePreview]
