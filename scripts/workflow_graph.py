"""Describe a workflow in a few lines of Python and get the file that ComfyUI's front end saves (schema version 0.4).

    graph = Graph("example", object_info)
    with graph.group("Input"):
        picture = graph.node("LoadImage", image="example.png")
        graph.node("PreviewImage", images=picture["IMAGE"])
    graph.to_json()

Slots, order of the widgets and their defaults come from the running host's node definitions, so that a wrong name, a
missing link or a wrong type is an error here and not a red node there. Nodes stand in columns, columns in groups,
groups from left to right in rows; nothing overlaps, and the same description always gives the same file.
"""

from __future__ import annotations

import contextlib
import tomllib
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from comfy_host import PACK_NAME, widget_names

ROOT = Path(__file__).resolve().parents[1]
# The oldest host we support; the front end shows it when a core node is missing.
CORE_VERSION = "0.3.75"
TITLE, SLOT, WIDGET, PARAGRAPH = 30, 20, 28, 110
DEFAULT_WIDTH = 320
GAP, GROUP_PADDING, GROUP_GAP, GROUP_TITLE = 40, 20, 60, 60
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTE = "MarkdownNote"
NOTE_COLORS = {"color": "#432", "bgcolor": "#653"}


class DescriptionError(ValueError):
    """The description does not fit the host's nodes."""


@dataclass(frozen=True)
class Slot:
    """One output of a node."""

    node: Node
    index: int
    type: str


@dataclass
class Node:
    id: int
    kind: str
    definition: dict
    title: str | None
    size: tuple[int, int]
    widgets: dict
    links: dict[str, Slot] = field(default_factory=dict)
    pos: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str) -> Slot:
        names = self.definition["output_name"]
        if output not in names:
            raise DescriptionError(f"{self.kind} has no output {output!r}, only {names}")
        index = names.index(output)
        return Slot(self, index, self.definition["output"][index])

    def shows(self, height: int, width: int = 0) -> Node:
        """Make room for a picture or text of this height below the widgets, and widen the node."""
        self.size = (max(width, self.size[0]), self.size[1] + height)
        return self


@dataclass
class _Group:
    title: str
    color: str
    columns: list[list[Node]]
    bounding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class _Input:
    name: str
    type: str
    choices: list | None
    options: dict
    optional: bool

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGET_TYPES and not self.options.get("forceInput")


def _inputs(definition: dict) -> list[_Input]:
    found = []
    for section in ("required", "optional"):
        specs = definition["input"].get(section) or {}
        for name in (definition.get("input_order") or {}).get(section) or list(specs):
            kind, options = (*specs[name], {})[:2]
            choices = kind if isinstance(kind, list) else options.get("options")
            found.append(
                _Input(name, "COMBO" if isinstance(kind, list) else kind, choices, options or {}, section == "optional")
            )
    return found


def _default(one: _Input):
    if "default" in one.options:
        return one.options["default"]
    if one.choices:
        return one.choices[0]
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(one.type)


def _check_value(kind: str, one: _Input, value) -> None:
    """Numbers within their range and choices that exist; lists of files differ between machines and are not checked."""
    low, high = one.options.get("min"), one.options.get("max")
    if one.type in ("INT", "FLOAT") and ((low is not None and value < low) or (high is not None and value > high)):
        raise DescriptionError(f"{kind}.{one.name} = {value} is not between {low} and {high}")
    is_file = isinstance(value, str) and "." in value
    if one.type == "COMBO" and one.choices and value not in one.choices and not is_file:
        raise DescriptionError(f"{kind}.{one.name} = {value!r} is not one of {one.choices}")


def pack_version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def pack_id() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]


