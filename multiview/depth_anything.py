"""Depth networks from files that users have: Depth-Anything-V2 (safetensors or folder) and MiDaS / DPT (folder).

The safetensors in ComfyUI's models/depthanything have the key layout of the original repository: `pretrained.*` is the
DINOv2 encoder, `depth_head.*` the DPT decoder. They are renamed onto transformers' DepthAnythingForDepthEstimation,
whose configuration is read off the tensors' shapes; nothing is downloaded. Folders are those of transformers'
save_pretrained (config.json, model.safetensors, preprocessor_config.json if there is one).

Depth-Anything-V2 (Yang et al. 2024) and MiDaS answer with affine disparity, near = large; the metric variants of
Depth-Anything-V2 with depth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_images

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH = 14
HEAD_WIDTH = 64  # every DINOv2 size has attention heads of this width
# Encoder layers that the decoder looks at, by the number of layers (Small and Base, Large).
TAPPED = {12: (3, 6, 9, 12), 24: (5, 12, 18, 24)}
FAMILIES = ("depth_anything", "dpt")


@dataclass(frozen=True)
class Preparation:
    """How pictures are made ready: shorter (or both) sides to `side`, multiples of `multiple`, minus mean over std."""

    side: int = 518
    multiple: int = PATCH
    keep_aspect: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input. The shorter side becomes `side`, or both do."""
        scale = self.side / min(height, width)
        wanted = (scale * height, scale * width) if self.keep_aspect else (self.side, self.side)
        return tuple(max(self.multiple, round(s / self.multiple) * self.multiple) for s in wanted)

    def __call__(self, images: Tensor) -> Tensor:
        """(N,H,W,3) in [0,1] -> (N,3,h,w) normalised, bicubic."""
        pixels = images.movedim(-1, 1)
        size = self.size(*pixels.shape[2:])
        if tuple(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device) for v in (self.mean, self.std))
        return (pixels - mean[:, None, None]) / std[:, None, None]


@dataclass(frozen=True)
class DepthModel:
    """network: transformers' model, eval, float32, on the CPU. kind: what its maps are, "disparity" or "depth"."""

    network: nn.Module
    prepare: Preparation
    kind: str
    name: str


