// The page's part of MVTurntablePreview: views that turn when dragged, with the wheel, the arrow keys or by themselves.
// Documented extension API only (registerExtension, nodeCreated, addDOMWidget), so that it works in both node renderers.
import { app } from "../../../scripts/app.js";
import { addressOf, chain, keepTheDrag, make } from "./parts.js";

const NODE = "MVTurntablePreview";
// What a run showed is kept in the node's properties: it survives a reload of the page and a copy of the node.
const PROPERTY = "mv_turntable";
const SMALLEST = [320, 400];
const WIDGET_HEIGHT = 240;
const SHARP = 512; // small pictures are drawn larger, so that the line of the comparison stays thin
const STYLE = `
.multiviewconsistency-turntable { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; box-sizing: border-box;
  font: 12px sans-serif; color: var(--input-text, #ddd); user-select: none; }
.multiviewconsistency-turntable-stage { position: relative; flex: 1 1 auto; height: 340px; min-height: 80px; }
.multiviewconsistency-turntable canvas { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; cursor: grab;
  touch-action: none; border-radius: 4px; }
.multiviewconsistency-turntable canvas:active { cursor: grabbing; }
.multiviewconsistency-turntable canvas:focus-visible { outline: 2px solid var(--p-primary-color, #6bf); outline-offset: -2px; }
.multiviewconsistency-turntable-message { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center;
  text-align: center; padding: 12px; pointer-events: none; opacity: 0.75; }
.multiviewconsistency-turntable-bar { display: flex; align-items: center; gap: 8px; flex: none; min-height: 26px; }
.multiviewconsistency-turntable-bar button { min-width: 52px; height: 24px; border: 1px solid var(--border-color, #555);
  border-radius: 4px; background: var(--comfy-input-bg, #222); color: inherit; cursor: pointer; }
.multiviewconsistency-turntable-bar output { flex: 1; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.multiviewconsistency-turntable-bar label { display: flex; align-items: center; gap: 4px; }
.multiviewconsistency-turntable-bar input { width: 90px; touch-action: none; }
.multiviewconsistency-turntable [hidden] { display: none; }`;

function load(files) {
  return Promise.all(
    files.map(
      (file) =>
        new Promise((done, failed) => {
          const picture = new Image();
          picture.onload = () => done(picture);
          picture.onerror = () => failed(new Error(file.filename));
          picture.src = addressOf(file);
        }),
    ),
  );
}

class Turntable {
  /** framesPerSecond: a function, so that a changed widget counts at once. */
  constructor(framesPerSecond) {
    this.framesPerSecond = framesPerSecond;
    this.views = [];
    this.before = [];
    this.azimuths = [];
    this.index = 0;
    this.timer = null;
    this.loading = 0;
    this.canvas = make("canvas", { tabindex: "0", role: "slider", "aria-valuemin": "1" });
    this.canvas.setAttribute("aria-label", "Turntable: drag, turn the wheel or press the arrow keys to turn the object");
    this.message = make("div", { class: "multiviewconsistency-turntable-message" });
    this.button = make("button", { type: "button" });
    this.label = make("output");
    this.split = make("input", { type: "range", min: "0", max: "100", value: "50" });
    this.split.setAttribute("aria-label", "How much of the picture shows the views before");
    this.comparison = make("label", { title: "Left of the line: before. Right of it: after." }, "before", this.split);
    const bar = make("div", { class: "multiviewconsistency-turntable-bar" }, this.button, this.label, this.comparison);
    const stage = make("div", { class: "multiviewconsistency-turntable-stage" }, this.canvas, this.message);
    // The host leaves the wheel to focused elements with this mark.
    this.element = make("div", { class: "multiviewconsistency-turntable", "data-capture-wheel": "true" });
    this.element.append(stage, bar, make("style", {}, STYLE));
    this.listen();
    this.clear("Run the workflow to see the views here.", "empty");
  }

