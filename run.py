"""The repository's two commands, for a machine with nothing but Python 3.11 and pip:

    python run.py demo [options]       one picture -> 16 views -> a splat, in a real headless ComfyUI (scripts/demo.py)
    python run.py test [pytest args]   all tests, the host tests against a real ComfyUI

Both make (and later reuse) an environment in .venv. Nothing is installed outside the repository folder.

COMFYUI_PATH    run your ComfyUI checkout instead of the one that is installed here
COMFYUI_PYTHON  ... with this interpreter instead of .venv's
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from scripts.browser_session import find_browser

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
BOOTSTRAP = ROOT / ".host" / "bootstrap"
GROUPS = {"demo": ["host"], "test": ["host", "test"]}
BROWSER_GROUP = "browser"  # QtWebEngine, only where the machine has no browser for the browser tests
NEEDED_GB = 7.0
WHAT_FOR = {
    "demo": "The demo itself takes at most 6 minutes on 2 CPU cores.",
    "test": "The tests take some minutes more; unit tests first, then ComfyUI, then the browser.",
}


def say(text: str) -> None:
    print(f"[run.py] {text}", flush=True)


def stop(text: str) -> None:
    raise SystemExit(f"[run.py] {text}")


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp(command: str) -> tuple[Path, str]:
    """The file that says an installation was completed, and what it must say to still be true."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    return ENVIRONMENT / f".complete-{command}", wanted


def is_ready(command: str) -> bool:
    file, wanted = stamp(command)
    return python_of(ENVIRONMENT).exists() and file.exists() and file.read_text() == wanted


def find_uv() -> list[str]:
    """uv from PATH, else one that pip installs into a small environment of its own (.venv is uv's to clean up)."""
    on_path = shutil.which("uv")
    if on_path and b"--group" in subprocess.run([on_path, "sync", "--help"], capture_output=True).stdout:
        return [on_path]
    python = python_of(BOOTSTRAP)
    uv = python.with_name("uv.exe" if os.name == "nt" else "uv")
    if uv.exists() and subprocess.run([uv, "--version"], capture_output=True).returncode == 0:
        return [str(uv)]
    say(f"installing uv into {BOOTSTRAP.relative_to(ROOT)} (20 MB)")
    venv.create(BOOTSTRAP, with_pip=True, clear=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    return [str(uv)]


def pip_setting(name: str) -> str | None:
    """One value of pip's configuration on this machine (its environment variables included)."""
    if f"PIP_{name}".upper().replace("-", "_") in os.environ:
        return os.environ[f"PIP_{name}".upper().replace("-", "_")]
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True
    )
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def uv_environment() -> dict[str, str]:
    """uv does not read pip's configuration: a mirror or certificate set there is passed on, unless uv has its own."""
    env = dict(os.environ)
    env.pop("VIRTUAL_ENV", None)
    env["UV_PROJECT_ENVIRONMENT"] = str(ENVIRONMENT)
    mirror = pip_setting("index-url")
    if mirror and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX"} & set(env):
        env["UV_DEFAULT_INDEX"] = mirror
    certificate = pip_setting("cert")
    if certificate and Path(certificate).is_file():
        env.setdefault("SSL_CERT_FILE", certificate)
    return env


def folder_gb(folder: Path) -> float:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                total += os.path.getsize(path)
    return total / 1e9


def install(command: str) -> None:
    """Bring .venv up to date. Safe to repeat after an interruption: the stamp comes last, and packages that may be
    half-written are installed again."""
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    fresh = not python_of(ENVIRONMENT).exists()
    say("installing ComfyUI, PyTorch and this pack's tools into .venv" if fresh else "bringing .venv up to date")
    say(
        f"this downloads about 3 GB and takes 1 to 10 minutes, depending on the connection; .venv then uses about 6 GB "
        f"({free_gb:.0f} GB are free)"
    )
    if fresh and free_gb < NEEDED_GB:
        stop(f"not enough disk space: {NEEDED_GB:.0f} GB are needed in {ROOT}, {free_gb:.1f} GB are free.")
    uv, env = find_uv(), uv_environment()
    if not fresh and subprocess.run([python_of(ENVIRONMENT), "-c", ""], capture_output=True).returncode != 0:
        say(".venv is broken (its Python does not start); making it anew")
        shutil.rmtree(ENVIRONMENT)
    unfinished = ENVIRONMENT / ".installing"
    repair = ["--reinstall"] if unfinished.exists() else []
    names = GROUPS[command] + ([BROWSER_GROUP] if command == "test" and not find_browser() else [])
    groups = [word for group in names for word in ("--group", group)]
    # --inexact: what another command or the developer has added to .venv stays.
    sync = [*uv, "sync", "--inexact", "--no-install-project", "--python", sys.executable, *repair, *groups]
    if fresh:
        subprocess.run(
            [*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable], cwd=ROOT, env=env, check=True
        )
    unfinished.touch()
    if subprocess.run(sync, cwd=ROOT, env=env).returncode != 0:
        stop("the installation failed; see uv's message above. Repeat the command: what is already downloaded is kept.")
    file, wanted = stamp(command)
    unfinished.unlink()
    file.write_text(wanted)


def run(command: str, arguments: list[str]) -> int:
    python = str(python_of(ENVIRONMENT))
    work = {"demo": [python, str(ROOT / "scripts" / "demo.py")], "test": [python, "-m", "pytest"]}[command]
    try:
        return subprocess.run([*work, *arguments], cwd=ROOT).returncode
    except KeyboardInterrupt:
        return 130


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in GROUPS:
        print(__doc__)
        return 2
    command, arguments = sys.argv[1], sys.argv[2:]
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the message that users of an older Python get
        stop(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}.")
    started = time.monotonic()
    say(WHAT_FOR[command])
    if is_ready(command):
        say("the environment in .venv is complete")
    else:
        install(command)
        say(f"installed in {(time.monotonic() - started) / 60:.1f} minutes; .venv uses {folder_gb(ENVIRONMENT):.1f} GB")
    began = time.monotonic()
    code = run(command, arguments)
    say(
        f"{command}: {(time.monotonic() - began) / 60:.1f} minutes, exit code {code}; in the repository folder: "
        f".venv {folder_gb(ENVIRONMENT):.1f} GB, .host {folder_gb(ROOT / '.host'):.2f} GB"
    )
    return code


if __name__ == "__main__":
    raise SystemExit(main())
