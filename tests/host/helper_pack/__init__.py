"""A custom node for the tests: nodes that wait and fail on request, and a route to the host's prompt validation.

Not part of what users install; only hosts started by tests/conftest.py load it.
"""

import time

import comfy.model_management
import comfy.utils
import execution
import numpy as np
import torch
from aiohttp import web
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from .alter import Alter
from .full_memory import FullMemory
from .tiny_models import NODES as TINY_MODELS
from .tiny_unets import NODES as TINY_UNETS


@PromptServer.instance.routes.post("/mvtest/validate")
async def validate(request):
    """The answer of execution.validate_prompt, which POST /prompt gives too, but there a valid prompt is also run."""
    prompt = (await request.json())["prompt"]
    valid, error, _, node_errors = await execution.validate_prompt("validation", prompt, None)
    return web.json_response({"valid": valid, "error": error, "node_errors": node_errors})


class Wait(io.ComfyNode):
    """Counts `steps` of 0.05 s on the progress bar and can be interrupted between any two."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestWait",
            category="test",
            is_output_node=True,
            inputs=[io.Int.Input("steps", default=1, min=1, max=100000), io.Int.Input("salt", default=0)],
        )

    @classmethod
    def execute(cls, steps, salt):
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.05)
            bar.update_absolute(step + 1, steps)
        return io.NodeOutput(ui={"text": [f"waited {steps}"]})


class Fail(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="TestFail", category="test", is_output_node=True, inputs=[io.String.Input("message")])

    @classmethod
    def execute(cls, message):
        raise ValueError(message)


class Inspect(io.ComfyNode):
    """Reports type, shape, range and attributes of anything, so that a test can look at values that have no file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestInspect", category="test", is_output_node=True, inputs=[io.AnyType.Input("value")]
        )

    @classmethod
    def execute(cls, value):
        return io.NodeOutput(ui={"report": [describe(value)]})


def describe(value, depth=0):
    """A JSON-able description: tensors by shape, dtype, range, mean; containers and objects by their parts."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        numbers = value.detach().float()
        figures = (
            {}
            if numbers.numel() == 0
            else {"min": numbers.min().item(), "max": numbers.max().item(), "mean": numbers.mean().item()}
        )
        return {"shape": list(value.shape), "dtype": str(value.dtype), **figures}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > 3:
        return type(value).__name__
    if isinstance(value, dict):
        return {str(k): describe(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v, depth + 1) for v in value]
    parts = {k: describe(v, depth + 1) for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    return {"type": type(value).__name__, **parts}


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [Wait, Fail, Inspect, Alter, FullMemory, *TINY_MODELS, *TINY_UNETS]


async def comfy_entrypoint():
    return Extension()
