# ruff: noqa: E402, I001 - the order of the imports is the point
"""Run by a host's own interpreter in the ComfyUI folder: what does loading the pack cost and bring in?

    cd ComfyUI && python import_probe.py <pack folder>

Prints one line of JSON: wall and CPU seconds for loading the pack and asking it for its nodes, and the modules this
added, beyond what ComfyUI imports before it looks at custom nodes.
"""

import asyncio
import importlib.util
import json
import os
import sys
import time

# A script's own folder comes first on sys.path; ComfyUI's main.py would have its folder there.
sys.path[0] = os.getcwd()

import comfy.cli_args

comfy.cli_args.args.cpu = True

import comfy.model_management  # noqa: F401
import utils.extra_config  # noqa: F401 - claims the name "utils" as main.py does, before any package can
import execution  # noqa: F401
import nodes
import server


def main(pack: str) -> dict:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_builtin_extra_nodes())
    before = set(sys.modules)
    started, cpu_started = time.perf_counter(), time.process_time()
    spec = importlib.util.spec_from_file_location(
        "mv_probe", os.path.join(pack, "__init__.py"), submodule_search_locations=[pack]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["mv_probe"] = module
    spec.loader.exec_module(module)
    node_list = loop.run_until_complete(_nodes(module))
    for node in node_list:
        node.GET_SCHEMA()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    added = sorted(set(sys.modules) - before)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "nodes": len(node_list), "modules": added}


async def _nodes(module):
    return await (await module.comfy_entrypoint()).get_node_list()


if __name__ == "__main__":
    result = main(os.path.abspath(sys.argv[1]))
    print(json.dumps(result))
