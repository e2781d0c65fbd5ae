"""MIRROR's pull as a post-CFG function of a MODEL (multiview/mirror.py has the method).

Post-CFG functions see the clean prediction after guidance, whatever sampler, guider or scale made it, and return
another. What they see is in the model's latent space; a blend does not care.
"""

from __future__ import annotations

import threading

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_sampling import CONST
from torch import Tensor

from ..multiview.cameras import Cameras
from ..multiview.correspondence import Correspondence
from ..multiview.depth import DepthMaps
from ..multiview.mirror import as_views
from ..multiview.mirror_jacobian import ordinary, ordinary_weights, through_network
from ..multiview.mirror_settings import Matching, Pull, match_views
from ..multiview.mirror_taps import Taps
from .sampling_checks import When, step_of, windows_sentence

POST_CFG = "sampler_post_cfg_function"
# Latent sizes whose matches are kept: one run uses one.
KEPT_SIZES = 2
# How far a second run of the model may be from the first (other attention, half precision), relative.
SAME_RESULT = 0.05
WINDOWS = "MIRROR pulls views toward each other"
ADVICE = "choose the preset default or custom, which go by the noise level and not by the paper's schedules"


class MirrorPatch:
    """The post-CFG function. Its only state are matches, kept by latent size and device and never changed."""

    def __init__(
        self,
        cameras: Cameras,
        depth: DepthMaps | None,
        masks: Tensor | None,
        pull: Pull,
        matching: Matching,
        when: When,
        pin_input: bool = False,
        jacobian: bool = False,
    ):
        self.cameras, self.depth, self.masks = cameras, depth, masks
        self.pull, self.matching, self.when = pull, matching, when
        self.jacobian = jacobian
        self.share = torch.ones(len(cameras))
        if pin_input and cameras.input_view is not None:
            self.share[cameras.input_view] = 0.0
        self._matches: dict[tuple, tuple[Correspondence, Taps | None]] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, _memo) -> MirrorPatch:
        """Hosts copy a model's options with every clone; these share cameras, depth and matches."""
        return self

    def matches(self, size: tuple[int, int], device: torch.device) -> tuple[Correspondence, Taps | None]:
        """The matches for latents of a size, and what the pulls share."""
        with self._lock:
            key = (tuple(size), str(device))
            if key not in self._matches:
                while len(self._matches) >= KEPT_SIZES:
                    self._matches.pop(next(iter(self._matches)))
                matches = match_views(
                    self.cameras, size, self.depth, self.masks, self.pull.offsets, self.matching, device
                )
                self._matches[key] = matches, self.pull.lay_out(matches)
            return self._matches[key]

    def __call__(self, args: dict) -> Tensor:
        denoised = args["denoised"]
        refuse_windows(args)
        sampling, sigma = args["model"].model_sampling, float(args["sigma"].max())
        matches, taps = self.matches(tuple(denoised.shape[-2:]), denoised.device)
        # Models of video that draw single pictures keep a time axis of one.
        single = denoised.ndim == 5 and denoised.shape[2] == 1
        views = denoised[:, :, 0] if single else denoised
        as_views(views, matches)
        eta = self.eta(sampling, sigma, args["model_options"])
        if eta <= 0:
            return denoised
        pulled = self.pull.apply(views, matches, eta * self.share, taps)
        pulled = pulled.view_as(denoised)
        return through_model(self, args, pulled) if self.jacobian else pulled

    def eta(self, sampling, sigma: float, model_options: dict) -> float:
        """The pull at a noise level, 0 outside the chosen part of the sampling."""
        ratio = self.when.ratio(sampling, sigma)
        if ratio is None:
            return 0.0
        step, steps = step_of(sigma, model_options, ADVICE) if self.pull.by_step else (0, 1)
        return self.when.strength * self.pull.eta_at(ratio, step, steps)


def refuse_windows(args: dict) -> None:
    handler = args["model_options"].get("context_handler")
    if handler is not None and handler.should_use_context(
        args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
    ):
        raise ValueError(windows_sentence(WINDOWS))


# --- Eq. 12: through the network --------------------------------------------------------------------------------------


def through_model(patch: MirrorPatch, args: dict, pulled: Tensor) -> Tensor:
    """The pull multiplied by the transposed Jacobian of everything between the noisy views and this post-CFG function.

    The model is run again, with gradients, as the guider ran it: guidance, patches and the post-CFG functions before
    this one included.
    """
    model, x, denoised = args["model"], args["input"], args["denoised"]
    # Flow models mix x = (1 - sigma) x0 + sigma noise: Eq. 12 is about x / (1 - sigma).
    sigma = float(args["sigma"].max())
    unit = 1.0 - min(sigma, 1.0) if isinstance(model.model_sampling, CONST) else 1.0
    options = gradient_options(patch, args["model_options"])

    def denoise(leaf: Tensor) -> Tensor:
        return comfy.samplers.sampling_function(
            model, leaf, ordinary(args["sigma"]), args["uncond"], args["cond"], args["cond_scale"],
            model_options=options,
        )  # fmt: skip

    try:
        with ordinary_weights(model):
            again, product = through_network(denoise, x, pulled - denoised)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise ValueError(
            f"This model cannot be differentiated ({reason}), which 'jacobian' needs; switch it off, or load the model "
            "with ordinary weights (fp16, bf16 or fp32)."
        ) from error
    if float((again - denoised).norm()) > SAME_RESULT * float(denoised.norm()):
        raise ValueError(
            "A second run of the model gave another result than the guider's, so its Jacobian is not known; switch "
            "'jacobian' off, or use a guider with one positive and one negative conditioning."
        )
    return denoised + (unit * product).to(denoised.dtype)


def gradient_options(patch: MirrorPatch, model_options: dict) -> dict:
    """Options to run the model again up to this patch, with attention and inputs that autograd can use."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    functions = options[POST_CFG]
    options[POST_CFG] = functions[: functions.index(patch)]
    inner = options["transformer_options"] = dict(options.get("transformer_options", {}))
    previous = inner.get("optimized_attention_override")

    def attention(_function, *args, **kwargs):
        # The host's own choice may have no gradient (sage) or work in place (the one for CPUs).
        if previous is not None:
            return previous(attention_pytorch, *args, **kwargs)
        return attention_pytorch(*args, **kwargs)

    def apply(executor, *args, **kwargs):
        return executor(*ordinary(args), **ordinary(kwargs))

    inner["optimized_attention_override"] = attention
    comfy.patcher_extension.add_wrapper(
        comfy.patcher_extension.WrappersMP.APPLY_MODEL, apply, options, is_model_options=True
    )
    return options
