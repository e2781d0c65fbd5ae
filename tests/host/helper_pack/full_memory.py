"""A graphics card that is full at a chosen moment, for machines that have none."""

import sys

import torch
from comfy_api.latest import io


class FullMemory(io.ComfyNode):
    """Passes a value on. From then the pack's rasteriser fails once, at its `call`-th drawing, as on a full card."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestFullMemory",
            category="test",
            inputs=[io.AnyType.Input("value"), io.Int.Input("call", default=1, min=1, max=100000)],
            outputs=[io.AnyType.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return float("nan")

    @classmethod
    def execute(cls, value, call):
        (raster,) = [m for name, m in sys.modules.items() if name.endswith(".multiview.splats.raster")]
        draw, left = raster._render_torch, iter(range(call - 1, -1, -1))

        def fails_once(*args, **kwargs):
            if next(left):
                return draw(*args, **kwargs)
            raster._render_torch = draw
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        raster._render_torch = fails_once
        return io.NodeOutput(value)
