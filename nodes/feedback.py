"""3D-aware feedback: a splat is made of the views while they are drawn, and its renders go back into the drawing."""

from __future__ import annotations

import math

import comfy.model_management
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..multiview.coordinates import DEFINITIONS
from ..multiview.feedback import CUSTOM, PRESETS, Moments, QuickFit
from ..multiview.lgm_reconstruct import choose_views
from . import host
from .feedback_patch import Feedback, FeedbackPatch, InjectedFeedback, by_lgm, check_vae, input_view_kept
from .host import CamerasType, advanced, schema
from .lgm import LGMType
from .ouroboros_model import check_injector, injector_of
from .sampling_checks import When, check_windows

# More than any short fit of a few thousand Gaussians took.
FIT_MEMORY_BYTES = 1024**3
TRAINED = "Ouroboros3D (trained)"
AUTO = "auto"


class ThreeDFeedback(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        default, fit = PRESETS["default"], QuickFit
        return schema(
            node_id="MV3DFeedback",
            display_name="3D Feedback (Multi-View)",
            category="multiview/guidance",
            description="While views are denoised, fits a splat to what they show so far, renders it from every "
            "camera and leads each view toward its render, so that all views come to show one object. Needs no "
            "training and no further weights. Works after CFG with any sampler and guider. Each feedback decodes and "
            "encodes the views once and fits for some seconds.",
            search_aliases=["ouroboros3d", "videomv", "cycle3d", "3d aware sampling", "reconstruction guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The model that draws all views together: SV3D, SVD, a demo model, or "
                               "any model with the views as batch."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                CamerasType.Input("cameras", tooltip="The cameras the views are drawn from, in the same order."),
                io.Combo.Input("preset", options=[*PRESETS, CUSTOM, TRAINED], default="default",
                               tooltip="default: at every second step until the noise ratio is 1, with weight 2: safe "
                               "where nobody knows when a model's views decide. short: only from noise ratio 10 to 1, "
                               "at every step; as good and quicker on the demo model. VideoMV: at 20, 30 and 40 of 50 "
                               "steps the render takes the place of the view; cheapest. Cycle3D: at every step. "
                               "custom: the settings marked custom below. Ouroboros3D: for the model of Ouroboros3D "
                               "Cameras, or a demo model trained with encoders; colour and coordinates of the splat "
                               "are told to its network, at every step."),
                io.Float.Input("strength", default=1.0, min=0.0, max=4.0, step=0.05, round=0.001,
                               tooltip="Factor on the weight of the renders. 0 leaves the model exactly as it is."),
                io.Boolean.Input("keep_input", default=False,
                                 tooltip="Leave the view of the input picture as the model draws it (as Cycle3D does). "
                                 "Needs cameras that know their input view."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="From which part of the sampling to feed back, with every preset."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Up to which part of the sampling to feed back, with every preset."),
                advanced(io.Float.Input, "input_weight", default=1.0, min=0.0, max=100.0, step=0.5,
                         tooltip="How much the input's view counts in the fit; each other view counts 1."),
                advanced(io.Boolean.Input, "object_only", default=False,
                         tooltip="Feed back only where the splat is, and leave the background to the model."),
                advanced(io.Float.Input, "weight", default=default.weight, min=0.0, max=10.0, step=0.1, round=0.001,
                         tooltip="custom: 1 = the render takes the place of the view; less = a blend; more = beyond "
                         "the render, which outweighs what each view would do by itself."),
                advanced(io.Int.Input, "every", default=default.every, min=1, max=1000,
                         tooltip="custom: feed back at every such step only. Each feedback costs a fit."),
                advanced(io.Float.Input, "start_noise", default=0.0, min=0.0, max=100000.0, step=0.1, round=0.0001,
                         tooltip="custom: noise-to-signal ratio (sigma; sigma/(1-sigma) for flow models) below which "
                         "to feed back. 0 = from the first step."),
                advanced(io.Float.Input, "end_noise", default=default.end, min=0.0, max=100000.0, step=0.05,
                         round=0.0001, tooltip="custom: noise-to-signal ratio below which to stop. Views need some "
                         "steps on their own at the end to become sharp. 0 = to the end."),
                advanced(io.Int.Input, "first_iterations", default=fit.first, min=1, max=10000,
                         tooltip="Iterations of the first fit."),
                advanced(io.Int.Input, "iterations", default=fit.again, min=1, max=10000,
                         tooltip="Iterations of every further fit, which goes on from the last."),
                advanced(io.Int.Input, "points", default=fit.points, min=1, max=1000000, step=100,
                         tooltip="Gaussians of the splat."),
                advanced(io.Int.Input, "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                         tooltip="Seed of the fits."),
                advanced(io.Combo.Input, "coordinates", options=[AUTO, *DEFINITIONS], default=AUTO,
                         tooltip="Ouroboros3D: how coordinates become colours. auto: as the model's encoders know "
                         "it. released: for the public weights. canonical: for encoders trained with this pack."),
                LGMType.Input("lgm", optional=True, tooltip="Reconstruct with this network instead of fitting: quicker "
                              "on a graphics card. Needs views at 0, 90, 180 and 270 degrees on white."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with the feedback, for any sampler or "
                                     "guider.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae, cameras, preset, strength, keep_input, start_percent, end_percent, input_weight, object_only,
        weight, every, start_noise, end_noise, first_iterations, iterations, points, seed,
        coordinates, lgm=None,
    ) -> io.NodeOutput:  # fmt: skip
        when = When(strength, start_percent, end_percent).check("feedback")
        if preset == TRAINED:
            check_injector(model)
        moments = PRESETS["Cycle3D (every step)"] if preset == TRAINED else PRESETS.get(preset) or Moments(
            weight=weight, start=start_noise or math.inf, end=end_noise, softness=PRESETS["default"].softness,
            every=every,
        )  # fmt: skip
        if (keep_input or input_weight != 1) and cameras.input_view is None:
            raise ValueError(
                f"These cameras ({cameras.name}) do not say which view shows the input picture; leave keep_input off "
                "and input_weight at 1, or use cameras that do."
            )
        check_windows(model, cameras, "3D feedback needs all views")
        check_vae(vae, model)
        if lgm is not None:
            choose_views(cameras)
        patched = model.clone()
        if strength > 0:
            device = host.fit_device()
            comfy.model_management.free_memory(FIT_MEMORY_BYTES, device)
            weights = None if input_weight == 1 else input_view_kept(cameras, input_weight)
            fit = QuickFit(cameras, first_iterations, iterations, points, weights, device, seed)
            feedback = Feedback(
                cameras, vae, by_lgm(lgm, cameras) if lgm else fit, moments,
                input_view_kept(cameras, 0.0 if keep_input else 1.0), object_only, when,
            )  # fmt: skip
            if preset == TRAINED:
                definition = injector_of(model).config.definition if coordinates == AUTO else coordinates
                patch = InjectedFeedback(feedback, definition, lgm is not None and lgm.network.config.timed)
                patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "mv_feedback", patch.around_model)
            else:
                patch = FeedbackPatch(feedback)
            patched.set_model_sampler_post_cfg_function(patch)
        return io.NodeOutput(patched)


NODES = [ThreeDFeedback]
