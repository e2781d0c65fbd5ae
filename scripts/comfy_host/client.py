"""HTTP and websocket client of a running ComfyUI."""

from __future__ import annotations

import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


class HostError(RuntimeError):
    """Something the host answered or did; the message is meant to be read by a person."""


class PromptRejected(HostError):
    """The host refused the prompt before running it. `errors` is node id -> list of sentences."""

    def __init__(self, message: str, errors: dict[str, list[str]]):
        super().__init__(message)
        self.errors = errors


class NodeFailed(HostError):
    """A node raised. `exception_message` is the text a user sees in the browser."""

    def __init__(self, data: dict):
        self.node_id = str(data.get("node_id"))
        self.node_type = data.get("node_type")
        self.exception_type = data.get("exception_type")
        self.exception_message = (data.get("exception_message") or "").strip()
        self.traceback = "".join(data.get("traceback") or [])
        super().__init__(
            f"{self.node_type} (node {self.node_id}) raised {self.exception_type}: {self.exception_message}\n"
            f"{self.traceback}"
        )


class Interrupted(HostError):
    """The prompt was interrupted before it finished."""


@dataclass(frozen=True)
class Progress:
    """One progress event. `value`/`maximum` are None for 'this node has started'."""

    node_id: str
    value: float | None
    maximum: float | None


@dataclass
class RunResult:
    """What one prompt left behind.

    outputs: node id -> the node's ui dictionary. executed: node ids that ran (not served from the cache).
    previews: number of preview pictures sent while running; last_preview: the encoded bytes of the last one.
    """

    prompt_id: str
    outputs: dict[str, dict]
    seconds: float
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    previews: int = 0
    last_preview: bytes | None = None

    def files(self, node_id: str | None = None) -> Iterator[dict]:
        """Every {filename, subfolder, type} that the nodes (or one node) reported."""
        for key, ui in self.outputs.items():
            if node_id is not None and key != str(node_id):
                continue
            for entries in ui.values():
                for entry in entries if isinstance(entries, list) else []:
                    if isinstance(entry, dict) and "filename" in entry:
                        yield entry


def readable_node_errors(body: dict) -> dict[str, list[str]]:
    """The host's validation answer as node id -> sentences."""
    found = {}
    for node_id, entry in (body.get("node_errors") or {}).items():
        found[str(node_id)] = [
            f"{entry.get('class_type')}: {e.get('message')}" + (f" ({e['details']})" if e.get("details") else "")
            for e in entry.get("errors", [])
        ]
    return found


def _rejected(body: dict) -> PromptRejected:
    errors = readable_node_errors(body)
    error = body.get("error") or {}
    head = error if isinstance(error, str) else " ".join(filter(None, (error.get("message"), error.get("details"))))
    lines = [f"  node {node_id}: {text}" for node_id, texts in errors.items() for text in texts]
    return PromptRejected("\n".join(["the host refused the prompt: " + head, *lines]), errors)


