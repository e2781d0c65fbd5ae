"""The splat viewer in the real front end, with either way of drawing nodes: what it draws, mouse, touch, wheel."""

from __future__ import annotations

import base64
import copy
import io

import numpy as np
import pytest
import torch
from mvpack.multiview.cameras import orbit
from mvpack.multiview.splats.ply import save_ply
from mvpack.multiview.splats.render import render_gaussians
from PIL import Image
from splat_letter import letter
from workflow_graph import Graph

FILE = "mv_letter.ply"
START = (30.0, 15.0)  # azimuth, elevation
NODE = "app.graph._nodes.filter(n => n.type === 'MVSplatPreview').at({which})"
ELEMENT = NODE + ".widgets.find(w => w.name === 'splat_view').element"


class View:
    """The first (or which-th) splat viewer of the page."""

    def __init__(self, page, which: int = 0):
        self.page, self.browser = page, page.browser
        self.node, self.element = NODE.format(which=which), ELEMENT.format(which=which)

    def fill(self, expression: str) -> str:
        for word, found in (("NODE", self.node), ("CANVAS", "ELEMENT.querySelector('canvas')")):
            expression = expression.replace(word, found)
        return expression.replace("ELEMENT", self.element)

    def ask(self, expression: str):
        return self.browser.evaluate(self.fill(expression))

    def wait(self, expression: str):
        return self.browser.wait_for(self.fill(expression))

    def ready(self) -> View:
        self.wait("ELEMENT.dataset.state === 'ready'")
        return self.drawn()

    def drawn(self) -> View:
        """Once the workers have sorted for the newest camera and the page shows it."""
        self.ask("new Promise(done => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 100))")
        return self

    def angles(self) -> tuple[int, int]:
        words = self.ask("ELEMENT.querySelector('output').textContent").replace("\u00b0", "").replace(",", "").split()
        assert words[0] == "azimuth" and words[2] == "elevation"
        return int(words[1]), int(words[3])

    def box(self) -> tuple[float, float, float, float]:
        return self.ask("(r => [r.x, r.y, r.width, r.height])(CANVAS.getBoundingClientRect())")

    def middle(self) -> tuple[float, float]:
        x, y, width, height = self.box()
        return x + width / 2, y + height / 2

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        self.browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, right: float, down: float) -> View:
        """Pull the splat by shares of the picture's width."""
        x, y = self.middle()
        width = self.box()[2]
        goal = x + right * width, y + down * width
        self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        self.mouse("mouseMoved", (x + goal[0]) / 2, (y + goal[1]) / 2, button="left", buttons=1)
        self.mouse("mouseMoved", *goal, button="left", buttons=1)
        self.mouse("mouseReleased", *goal, button="left", clickCount=1)
        return self.drawn()

    def key(self, key: str) -> None:
        self.browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        self.browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self) -> np.ndarray:
        """(H,W,3) in [0,1]: the canvas as the page shows it."""
        x, y, width, height = self.box()
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        data = self.browser.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as shot:
            return np.asarray(shot.convert("RGB"), dtype=np.float64) / 255


def seen(shape: tuple[int, ...], azimuth: float, elevation: float, distance: float = 1.5) -> np.ndarray:
    """Our own rasteriser's picture of the letter in a stage of this size; the square input picture fits into it."""
    height, width = shape[:2]
    camera = orbit([azimuth], elevation, distance, 49.13)
    camera.intrinsics[:, :2] *= torch.tensor([min(width, height) / width, min(width, height) / height])
    picture = render_gaussians(letter(), camera, width, height, (0.5, 0.5, 0.5)).features[0]
    return picture.clamp(0, 1).double().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(((a - b) ** 2).mean()))


def size_of(picture: np.ndarray) -> int:
    """Pixels that are not background, which is grey."""
    return int((np.abs(picture - 0.5) > 0.1).any(-1).sum())