def load_depth_model(path: str | Path) -> DepthModel:
    """A .safetensors file in Depth-Anything-V2's own layout, or a Hugging Face folder. No network access.

    ValueError, one sentence: nothing there, unreadable, another model, tensors missing or left over.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise ValueError(
            f"There is no depth model at {path}; put depth_anything_v2_vits_fp32.safetensors (or vitb, vitl, fp16) or "
            "a Hugging Face folder into models/depthanything."
        )
    return _load_original(path)


def estimate(
    model: DepthModel, images: Tensor, side: int = 0, batch: int = 4, on_step: Callable[[int, int], None] | None = None
) -> Tensor:
    """Raw maps (N,H,W) float32 on the CPU, at the pictures' size; scale and offset mean nothing.

    images: (N,H,W,3) in [0,1]. side: of the network's input in pixels, 0 = what the model was trained on; rounded to
    the network's multiple. batch: pictures at once. Runs where the network is, in its dtype. on_step(done, total).
    """
    images = check_images(images, "views")
    prepare = model.prepare if side <= 0 else replace(model.prepare, side=side)
    weight = next(model.network.parameters())
    n, height, width = images.shape[:3]
    maps = torch.empty(n, height, width)
    with torch.no_grad():
        for start in range(0, n, batch):
            part = slice(start, min(start + batch, n))
            pixels = prepare(images[part].float().clamp(0, 1).to(weight.device)).to(weight.dtype)
            answer = model.network(pixel_values=pixels).predicted_depth.float()
            answer = F.interpolate(answer[:, None], size=(height, width), mode="bilinear", align_corners=True)
            maps[part] = answer[:, 0].cpu()
            if on_step is not None:
                on_step(part.stop, n)
    if not torch.isfinite(maps).all():
        raise ValueError(f"The depth model {model.name} gave NaN or infinity; run ComfyUI with --force-fp32 for it.")
    return maps


# --- files in the original layout -------------------------------------------------------------------------------------


def _load_original(path: Path) -> DepthModel:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.name} is not a readable safetensors file ({error}); it may be truncated: copy or download it again."
        ) from None
    state = {key: tensor.float() for key, tensor in state.items()}
    metric = "metric" in path.name.lower()
    network = network_of_original(state, path.name, metric)
    return DepthModel(network, Preparation(), "depth" if metric else "disparity", path.name)


def network_of_original(state: dict[str, Tensor], name: str = "the file", metric: bool = False) -> nn.Module:
    """transformers' DepthAnythingForDepthEstimation with the weights of a state dict in the original layout.

    metric: the variants trained for metres, which end in a sigmoid instead of a ReLU. ValueError if a tensor is
    missing, left over or of another shape.
    """
    from transformers import DepthAnythingForDepthEstimation

    config = config_of_original(state, name, metric)
    with torch.device("meta"):
        network = DepthAnythingForDepthEstimation(config)
    wanted = network.state_dict()
    renamed = to_transformers(state, newer="backbone.encoder.layer.0.attention.q_proj.weight" in wanted)
    missing, extra = wanted.keys() - renamed.keys(), renamed.keys() - wanted.keys()
    if missing or extra:
        first = sorted(missing)[:1] + sorted(extra)[:1]
        raise ValueError(
            f"{name} is no complete Depth-Anything-V2: {len(missing)} tensors are missing and {len(extra)} unknown "
            f"(such as {', '.join(first)}); download it again."
        )
    for key, tensor in wanted.items():
        if tensor.shape != renamed[key].shape:
            raise ValueError(
                f"{name} does not fit together: {key} is {tuple(renamed[key].shape)}, expected {tuple(tensor.shape)}; "
                "download it again."
            )
    network.load_state_dict(renamed, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def config_of_original(state: dict[str, Tensor], name: str = "the file", metric: bool = False):
    """The transformers configuration a state dict in the original layout was made with, read off its shapes."""
    from transformers import DepthAnythingConfig, Dinov2Config

    layers = len({m[1] for key in state if (m := re.match(r"pretrained\.blocks\.(\d+)\.", key))})
    heads = [f"depth_head.projects.{i}.weight" for i in range(4)]
    needed = ["pretrained.cls_token", "pretrained.pos_embed", "depth_head.scratch.layer1_rn.weight", *heads]
    if layers not in TAPPED or any(key not in state for key in needed) or _swiglu(state):
        raise ValueError(
            f"{name} is not a Depth-Anything-V2 Small, Base or Large in its own layout (tensors pretrained.*, "
            "depth_head.*); choose depth_anything_v2_vits, vitb or vitl."
        )
    width = state["pretrained.cls_token"].shape[-1]
    cells = round((state["pretrained.pos_embed"].shape[1] - 1) ** 0.5)
    encoder = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // HEAD_WIDTH, image_size=cells * PATCH,
        patch_size=PATCH, out_indices=list(TAPPED[layers]), apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    return DepthAnythingConfig(
        backbone_config=encoder,
        patch_size=PATCH,
        reassemble_hidden_size=width,
        neck_hidden_sizes=[state[key].shape[0] for key in heads],
        fusion_hidden_size=state["depth_head.scratch.layer1_rn.weight"].shape[0],
        depth_estimation_type="metric" if metric else "relative",
    )


def _swiglu(state: dict[str, Tensor]) -> bool:
    return "pretrained.blocks.0.mlp.w12.weight" in state


_ENCODER = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_LAYER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_FUSION = {
    "out_conv": "projection",
    "resConfUnit1.conv1": "residual_layer1.convolution1",
    "resConfUnit1.conv2": "residual_layer1.convolution2",
    "resConfUnit2.conv1": "residual_layer2.convolution1",
    "resConfUnit2.conv2": "residual_layer2.convolution2",
}
_HEAD = {"output_conv1": "conv1", "output_conv2.0": "conv2", "output_conv2.2": "conv3"}


# What transformers 5 calls parts of an attention layer that version 4 called otherwise.
_NEWER = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def to_transformers(state: dict[str, Tensor], newer: bool = False) -> dict[str, Tensor]:
    """Original names -> transformers' names. The joint q, k, v become three. Unknown names stay as they are.

    newer: the names of transformers 5.
    """
    out = {}
    for key, tensor in state.items():
        joint = re.fullmatch(r"pretrained\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key)
        if joint:
            for part, one in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[f"backbone.encoder.layer.{joint[1]}.attention.attention.{part}.{joint[2]}"] = one.clone()
        else:
            out[_renamed(key)] = tensor
    if newer:
        pattern = re.compile("|".join(map(re.escape, _NEWER)))
        out = {pattern.sub(lambda m: _NEWER[m[0]], key): tensor for key, tensor in out.items()}
    return out


def _renamed(key: str) -> str:
    stem, ending = re.fullmatch(r"(.+?)(\.weight|\.bias)?", key).groups(default="")
    for pattern, table, target in (
        (r"pretrained\.blocks\.(\d+)\.(.+)", _LAYER, "backbone.encoder.layer.{0}."),
        (r"pretrained\.()(.+)", _ENCODER, "backbone."),
        (r"depth_head\.scratch\.refinenet(\d)\.(.+)", _FUSION, "neck.fusion_stage.layers.{1}."),
        (r"depth_head\.scratch\.()(.+)", _HEAD, "head."),
    ):
        found = re.fullmatch(pattern, stem)
        if found and found[2] in table:
            number = int(found[1] or 0)
            # The original counts its fusion blocks from the finest, transformers from the coarsest.
            return target.format(number, 4 - number) + table[found[2]] + ending
    stage = re.fullmatch(r"depth_head\.(projects|resize_layers)\.(\d)", stem)
    if stage:
        part = "projection" if stage[1] == "projects" else "resize"
        return f"neck.reassemble_stage.layers.{stage[2]}.{part}{ending}"
    conv = re.fullmatch(r"depth_head\.scratch\.layer(\d)_rn", stem)
    return f"neck.convs.{int(conv[1]) - 1}{ending}" if conv else key


# --- Hugging Face folders ---------------------------------------------------------------------------------------------


def folder_family(path: Path) -> str | None:
    """The model type in a folder's config.json, None where there is none that can be read."""
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _load_folder(path: Path) -> DepthModel:
    from transformers import AutoModelForDepthEstimation

    family = folder_family(path)
    if family not in FAMILIES:
        raise ValueError(
            f"The folder {path.name} does not hold a Depth Anything or DPT model (model_type in config.json is "
            f"{family}); choose a folder that transformers saved from one of them."
        )
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"The folder {path.name} holds no .safetensors file; download model.safetensors into it.")
    try:
        network, report = AutoModelForDepthEstimation.from_pretrained(
            str(path), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever transformers or safetensors raises for a damaged folder
        raise ValueError(f"The depth model in {path.name} cannot be read ({error}); download it again.") from error
    if report["missing_keys"]:
        raise ValueError(
            f"The depth model in {path.name} is incomplete: {len(report['missing_keys'])} tensors are missing (such as "
            f"{sorted(report['missing_keys'])[0]}); download it again."
        )
    metric = getattr(network.config, "depth_estimation_type", "relative") == "metric"
    network = network.float().eval().requires_grad_(False)
    return DepthModel(network, _folder_preparation(path, family), "depth" if metric else "disparity", path.name)


def _folder_preparation(path: Path, family: str) -> Preparation:
    """From preprocessor_config.json; what it does not say is what the family's published models use."""
    try:
        said = json.loads((path / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}
    dpt = family == "dpt"
    plain = Preparation(384, 32, False, (0.5,) * 3, (0.5,) * 3) if dpt else Preparation()
    size = said.get("size", plain.side)
    side = min(size["height"], size["width"]) if isinstance(size, dict) and "height" in size else size
    return Preparation(
        int(side) if isinstance(side, (int, float)) else plain.side,
        max(int(said.get("ensure_multiple_of") or 1), plain.multiple),
        bool(said.get("keep_aspect_ratio", plain.keep_aspect)),
        tuple(said.get("image_mean") or plain.mean),
        tuple(said.get("image_std") or plain.std),
    )
