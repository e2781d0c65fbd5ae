"""The turntable in the real front end, with either way of drawing nodes: real mouse, wheel, touch and keys."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from workflow_graph import Graph

VIEWS, SIDE = 8, 64
TABLE = "app.graph._nodes.filter(n => n.type === 'MVTurntablePreview').at({which})"
ELEMENT = TABLE + ".widgets.find(w => w.name === 'turntable').element"
# The pixels in the middle of the left and of the right half.
PIXELS = """(c => [0.25, 0.75].map(x => [...c.getContext('2d').getImageData(
    Math.floor(c.width * x), Math.floor(c.height / 2), 1, 1).data]))({element}.querySelector('canvas'))"""


class Table:
    """The first (or which-th) turntable of the page."""

    def __init__(self, page, which: int = 0):
        self.page, self.browser = page, page.browser
        self.node, self.element = TABLE.format(which=which), ELEMENT.format(which=which)

    def ask(self, expression: str):
        return self.browser.evaluate(expression.replace("NODE", self.node).replace("ELEMENT", self.element))

    def wait(self, expression: str):
        return self.browser.wait_for(expression.replace("NODE", self.node).replace("ELEMENT", self.element))

    def ready(self) -> Table:
        self.wait("ELEMENT.dataset.state === 'ready'")
        return self

    def view(self) -> int:
        return int(self.ask("ELEMENT.querySelector('canvas').getAttribute('aria-valuenow')"))

    def box(self) -> tuple[float, float, float, float]:
        return self.ask(
            "(r => [r.x, r.y, r.width, r.height])(ELEMENT.querySelector('canvas').getBoundingClientRect())"
        )

    def middle(self) -> tuple[float, float]:
        x, y, width, height = self.box()
        return x + width / 2, y + height / 2

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        self.browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, share: float) -> None:
        """Pull the picture by a share of its width."""
        x, y = self.middle()
        goal = x + share * self.box()[2]
        self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        for step in (0.5, 1.0):
            self.mouse("mouseMoved", x + step * (goal - x), y, button="left", buttons=1)
        self.mouse("mouseReleased", goal, y, button="left", clickCount=1)

    def key(self, key: str) -> None:
        self.browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
        self.browser.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def pixels(self) -> np.ndarray:
        """(2,3): the picture left and right."""
        return np.array(self.ask(PIXELS.format(element="ELEMENT")))[:, :3]


def saved_pixels(page, files: list[dict], index: int) -> np.ndarray:
    with Image.open(io.BytesIO(page.host.download(files[index]))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return pixels[SIDE // 2, [SIDE // 4, 3 * SIDE // 4]]


@pytest.fixture
def table(page, object_info) -> Table:
    """Views of a toy and their negatives, run by the page itself."""
    graph = Graph("turntable", object_info)
    with graph.group("All"):
        cameras = graph.node(
            "MVOrbitCameras", preset="custom orbit", views=VIEWS, preset_elevation=False, elevation=15.0, radius=1.5
        )["cameras"]
        toy = graph.node("MVDemoObject", cameras=cameras, size=SIDE)
        graph.column()
        before = graph.node("ImageInvert", image=toy["views"])["IMAGE"]
        graph.node("MVTurntablePreview", views=toy["views"], before=before, cameras=cameras).shows(360, 400)
    page.open(graph.to_json())
    page.fit_view()
    page.browser.evaluate("app.queuePrompt(0).then(() => true)")
    return Table(page).ready()


def test_it_draws_and_turns(table, tmp_path):
    page = table.page
    kept = table.ask("NODE.properties.mv_turntable")
    assert len(kept["images"]) == len(kept["before"]) == VIEWS
    # Left of the line are the negatives, right of it the views.
    for index in (0, 1):
        left, right = saved_pixels(page, kept["before"], index)[0], saved_pixels(page, kept["images"], index)[1]
        assert np.abs(table.pixels() - [left, right]).max() <= 2
        table.drag(-1.0 / VIEWS)
    assert table.view() == 3
    place = table.ask("[...NODE.pos]")
    table.drag(0.5)  # half a turn back, over the end
    assert table.view() == 7
    assert table.ask("[...NODE.pos]") == place, "the node moved with the drag"
    x, y = table.middle()
    table.mouse("mouseWheel", x, y, deltaX=0, deltaY=100)
    table.wait("ELEMENT.querySelector('canvas').getAttribute('aria-valuenow') === '8'")
    for key, view in (("ArrowRight", 1), ("ArrowLeft", 8), ("Home", 1), ("ArrowUp", 2)):
        table.key(key)
        assert table.view() == view, key
    assert table.ask("[...NODE.pos]") == place, "the arrow keys moved the node"
    assert table.ask("ELEMENT.querySelector('output').textContent") == "view 2 of 8, azimuth 45\u00b0"
    touch = [{"x": x, "y": y}]
    table.browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=touch)
    touch = [{"x": x - table.box()[2] / VIEWS, "y": y}]
    table.browser.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=touch)
    table.browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert table.view() == 3
    page.browser.screenshot(tmp_path / "turntable.png")
    assert page.complaints("turntable", "multiview", "mv_") == []


def test_it_compares_and_plays(table):
    kept = table.ask("NODE.properties.mv_turntable")
    for value, files in (("0", "images"), ("100", "before")):
        table.ask(
            f"(s => {{ s.value = '{value}'; s.dispatchEvent(new Event('input')); }})(ELEMENT.querySelector('input'))"
        )
        assert np.abs(table.pixels()[0] - saved_pixels(table.page, kept[files], 0)[0]).max() <= 2
    table.ask("ELEMENT.querySelector('button').click()")
    table.wait("ELEMENT.querySelector('canvas').getAttribute('aria-valuenow') === '4'")
    table.ask("ELEMENT.querySelector('button').click()")
    assert table.ask("ELEMENT.querySelector('button').textContent") == "Play"


def test_the_host_shows_no_second_preview(table):
    """What older front ends draw by themselves under a node's widgets."""
    table.page.browser.evaluate("new Promise(done => setTimeout(() => done(true), 500))")
    assert table.ask("NODE.widgets.map(w => w.name).filter(n => n.includes('preview'))") == []
    assert table.ask("NODE.imgs?.length ?? 0") == 0
    assert table.ask("(ELEMENT.closest('[data-node-id]') ?? ELEMENT).querySelectorAll('img').length") == 0