  listen() {
    const { canvas } = this;
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.views.length) return;
      drag = { id: event.pointerId, x: event.clientX, index: this.index };
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      this.play(false);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drag?.id !== event.pointerId) return;
      const width = canvas.getBoundingClientRect().width || 1;
      // Once across is once around; the front of the object follows the hand.
      this.turnTo(drag.index - Math.round(((event.clientX - drag.x) / width) * this.views.length));
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, () => (drag = null));
    }
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (event.ctrlKey || event.metaKey || !this.views.length) return;
        event.preventDefault();
        event.stopPropagation();
        this.play(false);
        this.turnTo(this.index + Math.sign(event.deltaY || event.deltaX));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const goals = {
        ArrowRight: this.index + 1,
        ArrowUp: this.index + 1,
        ArrowLeft: this.index - 1,
        ArrowDown: this.index - 1,
        Home: 0,
        End: this.views.length - 1,
      };
      if (event.key === " ") this.play(this.timer === null);
      else if (event.key in goals) {
        this.play(false);
        this.turnTo(goals[event.key]);
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.button.addEventListener("click", () => this.play(this.timer === null));
    this.split.addEventListener("input", () => this.draw());
    this.split.addEventListener("keydown", (event) => event.stopPropagation());
    keepTheDrag(this.element);
  }

  clear(text, state) {
    this.play(false);
    this.views = [];
    this.before = [];
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.message.textContent = text;
    this.element.dataset.state = state;
    this.describe();
  }

  async show({ images = [], before = [], azimuths = [] }) {
    const turn = ++this.loading;
    this.element.dataset.state = "loading";
    try {
      const [views, earlier] = await Promise.all([load(images), load(before)]);
      if (turn !== this.loading) return; // newer pictures came meanwhile
      Object.assign(this, { views, before: earlier, azimuths });
    } catch {
      if (turn === this.loading) this.clear("These pictures are gone. Run the workflow again.", "missing");
      return;
    }
    this.message.textContent = "";
    const { naturalWidth, naturalHeight } = this.views[0];
    const scale = Math.ceil(SHARP / naturalWidth);
    this.canvas.width = scale * naturalWidth;
    this.canvas.height = scale * naturalHeight;
    this.element.dataset.state = "ready";
    this.turnTo(this.index);
  }

  turnTo(index) {
    const count = this.views.length;
    if (!count) return;
    this.index = ((index % count) + count) % count;
    this.draw();
  }

  play(on) {
    clearTimeout(this.timer);
    this.timer = null;
    const running = on && this.views.length > 1;
    this.button.textContent = running ? "Pause" : "Play";
    this.button.setAttribute("aria-pressed", String(running));
    if (!running) return;
    this.timer = setTimeout(() => {
      if (this.element.isConnected && !document.hidden) this.turnTo(this.index + 1);
      this.play(true);
    }, 1000 / this.framesPerSecond());
  }

  draw() {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = false; // the page's own scaling is smooth
    context.clearRect(0, 0, width, height);
    context.drawImage(this.views[this.index], 0, 0, width, height);
    const earlier = this.before[this.index];
    const edge = Math.round((width * Number(this.split.value)) / 100);
    if (earlier && edge > 0) {
      context.save();
      context.beginPath();
      context.rect(0, 0, edge, height);
      context.clip();
      context.drawImage(earlier, 0, 0, width, height);
      context.restore();
      context.fillStyle = "#f80";
      context.fillRect(edge - 1, 0, Math.max(2, Math.round(width / 300)), height);
    }
    this.describe();
  }

  describe() {
    const count = this.views.length;
    const azimuth = this.azimuths[this.index];
    let text = count ? `view ${this.index + 1} of ${count}` : "";
    if (count && azimuth !== undefined) text += `, azimuth ${azimuth}\u00b0`;
    this.label.textContent = text;
    this.canvas.setAttribute("aria-valuemax", String(Math.max(count, 1)));
    this.canvas.setAttribute("aria-valuenow", String(count ? this.index + 1 : 1));
    this.canvas.setAttribute("aria-valuetext", text || this.message.textContent);
    this.comparison.hidden = !this.before.length;
    this.button.hidden = count < 2;
  }
}

function attach(node) {
  const table = new Turntable(() => Math.max(0.1, Number(node.widgets?.find((w) => w.name === "fps")?.value) || 8));
  const widget = node.addDOMWidget("turntable", "MV_TURNTABLE", table.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => WIDGET_HEIGHT,
  });
  widget.serialize = false; // not among the saved widget values either
  node.hideOutputImages = true; // newer front ends: no second preview below
  node.setSize?.([Math.max(SMALLEST[0], node.size[0]), Math.max(SMALLEST[1], node.size[1])]);
  chain(node, "onExecuted", (output) => {
    const shown = output?.mv_turntable?.[0];
    if (!shown || !output.images?.length) return;
    const kept = { images: output.images, before: shown.before ?? [], azimuths: shown.azimuths ?? [] };
    node.properties[PROPERTY] = kept;
    // Older front ends have no flag for that: they draw what is under "images".
    output.images = [];
    node.imgs = undefined;
    table.show(kept);
  });
  chain(node, "onConfigure", () => {
    const kept = node.properties?.[PROPERTY];
    if (kept?.images?.length) table.show(kept);
  });
  chain(node, "onRemoved", () => table.play(false));
}

app.registerExtension({
  name: "multiviewconsistency.turntable",
  nodeCreated(node) {
    if (node.comfyClass === NODE || node.constructor?.comfyClass === NODE) attach(node);
  },
});