@pytest.fixture(scope="session")
def ran(page, object_info, summary_note) -> dict:
    """The letter from an orbit's input view, run by the page itself; then the graph as the page saves it."""
    if not page.browser.evaluate("Boolean(document.createElement('canvas').getContext('webgl2'))"):
        summary_note("NOT RUN: the tests of the splat viewer. This browser has no WebGL 2, not even in software.")
        pytest.skip("this browser has no WebGL 2")
    save_ply(letter(), page.host.base / "input" / FILE)
    graph = Graph("viewer", object_info)
    with graph.group("All"):
        cameras = graph.node(
            "MVOrbitCameras", preset="custom orbit", views=8, start_azimuth=START[0], preset_elevation=False,
            elevation=START[1], radius=1.5, fov=49.13,
        )["cameras"]  # fmt: skip
        splat = graph.node("MVLoadSplat", file=FILE)["splat"]
        graph.column()
        graph.node("MVSplatPreview", splat=splat, cameras=cameras, background="grey").shows(420, 400)
    page.open(graph.to_json())
    page.browser.evaluate("app.queuePrompt(0).then(() => true)")
    View(page).ready()
    return page.browser.evaluate("app.graph.serialize()")


@pytest.fixture
def view(page, ran) -> View:
    page.open(ran)
    page.fit_view()
    return View(page).ready()


def test_it_draws_what_the_cameras_see(view, tmp_path):
    assert view.angles() == START
    picture = view.picture()
    Image.fromarray((255 * picture).astype(np.uint8)).save(tmp_path / "viewer.png")
    expected = seen(picture.shape, *START)
    right = psnr(picture, expected)
    wrong = {"upside down": expected[::-1], "mirrored": expected[:, ::-1], "red and blue": expected[..., ::-1]}
    wrong["from behind"] = seen(picture.shape, START[0] + 180, START[1])
    figures = {name: round(psnr(picture, other), 1) for name, other in wrong.items()}
    print(f"viewer: {right:.1f} dB, {figures}")
    assert right > 27 and max(figures.values()) < right - 6
    asked = [url for url in view.browser.requests if url.startswith("http") and not url.startswith(view.page.host.url)]
    assert [url for url in asked if "api.comfy.org" not in url] == []
    view.browser.screenshot(tmp_path / "page.png")
    assert view.page.complaints("splat", "multiview", "mv_") == []


def test_the_host_shows_no_second_preview(view):
    """Neither the pictures nor those of the progress, which older front ends draw under a node's widgets."""
    before = view.ask("NODE.properties.mv_splat_preview.file.filename")
    view.ask("NODE.widgets[0].value = 'black'")
    view.browser.evaluate("app.queuePrompt(0).then(() => true)")
    view.wait(f"NODE.properties.mv_splat_preview.file.filename !== '{before}'")
    view.ready()
    assert view.ask("NODE.widgets.map(w => w.name)") == ["background", "splat_view"]
    assert view.ask("NODE.imgs?.length ?? 0") == 0
    assert view.ask("(ELEMENT.closest('[data-node-id]') ?? ELEMENT).querySelectorAll('img').length") == 0
    stage, node = view.ask("[ELEMENT.clientHeight, NODE.size[1]]")
    assert stage > 0.6 * node, "the node leaves room for something below the viewer"


def test_it_turns_and_zooms(view):
    place = view.ask("[...NODE.pos]")
    view.ask("document.activeElement.blur()")
    for _ in range(3):
        view.mouse("mouseWheel", *view.middle(), deltaX=0, deltaY=100)  # not clicked yet: the graph's
    view.page.fit_view()
    picture = view.drawn().picture()
    assert psnr(picture, seen(picture.shape, *START)) > 26
    view.drag(-0.25, 0.0)  # the front follows the hand: a quarter turn
    assert view.angles() == pytest.approx((START[0] + 90, START[1]), abs=1)
    view.drag(0.0, 0.05)
    azimuth, elevation = view.angles()
    assert elevation == pytest.approx(START[1] + 18, abs=1)
    picture = view.picture()
    assert psnr(picture, seen(picture.shape, azimuth, elevation)) > 26
    assert view.ask("[...NODE.pos]") == place, "the node moved with the drag"
    before = size_of(view.picture())
    x, y = view.middle()
    for _ in range(3):
        view.mouse("mouseWheel", x, y, deltaX=0, deltaY=100)
    picture = view.drawn().picture()
    assert psnr(picture, seen(picture.shape, azimuth, elevation, 1.5 * 1.1**3)) > 26
    for _ in range(3):
        view.key("+")
    assert size_of(view.drawn().picture()) == pytest.approx(before, rel=0.03)
    touch = [{"x": x - 20, "y": y, "id": 1}, {"x": x + 20, "y": y, "id": 2}]
    view.browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=touch)
    touch = [{"x": x - 20, "y": y, "id": 1}, {"x": x + 40, "y": y, "id": 2}]
    view.browser.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=touch)
    view.browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert size_of(view.drawn().picture()) > 1.5 * before
    for key, step in (("ArrowRight", (10, 0)), ("ArrowLeft", (-10, 0)), ("ArrowUp", (0, 10)), ("ArrowDown", (0, -10))):
        was = view.angles()
        view.key(key)
        assert view.angles() == pytest.approx((was[0] + step[0], was[1] + step[1]), abs=1), key
    x, y = view.middle()
    for count in (1, 2):
        view.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=count)
        view.mouse("mouseReleased", x, y, button="left", clickCount=count)
    assert view.angles() == START
    picture = view.drawn().picture()
    assert psnr(picture, seen(picture.shape, *START)) > 26


