"""What users see of the pack in the real host: nodes, texts, help pages, workflows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from comfy_host import PACK_NAME, ComfyHost, HostError, widget_names, workflow_to_prompt
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
by_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)


@pytest.fixture(scope="module")
def ours(object_info) -> dict:
    return ComfyHost.pack_nodes(object_info)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def problems(found: list[str]) -> None:
    """All at once: fixing texts one failing run at a time is tedious."""
    assert not found, "\n" + "\n".join(found)


# --- loading ---


def test_pack_loads_without_a_complaint(host):
    lines = [line for line in host.log_text().splitlines() if PACK_NAME in line]
    assert any("seconds: " in line for line in lines), "the log's list of import times does not name the pack"
    bad = re.compile(r"IMPORT FAILED|Error while|Cannot import|Failed|Warning|warning|deprecat", re.IGNORECASE)
    problems([line for line in lines if bad.search(line)])


def test_node_ids_are_the_permanent_ones(ours, object_info):
    expected = set()
    for line in (ROOT / "tests/host/node_ids.txt").read_text().splitlines():
        name, _, condition = line.partition("#")[0].partition(" if ")
        if name.strip() and (not condition or condition.strip() in object_info):
            expected.add(name.strip())
    gone, new = expected - set(ours), set(ours) - expected
    problems(
        [f"{n} is gone: saved workflows that use it break" for n in sorted(gone)]
        + [f"{n} is new: add it to tests/host/node_ids.txt" for n in sorted(new)]
    )


# --- texts ---


def test_every_node_introduces_itself(ours):
    found = []
    for node_id, info in ours.items():
        if not re.fullmatch(r"MV[A-Z0-9]\w+", node_id):
            found.append(f"{node_id}: the id lacks our prefix MV")
        if not info["display_name"] or info["display_name"] == node_id:
            found.append(f"{node_id}: no display name")
        if len(info["description"]) < 20:
            found.append(f"{node_id}: no real description")
        if not info["category"].startswith("multiview"):
            found.append(f"{node_id}: category {info['category']!r} is not below 'multiview'")
    names = [info["display_name"] for info in ours.values()]
    found += [f"display name {name!r} is used twice" for name in set(names) if names.count(name) > 1]
    problems(found)


def test_every_input_and_output_has_a_tooltip(ours):
    found = []
    for node_id, info in ours.items():
        for section in ("required", "optional"):
            for name, spec in (info["input"].get(section) or {}).items():
                if len((spec[1] if len(spec) > 1 else {}).get("tooltip") or "") < 10:
                    found.append(f"{node_id}: input {name}")
        tips = info.get("output_tooltips") or []
        for i, name in enumerate(info["output_name"]):
            if i >= len(tips) or not tips[i] or len(tips[i]) < 10:
                found.append(f"{node_id}: output {name}")
    problems(found)


def test_every_node_has_a_help_page_that_the_host_serves(ours, host):
    found = []
    for node_id, info in ours.items():
        try:
            # The address the front end asks (NodeHelpService), after the one with a language.
            text = host.request(f"/extensions/{PACK_NAME}/docs/{node_id}.md").decode("utf-8")
        except HostError as error:
            found.append(f"{node_id}: {error}")
            continue
        found += [
            f"{node_id}: help page does not mention input {name}"
            for section in ("required", "optional")
            for name in info["input"].get(section) or {}
            if name not in text
        ]
    problems(found)


def test_no_help_page_for_a_node_that_does_not_exist(ours):
    pages = {path.stem for path in (ROOT / "web/docs").glob("*.md")}
    known = {
        line.split()[0]
        for line in (ROOT / "tests/host/node_ids.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    assert pages <= known


# --- workflows ---


def test_every_node_appears_in_a_workflow(ours):
    """Except those for nodes of newer hosts: a workflow with them could not be opened on the oldest one."""
    used = {node["type"] for path in WORKFLOWS for node in read(path)["nodes"]}
    lines = (ROOT / "tests/host/node_ids.txt").read_text().splitlines()
    used |= {line.split()[0] for line in lines if " if " in line.partition("#")[0]}
    problems([f"{node_id} is in no workflow" for node_id in ours if node_id not in used])


@by_workflow
def test_workflow_has_a_picture(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert min(picture.size) >= 200


@by_workflow
def test_workflow_fits_the_host(path, host, object_info, placeholder_files):
    """Known node types, right widget counts, and accepted by the host's own prompt validation."""
    prompt = workflow_to_prompt(read(path), object_info)
    with placeholder_files(prompt):
        host.validate(prompt)


@by_workflow
def test_host_offers_the_workflow_as_a_template(path, host):
    offered = host.get_json("/workflow_templates")
    assert path.stem in offered.get(PACK_NAME, [])


@by_workflow
def test_every_node_of_the_workflow_is_labelled_for_its_version(path, object_info):
    """The front end writes which pack a node came from; without it the Manager cannot offer the missing pack."""
    found = []
    for node in read(path)["nodes"]:
        properties = node.get("properties") or {}
        if node["type"].startswith("MV") and not (properties.get("cnr_id") or properties.get("aux_id")):
            found.append(f"node {node['id']} ({node['type']}): properties.cnr_id is missing")
    problems(found)


def test_widget_names_agree_with_the_inputs(ours):
    """The converter's own rule: every value of our nodes is a widget or a socket, and none is both."""
    for node_id, info in ours.items():
        names = [name for name in widget_names(info) if "!" not in name]
        inputs = [name for section in ("required", "optional") for name in info["input"].get(section) or {}]
        assert set(names) <= set(inputs), node_id
        assert len(names) == len(set(names)), node_id
