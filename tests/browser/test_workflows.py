"""Our workflows in the real front end, as a user who drops the file onto the page sees them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from comfy_host import PACK_NAME, ComfyHost, workflow_to_prompt
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
LATER, GONE = "new Promise(done => setTimeout(done, 200))", "app.extensionManager.toast.removeAll()"
by_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@by_workflow
def test_opens_without_red_nodes_or_complaints(page, path, object_info, placeholder_files, tmp_path):
    workflow = read(path)
    with placeholder_files(workflow_to_prompt(workflow, object_info)):
        # The refresh says so in a pop-up of its own, which is no complaint about the workflow. It comes a moment later.
        page.browser.evaluate(f"app.refreshComboInNodes().then(() => {LATER}).then(() => true)")
        page.browser.wait_for(f"({GONE}, !document.querySelector('.p-toast-message'))")
        page.open(workflow, path.stem)
        time.sleep(1)  # dialogs and pop-ups appear with a delay
    assert page.unknown_nodes() == []
    assert page.alerts() == []
    assert page.complaints(PACK_NAME, "multiview", "MV") == []
    page.picture(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert len(set(picture.convert("L").resize((64, 40)).tobytes())) > 5, "the page is blank"


# How nodes are drawn does not change what Run sends, and the suite has no minute to spare.
@pytest.mark.parametrize("page", [False], indirect=True, ids=["classic nodes"])
@by_workflow
def test_front_end_and_harness_make_the_same_prompt(page, path, object_info):
    """The host tests run what workflow_to_prompt makes: it must be what the Run button would send."""
    workflow = read(path)
    page.open(workflow, path.stem)
    theirs, ours = page.prompt(), workflow_to_prompt(workflow, object_info)
    assert set(theirs) == set(ours)
    for node_id, node in ours.items():
        assert theirs[node_id]["class_type"] == node["class_type"], node_id
        definition = object_info[node["class_type"]]["input"]
        known = {name for section in definition.values() for name in section}
        # What the page keeps for itself (PreviewAny's text field) is no input of the node; the host passes over it.
        sent = {name: value for name, value in theirs[node_id]["inputs"].items() if name in known}
        assert sent == node["inputs"], (node_id, node["class_type"])


def test_every_node_can_be_added_by_hand(page, object_info):
    """All nodes at once, fresh from the menu: none fails to be drawn, and the default values are sent."""
    ours = sorted(ComfyHost.pack_nodes(object_info))
    page.open({"nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0, "version": 0.4})
    page.browser.evaluate(
        f"""{json.dumps(ours)}.forEach((type, i) => {{
            const node = LiteGraph.createNode(type);
            node.pos = [(i % 6) * 420, Math.floor(i / 6) * 700];
            app.graph.add(node);
        }})"""
    )
    time.sleep(1)
    added = page.browser.evaluate("app.graph._nodes.map(n => n.type)")
    assert sorted(added) == ours
    assert page.unknown_nodes() == []
    assert page.complaints(PACK_NAME, "multiview", "MV") == []
    sent = {node["class_type"]: node["inputs"] for node in page.prompt().values()}
    for node_id in ours:
        for section in ("required", "optional"):
            for name, spec in (object_info[node_id]["input"].get(section) or {}).items():
                options = spec[1] if len(spec) > 1 else {}
                if "default" in options and not isinstance(spec[0], list):
                    assert sent[node_id][name] == options["default"], (node_id, name)


def test_page_asks_nobody_but_the_host(page):
    """Our part of the page must not load anything from the internet (the front end's own questions are its affair)."""
    page.open({"nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0, "version": 0.4})
    outside = [url for url in page.browser.requests if url.startswith("http") and not url.startswith(page.host.url)]
    assert [url for url in outside if "comfy.org" not in url] == []


def test_a_missing_node_would_be_noticed(page):
    """The checks above must be able to fail."""
    node = {
        "id": 1,
        "type": "MVNoSuchNode",
        "pos": [0, 0],
        "size": [200, 100],
        "flags": {},
        "order": 0,
        "mode": 0,
        "properties": {},
    }
    page.open({"nodes": [node], "links": [], "last_node_id": 1, "last_link_id": 0, "version": 0.4})
    time.sleep(1)
    assert page.unknown_nodes() == ["MVNoSuchNode"]
    assert any("missing" in text.lower() or "MVNoSuchNode" in text for text in page.alerts())
    page.browser.call("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape", windowsVirtualKeyCode=27)