class ComfyClient:
    """Calls on a ComfyUI that already listens at `url` (http://host:port)."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    # --- plain HTTP ---

    def request(
        self, path: str, data: dict | bytes | None = None, headers: dict | None = None, timeout: float = 60
    ) -> bytes:
        """GET, or POST when data is given (a dict goes as JSON). Raises HostError with the answer's text."""
        headers = dict(headers or {})
        if isinstance(data, dict):
            data = json.dumps(data).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        # The host is local: a proxy configured on the machine must not be asked for it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            body = error.read()
            try:
                parsed = json.loads(body)
            except ValueError:
                parsed = None
            if path.endswith("/prompt") and isinstance(parsed, dict):
                raise _rejected(parsed) from None
            raise HostError(f"{path} answered {error.code}: {body[:500].decode(errors='replace')}") from None
        except OSError as error:
            raise HostError(f"{path} could not be reached: {error}") from None

    def get_json(self, path: str, timeout: float = 60):
        return json.loads(self.request(path, timeout=timeout) or b"null")

    def system_stats(self) -> dict:
        return self.get_json("/system_stats", timeout=10)

    def object_info(self) -> dict:
        """Every node the host knows: id -> its definition."""
        return self.get_json("/object_info")

    def validate(self, prompt: dict) -> None:
        """Ask the host's own validation without running anything; raises PromptRejected.

        Only on a host started with the test helper pack (tests/host/helper_pack), which adds the route.
        """
        answer = json.loads(self.request("/mvtest/validate", {"prompt": prompt}))
        if not answer["valid"] or answer["node_errors"]:
            raise _rejected(answer)

    def queue(self, prompt: dict, client_id: str | None = None) -> str:
        """Queue an API-format prompt and return its id. Raises PromptRejected, also when only some outputs are bad
        (the host would then run the rest and leave the reader wondering)."""
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        answer = json.loads(self.request("/prompt", body))
        if answer.get("node_errors"):
            self.drop(answer["prompt_id"])
            raise _rejected(answer)
        return answer["prompt_id"]

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop the prompt that runs now (only if it is `prompt_id`, when given)."""
        self.request("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def drop(self, prompt_id: str, patience: float = 30) -> None:
        """Take a prompt out of the queue, whether it waits or runs, and wait until it is gone."""
        self.request("/queue", {"delete": [prompt_id]})
        deadline = time.monotonic() + patience
        # The host forgets an interrupt that arrives just before the prompt begins, so it is repeated.
        while prompt_id in self.queued() and time.monotonic() < deadline:
            self.interrupt(prompt_id)
            time.sleep(0.05)

    def history(self, prompt_id: str) -> dict | None:
        return self.get_json(f"/history/{prompt_id}").get(prompt_id)

    def queued(self) -> list[str]:
        """Ids of the prompts that wait or run."""
        queue = self.get_json("/queue")
        return [entry[1] for entry in queue["queue_running"] + queue["queue_pending"]]

    def free(self) -> None:
        """Drop cached node results and loaded models."""
        self.request("/free", {"unload_models": True, "free_memory": True})

    def upload_image(self, path: Path | str, name: str | None = None, subfolder: str = "") -> str:
        """Put a picture into the host's input folder; returns the value for LoadImage's `image`."""
        path = Path(path)
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in (("overwrite", "true"), ("subfolder", subfolder))
        ]
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name or path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = b"".join([*parts, head.encode(), path.read_bytes(), f"\r\n--{boundary}--\r\n".encode()])
        answer = json.loads(
            self.request("/upload/image", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        )
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def download(self, file: dict) -> bytes:
        """The bytes of a {filename, subfolder, type} entry."""
        keys = ("filename", "subfolder", "type")
        return self.request("/view?" + urllib.parse.urlencode({k: file.get(k, "") for k in keys}))

    # --- running with progress ---

    def run(
        self, prompt: dict, on_progress: Callable[[Progress], None] | None = None, timeout: float = 600
    ) -> RunResult:
        """Run an API-format prompt to its end and return what it made.

        on_progress is called from this thread for every event; it may call interrupt(). Raises PromptRejected,
        NodeFailed, Interrupted, or HostError when the host died or `timeout` seconds went by (the prompt is then
        interrupted).
        """
        import websocket  # websocket-client; only running with progress needs it

        client_id = uuid.uuid4().hex
        # The host stays silent while it loads models or a node computes without progress: a receive times out often,
        # so that the deadline and the process are checked, and is then repeated.
        socket = websocket.create_connection(
            f"{self.url.replace('http', 'ws', 1)}/ws?clientId={client_id}", timeout=1.0, http_no_proxy=["*"]
        )
        try:
            socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            started = time.monotonic()
            result = RunResult(self.queue(prompt, client_id), {}, 0.0)
            try:
                self._follow(socket, result, on_progress, started + timeout)
            except websocket.WebSocketException as error:
                raise HostError(f"the connection to the host broke: {error}{self.describe_failure()}") from None
            except BaseException:
                if self.alive():
                    self.drop(result.prompt_id)
                raise
        finally:
            socket.close()
        result.seconds = time.monotonic() - started
        self._read_history(result)
        return result

    def alive(self) -> bool:
        return True

    def describe_failure(self) -> str:
        """What to add to an error when the host itself may have died."""
        return ""

    def _follow(self, socket, result: RunResult, on_progress, deadline: float) -> None:
        import websocket

        report = on_progress or (lambda event: None)
        while True:
            if time.monotonic() > deadline:
                raise HostError(f"the prompt took longer than allowed{self.describe_failure()}")
            try:
                message = socket.recv()
            except websocket.WebSocketTimeoutException:
                if not self.alive():
                    raise HostError(f"the host died while it ran the prompt{self.describe_failure()}") from None
                continue
            if isinstance(message, bytes):
                _take_preview(message, result)
                continue
            if not message:
                raise websocket.WebSocketConnectionClosedException("closed by the host")
            event = json.loads(message)
            data = event.get("data") or {}
            if data.get("prompt_id") != result.prompt_id:
                continue
            kind = event["type"]
            if kind == "executing" and data.get("node") is None:
                return
            if kind in ("execution_success", "execution_error", "execution_interrupted"):
                return
            if kind == "executing":
                result.executed.append(str(data["node"]))
                report(Progress(str(data["node"]), None, None))
            elif kind == "progress":
                report(Progress(str(data.get("node")), data["value"], data["max"]))
            elif kind == "execution_cached":
                result.cached += [str(node) for node in data.get("nodes", [])]

    def _read_history(self, result: RunResult) -> None:
        """The history is the authority on how a prompt ended; it is written just after the last websocket message."""
        entry = None
        for _ in range(100):
            entry = self.history(result.prompt_id)
            if entry:
                break
            time.sleep(0.1)
        if not entry:
            raise HostError(f"the host kept no history of prompt {result.prompt_id}{self.describe_failure()}")
        result.outputs = entry["outputs"]
        messages = dict(entry["status"]["messages"])
        if "execution_error" in messages:
            raise NodeFailed(messages["execution_error"])
        if "execution_interrupted" in messages:
            raise Interrupted(
                f"prompt {result.prompt_id} was interrupted in node {messages['execution_interrupted'].get('node_id')}"
            )
        if entry["status"]["status_str"] != "success":
            raise HostError(f"prompt {result.prompt_id} ended as {entry['status']['status_str']!r}")


def _take_preview(message: bytes, result: RunResult) -> None:
    """Binary events (server.py, protocol.py): big-endian kind; 1 = picture after its format, 4 = after metadata."""
    kind = struct.unpack(">I", message[:4])[0]
    if kind == 1:
        result.last_preview = message[8:]
    elif kind == 4:
        length = struct.unpack(">I", message[4:8])[0]
        result.last_preview = message[8 + length :]
    else:
        return
    result.previews += 1
