"""A headless Chromium, driven over the DevTools protocol: the one on this machine, else QtWebEngine from pip.

Used by the browser tests. websocket-client is the only package it needs; QtWebEngine
(dependency group `browser`, 670 MB) is installed by run.py only where no browser is found.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge", "microsoft-edge")
USUAL_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers run as root, where the sandbox refuses to start; the only page is our own host's
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card; newer versions refuse it unless asked
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-allow-origins=*",
)


class BrowserError(RuntimeError):
    """The browser did not start, or the page did not do what was asked."""


def find_browser() -> str | None:
    """A Chromium-type browser: MV_BROWSER, else PATH, else the usual places; None where there is none."""
    named = os.environ.get("MV_BROWSER")
    if named:
        return named
    found = [path for name in NAMES if (path := shutil.which(name))]
    return next(iter(found + [place for place in USUAL_PLACES if Path(place).is_file()]), None)


def browser_command(port: int, profile: str, size: tuple[int, int]) -> list[str]:
    """How to start a browser here. Raises BrowserError where neither a browser nor QtWebEngine is installed."""
    browser = find_browser()
    if browser:
        return [
            browser, *FLAGS, f"--remote-debugging-port={port}", f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}", "about:blank",
        ]  # fmt: skip
    if importlib.util.find_spec("PySide6") and importlib.util.find_spec("PySide6.QtWebEngineWidgets"):
        return [sys.executable, str(Path(__file__).with_name("qt_browser.py")), str(port), profile, *map(str, size)]
    raise BrowserError(
        "no Chromium, Chrome or Edge on this machine, and QtWebEngine (group `browser`) is not installed"
    )


class Browser:
    """One page of a new browser, as a context manager.

    console: (level, text) of everything the page logged, uncaught exceptions included. requests: every address asked.
    failures: (status, address) of answers from 400 on. All grow while the other methods run; clear() forgets them.
    """

    def __init__(self, size: tuple[int, int] = (1600, 1000), start_timeout: float = 90):
        self.size, self.start_timeout = size, start_timeout
        self.clear()

    def clear(self) -> None:
        self.console: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.failures: list[tuple[int, str]] = []

    def __enter__(self) -> Browser:
        self.profile = tempfile.mkdtemp(prefix="mv-browser-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.log = Path(self.profile, "browser.log")
        with open(self.log, "wb") as log:
            command = browser_command(port, self.profile, self.size)
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            self._connect(port)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        if hasattr(self, "socket"):
            with contextlib.suppress(Exception):
                self.call("Browser.close")
            self.socket.close()
        for action in (self.process.terminate, self.process.kill):
            try:
                self.process.wait(timeout=5)
                break
            except subprocess.TimeoutExpired:
                action()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _connect(self, port: int) -> None:
        import websocket

        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + self.start_timeout
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BrowserError(f"the browser did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            try:
                targets = json.loads(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=5).read())
                page = next(t for t in targets if t["type"] == "page")
                break
            except (OSError, StopIteration):
                time.sleep(0.1)
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=1, http_no_proxy=["*"])
        self.number = 0
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")
        width, height = self.size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, timeout: float = 60, **parameters) -> dict:
        """One DevTools command; events that arrive meanwhile are taken in."""
        number = self._send(method, **parameters)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            message = self._receive()
            if message.get("id") == number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
                return message["result"]
        raise BrowserError(f"{method} was not answered within {timeout:.0f} s")

    def _send(self, method: str, **parameters) -> int:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        return self.number

    def _receive(self) -> dict:
        """The next message, {} when none came within a second."""
        import websocket

        try:
            message = json.loads(self.socket.recv())
        except websocket.WebSocketTimeoutException:
            return {}
        except websocket.WebSocketException as error:
            raise BrowserError(f"the browser is gone: {error}") from None
        data = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                words = [str(a.get("value", a.get("description", ""))) for a in data["args"]]
                self.console.append((data["type"], " ".join(words)))
            case "Runtime.exceptionThrown":
                details = data["exceptionDetails"]
                text = (details.get("exception") or {}).get("description") or details["text"]
                self.console.append(("exception", f"{text} ({details.get('url', '')})"))
            case "Log.entryAdded":
                self.console.append(
                    (data["entry"]["level"], f"{data['entry']['text']} ({data['entry'].get('url', '')})")
                )
            case "Page.javascriptDialogOpening":  # "leave this page?"; nobody is there to answer
                self._send("Page.handleJavaScriptDialog", accept=True)
            case "Network.requestWillBeSent":
                self.requests.append(data["request"]["url"])
            case "Network.responseReceived" if data["response"]["status"] >= 400:
                self.failures.append((data["response"]["status"], data["response"]["url"]))
        return message

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str, timeout: float = 60):
        """The value of a JavaScript expression (a promise is awaited). Raises BrowserError when it throws."""
        answer = self.call(
            "Runtime.evaluate", timeout, expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            text = (details.get("exception") or {}).get("description") or details["text"]
            raise BrowserError(f"{text}\nin: {expression[:300]}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 60):
        """Wait until a JavaScript expression is truthy, and return its value."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(BrowserError):
                value = self.evaluate(expression)
                if value:
                    return value
            time.sleep(0.2)
        raise BrowserError(f"waited {timeout:.0f} s in vain for: {expression}\nconsole: {self.console[-10:]}")

    def screenshot(self, path: Path, quality: int | None = None) -> None:
        """The page as .png, or as .jpg with a quality."""
        kind = {"format": "png"} if quality is None else {"format": "jpeg", "quality": quality}
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **kind)["data"]))
