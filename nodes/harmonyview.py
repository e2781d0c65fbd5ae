"""HarmonyView's guider for SamplerCustomAdvanced (multiview/harmony.py has the formula).

Each step evaluates up to three branches of one batch, told apart by their place in the list the host gets:
0 = everything, 1 = views only (the negative conditioning: no reference), 2 = reference only (the positive
conditioning, the views kept apart). How views are kept apart depends on how they talk:
- video UNets (SVD, SV3D, the demo models): image_only_indicator = 1 makes every temporal mix pass the spatial part;
- batches of a single-image model: our cross-frame attention looks at transformer_options["mv_views_apart"].
Both are set by a wrapper around apply_model, the first place that knows which branches the host put into one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.util import AlphaBlender
from comfy_api.latest import io

from ..multiview.harmony import SCHEDULES, as_negative, check_range, scale_at
from .host import advanced, schema

EVERYTHING, VIEWS_ONLY, REFERENCE_ONLY = 0, 1, 2
# Models whose positive conditioning carries the input picture as a latent.
WITH_PICTURE = (comfy.model_base.SVD_img2vid, comfy.model_base.Stable_Zero123)


@dataclass(frozen=True)
class Settings:
    """s1, s2 and their schedules (multiview.harmony.scale_at), the rest as in the node's tooltips."""

    s1: float = 2.0
    s2: float = 1.0
    schedule_s1: str = "constant"
    schedule_s2: str = "constant"
    start: float = 0.0
    end: float = 1.0
    split: bool = False
    latent_scale: float = 1.0
    zero_embedding: bool = False

    def scales(self, model_sampling, timestep: torch.Tensor) -> tuple[float, float]:
        """(s1, s2) at the noise level of a host's timestep (B,)."""
        if (self.start, self.end, self.schedule_s1, self.schedule_s2) == (0.0, 1.0, "constant", "constant"):
            return self.s1, self.s2
        progress = progress_at(model_sampling, float(timestep.max()))
        return (
            scale_at(self.s1, progress, self.schedule_s1, self.start, self.end),
            scale_at(self.s2, progress, self.schedule_s2, self.start, self.end),
        )


def progress_at(model_sampling, sigma: float) -> float:
    """The host's own measure of progress at a noise level: the inverse of percent_to_sigma, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if float(model_sampling.percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    return (low + high) / 2


class HarmonyGuider(comfy.samplers.CFGGuider):
    """CFGGuider with three branches. Hooks, LoRA, ControlNet, wrappers and CFG patches act as they do there: to them
    this is guidance of scale 1 + s1 + s2 against the mixture of the two reduced branches."""

    def set_harmony(self, positive, negative, settings: Settings, video: bool) -> None:
        """video: views talk through layers that image_only_indicator switches off."""
        # A conditioning of its own for the third branch: its own identity for patches that keep values between steps.
        self.inner_set_conds({"positive": positive, "negative": negative, "reference_only": positive})
        self.settings = settings
        self.video = video

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        positive, negative = self.conds["positive"], self.conds["negative"]
        s1, s2 = self.settings.scales(self.inner_model.model_sampling, timestep)
        if s1 == 0 and s2 == 0:
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, None, positive, 1.0, model_options=model_options, seed=seed
            )
        conds = [positive, negative if s1 else None, self.conds["reference_only"] if s2 else None]
        self._refuse_windows(conds, x, timestep, model_options)
        options = comfy.model_patcher.create_model_options_clone(model_options)
        comfy.patcher_extension.add_wrapper(
            comfy.patcher_extension.WrappersMP.APPLY_MODEL,
            branch_wrapper(self.settings, self.video),
            options,
            is_model_options=True,
        )
        evaluate = options.get("sampler_calc_cond_batch_function") or _host_batch

        def branches(args):
            given = {**args, "model_options": options}
            if self.settings.split:
                # A list with one entry filled: the host leaves the others out, and the place still says the branch.
                outs = [
                    evaluate({**given, "conds": [c if i == j else None for j, c in enumerate(conds)]})[i]
                    if cond is not None
                    else None
                    for i, cond in enumerate(conds)
                ]
            else:
                outs = evaluate({**given, "conds": conds})
            return [outs[EVERYTHING], as_negative(outs[VIEWS_ONLY], outs[REFERENCE_ONLY], s1, s2)[0]]

        outer = {**options, "sampler_calc_cond_batch_function": branches}
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, 1.0 + s1 + s2, model_options=outer, seed=seed
        )

    def _refuse_windows(self, conds, x, timestep, model_options) -> None:
        handler = model_options.get("context_handler")
        if handler is not None and handler.should_use_context(self.inner_model, conds, x, timestep, model_options):
            raise ValueError(
                "HarmonyView compares views that see all others with views that see none, so they must be sampled "
                "together; take the context windows off the model."
            )


def _host_batch(args):
    return comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )


def branch_wrapper(settings: Settings, video: bool):
    """An APPLY_MODEL wrapper that tells the model which parts of its batch belong to which branch."""

    def apply(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        places = transformer_options["cond_or_uncond"]
        apart = [place == REFERENCE_ONLY for place in places]
        options = {
            **transformer_options,
            "mv_views_apart": apart,
            # Other packs' patches know 0 = positive and 1 = negative only; this branch has the positive conditioning.
            "cond_or_uncond": [EVERYTHING if place == REFERENCE_ONLY else place for place in places],
        }
        frames = x.shape[0] // len(places)
        if video and any(apart):
            indicator = torch.tensor(apart, device=x.device, dtype=torch.float32)
            kwargs["image_only_indicator"] = indicator[:, None].expand(-1, frames)
        if c_concat is not None and settings.latent_scale != 1.0:
            c_concat = c_concat * _by_part(apart, settings.latent_scale, c_concat)
        if c_crossattn is not None and settings.zero_embedding:
            c_crossattn = c_crossattn * _by_part([place == VIEWS_ONLY for place in places], 0.0, c_crossattn)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    return apply


def _by_part(chosen: list[bool], factor: float, like: torch.Tensor) -> torch.Tensor:
    """`factor` for the rows of the chosen parts of the batch, else 1, to multiply `like` with."""
    rows = torch.tensor([factor if c else 1.0 for c in chosen], device=like.device, dtype=like.dtype)
    return rows.repeat_interleave(like.shape[0] // len(chosen)).view(-1, *[1] * (like.ndim - 1))


def talks_by_video(model) -> bool:
    """Whether image_only_indicator switches off all talk between views in this MODEL's own layers."""
    from .analytic_model import AnalyticNetwork

    network = model.model.diffusion_model
    if isinstance(network, AnalyticNetwork):
        return True
    mixers = [layer for layer in network.modules() if isinstance(layer, AlphaBlender)]
    return bool(mixers) and all(mixer.merge_strategy == "learned_with_images" for mixer in mixers)


