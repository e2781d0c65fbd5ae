"""HarmonyView's measures of generated views: the CD score and the error of optical flow."""

from __future__ import annotations

import os

import torch
from comfy_api.latest import io, ui

from ..multiview.cd_score import CODE, PAPER, READINGS, cd_score, prompt_of
from ..multiview.checks import check_images
from ..multiview.flow_error import ITERATIONS, flow_error, load_raft
from . import host
from .host import advanced, schema
from .model_folders import model_files, model_path

CATEGORY = "multiview/look"
RAFT, SUFFIXES, HUB = "raft", (".pth", ".safetensors"), "torch hub: "


class CDScore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVCDScore",
            display_name="CD Score (Multi-View)",
            category=CATEGORY,
            description="HarmonyView's consistency-diversity score: how unlike the input picture the views are, "
            "divided by how much it changes from view to view what they seem to show. By CLIP; needs no ground truth.",
            search_aliases=["harmonyview", "clip score", "diversity", "metrics"],
            inputs=[
                io.Image.Input("views", tooltip="The generated views of one object."),
                io.ClipVision.Input("clip_vision", tooltip="CLIP vision of the same model as clip. The paper: "
                                    "ViT-L/14."),
                io.Clip.Input("clip", tooltip="CLIP's text side, with its projection: a complete CLIP ViT-L/14. That "
                              "of SD 1.5 and SDXL checkpoints lacks the projection and is refused."),
                io.String.Input("object_name", default="toy", tooltip="What it is; the prompt is 'An image of ...'."),
                io.Combo.Input("reading", options=list(READINGS), default=CODE,
                               tooltip="The released code computes something else than the paper's equations. Its "
                               "units give the published 0.7 to 0.8, the paper's equations hundreds to thousands."),
                io.Image.Input("reference", optional=True,
                               tooltip="The input picture. Needed for the paper's reading; the released code takes "
                               "view 0 instead."),
            ],
            outputs=[
                io.Float.Output(display_name="score", tooltip="Diversity divided by semantic variance. Infinite if all "
                                "views fit the words equally."),
                io.String.Output(display_name="table", tooltip="Both parts, and each view's figures, as Markdown."),
                io.Float.Output(display_name="diversity", tooltip="D: how unlike the reference the views are."),
                io.Float.Output(display_name="variance", tooltip="S_var: how much the fit to the words varies."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, views, clip_vision, clip, object_name: str, reading: str, reference=None) -> io.NodeOutput:
        views = check_images(views, "views")
        if reading == PAPER and reference is None:
            raise ValueError("The paper compares the views with the input picture; connect it as reference.")
        prompt = prompt_of(object_name, reading)
        words = text_embedding(clip, prompt)
        progress = host.Progress(len(views))
        seen = []
        for i in range(len(views)):
            seen.append(picture_embedding(clip_vision, views[i : i + 1]))
            progress.step(i + 1)
        given = picture_embedding(clip_vision, check_images(reference, "reference")[:1]) if reading == PAPER else None
        found = cd_score(torch.cat(seen), words[0], None if given is None else given[0], reading)
        reference_name = "view 0" if reading == CODE else "the reference"
        lines = [
            f"**CD score {found.score:.4g}** ({reading}; '{prompt}')", "",
            f"diversity {found.diversity:.4g} / semantic variance {found.variance:.4g}", "",
            f"| view | cos with {reference_name} | cos with the words |", "|---|---|---|",
            *(f"| {i} | {a:.4f} | {b:.4f} |" for i, (a, b) in
              enumerate(zip(found.image.tolist(), found.text.tolist(), strict=True))),
        ]  # fmt: skip
        table = "\n".join(lines)
        return io.NodeOutput(found.score, table, found.diversity, found.variance, ui=ui.PreviewText(table))


def picture_embedding(clip_vision, images):
    """CLIP's projected embedding (N,D) float32."""
    return clip_vision.encode_image(images)["image_embeds"].float().cpu()


def text_embedding(clip, prompt: str):
    """CLIP's projected embedding (1,D) float32. ValueError for a text encoder that is no CLIP or lacks the projection.

    ComfyUI loads the projection but leaves it out for SD 1.5, so it is applied here. It does not say when a file had
    none: the layer is then left as it was made, and cosines with pictures would mean nothing.
    """
    encoders = [m for m in clip.cond_stage_model.modules() if hasattr(getattr(m, "transformer", None), "text_model")]
    if len(encoders) != 1:
        raise ValueError(
            f"The CD score takes one CLIP text model, but this text encoder holds {len(encoders)}; load a complete "
            "CLIP ViT-L/14 with Load CLIP."
        )
    layer = getattr(encoders[0].transformer, "text_projection", None)
    matrix = None if layer is None else layer.weight.detach().float().cpu()
    if matrix is None or not _is_projection(matrix):
        raise ValueError(
            "This CLIP lacks the projection into the space it shares with pictures, as those of SD checkpoints do; "
            "load a complete CLIP ViT-L/14 (openai/clip-vit-large-patch14's model.safetensors) with Load CLIP."
        )
    _, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled="unprojected")
    return pooled.float().cpu() @ matrix.T


