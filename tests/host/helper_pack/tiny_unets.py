"""Small random-weight models of true architectures, and a look into their self-attention while the host samples."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, optimized_attention
from comfy_api.latest import io

CONTEXT, TOKENS = 32, 7
# SD 1.5 as ComfyUI's detection describes it, narrow; sd15_full has its true widths.
SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "context_dim": CONTEXT, "use_linear_in_transformer": False, "adm_in_channels": None, "legacy": False,
    "use_spatial_transformer": True, "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
VIDEO = {
    "in_channels": 8, "model_channels": 64, "adm_in_channels": 1280, "num_classes": "sequential",
    "use_linear_in_transformer": True, "extra_ff_mix_layer": True, "use_spatial_context": True,
    "merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1],
    "use_temporal_resblock": True, "use_temporal_attention": True, "disable_temporal_crossattention": False,
}  # fmt: skip
# Two layers in a block, as SDXL has.
DEEP = {"transformer_depth": [0, 0, 2, 2, 0, 0], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 0, 0, 0]}
KINDS = {
    "sd15": (comfy.supported_models.SD15, SD15),
    "sd15_full": (comfy.supported_models.SD15, SD15 | {"model_channels": 320, "context_dim": 768}),
    "deep": (comfy.supported_models.SD15, SD15 | {"channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2], **DEEP}),
    "sv3d_p": (comfy.supported_models.SV3D_p, SD15 | VIDEO),
    "no_attention": (comfy.supported_models.SD15, SD15 | {
        "transformer_depth": [0] * 8, "transformer_depth_output": [0] * 12, "transformer_depth_middle": -1,
    }),
}  # fmt: skip


def tiny_model(kind: str, seed: int):
    """A MODEL on the CPU in float32."""
    maker, config = KINDS[kind]
    described = maker(dict(config))
    described.set_inference_dtype(torch.float32, None)
    model = described.get_model({}, device=torch.device("cpu"))
    fill(model.diffusion_model, torch.Generator().manual_seed(seed))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model.eval(), device, torch.device("cpu"))


def fill(network, generator) -> None:
    """Weights that keep activations of order one, sharp attention, and a last layer that is small."""
    for name, values in network.named_parameters():
        values.requires_grad_(False)
        if values.ndim >= 2:
            sharp = 3.0 if ".to_q." in name or ".to_k." in name else 0.05 if name.startswith("out.") else 1.0
            bound = sharp * (3 / values[0].numel()) ** 0.5
            values.uniform_(-bound, bound, generator=generator)
        else:
            values.fill_(1.0 if name.endswith(".weight") else 0.0)


class TinyUNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTinyUNet",
            category="test",
            inputs=[
                io.Combo.Input("kind", options=list(KINDS)), io.Int.Input("seed", default=0),
                io.Int.Input("views", default=3), io.Int.Input("side", default=8),
            ],
            outputs=[io.Model.Output(), io.Conditioning.Output(), io.Conditioning.Output(), io.Latent.Output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, kind, seed, views, side):
        model = tiny_model(kind, seed)
        generator = torch.Generator().manual_seed(seed)
        width = model.model.model_config.unet_config["context_dim"]
        positive, negative = (torch.randn(n, TOKENS, width, generator=generator) for n in (views, 1))
        extra = {}
        if kind == "sv3d_p":
            positive, negative = positive[:1], torch.zeros_like(negative)
            angles = {"azimuth": [360.0 * i / views for i in range(views)], "elevation": [10.0] * views}
            extra = {"concat_latent_image": torch.randn(1, 4, side, side, generator=generator), **angles}
        told = {} if len(positive) == 1 else {"mv_view_prompts": views}  # as View Prompts says it
        latent = {"samples": torch.zeros(views, 4, side, side)}
        return io.NodeOutput(model, [[positive, extra | told]], [[negative, extra]], latent)


class Probe:
    """Records q, k, v and the result of every self-attention in each run of the UNet."""

    def __init__(self, model):
        self.runs, self.hooks, self.layers = [], [], {}
        for name, block in model.model.diffusion_model.named_modules():
            if isinstance(block, BasicTransformerBlock):
                parts = {"q": block.attn1.to_q, "k": block.attn1.to_k, "v": block.attn1.to_v}
                for key, part in parts.items():
                    self.hooks.append(part.register_forward_hook(self._keep(name, key)))
                self.hooks.append(block.attn1.to_out.register_forward_pre_hook(self._keep(name, "out")))
                self.layers[name] = block.n_heads

    def _keep(self, name, key):
        def hook(module, given, result=None):
            self.runs[-1]["layers"].setdefault(name, {})[key] = (given[0] if key == "out" else result).clone()

        return hook

    def wrapper(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        options = {k: transformer_options.get(k) for k in ("cond_or_uncond", "mv_hard_attention", "mv_views_apart")}
        options["sigma"] = float(transformer_options["sigmas"].max())
        seen = [float(row[0, 0]) for row in context]
        self.runs.append({**options, "batch": x.shape[0], "context": seen, "layers": {}})
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def close(self):
        for hook in self.hooks:
            hook.remove()


def softmax_sum(q, k, v, heads, hard=False):
    """(T,C), (S,C), (S,C) in float64, written out."""
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if hard:
        weight = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).double()
    else:
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        weight = weight / weight.sum(-1, keepdim=True)
    return (weight @ v).transpose(0, 1).flatten(1)


def explain_run(run: dict, layers: dict, views: int, references: list[int], strength: float, factor: str) -> dict:
    """Layer -> for each part of the batch, the largest difference of what the layer gave from: its own attention (own);
    cross-frame attention (cross) and its hard form (hard), each of all but the references; and the references' from
    their own attention. Rows that are not pictures (attention over time) are only compared with their own. factor: what
    TestOtherPack has multiplied the results by."""
    found = {}
    for name, t in run["layers"].items():
        heads, rows, parts = layers[name], t["q"].shape[0], len(run["cond_or_uncond"])
        pictures = rows == run["batch"] and ".time_stack." not in name
        told = [{"own": 0.0, "cross": 0.0, "hard": 0.0, "reference": 0.0} for _ in range(parts)]
        for row in range(rows) if pictures else range(min(rows, 6)):
            worst = told[row * parts // rows]
            out = t["out"][row].double() / {"": 1, "rows": 1 + row, "twice": 2}[factor]
            own = softmax_sum(t["q"][row], t["k"][row], t["v"][row], heads)
            first = row // views * views
            expected = {"reference" if pictures and row - first in references else "own": own}
            if pictures and row - first not in references:
                k, v = (torch.cat([t[key][first + i] for i in references]) for key in "kv")
                for label, hard in (("cross", False), ("hard", True)):
                    expected[label] = torch.lerp(own, softmax_sum(t["q"][row], k, v, heads, hard), strength)
            for label, value in expected.items():
                worst[label] = max(worst[label], (out - value).abs().max().item())
        found[name] = {"parts": told, "tokens": t["q"].shape[1], "pictures": pictures}
    return found


class OtherPack(io.ComfyNode):
    """What other packs do to attention. replace: attn1 replacements of the decoder that multiply row i by 1 + i.
    override: an attention override that doubles. widen: an attn1_patch that doubles what q is made from."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestOtherPack", category="test", outputs=[io.Model.Output()],
            inputs=[io.Model.Input("model"), io.Combo.Input("how", options=["replace", "override", "widen"])],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, how):
        model = model.clone()

        def replace(q, k, v, extra):
            assert q.shape[0] == extra["original_shape"][0], "rows are no longer views"
            out = optimized_attention(q, k, v, extra["n_heads"])
            return out * torch.arange(1.0, 1 + q.shape[0])[:, None, None]

        def override(func, *args, **kwargs):
            return 2 * func(*args, **kwargs)

        if how == "replace":
            for number in range(3, 12):
                # One for the block, one for its only layer: the host prefers the latter.
                model.set_model_attn1_replace(replace, "output", number, 0 if number % 2 else None)
        elif how == "override":
            model.model_options["transformer_options"]["optimized_attention_override"] = override
        else:
            model.set_model_attn1_patch(lambda q, k, v, extra: (2 * q, k, v))
        return io.NodeOutput(model)