class Graph:
    def __init__(self, name: str, object_info: dict):
        self.name = name
        self.object_info = object_info
        self.nodes: list[Node] = []
        self.rows: list[list[_Group]] = [[]]

    # --- describing ---

    @contextlib.contextmanager
    def group(self, title: str, color: str = "#3f789e"):
        """Nodes made inside stand in a coloured box with this title."""
        self.rows[-1].append(_Group(title, color, [[]]))
        yield

    def column(self) -> None:
        """The next nodes of this group stand right of the ones so far."""
        self.rows[-1][-1].columns.append([])

    def row(self) -> None:
        """The next groups stand below the ones so far."""
        self.rows.append([])

    def note(self, text: str, size: tuple[int, int] = (420, 300)) -> None:
        """Text for the reader, as Markdown."""
        definition = {"input": {}, "output": [], "output_name": []}
        self._place(Node(len(self.nodes) + 1, NOTE, definition, "Read me", size, {"text": text.strip() + "\n"}))

    def node(self, kind: str, title: str | None = None, /, **values) -> Node:
        """Add a node. values: a widget's value or another node's output, by input name."""
        if kind not in self.object_info:
            raise DescriptionError(f"the host has no node {kind!r}")
        definition = self.object_info[kind]
        inputs = {one.name: one for one in _inputs(definition)}
        unknown = sorted(set(values) - set(inputs))
        if unknown:
            raise DescriptionError(f"{kind} has no input {unknown}, only {sorted(inputs)}")
        links = {name: value for name, value in values.items() if isinstance(value, Slot)}
        for name, slot in links.items():
            wanted = set(inputs[name].type.split(","))
            if "*" not in wanted and slot.type != "*" and not wanted & set(slot.type.split(",")):
                raise DescriptionError(
                    f"{slot.node.kind} gives {slot.type}, but {kind}.{name} takes {inputs[name].type}"
                )
        missing = [i.name for i in inputs.values() if not i.is_widget and not i.optional and i.name not in links]
        if missing:
            raise DescriptionError(f"{kind}: nothing is linked to {missing}")
        widgets = {}
        for one in inputs.values():
            if one.is_widget:
                widgets[one.name] = values[one.name] if one.name in values and one.name not in links else _default(one)
                _check_value(kind, one, widgets[one.name])
        size = (DEFAULT_WIDTH, _height(definition))
        return self._place(Node(len(self.nodes) + 1, kind, definition, title, size, widgets, links))

    def default(self, kind: str, name: str):
        """The value that the node gives this input by itself."""
        return next(_default(one) for one in _inputs(self.object_info[kind]) if one.name == name)

    def _place(self, node: Node) -> Node:
        self.nodes.append(node)
        self.rows[-1][-1].columns[-1].append(node)
        return node

    # --- writing ---

    def _arrange(self) -> None:
        top = 0
        for row in self.rows:
            left, bottom = 0, top
            for group in row:
                x, deepest = left + GROUP_PADDING, 0
                for column in group.columns:
                    y = top + GROUP_TITLE + TITLE
                    for node in column:
                        node.pos = (x, y)
                        y += node.size[1] + TITLE + GAP
                    deepest = max(deepest, y - GAP - TITLE + GROUP_PADDING)
                    x += max(node.size[0] for node in column) + GAP
                right = x - GAP + GROUP_PADDING
                group.bounding = (left, top, right - left, deepest - top)
                left, bottom = right + GROUP_GAP, max(bottom, deepest)
            top = bottom + GROUP_GAP

    def to_json(self) -> dict:
        self._arrange()
        links = []
        for node in self.nodes:
            for index, one in enumerate(_sockets_then_widgets(node.definition)):
                slot = node.links.get(one.name)
                if slot is not None:
                    links.append([len(links) + 1, slot.node.id, slot.index, node.id, index, slot.type])
        groups = [group for row in self.rows for group in row]
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{pack_id()}/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._node_json(node, links) for node in self.nodes],
            "links": links,
            "groups": [
                {
                    "id": i + 1,
                    "title": g.title,
                    "bounding": list(g.bounding),
                    "color": g.color,
                    "font_size": 24,
                    "flags": {},
                }
                for i, g in enumerate(groups)
            ],
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [80, 80]}},
            "version": 0.4,
        }

    def _node_json(self, node: Node, links: list) -> dict:
        inputs = []
        for index, one in enumerate(_sockets_then_widgets(node.definition)):
            link = next((entry[0] for entry in links if entry[3] == node.id and entry[4] == index), None)
            entry = {"name": one.name, "type": one.type, "link": link}
            if one.optional and not one.is_widget:
                entry["shape"] = 7
            if one.is_widget:
                entry["widget"] = {"name": one.name}
            inputs.append(entry)
        outputs = [
            {"name": name, "type": kind, "links": [e[0] for e in links if e[1] == node.id and e[2] == index] or None}
            for index, (name, kind) in enumerate(
                zip(node.definition["output_name"], node.definition["output"], strict=True)
            )
        ]
        found = {
            "id": node.id,
            "type": node.kind,
            "pos": list(node.pos),
            "size": list(node.size),
            "flags": {},
            # Descriptions can only link to nodes that exist already, so the order of making is one of execution.
            "order": node.id - 1,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": _properties(node),
            "widgets_values": _stored_values(node),
        }
        if node.title:
            found["title"] = node.title
        return found | (NOTE_COLORS if node.kind == NOTE else {})


def _sockets_then_widgets(definition: dict) -> list[_Input]:
    """Inputs in the order in which the front end numbers them."""
    return sorted(_inputs(definition), key=lambda one: one.is_widget)


def _height(definition: dict) -> int:
    inputs = _inputs(definition)
    sockets = sum(not one.is_widget for one in inputs)
    paragraphs = sum(bool(one.options.get("multiline")) for one in inputs)
    rows = max(sockets, len(definition["output"]))
    return rows * SLOT + (len(widget_names(definition)) - paragraphs) * WIDGET + paragraphs * PARAGRAPH + 20


def _properties(node: Node) -> dict:
    if node.kind == NOTE:
        return {}
    ours = node.definition.get("python_module") == f"custom_nodes.{PACK_NAME}"
    return {
        "Node name for S&R": node.kind,
        "cnr_id": pack_id() if ours else "comfy-core",
        "ver": pack_version() if ours else CORE_VERSION,
    }


def _stored_values(node: Node) -> list:
    if node.kind == NOTE:
        return [node.widgets["text"]]
    companions = {"control": "fixed", "upload": "image"}
    values = []
    for name in widget_names(node.definition):
        _, _, companion = name.partition("!")
        values.append(companions[companion] if companion else node.widgets[name])
    return values