def check_model(model) -> bool:
    """talks_by_video; ValueError if the views of this MODEL do not talk in a way that can be switched off."""
    video = talks_by_video(model)
    if not video and "mv_cross_frame" not in model.model_options.get("transformer_options", {}):
        raise ValueError(
            f"In this model ({type(model.model).__name__}) no view sees another, so there is nothing for s2 to weigh: "
            "use a video model (SVD, SV3D, the demo model) or put MVCrossFrameAttention before this guider."
        )
    return video


def check_conditioning(model, positive, negative) -> None:
    """ValueError unless the positive has the input picture and the negative has not, where the model takes one."""
    if not isinstance(model.model, WITH_PICTURE):
        return
    if not all(_has_picture(values) for _, values in positive):
        raise ValueError(
            "The positive conditioning carries no input picture (its concat_latent_image is missing or zero); connect "
            "the positive of Orbit View Conditioning or of the model's own conditioning node."
        )
    if any(_has_picture(values) for _, values in negative):
        raise ValueError(
            "The negative conditioning carries an input picture, but HarmonyView needs one branch without it; connect "
            "the negative of the same conditioning node."
        )


def _has_picture(values: dict) -> bool:
    latent = values.get("concat_latent_image")
    return latent is not None and bool(latent.any())


class HarmonyViewGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVHarmonyViewGuider",
            display_name="HarmonyView Guider (Multi-View)",
            category="multiview/guidance",
            description="Two knobs instead of one CFG: s1 keeps views true to the input picture, s2 makes them heed "
            "each other. For SamplerCustomAdvanced, with SVD, SV3D, the demo models, or a single-image model whose "
            "views talk through MVCrossFrameAttention.",
            search_aliases=["harmonyview", "cfg", "guidance", "consistency", "diversity"],
            inputs=[
                io.Model.Input("model", tooltip="A model whose views see each other: SVD, SV3D, a demo model, or any "
                               "UNet after MVCrossFrameAttention."),
                io.Conditioning.Input("positive", tooltip="The conditioning with the input picture."),
                io.Conditioning.Input("negative", tooltip="The conditioning without the input picture, as for CFG."),
                io.Float.Input("s1", default=2.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="How strongly views keep to the input picture. With s2 = 0 this is ordinary "
                               "CFG of 1 + s1."),
                io.Float.Input("s2", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="How strongly each view is pushed to what only the other views can tell it. "
                               "0 = one branch less to compute."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="From which part of the sampling on s1 and s2 act. 0 = from the first step. "
                               "Before it the model runs without guidance, which is three times as fast."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Up to which part of the sampling s1 and s2 act. 1 = to the end."),
                advanced(io.Combo.Input, "schedule_s1", options=list(SCHEDULES), default="constant",
                         tooltip="How s1 goes from start to end: constant, falling to 0, or rising from 0."),
                advanced(io.Combo.Input, "schedule_s2", options=list(SCHEDULES), default="constant",
                         tooltip="How s2 goes from start to end: constant, falling to 0, or rising from 0."),
                advanced(io.Combo.Input, "batching", options=["auto", "split"], default="auto",
                         tooltip="auto: all three branches in one call if the memory allows. split: always one after "
                         "the other, which needs the least memory."),
                advanced(io.Float.Input, "ref_latent_scale", default=1.0, min=0.0, max=16.0, step=0.1,
                         tooltip="Factor on the input picture's latent in the branch that sees no other views. The "
                         "paper: 1. The authors' released code: 4."),
                advanced(io.Boolean.Input, "zero_embedding", default=False,
                         tooltip="In the branch without the input picture, set the embedding to zero after the model's "
                         "own projection, as the authors' released code does. Matters for Stable Zero123 only."),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, s1, s2, start_percent, end_percent, schedule_s1, schedule_s2, batching,
                ref_latent_scale, zero_embedding) -> io.NodeOutput:
        check_range(start_percent, end_percent)
        video = check_model(model)
        check_conditioning(model, positive, negative)
        settings = Settings(
            s1, s2, schedule_s1, schedule_s2, start_percent, end_percent, split=batching == "split",
            latent_scale=ref_latent_scale,
            # Without a projection of its own a text model would lose its negative prompt.
            zero_embedding=zero_embedding and isinstance(model.model, WITH_PICTURE),
        )
        guider = HarmonyGuider(model)
        guider.set_harmony(positive, negative, settings, video)
        return io.NodeOutput(guider)


NODES = [HarmonyViewGuider]
