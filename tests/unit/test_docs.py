"""Help pages and README against the node definitions, read as text: no ComfyUI, no imports of the pack."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "web" / "docs"
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted(PAGES.glob("*.md"))]
FOLDERS = ("docs", "multiview", "nodes", "scripts", "tests", "training", "web", "workflows")
PACKAGE_REGISTRIES = ("pypi.", "pythonhosted.", "registry.comfy", "registry.npmjs", "anaconda.org", "conda.io")


@lru_cache
def nodes() -> dict[str, dict]:
    """Node id -> {"name": display name, "inputs": [...], "outputs": [...]}, as far as they are written out as text."""
    found = {}
    for path in sorted((ROOT / "nodes").glob("*.py")):
        for item in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(item, ast.ClassDef):
                calls = [call for call in ast.walk(item) if isinstance(call, ast.Call)]
                schemas = [call for call in calls if keyword(call, "node_id")]
                if schemas:
                    found[keyword(schemas[0], "node_id")] = {
                        "name": keyword(schemas[0], "display_name"),
                        "inputs": [name for call in calls if (name := input_name(call))],
                        "outputs": [keyword(c, "display_name") for c in calls if attribute(c.func) == "Output"],
                    }
    return found


def keyword(call: ast.Call, name: str) -> str | None:
    """The text given as keyword `name`, None if there is none or it is computed."""
    return next((text(word.value) for word in call.keywords if word.arg == name), None)


def text(value: ast.expr) -> str | None:
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def attribute(value: ast.expr) -> str:
    return value.attr if isinstance(value, ast.Attribute) else ""


def input_name(call: ast.Call) -> str | None:
    """Its name if the call makes an input: io.Int.Input("views", ...) or advanced(io.Int.Input, "views", ...)."""
    if attribute(call.func) == "Input":
        return text(call.args[0]) if call.args else None
    if len(call.args) > 1 and attribute(call.args[0]) == "Input":
        return text(call.args[1])
    return None


def links(document: Path) -> list[str]:
    """Targets of links and pictures, Markdown or HTML, outside code and comments."""
    body = re.sub(r"<!--.*?-->|```.*?```|`[^`\n]*`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(\s*<?([^)\s>]+)", body) + re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']+)", body)


def anchors(document: Path) -> set[str]:
    """What GitHub makes of a document's headings."""
    headings = re.findall(r"^#+\s+(.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def section(document: Path, title: str) -> str:
    """The text below a heading of the second level."""
    parts = re.split(r"^## +", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = [part for part in parts if part.startswith(title + "\n")]
    assert len(found) == 1, f"{document.name} has {len(found)} sections '{title}'"
    return found[0]


def problems(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def test_nodes_are_found():
    """The reader above must see what is there; otherwise every other test here passes on nothing."""
    written = sum(path.read_text(encoding="utf-8").count("node_id=") for path in (ROOT / "nodes").glob("*.py"))
    assert len(nodes()) == written > 10
    assert nodes()["MVOrbitCameras"]["inputs"][:4] == ["preset", "views", "preset_elevation", "elevation"]
    assert "radius" in nodes()["MVOrbitCameras"]["inputs"]  # made by advanced(...)
    assert nodes()["MVOrbitCameras"]["outputs"] == ["cameras", "description"]


def test_every_node_has_a_page_and_every_page_a_node():
    pages = {path.stem for path in PAGES.glob("*.md")}
    problems(
        [f"web/docs/{name}.md is missing" for name in sorted(set(nodes()) - pages)]
        + [f"web/docs/{name}.md is about no node" for name in sorted(pages - set(nodes()))]
    )


@pytest.mark.parametrize("node_id", sorted(nodes()))
def test_page_names_every_input_and_output(node_id):
    page = PAGES / f"{node_id}.md"
    assert page.exists(), f"web/docs/{node_id}.md is missing"
    body = page.read_text(encoding="utf-8")
    sockets = nodes()[node_id]["inputs"] + nodes()[node_id]["outputs"]
    problems([f"{page.name} does not mention `{name}`" for name in sockets if f"`{name}`" not in body])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_local_links_lead_somewhere(document):
    found = []
    for target in links(document):
        if re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE):
            continue
        path, _, anchor = target.partition("#")
        goal = (document.parent / path).resolve() if path else document
        if not goal.exists() or not goal.is_relative_to(ROOT):
            found.append(f"{document.name} links to {target}, which does not exist")
        elif anchor and goal.suffix == ".md" and anchor not in anchors(goal):
            found.append(f"{document.name} links to {target}, but there is no such heading")
    problems(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_named_in_code_exist(document):
    """`docs/x.md`, `tests/benchmarks/*.py`: a path of this repository written as code is a promise too."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]+)`", document.read_text(encoding="utf-8"))
    problems([f"{document.name} names {path}" for path in named if not any(ROOT.glob(path.rstrip("/")))])


def test_readme_lists_every_node():
    """Id and display name, in the section 'Nodes'; and no node that does not exist."""
    listed = section(README, "Nodes")
    found = []
    for node_id, node in nodes().items():
        name = node["name"].removesuffix(" (Multi-View)")
        if not any(f"`{node_id}`" in line and name in line for line in listed.splitlines()):
            found.append(f"README's node list lacks a line with `{node_id}` and '{name}'")
    unknown = sorted(set(re.findall(r"`(MV\w+)`", listed)) - set(nodes()))
    found += [f"README lists {name}, which is no node" for name in unknown]
    problems(found)


def test_readme_names_no_package_registry():
    body = README.read_text(encoding="utf-8").lower()
    problems([f"README names {address}" for address in PACKAGE_REGISTRIES if address in body])
