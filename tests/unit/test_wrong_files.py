"""Weight files of the wrong kind, by the tensor names that such files really have: both loaders say what the file is.

The names come from diffusers' own classes and from the reduced files of the tests; LoRA names are written out in the
layouts of kohya's trainer, of PEFT and of ComfyUI.
"""

from __future__ import annotations

import pytest
import torch
from mvpack.multiview.lgm import BIG, LGM, LGMConfig
from mvpack.multiview.lgm_files import VIDEOMV_PREFIX, build_lgm, load_lgm, read_tensors
from mvpack.multiview.ouroboros import Injector, split_view_model
from mvpack.multiview.ouroboros_keys import to_comfy
from ouroboros_files import write_lgm, write_view_model

TIMED = LGMConfig(**{**BIG.__dict__, "timed": True})
LORAS = {
    "kohya": ["lora_unet_down_blocks_0_attentions_0_proj_in.alpha",
              "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    "PEFT": ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "unet.conv_in.lora_B.weight"],
    "ComfyUI": ["diffusion_model.input_blocks.1.1.proj_in.lora_up.weight"],
    "SVD in diffusers' layout": ["down_blocks.0.resnets.0.spatial_res_block.conv1.lora.down.weight"],
}  # fmt: skip


@pytest.fixture(scope="module")
def names() -> dict[str, list[str]]:
    """What a file is called -> names of its tensors."""
    from diffusers import AutoencoderKL, UNet2DConditionModel, UNetSpatioTemporalConditionModel

    with torch.device("meta"):
        svd = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20)).state_dict()
        sd, vae = UNet2DConditionModel(cross_attention_dim=768).state_dict(), AutoencoderKL().state_dict()
        lgm, timed, injector = LGM(BIG).state_dict(), LGM(TIMED).state_dict(), Injector().state_dict()
    svd_comfy = to_comfy(svd)
    return {
        "SVD, diffusers": list(svd),
        "SV3D": [f"model.diffusion_model.{k}" for k in svd_comfy] + ["conditioner.embedders.1.encoder.decoder.x"],
        # An image UNet has the same blocks without those over time.
        "SD 1.5": [f"model.diffusion_model.{k}" for k in svd_comfy if "time_stack" not in k and "mixer" not in k]
        + [f"first_stage_model.{k}" for k in vae],
        "SD 1.5, UNet alone": [f"model.diffusion_model.{k}" for k in svd_comfy if "time_stack" not in k],
        "SD 1.5, diffusers": list(sd),
        "VAE": list(vae),
        "LGM": list(lgm),
        "VideoMV": [VIDEOMV_PREFIX + k for k in lgm] + ["input_blocks.0.0.weight"],
        "recon_model": list(timed),
        "mv_model_unet": [f"unet.{k}" for k in svd] + list(injector),
        **{f"LoRA, {maker}": found for maker, found in LORAS.items()},
    }


SVD, IMAGE, LORA = "a Stable Video Diffusion", "a Stable Diffusion checkpoint", "a LoRA,"
CALLED = {
    "SVD, diffusers": "a Stable Video Diffusion UNet in diffusers' layout", "SV3D": f"{SVD} or SV3D checkpoint",
    "SD 1.5": IMAGE, "SD 1.5, UNet alone": IMAGE, "SD 1.5, diffusers": "an image UNet in diffusers' layout",
    "VAE": "a VAE,", "LGM": "an LGM,", "VideoMV": "VideoMV's weights with an LGM inside",
    "recon_model": "Ouroboros3D's reconstruction model (recon_model)",
    "mv_model_unet": "Ouroboros3D's view model (mv_model_unet)", **{f"LoRA, {maker}": LORA for maker in LORAS},
}  # fmt: skip


def said(loader, keys: list[str]) -> str:
    with pytest.raises(ValueError) as caught:
        loader({k: torch.zeros(1) for k in keys})
    return str(caught.value)


@pytest.mark.parametrize("kind", CALLED)
def test_the_file_is_named(names, kind):
    """Exact sentences: what the file is, what was wanted, what to choose."""
    if kind not in ("LGM", "VideoMV", "recon_model"):
        text = said(build_lgm, names[kind])
        assert text.startswith(f"This file is {CALLED[kind]}") and text.endswith(
            ", but an LGM is needed here; choose model_fp16_fixrot.safetensors of LGM, VideoMV's weights or "
            "Ouroboros3D's recon_model."
        ), text
    if kind != "mv_model_unet":
        text = said(split_view_model, names[kind])
        assert text.startswith(f"This file is {CALLED[kind]}") and text.endswith(
            ", but Ouroboros3D's view model is needed here; choose mv_model_unet.pth of Ouroboros3D-SVD-LGM, or its "
            "tensors saved as .safetensors."
        ), text


def test_whole_files_given_to_the_other_loader(tmp_path):
    with pytest.raises(ValueError, match="This file is Ouroboros3D's view model .*, but an LGM is needed here"):
        load_lgm(write_view_model(tmp_path / "mv_model_unet.pth"))
    for timed, what in ((False, "an LGM"), (True, r"Ouroboros3D's reconstruction model \(recon_model\)")):
        path = write_lgm(tmp_path / "a.safetensors", timed)
        with pytest.raises(ValueError, match=f"This file is {what}, but Ouroboros3D's view model is needed here"):
            split_view_model(read_tensors(path))