def _is_projection(weight) -> bool:
    """Whether a matrix may have been trained: CLIP's entries have a spread of about 0.03; memory that was never filled
    has zeros or any numbers, and some packs fill in the identity."""
    spread = float(weight.std())
    identity = torch.equal(weight, torch.eye(*weight.shape))
    return 1e-3 < spread < 1 and bool(weight.any(dim=1).all()) and not identity


class FlowError(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVFlowError",
            display_name="Flow Error (Multi-View)",
            category=CATEGORY,
            description="HarmonyView's E_flow: does what is in the views move from view to view as in the true views? "
            "Optical flow between neighbours by RAFT, compared with that of the ground truth.",
            search_aliases=["e_flow", "raft", "optical flow", "harmonyview", "metrics"],
            inputs=[
                io.Image.Input("views", tooltip="The generated views, in order round the object; the last is taken as "
                               "the neighbour of the first."),
                io.Image.Input("truth", tooltip="The true views of the same poses, of the same size."),
                io.Combo.Input("weights", options=raft_files(),
                               tooltip="torchvision's RAFT from models/raft, or from torch's own cache. The published "
                               "figures need weights trained on FlyingThings: raft_large_C_T_V1 or V2."),
                advanced(io.Int.Input, "iterations", default=ITERATIONS, min=1, max=64,
                         tooltip="RAFT's updates. 20 in the released code."),
            ],
            outputs=[
                io.Float.Output(display_name="error", tooltip="Mean difference of the flows in pixels of the views; 0 "
                                "is best."),
                io.String.Output(display_name="table", tooltip="The error of each view, forward and backward, as "
                                 "Markdown."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, weights) -> bool | str:
        # Taking `weights` here also stops the host from refusing files that were put there after the list was made.
        return True if weights in raft_files() else (
            f"There are no RAFT weights '{weights}'; put torchvision's raft_large_C_T_V2-1bb1363a.pth into models/raft "
            "and reload the page."
        )

    @classmethod
    def execute(cls, views, truth, weights: str, iterations: int) -> io.NodeOutput:
        # Small (20 MB) and only right in float32, so it needs no place made for it.
        network = load_raft(raft_path(weights)).to(host.device())
        progress = host.Progress(len(views))
        found = flow_error(network, views, truth, iterations, progress.step)
        lines = [
            f"**E_flow {found.error:.3f} px**", "", "| view | to the next | to the one before |", "|---|---|---|",
            *(f"| {i} | {a:.3f} | {b:.3f} |" for i, (a, b) in
              enumerate(zip(found.forward.tolist(), found.backward.tolist(), strict=True))),
        ]  # fmt: skip
        table = "\n".join(lines)
        return io.NodeOutput(found.error, table, ui=ui.PreviewText(table))


def _hub() -> str:
    return os.path.join(torch.hub.get_dir(), "checkpoints")


def raft_files() -> list[str]:
    """Names in models/raft, and those that torchvision once downloaded, marked."""
    cached = os.listdir(_hub()) if os.path.isdir(_hub()) else []
    return model_files(RAFT, SUFFIXES) + sorted(HUB + name for name in cached if name.startswith("raft_"))


def raft_path(name: str) -> str:
    """Full path of a name from raft_files()."""
    if name.startswith(HUB) and name in raft_files():
        return os.path.join(_hub(), name.removeprefix(HUB))
    return model_path(RAFT, name, SUFFIXES)


NODES = [CDScore, FlowError]
