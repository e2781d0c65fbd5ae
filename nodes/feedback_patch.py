"""3D-aware feedback as a post-CFG function of a MODEL (multiview/feedback.py has the method)."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor

from ..multiview.cameras import Cameras
from ..multiview.coordinates import feedback_maps
from ..multiview.feedback import Moments, Reconstruct, blend, render_views, something_to_see
from ..multiview.lgm_reconstruct import LGMModel
from ..multiview.splats.gaussians import Gaussians
from ..multiview.splats.memory import memory_advice
from . import host
from .ouroboros_model import FEEDBACK
from .sampling_checks import When, step_of

MEMORY_ADVICE = "draw smaller or fewer views, or lower points in 3D Feedback."
ADVICE = "3D feedback needs it, so choose one of ComfyUI's own samplers"


@dataclass(frozen=True)
class Feedback:
    """What the node's settings say. keep (N,): share of the feedback each view gets; object_only: none in the
    background."""

    cameras: Cameras
    vae: object
    reconstruct: Reconstruct
    moments: Moments
    keep: Tensor
    object_only: bool
    when: When


class FeedbackPatch:
    """The post-CFG function. Its only state is the last splat of each running thread, to go on from."""

    def __init__(self, feedback: Feedback):
        self.feedback = feedback
        self._last: dict[int, Gaussians] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, _memo) -> FeedbackPatch:
        """Hosts copy a model's options with every clone; these share the VAE and the splats."""
        return self

    def __call__(self, args: dict) -> Tensor:
        denoised, sigma = args["denoised"], float(args["sigma"].max())
        views = as_views(denoised, self.feedback.cameras)
        step, steps = step_of(sigma, args["model_options"], ADVICE)
        if step == 0:
            self._keep(None)
        weight = self._weight(args["model"].model_sampling, sigma, step, steps)
        if weight <= 0:
            return denoised
        images = self._decoded(args["model"], views)
        if not self._enough_to_see(images):
            logging.info("[multiview] 3D feedback: nothing to be seen in some view yet, this step goes without.")
            return denoised
        last = self._last.get(threading.get_ident())
        with memory_advice("reconstructing the views for 3D feedback", MEMORY_ADVICE):
            splat = self.feedback.reconstruct(images, last, sigma, lambda *_: host.check_cancelled())
            self._keep(splat)
            fed_back = self._fed_back(args["model"], views, images, splat, weight)
        # Decoding and the network that reconstructs may have moved the model away to make room.
        patcher = getattr(args["model"], "current_patcher", None)
        if patcher is not None:
            comfy.model_management.load_models_gpu([patcher])
        return fed_back.view_as(denoised)

    def _weight(self, sampling, sigma: float, step: int, steps: int) -> float:
        when = self.feedback.when
        ratio = when.ratio(sampling, sigma)
        return 0.0 if ratio is None else when.strength * self.feedback.moments.weight_at(ratio, step, steps)

    def _decoded(self, model, views: Tensor) -> Tensor:
        """(N,H,W,3) in [0,1]."""
        images = self.feedback.vae.decode(model.process_latent_out(views))
        if images.ndim == 5:  # VAEs of video give (B,T,H,W,C)
            images = images.flatten(0, 1)
        if len(images) != len(views):
            raise ValueError(
                f"The VAE makes {len(images)} pictures of {len(views)} views, so it joins pictures over time; connect "
                "the VAE of a model that draws each view by itself (SV3D, SVD, SD, a demo model)."
            )
        return images[..., :3].float().clamp(0, 1)

    def _enough_to_see(self, images: Tensor) -> bool:
        return something_to_see(images)

    def _fed_back(self, model, views: Tensor, images: Tensor, splat: Gaussians, weight: float) -> Tensor:
        f = self.feedback
        renders, coverage = render_views(splat, f.cameras, images)
        again = model.process_latent_in(f.vae.encode(renders)).to(views)
        return blend(views, again, weight, f.keep, coverage if f.object_only else None)

    def _keep(self, splat: Gaussians | None) -> None:
        with self._lock:
            if splat is None:
                self._last.pop(threading.get_ident(), None)
            else:
                self._last[threading.get_ident()] = splat


