"""Real architectures, small and with random weights: one of every kind of noise schedule that hosts know.

eps: SD 1.5's UNet. v: SD 2's. flow: SD 3's transformer. edm: SV3D's video UNet. Weights are of order 1 / sqrt(inputs);
those of the last layer are scaled down, so that the output bends gently, as a trained network's does.
"""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_api.latest import io

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "context_dim": 32, "adm_in_channels": None, "num_classes": None, "num_heads": -1,
    "num_head_channels": 16, "use_linear_in_transformer": True, "use_spatial_transformer": True, "legacy": False,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
VIDEO = UNET | {
    "in_channels": 8, "adm_in_channels": 256, "num_classes": "sequential", "extra_ff_mix_layer": True,
    "use_spatial_context": True, "merge_strategy": "learned_with_images", "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True, "use_temporal_attention": True,
    "disable_temporal_crossattention": False,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "depth": 2, "input_size": None, "patch_size": 2, "num_patches": 1024,
    "pos_embed_max_size": 32, "pos_embed_scaling_factor": None, "adm_in_channels": 32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
}  # fmt: skip
VIEWS, SIDE = 4, 16
# name: the host's description of the model, its sizes, channels of a latent, name of the last layer and its scale
KINDS = {
    "eps": ("SD15", UNET, 4, "out.2", 0.01),
    "v": ("SD20", UNET, 4, "out.2", 0.1),
    "flow": ("SD3", SD3, 16, "final_layer.linear", 0.3),
    "edm": ("SV3D_u", VIDEO, 4, "out.2", 0.1),
}


class TinyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTinyModel",
            category="test",
            inputs=[io.Combo.Input("kind", options=list(KINDS)), io.Int.Input("seed", default=0)],
            outputs=[
                io.Model.Output(display_name="model"), io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"), io.Latent.Output(display_name="latent"),
                io.Latent.Output(display_name="empty"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, kind, seed):
        return io.NodeOutput(*make(kind, seed))


class LatentGap(io.ComfyNode):
    """How far latent b lies from a: root mean square and largest difference, both relative to the spread of a."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestLatentGap",
            category="test",
            is_output_node=True,
            inputs=[io.Latent.Input("a"), io.Latent.Input("b")],
        )

    @classmethod
    def execute(cls, a, b):
        spread = a["samples"].float().std()
        gap = (a["samples"].cpu().float() - b["samples"].cpu().float()) / spread
        return io.NodeOutput(ui={"gap": [gap.square().mean().sqrt().item(), gap.abs().max().item(), spread.item()]})


NODES = [TinyModel, LatentGap]


def make(kind: str, seed: int):
    """model, positive, negative, a latent like encoded views (smooth, spread 1), an empty one."""
    name, sizes, channels, last, scale = KINDS[kind]
    config = getattr(comfy.supported_models, name)(dict(sizes))
    config.unet_config = dict(sizes)
    if kind == "v":  # Told apart by a weight of the file, which is not there.
        config.model_type = lambda *_: comfy.model_base.ModelType.V_PREDICTION
    config.set_inference_dtype(torch.float32, None)
    device = comfy.model_management.unet_offload_device()
    model = config.get_model({}, "", device=device)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.diffusion_model.named_parameters():
            if weight.ndim >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
            else:
                weight.fill_(float(key.endswith("weight")))
            if key.startswith(last):
                weight.mul_(scale)
        for buffer in model.diffusion_model.buffers():  # SD 3's table of positions, which its file would bring.
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    patcher = comfy.model_patcher.ModelPatcher(
        model.eval(), load_device=comfy.model_management.get_torch_device(), offload_device=device
    )
    extra = {"pooled_output": torch.randn(1, 32, generator=generator)} if kind == "flow" else {}
    if kind == "edm":
        extra = {"concat_latent_image": torch.randn(1, channels, SIDE, SIDE, generator=generator)}
    positive = [[torch.randn(1, 3 if kind != "edm" else 1, 32, generator=generator), extra]]
    negative = [[torch.zeros_like(positive[0][0]), dict(extra)]]
    rough = torch.randn(VIEWS, channels, SIDE // 4, SIDE // 4, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, size=(SIDE, SIDE), mode="bicubic")
    latent = model.process_latent_out(smooth)
    return patcher, positive, negative, {"samples": latent}, {"samples": torch.zeros_like(latent)}