def test_it_rests_when_nothing_changes(view):
    calls = """(async () => {{
        const gl = CANVAS.getContext('webgl2'), draw = gl.drawArraysInstanced;
        let count = 0;
        gl.drawArraysInstanced = function (...given) {{ count += 1; return draw.apply(this, given); }};
        {first}
        await new Promise(done => setTimeout(done, 500));
        gl.drawArraysInstanced = draw;
        return count;
    }})()"""
    assert view.ask(calls.format(first="")) == 0
    assert 1 <= view.ask(calls.format(first="ELEMENT.querySelector('button').click();")) <= 4
    lost = "(gl => { app.graph.remove(NODE); return gl.isContextLost(); })(CANVAS.getContext('webgl2'))"
    assert view.ask(lost) is True, "a node that is gone keeps its place on the graphics card"


def test_it_survives_a_copy_and_a_reload(view):
    page, browser = view.page, view.browser
    view.drag(-0.25, 0.0)
    browser.evaluate(f"app.canvas.copyToClipboard([{view.node}])")
    browser.evaluate("app.canvas.pasteFromClipboard()")
    twin = View(page, 1).ready()
    assert twin.ask("NODE.properties.mv_splat_preview") == view.ask("NODE.properties.mv_splat_preview")
    assert twin.angles() == START and view.angles() != START, "the copy and the original are one"
    saved = browser.evaluate("app.graph.serialize()")
    sent = [n for n in page.prompt().values() if n["class_type"] == "MVSplatPreview"]
    assert len(sent) == 2 and all("splat_view" not in node["inputs"] for node in sent)
    browser.goto(page.host.url)
    browser.wait_for("Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.MVSplatPreview)")
    page.open(saved)
    for which in (0, 1):
        again = View(page, which).ready()
        assert again.angles() == START
    page.fit_view()
    picture = View(page).drawn().picture()
    assert psnr(picture, seen(picture.shape, *START)) > 26


def test_it_says_what_is_missing(view, ran):
    """The file after a restart of the host; then WebGL 2."""
    saved = copy.deepcopy(ran)
    kept = next(n for n in saved["nodes"] if n["type"] == "MVSplatPreview")["properties"]["mv_splat_preview"]
    name, kept["file"]["filename"] = kept["file"]["filename"], "gone.ply"
    view.page.open(saved)
    view.wait("ELEMENT.dataset.state === 'missing'")
    assert "Run the workflow again" in view.ask("ELEMENT.textContent")
    kept["file"]["filename"] = name
    view.ask("HTMLCanvasElement.prototype.getContextAsItWas = HTMLCanvasElement.prototype.getContext")
    try:
        view.ask(
            "(HTMLCanvasElement.prototype.getContext = function (kind, ...more) {"
            " return kind === 'webgl2' ? null : this.getContextAsItWas(kind, ...more); }, true)"
        )
        view.page.open(saved)
        view.wait("ELEMENT.dataset.state === 'pictures'")
        assert "no WebGL 2" in view.ask("ELEMENT.textContent")
        view.wait(
            "(p => p.length === 4 && p.every(i => i.complete && i.naturalWidth === 256))"
            "([...ELEMENT.querySelectorAll('img')])"
        )
    finally:
        view.ask("(HTMLCanvasElement.prototype.getContext = HTMLCanvasElement.prototype.getContextAsItWas, true)")
