"""The analytic demo model as a ComfyUI MODEL.

It is core's SV3D_p with another network: the same conditioning keys, the same EDM sigmas and v-prediction, so that
samplers, guiders, patches and core's own nodes treat it as they treat SV3D. Latents are pixels in [-1,1] (core's
pixel-space VAE), so nothing is lost in encoding.
"""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor

from ..multiview.demo.analytic import AnalyticModel, AnalyticOptions
from ..multiview.demo.bank import Bank

# SV3D's range (references.md section 6): wide enough that a whole set of views is undecided at the top.
SIGMA_MIN, SIGMA_MAX = 0.002, 700.0


class PixelFormat(comfy.latent_formats.LatentFormat):
    """RGB pixels in [-1,1] as latents."""

    latent_channels = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class AnalyticConfig(comfy.supported_models.SV3D_p):
    unet_config = {"in_channels": 6, "disable_unet_model_creation": True}
    unet_extra_config: dict = {}
    latent_format = PixelFormat
    sampling_settings = {"sigma_max": SIGMA_MAX, "sigma_min": SIGMA_MIN}
    memory_usage_factor = 4.0


class AnalyticNetwork(torch.nn.Module):
    """Stands where SV3D's UNet stands and speaks its language: scaled input, ln(sigma)/4, v-prediction.

    The input's second three channels are the reference picture; all zero means that the reference is dropped.
    image_only_indicator (one value, one per set of views, or one per view) that is not 0 switches off what views know
    of each other, as it switches off the temporal layers of a video UNet.
    """

    dtype = torch.float32

    def __init__(self, model: AnalyticModel):
        super().__init__()
        self.analytic = model
        self.size = tuple(model.bank.views.shape[2:4])
        # Buffers, so that the host counts them as the model's size and moves them between devices.
        views, fronts = model.pictures(self.size, torch.device("cpu"))
        self.register_buffer("views", views)
        self.register_buffer("fronts", fronts)

    def forward(self, x: Tensor, timesteps: Tensor, image_only_indicator: Tensor | None = None, **_unused) -> Tensor:
        views = len(self.analytic.bank.cameras)
        if x.shape[0] % views:
            raise ValueError(
                f"The demo model draws sets of {views} views but was asked for {x.shape[0]} pictures at once; use a "
                "latent with one entry for each camera, and no context windows."
            )
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"The demo model was loaded for {self.size[1]} x {self.size[0]} pixels but the latent is "
                f"{x.shape[3]} x {x.shape[2]}; use the same resolution in both nodes."
            )
        sets = x.shape[0] // views
        sigma = torch.exp(4.0 * timesteps.float()).expand(x.shape[0])
        scale = (sigma * sigma + 1).sqrt()[:, None, None, None]
        noisy = x[:, :3].float() * scale
        coupled = self._coupled(image_only_indicator, sets, views)
        # Where the host loads a model in part only, buffers may still be elsewhere; otherwise .to() does nothing.
        pictures = (self.views.to(x.device), self.fronts.to(x.device))
        denoised = torch.cat(
            [
                self.analytic.denoise(noisy[part], sigma[part], self._reference(x[part]), coupled[part], pictures)
                for part in (slice(i * views, (i + 1) * views) for i in range(sets))
            ]
        )
        return (noisy / scale**2 - denoised) * scale / sigma[:, None, None, None]

    @staticmethod
    def _reference(x: Tensor) -> Tensor | None:
        reference = x[0, 3:6].detach().float()
        return reference if bool(reference.any()) else None

    @staticmethod
    def _coupled(indicator: Tensor | None, sets: int, views: int) -> Tensor:
        if indicator is None:
            return torch.ones(sets * views, dtype=torch.bool)
        alone = indicator.reshape(-1).cpu() != 0
        if alone.numel() in (1, sets):
            alone = alone.expand(sets).repeat_interleave(views)
        return ~alone.reshape(sets * views)


def make_analytic_model(bank: Bank, settings: AnalyticOptions) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE]:
    """MODEL and VAE around a bank."""
    offload = comfy.model_management.unet_offload_device()
    config = AnalyticConfig({"in_channels": 6, "disable_unet_model_creation": True})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SV3D_p(config, device=offload)
    model.diffusion_model = AnalyticNetwork(AnalyticModel(bank, settings)).to(offload)
    patcher = comfy.model_patcher.ModelPatcher(
        model.eval(), load_device=comfy.model_management.get_torch_device(), offload_device=offload
    )
    # float32: bf16, which the host prefers on many cards, cannot hold 8-bit pixels exactly.
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    return patcher, vae


def bank_of(model) -> Bank:
    """The bank of an analytic demo MODEL. ValueError for any other model."""
    network = getattr(model.model, "diffusion_model", None)
    if not isinstance(network, AnalyticNetwork):
        raise ValueError(
            "Only the analytic demo model knows its objects; connect the model of MVLoadDemoModel (kind: analytic)."
        )
    return network.analytic.bank
