"""Prompts and starting noise for the views of a single-image model."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..multiview.view_prompts import join_tokens, make_prompts, shared_noise, view_lines, words_for
from .cross_frame_patch import PROMPTS
from .host import CamerasType, advanced, schema

DEFAULT_VIEWS = "front view\nside view, facing left\nback view\nside view, facing right"


class ViewPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVViewPrompts",
            display_name="View Prompts (Multi-View)",
            category="multiview/conditioning",
            description="One prompt for each view - front, side, back - with a shared subject, as one conditioning "
            "whose batch is the views. For SD 1.5, SD 2 and SDXL together with Cross-Frame Attention.",
            search_aliases=["clip text encode", "multi-view sheet", "turnaround", "character sheet"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP model of the checkpoint."),
                io.String.Input("subject", multiline=True,
                                default="a wooden toy robot, {view}, full body, plain white background",
                                tooltip="What all views show. {view} stands for the words of each view; without it "
                                "they are put at the end."),
                io.String.Input("views", multiline=True, default=DEFAULT_VIEWS,
                                tooltip="One line for each view. Left empty with cameras connected, the words come "
                                "from their angles."),
                io.String.Input("negative_prompt", multiline=True, default="multiple objects, text, watermark",
                                tooltip="What no view shows; the same for all. {view} may stand here as well."),
                CamerasType.Input("cameras", optional=True,
                                  tooltip="For words made of azimuth and elevation, and to check that there is one "
                                  "line for each camera if there are lines."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="One entry; its batch is the views."),
                io.Conditioning.Output(display_name="negative", tooltip="The same for the negative prompt."),
                io.Int.Output(display_name="count", tooltip="Number of views; connect it to the batch size of the "
                              "empty latent."),
                io.String.Output(display_name="prompts", tooltip="The prompts as they were encoded, one a line."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip, subject: str, views: str, negative_prompt: str, cameras=None) -> io.NodeOutput:
        if clip is None:
            raise ValueError("There is no CLIP model; connect the one of the checkpoint, or load one for its kind.")
        words = view_lines(views)
        if cameras is not None:
            angles = list(zip(cameras.azimuths().tolist(), cameras.elevations().tolist(), strict=True))
            if words and len(words) != len(angles):
                raise ValueError(
                    f"There are {len(words)} lines in views but {len(angles)} cameras; write one line for each camera, "
                    "or leave views empty to have the words made of their angles."
                )
            words = words or [words_for(*angle) for angle in angles]
        prompts = make_prompts(subject, words)
        negatives = [" ".join(negative_prompt.split()).replace("{view}", word) for word in words]
        positive, negative = encode_views(clip, prompts), encode_views(clip, negatives)
        return io.NodeOutput(positive, negative, len(prompts), "\n".join(prompts))


def encode_views(clip, prompts: list[str]) -> list:
    """A CONDITIONING of one entry (or one for each part of a CLIP schedule) whose batch is the prompts."""
    known = {}
    for prompt in prompts:
        if prompt not in known:
            known[prompt] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    parts = zip(*(known[prompt] for prompt in prompts), strict=True)
    return [_join([tuple(one) for one in part]) for part in parts]


def _join(entries: list[tuple[torch.Tensor, dict]]) -> list:
    embeddings, values = [e for e, _ in entries], [v for _, v in entries]
    extra = dict(values[0])
    for key, value in extra.items():
        if isinstance(value, torch.Tensor):
            alike = all(v[key].shape == value.shape for v in values)
            extra[key] = torch.cat([v[key] for v in values]) if alike else join_tokens([v[key] for v in values])
    return [join_tokens(embeddings), {**extra, PROMPTS: len(entries)}]


class SharedNoise:
    """A NOISE: the host calls generate_noise with the latent and reads the seed."""

    def __init__(self, seed: int, independence: float, views: int):
        self.seed, self.independence, self.views = seed, independence, views

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        samples = input_latent["samples"]
        if samples.ndim == 5:  # a video latent: the views lie along time
            rows = samples.movedim(2, 1)
            noise = [self._noise(one.shape, self.seed + i, samples.dtype) for i, one in enumerate(rows)]
            return torch.stack(noise).movedim(1, 2)
        return self._noise(samples.shape, self.seed, samples.dtype)

    def _noise(self, shape, seed: int, dtype: torch.dtype) -> torch.Tensor:
        return shared_noise(shape, seed % 2**64, self.independence, self.views, dtype)


class SameNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MVSameNoise",
            display_name="Same Noise for All Views (Multi-View)",
            category="multiview/sampling",
            description="Starting noise that is the same for all views, for SamplerCustomAdvanced. Views that start "
            "alike end more alike; MIRAGE starts all poses from one noise.",
            search_aliases=["random noise", "shared noise", "fixed noise", "mirage"],
            inputs=[
                io.Int.Input("noise_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="The noise of all views is what Random Noise gives a single picture for this "
                             "seed."),
                io.Float.Input("independence", default=0.0, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="0 = the same noise, as in the paper. 1 = independent noise for each view. "
                               "Between: a blend that is noise of full strength as well."),
                advanced(io.Int.Input, "views", default=0, min=0, max=1024,
                         tooltip="Number of views that share noise. 0 = the whole batch. With 4 and a batch of 8 there "
                         "are two sets, each with noise of its own."),
            ],
            outputs=[io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, noise_seed: int, independence: float, views: int) -> io.NodeOutput:
        return io.NodeOutput(SharedNoise(noise_seed, independence, views))


NODES = [ViewPrompts, SameNoise]
