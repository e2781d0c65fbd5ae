"""What importing the pack adds to ComfyUI's start, beyond what the host itself had imported by then.

    .venv/bin/python tests/benchmarks/bench_import.py [processes]

Every figure comes from a fresh process; the goal is a median below 0.3 s.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def comfy_host():
    """scripts/comfy_host, which no install puts on the path."""
    spec = importlib.util.spec_from_file_location("comfy_host", ROOT / "scripts" / "comfy_host" / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfy_host"] = module
    spec.loader.exec_module(module)
    return module


def probe(comfyui: Path) -> dict:
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    script = ROOT / "scripts" / "comfy_host" / "import_probe.py"
    answer = subprocess.run(
        [python, str(script), str(ROOT)], cwd=comfyui, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    comfyui = comfy_host().find_comfyui()
    runs = [probe(comfyui) for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 7)]
    print(f"host {comfyui}")
    print(f"pack import: {runs[0]['nodes']} nodes, {len(runs[0]['modules'])} modules beyond the host's own")
    for name, key in (("wall", "seconds"), ("CPU", "cpu_seconds")):
        values = [run[key] for run in runs]
        print(
            f"{name} time: median {statistics.median(values):.3f} s of {len(values)} processes "
            f"(min {min(values):.3f}, max {max(values):.3f})"
        )
    print("goal: median < 0.3 s (wall time on an idle machine)")


if __name__ == "__main__":
    main()
