"""Run a real ComfyUI with this pack installed, and talk to it over its own HTTP and websocket API.

Used by the demo and by the host and browser tests. Needs nothing from ComfyUI's code base and, apart from
`websocket-client` in `client.py`, nothing outside the standard library.

    with ComfyHost(base=Path(".host/base")) as host:
        prompt = workflow_to_prompt(json.loads(text), host.object_info())
        result = host.run(prompt, on_progress=print)
        for file in result.files():
            print(host.output_path(file))
"""

from .client import ComfyClient, HostError, Interrupted, NodeFailed, Progress, PromptRejected, RunResult
from .process import PACK_NAME, ComfyHost, HostStartError, find_comfyui, free_port
from .workflow import WorkflowError, widget_names, workflow_to_prompt

__all__ = [
    "PACK_NAME",
    "ComfyClient",
    "ComfyHost",
    "HostError",
    "HostStartError",
    "Interrupted",
    "NodeFailed",
    "Progress",
    "PromptRejected",
    "RunResult",
    "WorkflowError",
    "find_comfyui",
    "free_port",
    "widget_names",
    "workflow_to_prompt",
]
