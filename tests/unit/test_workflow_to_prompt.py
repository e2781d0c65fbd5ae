"""The workflow converter on hand-made definitions; tests/browser compares it with the real front end."""

from __future__ import annotations

import pytest
from comfy_host import WorkflowError, widget_names, workflow_to_prompt


def definition(inputs: dict, outputs=("IMAGE",), optional: dict | None = None) -> dict:
    return {
        "input": {"required": inputs, "optional": optional or {}},
        "output": list(outputs),
        "display_name": "Shown",
    }


INFO = {
    "Core": definition({"seed": ["INT", {"default": 3}], "mode": [["a", "b"], {}], "size": ["INT", {"default": 8}]}),
    "MVMine": definition(
        {"image": ["IMAGE", {}], "steps": ["INT", {"default": 1, "control_after_generate": True}]},
        optional={"mask": ["MASK", {}], "power": ["FLOAT", {"default": 2.0}]},
    ),
    "LoadImage": definition({"image": [["x.png"], {"image_upload": True}]}, ("IMAGE", "MASK")),
    "Forced": definition({"value": ["INT", {"forceInput": True}], "text": ["STRING", {"multiline": True}]}),
}


def node(number, kind, values=(), inputs=(), outputs=1, mode=0):
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "widgets_values": list(values) if isinstance(values, (list, tuple)) else values,
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": "out", "type": "IMAGE", "links": []}] * outputs,
    }


def test_widget_names_include_the_front_ends_companions():
    assert widget_names(INFO["Core"]) == ["seed", "seed!control", "mode", "size"]
    assert widget_names(INFO["MVMine"]) == ["steps", "steps!control", "power"]
    assert widget_names(INFO["LoadImage"]) == ["image", "image!upload"]
    assert widget_names(INFO["Forced"]) == ["text"]


def test_values_links_and_unlinked_optional_sockets():
    workflow = {
        "nodes": [
            node(1, "Core", [7, "fixed", "b", 64]),
            node(2, "MVMine", [5, "randomize", 0.5], [("image", "IMAGE", 9), ("mask", "MASK", None)]),
        ],
        "links": [[9, 1, 0, 2, 0, "IMAGE"]],
    }
    prompt = workflow_to_prompt(workflow, INFO)
    assert prompt["1"]["inputs"] == {"seed": 7, "mode": "b", "size": 64}
    assert prompt["2"]["inputs"] == {"steps": 5, "power": 0.5, "image": ["1", 0]}
    assert prompt["2"]["_meta"]["title"] == "Shown"


def test_a_link_replaces_the_value_of_its_widget():
    workflow = {
        "nodes": [node(1, "Core", [7, "fixed", "b", 64]), node(2, "Core", [1, "fixed", "a", 8], [("size", "INT", 1)])],
        "links": [{"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "INT"}],
    }
    assert workflow_to_prompt(workflow, INFO)["2"]["inputs"]["size"] == ["1", 0]


def test_muted_bypassed_and_primitive_nodes():
    workflow = {
        "nodes": [
            node(1, "Core", [7, "fixed", "b", 64]),
            node(2, "MVMine", [5, "fixed", 0.5], [("image", "IMAGE", 1)], mode=4),
            node(3, "MVMine", [5, "fixed", 0.5], [("image", "IMAGE", 2), ("steps", "INT", 3)]),
            node(4, "PrimitiveNode", [11, "fixed"]),
            node(5, "NotInstalled", mode=2),
            node(6, "MVMine", [5, "fixed", 0.5], [("image", "IMAGE", 4)]),
            node(7, "Note", ["read me"]),
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"], [3, 4, 0, 3, 1, "INT"], [4, 5, 0, 6, 0, "IMAGE"]],
    }
    prompt = workflow_to_prompt(workflow, INFO)
    assert prompt["3"]["inputs"] == {"image": ["1", 0], "steps": 11, "power": 0.5}
    assert "image" not in prompt["6"]["inputs"]  # its source is muted
    assert set(prompt) == {"1", "3", "6"}


def test_a_list_value_is_not_taken_for_a_link():
    info = {"Core": definition({"points": ["STRING", {}]})}
    prompt = workflow_to_prompt({"nodes": [node(1, "Core", [["a", 1]])], "links": []}, info)
    assert prompt["1"]["inputs"]["points"] == {"__value__": ["a", 1]}


def test_every_problem_is_listed_at_once():
    workflow = {"nodes": [node(1, "Gone"), node(2, "Core", [1, 2, 3, 4, 5]), node(3, "MVMine", [1])], "links": []}
    with pytest.raises(WorkflowError) as caught:
        workflow_to_prompt(workflow, INFO)
    text = str(caught.value)
    assert "node 1 (Gone)" in text
    assert "5 widget values, but the node has 4" in text
    assert "1 widget values, but the node has 3" in text


def test_a_newer_host_with_one_more_widget_on_a_core_node_gets_its_default():
    prompt = workflow_to_prompt({"nodes": [node(1, "Core", [7, "fixed", "b"])], "links": []}, INFO)
    assert prompt["1"]["inputs"] == {"seed": 7, "mode": "b", "size": 8}


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        ({"1": {"class_type": "Core"}}, "not a UI workflow"),
        ({"nodes": [], "definitions": {"subgraphs": [{}]}}, "subgraph"),
        ({"nodes": [node(1, "MVMine", [1, "fixed", 1.0], [("image", "IMAGE", 5)])], "links": []}, "link 5"),
        ({"nodes": [node(1, "Core", [1, "fixed", "a", 8], [("gone", "INT", None)])], "links": []}, "gone"),
        ({"nodes": [node(1, "Core", [1, "fixed", "a", 8], outputs=2)], "links": []}, "2 outputs"),
    ],
)
def test_what_cannot_be_converted_is_said(workflow, words):
    with pytest.raises(WorkflowError, match=words):
        workflow_to_prompt(workflow, INFO)