def test_it_survives_a_copy_and_a_reload(table):
    page, browser = table.page, table.browser
    table.drag(-2.0 / VIEWS)
    browser.evaluate(f"app.canvas.copyToClipboard([{table.node}])")
    browser.evaluate("app.canvas.pasteFromClipboard()")
    copy = Table(page, 1).ready()
    assert copy.ask("NODE.properties.mv_turntable") == table.ask("NODE.properties.mv_turntable")
    copy.ask("ELEMENT.querySelector('canvas').focus()")
    copy.key("End")
    assert (copy.view(), table.view()) == (VIEWS, 3), "the copy and the original are one"
    saved = browser.evaluate("app.graph.serialize()")
    sent = [n for n in page.prompt().values() if n["class_type"] == "MVTurntablePreview"]
    assert all("turntable" not in node["inputs"] for node in sent)
    browser.goto(page.host.url)
    browser.wait_for("Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.MVTurntablePreview)")
    page.open(saved)
    for which in (0, 1):
        again = Table(page, which).ready()
        assert again.view() == 1
        assert np.abs(again.pixels() - table.pixels()).max() <= 2


def test_it_says_when_the_pictures_are_gone(table):
    saved = table.browser.evaluate("app.graph.serialize()")
    for node in saved["nodes"]:
        for kind in ("images", "before"):
            for file in (node["properties"].get("mv_turntable") or {}).get(kind, []):
                file["filename"] = "gone.png"
    table.page.open(saved)
    table.wait("ELEMENT.dataset.state === 'missing'")
    assert "Run the workflow again" in table.ask("ELEMENT.textContent")