class KeepApart(io.ComfyNode):
    """Tells patches that views of the negative conditioning must not see each other, as the HarmonyView guider does."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestKeepApart", category="test", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()]
        )

    @classmethod
    def execute(cls, model):
        def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
            apart = [kind == 1 for kind in transformer_options["cond_or_uncond"]]
            options = {**transformer_options, "mv_views_apart": apart}
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "apart", wrapper)
        return io.NodeOutput(model)


class TinyControl(io.ComfyNode):
    """A ControlNet of SD 1.5's architecture, narrow and random, on a conditioning, with a picture for each view."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTinyControl", category="test", outputs=[io.Conditioning.Output()],
            inputs=[io.Conditioning.Input("conditioning"), io.Int.Input("views"), io.Int.Input("side")],
        )  # fmt: skip

    @classmethod
    def execute(cls, conditioning, views, side):
        names = ("transformer_depth_output", "out_channels", "use_temporal_attention", "use_temporal_resblock")
        config = {k: v for k, v in SD15.items() if k not in names}
        network = comfy.cldm.cldm.ControlNet(
            **config, hint_channels=3, num_heads=8, dtype=torch.float32, operations=comfy.ops.disable_weight_init
        )
        fill(network, torch.Generator().manual_seed(9))
        control = comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))
        hint = torch.rand(views, 3, side * 8, side * 8, generator=torch.Generator().manual_seed(3))
        control.set_cond_hint(hint, 1.0, (0.0, 1.0))
        return io.NodeOutput([[e, {**v, "control": control, "control_apply_to_uncond": True}] for e, v in conditioning])


