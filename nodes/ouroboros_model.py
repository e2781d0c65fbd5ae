"""Ouroboros3D's view model in ComfyUI: a Stable Video Diffusion MODEL, and its injector at the host's patch points.

In transformer_options:
mv_feedback   read: {"colour": (N,3,H,W), "coordinates": (N,3,H,W)} in [0,1], maps of the last reconstruction for the N
              views, H and W 8 times the latent's sides; one of them may be missing. Without the key
              both are black, as before the first reconstruction. Whoever runs the loop sets it from step to step, in a
              copy of the options (a wrapper round each step).
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models
import torch

from ..multiview.cameras import Cameras
from ..multiview.lgm_reconstruct import Frame
from ..multiview.ouroboros import SHRINK, Injector, load_injector, ray_frame, released_rays, split_view_model
from ..multiview.ouroboros_keys import HEAD_CHANNELS, to_comfy, unet_arguments
from .trained_model import build_model

KEY, FEEDBACK, CALL = "mv_ouroboros3d", "mv_feedback", "mv_ouroboros3d_call"


class ViewModelConfig(comfy.supported_models.SVD_img2vid):
    """Stable Video Diffusion with widths from the file instead of guessed from its keys."""

    def __init__(self, unet_config: dict):
        super().__init__(dict(unet_config))
        # The class sets 64 channels a head, more than a narrow model has.
        self.unet_config["num_head_channels"] = unet_config["num_head_channels"]


def load_view_model(tensors: dict[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    """Tensors of mv_model_unet.pth -> MODEL that carries its injector (see injector_of). ValueError for other files."""
    unet, rest = split_view_model(tensors)
    shapes = {name: tuple(value.shape) for name, value in unet.items()}
    arguments = unet_arguments(shapes)
    if arguments["model_channels"] % HEAD_CHANNELS:  # reduced files of tests
        arguments["num_head_channels"] = arguments["model_channels"]
    model = build_model(ViewModelConfig(arguments), to_comfy(unet))
    return attach(model, load_injector(rest, comfy.ops.manual_cast))


def attach(model, injector: Injector):
    """A clone of a MODEL that carries an injector, which the host loads and unloads with it."""
    patched = model.clone()
    management = comfy.model_management
    holder = comfy.model_patcher.ModelPatcher(injector, model.load_device, management.unet_offload_device())
    patched.set_additional_models(KEY, [holder])
    return patched


def injector_of(model) -> Injector:
    """ValueError for a MODEL without one."""
    found = model.get_additional_models_with_key(KEY)
    if not found:
        raise ValueError(
            f"This model ({type(model.model).__name__}) has no feedback encoders; connect the one of Load Ouroboros3D."
        )
    return found[0].model


def check_injector(model) -> None:
    """ValueError for a MODEL that cannot be told of a reconstruction: without feedback encoders, or without cameras."""
    injector_of(model)
    if not model.get_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY):
        raise ValueError(
            "This model has feedback encoders but no cameras yet; put Ouroboros3D Cameras and Feedback before this "
            "node."
        )


@dataclass(frozen=True)
class Call:
    """What the blocks of one run of the UNet share: features of the N views, repeated for each part of the batch."""

    features: list[torch.Tensor]
    parts: int


@dataclass(frozen=True)
class Injection:
    """The views' cameras with an injector, for one model."""

    injector: Injector
    frame: Frame
    intrinsics: torch.Tensor
    maps: dict | None = None
    rays: bool = True

    @property
    def views(self) -> int:
        return len(self.intrinsics)

    def around_unet(self, executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None,
                    **kwargs):  # fmt: skip
        """Round the UNet (WrappersMP.DIFFUSION_MODEL): the features, once for all blocks."""
        given = transformer_options or {}
        parts = len(given.get("cond_or_uncond", (0,)))
        self.check(x, parts)
        features = self.features(given.get(FEEDBACK, self.maps), x)
        options = {**given, CALL: Call(features, parts)}
        return executor(x, timesteps, context, y, control, options, **kwargs)

    def check(self, x: torch.Tensor, parts: int) -> None:
        views, sides = x.shape[0] / parts, tuple(x.shape[2:])
        if views != self.views:
            raise ValueError(
                f"The model draws {views:g} views at a time but its cameras describe {self.views}; make an empty "
                "latent with as many frames, and take context windows off the model."
            )
        cell = 2 ** (self.injector.levels - 1)
        if sides[0] != sides[1] or sides[0] % cell:
            raise ValueError(
                f"This model draws square views whose sides are multiples of {SHRINK * cell} pixels, got "
                f"{SHRINK * sides[1]} x {SHRINK * sides[0]}; use the size it was trained on (Ouroboros3D: 512 x 512)."
            )

    def features(self, maps: dict | None, x: torch.Tensor) -> list[torch.Tensor]:
        shape = (self.views, 3, SHRINK * x.shape[2], SHRINK * x.shape[3])
        if maps is None:
            colour = coordinates = x.new_zeros(shape)
        else:
            colour, coordinates = (
                None if maps.get(name) is None else maps[name].to(x) for name in ("colour", "coordinates")
            )
        for one in (colour, coordinates):
            if one is not None and one.shape != shape:
                raise ValueError(f"Feedback maps should have shape {shape} for this latent, got {tuple(one.shape)}.")
        return self.injector(colour, coordinates)

    def embedded(self, side: str, number: int, h: torch.Tensor) -> torch.Tensor | None:
        layer = self.injector.ray_embedding(side, number) if self.rays else None
        if layer is None:
            return None
        return layer(released_rays(self.frame, self.intrinsics, h.shape[-1]).to(h))

    def after_input(self, h: torch.Tensor, options: dict) -> torch.Tensor:
        """An input_block_patch: what goes into the stored skips as well."""
        return self._plus(h, self.embedded("input", options["block"][1], h), options)

    def after_skip(self, h: torch.Tensor, options: dict) -> torch.Tensor:
        """An input_block_patch_after_skip: what the skips do not get."""
        level = self.injector.feedback_level("input", options["block"][1])
        return h if level is None else self._plus(h, options[CALL].features[level], options)

    def before_output(self, h: torch.Tensor, skip: torch.Tensor, options: dict):
        """An output_block_patch; before block 0, h is what the middle block gave."""
        number = options["block"][1]
        level = self.injector.feedback_level("output", number)
        if level is not None:
            h = self._plus(h, options[CALL].features[level], options)
        return self._plus(h, self.embedded("output", number, h), options), skip

    def _plus(self, h: torch.Tensor, more: torch.Tensor | None, options: dict) -> torch.Tensor:
        """h (parts*N,...) plus the same for each part. The released loop gives feedback to both halves of CFG."""
        if more is None:
            return h
        return h + more.to(h).repeat(options[CALL].parts, 1, 1, 1)


def with_injection(model, cameras: Cameras, maps: dict | None = None, rays: bool = True):
    """A clone of a MODEL with an injector, for views from these cameras.

    maps: as mv_feedback, used where that is missing. rays False: feedback alone, for models with poses of their own
    (always so where the injector has no embeddings of rays).
    """
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    if model.get_wrappers(kind, KEY):
        raise ValueError(
            "This model has its Ouroboros3D cameras already; connect it to the sampler, or to 3D Feedback, as it is."
        )
    patched = model.clone()
    injection = Injection(injector_of(model), ray_frame(cameras), cameras.intrinsics.cpu(), maps, rays)
    patched.set_model_patch(injection.after_input, "input_block_patch")
    patched.set_model_patch(injection.after_skip, "input_block_patch_after_skip")
    patched.set_model_patch(injection.before_output, "output_block_patch")
    patched.add_wrapper_with_key(kind, KEY, injection.around_unet)
    return patched
