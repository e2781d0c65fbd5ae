"""A node that damages a value on request, so that tests can hand nodes what a broken graph would."""

import torch
from comfy_api.latest import io


class Alter(io.ComfyNode):
    """how: nan, clear, drop (last), first, half, negative_latent, empty_splat, nan_splat."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestAlter",
            category="test",
            inputs=[io.AnyType.Input("value"), io.String.Input("how")],
            outputs=[io.AnyType.Output()],
        )

    @classmethod
    def execute(cls, value, how):
        return io.NodeOutput(getattr(cls, f"_{how}")(value))

    @staticmethod
    def _nan(value):
        if isinstance(value, dict):
            return {**value, "samples": value["samples"] * float("nan")}
        out = value.clone()
        out[1, 3, 3] = float("nan")
        return out

    @staticmethod
    def _clear(value):
        return torch.zeros_like(value)

    @staticmethod
    def _drop(value):
        if isinstance(value, dict):
            return {**value, "samples": value["samples"][:-1]}
        return value[:-1]

    @staticmethod
    def _first(value):
        return value[:1]

    @staticmethod
    def _half(value):
        return value[:, ::2, ::2]

    @staticmethod
    def _empty_splat(value):
        parts = [getattr(value, f)[:, :0] for f in ("positions", "scales", "rotations", "opacities", "sh")]
        return type(value)(*parts)

    @staticmethod
    def _nan_splat(value):
        return type(value)(
            value.positions * float("nan"), value.scales, value.rotations, value.opacities, value.sh
        )
