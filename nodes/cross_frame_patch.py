"""Cross-frame attention at the host's patch points (multiview/attention.py has the formulas).

Each chosen self-attention gets an attn1 replacement, chained to the one that is there. Two wrappers help it: one round
the UNet gives every call a fresh object for what its layers share, one round each step checks the batch. Nothing else
is kept between calls, so that clones of the model may run side by side.

In transformer_options:
mv_cross_frame       the settings of the last such node as a dict, for others to read
mv_views_apart       read: one boolean for each entry of cond_or_uncond; True = no view sees another in this part
mv_hard_attention    read: whether views take from the reference by argmax (the second branch of the guidance)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import comfy.ldm.modules.attention
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer

from ..multiview.attention import check_batch, check_references, cross_frame, hard_attention, in_parts

KEY, APART, HARD, CALL = "mv_cross_frame", "mv_views_apart", "mv_hard_attention", "mv_cross_frame_call"
PROMPTS = "mv_view_prompts"  # in a conditioning: how many views it has prompts for
PLACES = ("input", "middle", "output")
CHOICES = {
    "middle and decoder": ("middle", "output"),
    "decoder": ("output",),
    "middle": ("middle",),
    "encoder": ("input",),
    "all": PLACES,
    "listed": (),
}


@dataclass(frozen=True)
class Settings:
    """views 0 = all in the batch; noise levels from start_sigma down to end_sigma; the rest as in cross_frame."""

    views: int = 0
    references: tuple[int, ...] = (0,)
    start_sigma: float = float("inf")
    end_sigma: float = 0.0
    strength: float = 1.0
    always: bool = True

    def count(self, batch: int) -> int:
        """Views in one set, for this many latents. ValueError if they do not fit or a reference is missing."""
        views = self.views or batch
        check_batch(batch, views)
        check_references(self.references, views)
        return views


@dataclass
class Call:
    """What the layers of one run of the UNet share."""

    sigma: float | None = None
    visits: dict = field(default_factory=dict)

    def level(self, extra: dict) -> float:
        if self.sigma is None:  # reading a number off the graphics card makes it wait: once, not in each layer
            self.sigma = float(extra["sigmas"].max())
        return self.sigma


@dataclass(frozen=True)
class CrossFramePatch:
    """An attn1 replacement for one block. video: the block also has attention over time, which comes here as well."""

    settings: Settings
    video: bool
    previous: Callable | None = None

    def __call__(self, q, k, v, extra: dict):
        call = extra.get(CALL) or Call()
        if not self._between_pixels(q, extra, call) or not self._active(extra, call):
            return _run(self.previous, q, k, v, extra)
        other = self.previous
        while isinstance(other, CrossFramePatch):  # the last of our nodes decides
            other = other.previous
        parts = len(extra["cond_or_uncond"])
        views = self.settings.count(extra["original_shape"][0] // parts)

        def attend(q, k, v):
            return _run(other, q, k, v, extra)

        def hard(q, k, v, out):
            hard_attention(q, k, v, extra["n_heads"], extra.get("attn_precision") == torch.float32, out)

        def talking(q, k, v):
            fill = hard if extra.get(HARD) else None
            return cross_frame(
                q, k, v, views, self.settings.references, attend, fill, self.settings.strength, other is not None
            )

        return in_parts(extra.get(APART) or [False] * parts, (q, k, v), talking, attend, other is not None)

    def _active(self, extra: dict, call: Call) -> bool:
        s = self.settings
        if s.strength == 0 or all(extra.get(APART) or [False]):
            return False
        return s.always or s.end_sigma <= call.level(extra) <= s.start_sigma

    def _between_pixels(self, q, extra: dict, call: Call) -> bool:
        """Whether the rows of q are pictures; in attention over time they are pixels and its tokens are the views."""
        if not self.video:
            return True
        rows, _, height, width = extra["activations_shape"]
        if q.shape[:2] != (rows, height * width):
            return False
        if height * width != rows // len(extra["cond_or_uncond"]):
            return True
        # As many pixels as views: the shapes are the same. Blocks alternate, pixels first.
        place = (id(self), extra["block"], extra["block_index"])
        call.visits[place] = call.visits.get(place, 0) + 1
        return call.visits[place] % 2 == 1


def _run(patch: Callable | None, q, k, v, extra: dict):
    if patch is not None:
        return patch(q, k, v, extra)
    # As the host's own layer calls it, so that packs which replace or override the function stay in effect.
    return comfy.ldm.modules.attention.optimized_attention(
        q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"], transformer_options=extra
    )


# --- wrappers ---------------------------------------------------------------------------------------------------------


def fresh_call(executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
    """Round the UNet: an object of its own for each call, in options of its own."""
    options = {**(transformer_options or {}), CALL: Call()}
    return executor(x, timesteps, context, y, control, options, **kwargs)


def check_step(executor, x, timestep, model_options=None, seed=None):
    """Round each step: refuse what would give views the wrong reference, before anything is computed."""
    guider, options = executor.class_obj, model_options or {}
    found = options.get("transformer_options", {}).get(KEY)
    if found is not None:
        views = Settings(**found).count(x.shape[0])
        for conds in guider.conds.values():
            for one in conds or []:
                prompts = one.get(PROMPTS, views)
                if prompts not in (views, x.shape[0]):
                    raise ValueError(
                        f"There are prompts for {prompts} views but {views} views in the latent; connect the count of "
                        "View Prompts to the batch size of the empty latent."
                    )
        handler = options.get("context_handler")
        conds = list(guider.conds.values())
        if handler is not None and handler.should_use_context(guider.inner_model, conds, x, timestep, options):
            raise ValueError(
                "Context windows would cut views from their reference view; take the context windows off the model."
            )
    return executor(x, timestep, options, seed)


# --- putting it on a model --------------------------------------------------------------------------------------------


def self_attention_blocks(model) -> dict[tuple[str, int], tuple[int, bool]]:
    """(place, number) -> (layers, whether it also attends over time) of each block with self-attention."""
    network = model.get_model_object("diffusion_model")
    found = {}
    for place in PLACES:
        middle = place == "middle"
        blocks = [getattr(network, "middle_block", None)] if middle else getattr(network, f"{place}_blocks", [])
        for number, block in enumerate(blocks):
            for layer in block.modules() if isinstance(block, torch.nn.Module) else []:
                if isinstance(layer, SpatialTransformer) and not layer.transformer_blocks[0].disable_self_attn:
                    layers = len(layer.transformer_blocks)
                    found[(place, number)] = (layers, isinstance(layer, SpatialVideoTransformer))
    return found


def choose_blocks(model, blocks: str, listed: str) -> dict[tuple, bool]:
    """(place, number) or (place, number, layer) -> whether it also attends over time.

    blocks: a key of CHOICES; listed: "middle, output 3, output 4.1" (block and, after the dot, layer) for "listed".
    ValueError for a model without such blocks, and for blocks that it has not.
    """
    there = self_attention_blocks(model)
    if not there:
        raise ValueError(
            f"This model ({type(model.model).__name__}) has no self-attention layers of a UNet; cross-frame attention "
            "works with SD 1.5, SD 2, SDXL, Stable Zero123, SVD, SV3D and the trained demo model."
        )
    if blocks != "listed":
        chosen = {key: video for key, (_, video) in there.items() if key[0] in CHOICES[blocks]}
    else:
        chosen = {key: there[key[:2]][1] for key in _read_list(listed, there)}
    if not chosen:
        raise ValueError(f"This model has no self-attention in '{blocks}'; it has {_names(there)}.")
    return chosen


def _read_list(text: str, there: dict) -> list[tuple]:
    keys = []
    for part in filter(None, (part.strip().lower() for part in re.split(r"[,\n]", text))):
        match = re.fullmatch(r"(input|middle|output)\s*(\d+)?(?:\.(\d+))?", part)
        key = (match[1], int(match[2] or 0)) if match else None
        layers = there.get(key, (0, False))[0]
        if not layers or (match[3] and int(match[3]) >= layers):
            raise ValueError(f"'{part}' is no self-attention of this model; it has {_names(there)}.")
        keys.append((*key, int(match[3])) if match[3] else key)
    return keys


def _names(there: dict) -> str:
    return ", ".join(
        f"{place} {number}" + (f" (layers .0 to .{layers - 1})" if layers > 1 else "")
        for (place, number), (layers, _) in there.items()
    )


def with_cross_frame(model, chosen: dict[tuple, bool], settings: Settings):
    """A clone of the model in which the chosen blocks attend to the reference views."""
    patched = model.clone()
    before = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    for block, video in chosen.items():
        # The host prefers a patch for one layer to one for its block: chain to all that are there.
        for key in {block, *(k for k in before if k[: len(block)] == block)}:
            previous = before.get(key, before.get(key[:2]))
            patched.set_model_attn1_replace(CrossFramePatch(settings, video, previous), *key)
    options = patched.model_options["transformer_options"]
    told = asdict(settings)
    if KEY in options:  # several such nodes: the levels at which any of them acts
        told["start_sigma"] = max(told["start_sigma"], options[KEY]["start_sigma"])
        told["end_sigma"] = min(told["end_sigma"], options[KEY]["end_sigma"])
    patched.model_options["transformer_options"] = {**options, KEY: told}
    kinds = comfy.patcher_extension.WrappersMP
    for kind, wrapper in ((kinds.DIFFUSION_MODEL, fresh_call), (kinds.PREDICT_NOISE, check_step)):
        if not patched.get_wrappers(kind, KEY):
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched
