"""Convert a workflow file (the UI's JSON) into an API prompt, the way the front end does.

The browser tests compare the result with the front end's own conversion.
"""

from __future__ import annotations

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COLORCODE", "MARKDOWN", "TEXTAREA"}
# Widgets that the front end adds to a value of its own accord and stores behind it.
UPLOAD_FLAGS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
FRONT_END_ONLY = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
MUTED, BYPASSED = 2, 4


class WorkflowError(ValueError):
    """The workflow cannot be opened or run as it stands; the message names every problem found."""


def _inputs(definition: dict):
    """(name, type, options) of every input in the front end's order."""
    for section in ("required", "optional"):
        specs = definition["input"].get(section) or {}
        for name in (definition.get("input_order") or {}).get(section) or list(specs):
            spec = specs[name]
            kind, options = (spec, {}) if isinstance(spec, str) else (spec[0], spec[1] if len(spec) > 1 else {})
            yield name, kind, options or {}


def _is_widget(kind, options: dict) -> bool:
    if options.get("forceInput") or options.get("rawLink"):
        return False
    return isinstance(kind, list) or kind in WIDGET_TYPES


def widget_names(definition: dict) -> list[str]:
    """The names of the values a node stores in `widgets_values`, in order. Companions that do not reach the prompt
    (control after generate, upload button) are called `<name>!control` and `<name>!upload`."""
    names = []
    for name, kind, options in _inputs(definition):
        if not _is_widget(kind, options):
            continue
        names.append(name)
        default_control = kind == "INT" and name in ("seed", "noise_seed")
        if options.get("control_after_generate", default_control):
            names.append(f"{name}!control")
        if any(options.get(flag) for flag in UPLOAD_FLAGS):
            names.append(f"{name}!upload")
    return names


def _links(workflow: dict) -> dict:
    """link id -> (source node id, source slot); both the list and the object notation."""
    found = {}
    for link in workflow.get("links") or []:
        if isinstance(link, dict):
            found[link["id"]] = (link["origin_id"], link["origin_slot"])
        elif link:
            found[link[0]] = (link[1], link[2])
    return found


class _Graph:
    def __init__(self, workflow: dict):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = _links(workflow)

    def source(self, link_id, seen=()):
        """(node, slot) that really feeds a link, through reroutes and bypassed nodes; None where nothing does."""
        if link_id is None or link_id in seen:
            return None
        if link_id not in self.links:
            raise WorkflowError(f"link {link_id} is used but not listed in 'links'")
        node_id, slot = self.links[link_id]
        node = self.nodes.get(node_id)
        if node is None:
            raise WorkflowError(f"link {link_id} starts at node {node_id}, which is not in the workflow")
        mode = node.get("mode", 0)
        if mode == MUTED:
            return None
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0].get("link"), (*seen, link_id))
        if mode == BYPASSED:
            wanted = node["outputs"][slot]["type"]
            same = [i for i in node.get("inputs") or [] if i["type"] == wanted]
            # The front end prefers the input at the output's own position.
            inputs = node.get("inputs") or []
            if slot < len(inputs) and inputs[slot]["type"] == wanted:
                same.insert(0, inputs[slot])
            return self.source(same[0].get("link"), (*seen, link_id)) if same else None
        return node, slot


def _node_problems(node: dict, object_info: dict) -> str | None:
    label = f"node {node['id']} ({node['type']})"
    definition = object_info.get(node["type"])
    if definition is None:
        return f"{label}: the host does not know this node type"
    names = widget_names(definition)
    values = node.get("widgets_values")
    if isinstance(values, dict):
        missing = [name for name in names if "!" not in name and name not in values]
        return f"{label}: widgets_values lacks {missing}" if missing else None
    count = len(values or [])
    # A host newer than the file may have grown widgets: the front end gives those their defaults, so do we. For a node
    # of this repository the file is of the same version and must be complete.
    if count > len(names) or (count < len(names) and (is_ours(node) or _without_default(names[count:], definition))):
        return f"{label}: {count} widget values, but the node has {len(names)}: {names}"
    known = {name for name, _, _ in _inputs(definition)}
    unknown = [i["name"] for i in node.get("inputs") or [] if i["name"] not in known]
    if unknown:
        return f"{label}: inputs {unknown} do not exist on the host's node, which has {sorted(known)}"
    saved, real = len(node.get("outputs") or []), len(definition["output"])
    if saved > real or (saved < real and is_ours(node)):
        return f"{label}: {saved} outputs, but the node has {real}"
    return None


def is_ours(node: dict) -> bool:
    return node["type"].startswith("MV")


def _defaults(definition: dict) -> dict:
    """Widget name -> the value the front end starts with, where there is one."""
    found = {}
    for name, kind, options in _inputs(definition):
        if "default" in options:
            found[name] = options["default"]
        elif isinstance(kind, list) and kind:
            found[name] = kind[0]
        elif options.get("options"):
            found[name] = options["options"][0]
    return found


def _without_default(names: list[str], definition: dict) -> list[str]:
    return [name for name in names if "!" not in name and name not in _defaults(definition)]


def _widget_values(node: dict, definition: dict) -> dict:
    values = node.get("widgets_values") or []
    names = widget_names(definition)
    # Shorter lists were accepted by _node_problems: the rest has defaults.
    given = values if isinstance(values, dict) else dict(zip(names, values, strict=False))
    merged = {**_defaults(definition), **given}
    return {name: merged[name] for name in names if "!" not in name}


def _prompt_inputs(node: dict, definition: dict, graph: _Graph) -> dict:
    inputs = {}
    for name, value in _widget_values(node, definition).items():
        # A list would be read as a link, so the front end wraps it.
        inputs[name] = {"__value__": value} if isinstance(value, list) else value
    for slot in node.get("inputs") or []:
        source = graph.source(slot.get("link"))
        if source is None:
            continue
        origin, origin_slot = source
        if origin["type"] == "PrimitiveNode":
            inputs[slot["name"]] = origin["widgets_values"][0]
        else:
            inputs[slot["name"]] = [str(origin["id"]), origin_slot]
    return inputs


def workflow_to_prompt(workflow: dict, object_info: dict) -> dict:
    """UI-format workflow -> API prompt (node id -> class_type, inputs, _meta).

    Muted nodes are left out, bypassed ones and reroutes passed through. Raises WorkflowError that lists every node
    which would be red (unknown type) or whose widget values, inputs or outputs do not match the host's definition.
    """
    if "nodes" not in workflow:
        raise WorkflowError("this is not a UI workflow: it has no 'nodes' (an API prompt needs no conversion)")
    if (workflow.get("definitions") or {}).get("subgraphs"):
        raise WorkflowError("workflows with subgraphs cannot be converted; unpack the subgraph in the front end")
    graph = _Graph(workflow)
    active = [
        n for n in workflow["nodes"] if n["type"] not in FRONT_END_ONLY and n.get("mode", 0) not in (MUTED, BYPASSED)
    ]
    problems = [p for p in (_node_problems(node, object_info) for node in active) if p]
    if problems:
        raise WorkflowError("\n".join(["the workflow does not fit this host:", *problems]))
    return {
        str(node["id"]): {
            "class_type": node["type"],
            "inputs": _prompt_inputs(node, object_info[node["type"]], graph),
            "_meta": {"title": node.get("title") or object_info[node["type"]].get("display_name") or node["type"]},
        }
        for node in active
    }