class ProbeSampling(io.ComfyNode):
    """Samples with euler and reports on every run of the UNet. split: the host runs positive and negative apart."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestProbeSampling",
            category="test",
            is_output_node=True,
            inputs=[
                io.Model.Input("model"), io.Conditioning.Input("positive"), io.Conditioning.Input("negative"),
                io.Latent.Input("latent"), io.Int.Input("steps", default=2), io.Float.Input("cfg", default=3.0),
                io.Boolean.Input("split", default=False), io.String.Input("references", default="0"),
                io.Int.Input("views", default=3), io.Boolean.Input("explain", default=True),
                io.Float.Input("strength", default=1.0), io.String.Input("factor", default=""),
            ],
            outputs=[io.Latent.Output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, latent, steps, cfg, split, references, views, explain, strength, factor
    ):
        model = model.clone()
        probe = Probe(model)
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        model.add_wrapper_with_key(kind, "probe", probe.wrapper)
        needed = type(model.model).memory_required
        if split:  # what a full graphics card does
            model.model.memory_required = lambda *args, **kwargs: float("inf")
        try:
            samples = latent["samples"]
            noise = comfy.sample.prepare_noise(samples, 5)
            out = comfy.sample.sample(
                model, noise, steps, cfg, "euler", "simple", positive, negative, samples, disable_pbar=True
            )
        finally:
            model.model.memory_required = needed.__get__(model.model)
            probe.close()
        picked = [int(i) for i in references.split(",")]
        report = []
        for run in probe.runs:
            told = explain_run(run, probe.layers, views, picked, strength, factor) if explain else {}
            report.append({**run, "layers": told})
        return io.NodeOutput({"samples": out}, ui={"report": report})


class CompareRows(io.ComfyNode):
    """Report: for each latent of two batches, whether all bits agree, and the largest difference."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestCompareRows", category="test", is_output_node=True,
            inputs=[io.Latent.Input("a"), io.Latent.Input("b")],
        )  # fmt: skip

    @classmethod
    def execute(cls, a, b):
        pairs = list(zip(a["samples"], b["samples"], strict=True))
        apart = [(x - y).abs().max().item() for x, y in pairs]
        equal = [torch.equal(x, y) for x, y in pairs]
        report = {"equal": equal, "apart": apart, "largest": float(a["samples"].abs().max())}
        return io.NodeOutput(ui={"report": [report]})


NODES = [TinyUNet, TinyControl, OtherPack, KeepApart, ProbeSampling, CompareRows]