class InjectedFeedback(FeedbackPatch):
    """Ouroboros3D's form: the renders and coordinate maps of one step are told to the network in the next.

    The model carries the trained encoders (ouroboros_model.py); the prediction itself is left as it is.
    trained_reconstruction: by a network, which was trained on views of all noise levels, on blank ones too.
    """

    def __init__(self, feedback: Feedback, definition: str, trained_reconstruction: bool = False):
        super().__init__(feedback)
        self.definition, self.trained_reconstruction = definition, trained_reconstruction
        self._maps: dict[int, dict[str, Tensor]] = {}

    def _enough_to_see(self, images: Tensor) -> bool:
        return self.trained_reconstruction or super()._enough_to_see(images)

    def _fed_back(self, model, views: Tensor, images: Tensor, splat: Gaussians, weight: float) -> Tensor:
        height, width = images.shape[1:3]
        with torch.no_grad():
            drawn = feedback_maps(splat, self.feedback.cameras, width, height, self.definition)[:2]
        colour, coordinates = (one.movedim(-1, 1) for one in drawn)
        self._maps[threading.get_ident()] = {"colour": colour, "coordinates": coordinates}
        return views

    def _keep(self, splat: Gaussians | None) -> None:
        super()._keep(splat)
        if splat is None:
            self._maps.pop(threading.get_ident(), None)

    def around_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                     **kwargs):  # fmt: skip
        """Round the model (WrappersMP.APPLY_MODEL): the last step's maps into its options, none in the first step."""
        options = dict(transformer_options or {})
        maps = self._maps.get(threading.get_ident())
        if maps is not None and step_of(float(t.max()), {"transformer_options": options}, ADVICE)[0] > 0:
            options[FEEDBACK] = maps
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def by_lgm(lgm: LGMModel, cameras: Cameras) -> Reconstruct:
    """Reconstruction by a network in place of a fit."""

    def reconstruct(images, _last, sigma=None, _on_step=None) -> Gaussians:
        host.place_network(lgm.network)
        return lgm(images.to(lgm.network.conv.weight.device), cameras, sigma).to(host.fit_device())

    return reconstruct


def as_views(denoised: Tensor, cameras: Cameras) -> Tensor:
    """(N,C,h,w) of a batch of views, also with a time axis of one. ValueError for anything else."""
    views = denoised[:, :, 0] if denoised.ndim == 5 and denoised.shape[2] == 1 else denoised
    if views.ndim == 4 and len(views) == len(cameras):
        return views
    raise ValueError(
        f"The model draws {tuple(denoised.shape)} at once, but 3D feedback needs the {len(cameras)} views of the "
        "cameras as its batch, all in every call (no context windows, one object)."
    )


def check_vae(vae, model) -> None:
    """ValueError for a VAE whose latents are not the model's."""
    channels, latent = getattr(vae, "latent_channels", None), model.get_model_object("latent_format")
    wanted = latent.latent_channels
    if channels is not None and channels != wanted:
        raise ValueError(
            f"This VAE has latents of {channels} channels but the model draws {wanted}; connect the VAE that belongs "
            "to the model."
        )
    side, expected = getattr(vae, "spacial_compression_encode", lambda: None)(), host.cell_pixels(latent)
    if None not in (side, expected) and side != expected:
        raise ValueError(
            f"This VAE makes one latent cell of {side} x {side} pixels but the model draws cells of {expected} x "
            f"{expected}; connect the VAE that belongs to the model."
        )


def input_view_kept(cameras: Cameras, share: float) -> Tensor:
    """(N,) 1, and `share` at the view that shows the input picture."""
    keep = torch.ones(len(cameras))
    if cameras.input_view is not None:
        keep[cameras.input_view] = share
    return keep
