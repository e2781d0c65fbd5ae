"""The ecosystem's own checkers on this checkout, and the layering rules of the repository."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_host import find_comfyui, workflow_to_prompt

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
SOURCES = [p for folder in ("nodes", "multiview") for p in sorted((ROOT / folder).rglob("*.py"))] + [
    ROOT / "__init__.py"
]
HEAVY = {"gsplat", "kornia", "diffusers", "transformers"}
HOST_ONLY = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "server", "execution"}
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "PYTHONUTF8": "1",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
}


def call(*command, cwd=ROOT, **env):
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **OFFLINE, **env},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )


def tool(name: str) -> str:
    """A command that the test group installed beside this interpreter."""
    return str(Path(sys.executable).with_name(name + (".exe" if os.name == "nt" else "")))


# --- checkers ---


def test_comfy_test_lint():
    answer = call(tool("comfy-test"), "lint", "--strict", ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_comfy_node_validate(tmp_path):
    # comfy-cli keeps its settings in the home folder; a new one keeps the test from reading or changing the user's.
    answer = call(tool("comfy"), "--skip-prompt", "node", "validate", HOME=str(tmp_path), USERPROFILE=str(tmp_path))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "passed" in answer.stdout + answer.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_comfy_workflow_validate(path, object_info, placeholder_files, host, tmp_path):
    prompt = workflow_to_prompt(json.loads(path.read_text(encoding="utf-8")), object_info)
    with placeholder_files(prompt):
        (tmp_path / "object_info.json").write_text(json.dumps(host.object_info()))
    (tmp_path / "api.json").write_text(json.dumps(prompt))
    answer = call(
        tool("comfy"),
        "--skip-prompt",
        "workflow",
        "validate",
        "--workflow",
        tmp_path / "api.json",
        "--input",
        tmp_path / "object_info.json",
        HOME=str(tmp_path),
        USERPROFILE=str(tmp_path),
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_ruff():
    answer = call(tool("ruff"), "check", "--no-cache", ".")
    assert answer.returncode == 0, answer.stdout


# --- imports ---


def imports(path: Path, top_level_only: bool = False):
    """(line, first part of the module name) of a file's absolute imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(child)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.walk(f)
    }
    for node in ast.walk(tree):
        if top_level_only and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


def test_the_library_never_imports_the_host():
    found = [
        f"{p.relative_to(ROOT)}:{line} imports {name}"
        for p in SOURCES
        if p.is_relative_to(ROOT / "multiview")
        for line, name in imports(p)
        if name in HOST_ONLY
    ]
    assert not found, "\n".join(found)


def test_imports_go_from_nodes_to_library_only():
    found = [
        str(p.relative_to(ROOT))
        for p in SOURCES
        if p.is_relative_to(ROOT / "multiview")
        if re.search(r"^\s*from \.+nodes", p.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not found


def test_heavy_packages_are_imported_inside_functions():
    found = [
        f"{p.relative_to(ROOT)}:{line} imports {name}"
        for p in SOURCES
        for line, name in imports(p, top_level_only=True)
        if name in HEAVY
    ]
    assert not found, "\n".join(found)


def test_importing_the_whole_library_brings_in_nothing_heavy():
    """The whole of multiview/ in a bare process, so that an import through a third package shows as well."""
    modules = [
        ".".join(("probe", *p.relative_to(ROOT).with_suffix("").parts))
        for p in SOURCES
        if p.is_relative_to(ROOT / "multiview")
    ]
    code = f"""
import importlib, importlib.util, sys
root = {str(ROOT)!r}
spec = importlib.util.spec_from_file_location("probe", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["probe"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["probe"])
for name in {modules!r}:
    importlib.import_module(name.removesuffix(".__init__"))
print(sorted({HEAVY | HOST_ONLY!r} & set(sys.modules)))
"""
    answer = call(sys.executable, "-c", code, cwd=ROOT.parent)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


def test_importing_the_pack_in_the_host_brings_in_nothing_heavy():
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    answer = call(python, ROOT / "scripts/comfy_host/import_probe.py", ROOT, cwd=find_comfyui())
    assert answer.returncode == 0, answer.stderr[-3000:]
    added = {name.split(".")[0] for name in json.loads(answer.stdout.splitlines()[-1])["modules"]}
    assert not HEAVY & added


# --- texts and files ---


def tracked_files() -> list[Path]:
    answer = call("git", "ls-files")
    if answer.returncode == 0:
        return [ROOT / line for line in answer.stdout.splitlines() if (ROOT / line).is_file()]
    # An unpacked archive has no git; everything but what .gitignore names is then the pack.
    ignored = {".venv", ".host", "__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache", "output"}
    return [
        p
        for p in ROOT.rglob("*")
        if p.is_file() and not ignored & set(p.relative_to(ROOT).parts) and p.name != "uv.lock"
    ]


def test_sources_are_cp1252_safe():
    """Windows consoles and readers without an encoding argument fail on anything else."""
    found = []
    for path in tracked_files():
        if path.suffix == ".py":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    line.encode("cp1252")
                except UnicodeEncodeError as error:
                    found.append(f"{path.relative_to(ROOT)}:{number}: {error.object[error.start]!r}")
    assert not found, "\n".join(found)


def test_no_package_registry_is_named():
    """Which registry is used is the machine's business (pip's and uv's configuration)."""
    pattern = re.compile(
        r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|--(extra-)?index-url|\[\[tool\.uv\.index\]\]",
        re.IGNORECASE,
    )
    found = [
        f"{p.relative_to(ROOT)}: {match.group()}"
        for p in tracked_files()
        if p.suffix in {".py", ".toml", ".txt", ".md", ".sh", ".yml", ".yaml", ".json", ".cfg", ""}
        and p != Path(__file__).resolve()
        for match in [pattern.search(p.read_text(encoding="utf-8", errors="replace"))]
        if match
    ]
    assert not found, "\n".join(found)


def test_no_module_is_too_long_to_read():
    found = [
        f"{p.relative_to(ROOT)}: {n} lines"
        for p in SOURCES
        for n in [len(p.read_text(encoding="utf-8").splitlines())]
        if n > 400
    ]
    assert not found, "\n".join(found)


def test_requirements_agree_with_pyproject():
    """The Manager installs from requirements.txt, the registry shows pyproject's; torch is never in either."""
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert sorted(filter(None, lines)) == sorted(declared)
    assert not [d for d in declared if re.match(r"torch(vision|audio)?\b", d) or "<" in d or "==" in d]
