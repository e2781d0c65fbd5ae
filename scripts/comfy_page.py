"""ComfyUI's page in a browser: open workflows, ask what the front end made of them, take their picture."""

from __future__ import annotations

import json
from pathlib import Path

from browser_session import Browser
from comfy_host import ComfyClient

# Nothing that covers the canvas on a first visit, and nothing that goes to the internet.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "99.0.0",
    "Comfy.Release.Status": "what's new seen",
    "Comfy.Release.Version": "99.0.0",
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.ColorPalette": "dark",
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.Persist": False,
}


class ComfyPage:
    """The page of a running host in a browser that has just been opened."""

    def __init__(self, browser: Browser, host: ComfyClient, vue_nodes: bool = False):
        self.browser, self.host = browser, host
        host.request("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": vue_nodes})
        # A banner of front end 1.32 that recommends the other kind of nodes.
        browser.call(
            "Page.addScriptToEvaluateOnNewDocument", source="localStorage.setItem('vueNodesBannerDismissed', 'true')"
        )
        browser.clear()
        browser.goto(host.url)
        # The node definitions are registered last; before that loadGraphData would find only unknown types.
        browser.wait_for(
            "Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler"
            " && window.app.extensionManager && document.querySelector('canvas'))",
            timeout=120,
        )

    def open(self, workflow: dict, name: str = "test") -> None:
        """Load a UI workflow as if its file had been dropped onto the page; forgets what the page logged before."""
        self.browser.clear()
        self.browser.evaluate(
            f"app.loadGraphData({json.dumps(workflow)}, true, true, {json.dumps(name)}).then(() => true)"
        )

    def unknown_nodes(self) -> list[str]:
        """Types of nodes that the front end shows in red."""
        return self.browser.evaluate(
            "app.graph._nodes.filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types))"
            ".map(n => n.type)"
        )

    def alerts(self) -> list[str]:
        """What the page tells its user in dialogs and pop-up messages (missing nodes, invalid file, ...)."""
        return self.browser.evaluate(
            "[...document.querySelectorAll('.p-toast-message, .p-dialog, [role=alertdialog], [role=dialog],"
            " [data-testid=error-overlay]')]"
            ".map(e => e.innerText.trim()).filter(Boolean)"
        )

    def prompt(self) -> dict:
        """The API prompt that pressing Run would send."""
        return self.browser.evaluate("app.graphToPrompt().then(p => p.output)")

    def fit_view(self) -> None:
        """Show the whole graph."""
        self.browser.evaluate(
            """(() => {
                const nodes = app.graph._nodes, c = app.canvas.canvas, ratio = window.devicePixelRatio || 1;
                const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1] - 30));
                const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
                const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
                const width = c.width / ratio - 90, height = c.height / ratio - 150;
                const scale = Math.min(1, width / (right - left), height / (bottom - top));
                app.canvas.ds.scale = scale;
                app.canvas.ds.offset[0] = 70 / scale - left + (width / scale - (right - left)) / 2;
                app.canvas.ds.offset[1] = 90 / scale - top + (height / scale - (bottom - top)) / 2;
                app.canvas.setDirty(true, true);
                return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))));
            })()"""
        )

    def picture(self, path: Path, quality: int | None = None) -> None:
        self.fit_view()
        self.browser.screenshot(path, quality)

    def complaints(self, *about: str) -> list[str]:
        """Errors the page logged (all, or those that mention one of the words)."""
        bad = [f"{level}: {text}" for level, text in self.browser.console if level in ("error", "exception", "assert")]
        bad += [f"{status}: {url}" for status, url in self.browser.failures]
        # Offline the front end's own questions to its registry, which name every pack, are blocked.
        bad = [line for line in bad if "api.comfy.org" not in line]
        return [line for line in bad if not about or any(word.lower() in line.lower() for word in about)]
