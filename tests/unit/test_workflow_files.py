"""The workflow files as files: links that hold together and a layout a person can read; and the builder's refusals."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from workflow_graph import DescriptionError, Graph

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
by_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
TITLE_HEIGHT = 30


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def box(node: dict) -> tuple:
    """left, top, right, bottom with the title bar, which stands above pos."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a: tuple, b: tuple) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


@by_workflow
def test_nothing_overlaps(path):
    workflow = read(path)
    boxes = {f"node {n['id']}": box(n) for n in workflow["nodes"]}
    groups = {}
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        groups[group["title"]] = (x, y, x + width, y + height)
    assert [(a, b) for a, b in itertools.combinations(boxes, 2) if overlap(boxes[a], boxes[b])] == []
    assert [(a, b) for a, b in itertools.combinations(groups, 2) if overlap(groups[a], groups[b])] == []
    assert [name for name, one in boxes.items() if not any(inside(one, group) for group in groups.values())] == []


@by_workflow
def test_links_are_recorded_alike_in_all_three_places(path):
    workflow = read(path)
    nodes = {n["id"]: n for n in workflow["nodes"]}
    listed = {link[0]: link for link in workflow["links"]}
    assert len(listed) == len(workflow["links"])
    for number, (_, origin, out, target, into, kind) in listed.items():
        assert number in nodes[origin]["outputs"][out]["links"]
        assert nodes[origin]["outputs"][out]["type"] == kind
        assert nodes[target]["inputs"][into]["link"] == number
    ends = [i["link"] for n in nodes.values() for i in n["inputs"] if i["link"] is not None]
    starts = [link for n in nodes.values() for o in n["outputs"] for link in o["links"] or []]
    assert sorted(ends) == sorted(starts) == sorted(listed)


@by_workflow
def test_reader_is_told_what_it_does(path):
    """A note with a heading; other workflows and nodes it names exist."""
    workflow = read(path)
    (note,) = [n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote"]
    assert note.startswith("## ")
    named = re.findall(r"\*([a-z0-9]+(?:_[a-z0-9]+){2,})\*", note)
    assert [name for name in named if not (ROOT / "workflows" / f"{name}.json").exists()] == []
    assert "{" not in re.sub(r"`[^`]*`", "", note), "a placeholder was left unfilled"


# --- the builder ------------------------------------------------------------------------------------------------------

INFO = {
    "Source": {
        "input": {"required": {"size": ["INT", {"default": 8, "min": 1, "max": 64}], "seed": ["INT", {"default": 0}]}},
        "output": ["IMAGE", "MASK"],
        "output_name": ["image", "mask"],
    },
    "Sink": {
        "input": {
            "required": {"mode": [["fast", "slow"]], "images": ["IMAGE"]},
            "optional": {"scale": ["FLOAT", {"default": 1.0}], "mask": ["MASK"]},
        },
        "output": [],
        "output_name": [],
    },
}


def graph() -> Graph:
    return Graph("test", INFO)


def test_builder_writes_slots_links_and_values():
    g = graph()
    with g.group("all"):
        source = g.node("Source", size=16)
        g.node("Sink", "The end", images=source["image"], mask=source["mask"], scale=2.0)
    first, second = g.to_json()["nodes"]
    assert first["widgets_values"] == [16, 0, "fixed"]
    assert [i["name"] for i in second["inputs"]] == ["images", "mask", "mode", "scale"]
    assert [i.get("shape") for i in second["inputs"]] == [None, 7, None, None]
    assert second["widgets_values"] == ["fast", 2.0]
    assert second["title"] == "The end"
    assert g.to_json()["links"] == [[1, 1, 0, 2, 0, "IMAGE"], [2, 1, 1, 2, 1, "MASK"]]


def test_builder_links_to_widgets():
    g = graph()
    with g.group("all"):
        size = g.node("Source")
        g.object_info = {**INFO, "Number": {"input": {}, "output": ["INT"], "output_name": ["INT"]}}
        number = g.node("Number")["INT"]
        linked = g.node("Source", size=number)
    assert size.widgets == linked.widgets == {"size": 8, "seed": 0}
    entry = next(i for i in g.to_json()["nodes"][2]["inputs"] if i["name"] == "size")
    assert entry == {"name": "size", "type": "INT", "link": 1, "widget": {"name": "size"}}


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("Nothing", {}, "no node 'Nothing'"),
        ("Source", {"colour": 1}, "no input \\['colour'\\]"),
        ("Source", {"size": 65}, "not between 1 and 64"),
        ("Sink", {"mode": "fast"}, "nothing is linked to \\['images'\\]"),
        ("Sink", {"mode": "wild", "images": "image"}, "not one of"),
        ("Sink", {"images": "mask"}, "gives MASK, but Sink.images takes IMAGE"),
        ("Sink", {"images": "depth"}, "no output 'depth'"),
    ],
)
def test_builder_refuses(kind, values, says):
    g = graph()
    with g.group("all"):
        source = g.node("Source")
        with pytest.raises(DescriptionError, match=says):
            g.node(kind, **{k: source[v] if k == "images" else v for k, v in values.items()})
