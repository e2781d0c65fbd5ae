// The page's part of MVSplatPreview: a splat to turn with the mouse, drawn by gsplat.js (vendor/), which is loaded with the
// first splat. Documented extension API only, so that it works in both node renderers. Nothing is drawn unless it changed.
import { app } from "../../../scripts/app.js";
import { addressOf, chain, keepTheDrag, make } from "./parts.js";

const NODE = "MVSplatPreview";
// What a run showed is kept in the node's properties: it survives a reload of the page and a copy of the node.
const PROPERTY = "mv_splat_preview";
const SMALLEST = [320, 400];
const WIDGET_HEIGHT = 240;
const SETTLE_MS = 30;
const KEY_DEGREES = 10;
const ZOOM_STEP = 1.1;
const ZOOM_RANGE = 20; // times nearer and farther than at the start
const STYLE = `
.multiviewconsistency-splat { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; box-sizing: border-box;
  font: 12px sans-serif; color: var(--input-text, #ddd); user-select: none; }
.multiviewconsistency-splat-stage { position: relative; flex: 1 1 auto; height: 340px; min-height: 80px; overflow: hidden; }
.multiviewconsistency-splat canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: grab; touch-action: none;
  border-radius: 4px; visibility: hidden; }
.multiviewconsistency-splat[data-state="ready"] canvas { visibility: visible; }
.multiviewconsistency-splat canvas:active { cursor: grabbing; }
.multiviewconsistency-splat canvas:focus-visible { outline: 2px solid var(--p-primary-color, #6bf); outline-offset: -2px; }
.multiviewconsistency-splat-notice { position: absolute; inset: 0; display: flex; flex-direction: column; align-items: center;
  justify-content: center; gap: 8px; text-align: center; padding: 12px; pointer-events: none; opacity: 0.85; }
.multiviewconsistency-splat[data-state="ready"] .multiviewconsistency-splat-notice { display: none; }
.multiviewconsistency-splat-pictures { display: flex; flex-wrap: wrap; justify-content: center; gap: 4px; min-height: 0; }
.multiviewconsistency-splat-pictures img { width: 45%; max-width: 256px; object-fit: contain; border-radius: 4px; }
.multiviewconsistency-splat-bar { display: flex; align-items: center; gap: 8px; flex: none; min-height: 26px; }
.multiviewconsistency-splat-bar button { min-width: 52px; height: 24px; border: 1px solid var(--border-color, #555);
  border-radius: 4px; background: var(--comfy-input-bg, #222); color: inherit; cursor: pointer; }
.multiviewconsistency-splat-bar output { flex: 1; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.multiviewconsistency-splat [hidden] { display: none; }`;

let loaded = null;
function library() {
  loaded ??= import("./vendor/gsplat-1.2.9/gsplat.mjs").catch((error) => {
    loaded = null;
    throw error;
  });
  return loaded;
}

function apart([x, y], [u, v]) {
  return Math.max(1, Math.hypot(x - u, y - v));
}

/** Rotation (rows of a 3x3, camera to world) and position of a camera that looks at pose.target; docs/conventions.md. */
function looking({ target, azimuth, elevation, distance }) {
  const [a, e] = [azimuth, elevation].map((degrees) => (degrees * Math.PI) / 180);
  const [sa, ca, se, ce] = [Math.sin(a), Math.cos(a), Math.sin(e), Math.cos(e)];
  const forward = [-ce * sa, se, ce * ca];
  return {
    rotation: [ca, se * sa, forward[0], 0, ce, forward[1], sa, -se * ca, forward[2]],
    position: target.map((t, axis) => t - distance * forward[axis]),
  };
}

class SplatView {
  constructor() {
    this.start = null; // the camera of the first sight; null: nothing to see
    this.pose = null;
    this.count = 0;
    this.loading = 0;
    this.frame = 0;
    this.renderer = null;
    this.canvas = make("canvas", { tabindex: "0", role: "img" });
    this.text = make("div");
    this.pictures = make("div", { class: "multiviewconsistency-splat-pictures" });
    this.button = make("button", { type: "button", title: "Back to the first sight (double click)" }, "Reset");
    this.label = make("output");
    const notice = make("div", { class: "multiviewconsistency-splat-notice" }, this.text, this.pictures);
    this.stage = make("div", { class: "multiviewconsistency-splat-stage" }, this.canvas, notice);
    // The host leaves the wheel to focused elements with this mark.
    this.element = make("div", { class: "multiviewconsistency-splat", "data-capture-wheel": "true" }, this.stage);
    this.element.append(
      make("div", { class: "multiviewconsistency-splat-bar" }, this.button, this.label),
      make("style", {}, STYLE),
    );
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.stage);
    this.listen();
    this.clear("Run the workflow to see the splat here.", "empty");
  }

  listen() {
    const { canvas } = this;
    const hands = new Map(); // pointers that are down -> where
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.pose) return;
      hands.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
    });
    canvas.addEventListener("pointermove", (event) => {
      const from = hands.get(event.pointerId);
      if (!from) return;
      const to = [event.clientX, event.clientY];
      const other = [...hands].find(([id]) => id !== event.pointerId)?.[1];
      hands.set(event.pointerId, to);
      if (other) this.zoom(apart(from, other) / apart(to, other));
      else {
        // Once across is once around; the front of the object follows the hand.
        const degrees = 360 / (canvas.getBoundingClientRect().width || 1);
        this.turn((from[0] - to[0]) * degrees, (to[1] - from[1]) * degrees);
      }
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => hands.delete(event.pointerId));
    }
    canvas.addEventListener(
      "wheel",
      (event) => {
        // Over a viewer that nobody has clicked, and with Ctrl, the wheel is the graph's.
        if (event.ctrlKey || event.metaKey || !this.pose || document.activeElement !== canvas) return;
        event.preventDefault();
        event.stopPropagation();
        this.zoom(ZOOM_STEP ** Math.sign(event.deltaY));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const actions = {
        ArrowRight: () => this.turn(KEY_DEGREES, 0),
        ArrowLeft: () => this.turn(-KEY_DEGREES, 0),
        ArrowUp: () => this.turn(0, KEY_DEGREES),
        ArrowDown: () => this.turn(0, -KEY_DEGREES),
        "+": () => this.zoom(1 / ZOOM_STEP),
        "-": () => this.zoom(ZOOM_STEP),
        Home: () => this.reset(),
      };
      if (!this.pose || !(event.key in actions) || event.ctrlKey || event.metaKey) return;
      actions[event.key]();
      event.preventDefault();
      event.stopPropagation();
    });
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("webglcontextlost", () => {
      if (this.renderer) this.fallBack("The browser has stopped this 3D view. Reload the page to have it again.");
    });
    this.button.addEventListener("click", () => this.reset());
    keepTheDrag(this.element);
  }

  clear(text, state, pictures = []) {
    this.start = this.pose = null;
    this.text.textContent = text;
    this.pictures.replaceChildren(...pictures.map((file) => make("img", { src: addressOf(file), alt: "The splat" })));
    this.element.dataset.state = state;
    this.describe();
  }

  /** The pictures that the node has drawn, where the splat itself cannot be shown. */
  fallBack(text) {
    this.clear(text, "pictures", this.images);
  }

  async show({ file, start, background, gaussians, images }) {
    const turn = ++this.loading;
    this.images = images ?? [];
    this.clear("Loading the splat ...", "loading");
    // The same attributes as the library's: the first call decides.
    const context = this.canvas.getContext("webgl2", { antialias: false });
    if (!context || context.isContextLost()) {
      this.fallBack("This browser has no WebGL 2, which the viewer needs. These are pictures of the splat.");
      return;
    }
    try {
      const [splat, bytes] = await Promise.all([library(), this.fetch(file)]);
      if (turn !== this.loading) return; // a newer splat came meanwhile
      if (!bytes) {
        this.clear("This splat is gone. Run the workflow again.", "missing");
        return;
      }
      this.put(splat, bytes, background);
    } catch (error) {
      console.error("MVSplatPreview:", error);
      if (turn === this.loading) this.fallBack(`The viewer failed (${error.message}). These are pictures of the splat.`);
      return;
    }
    this.count = gaussians;
    this.start = start;
    this.pose = { ...start };
    this.settle(turn);
  }

  async fetch(file) {
    const answer = await fetch(addressOf(file)).catch(() => null);
    return answer?.ok ? answer.arrayBuffer() : null;
  }

  put(splat, bytes, background) {
    const scene = new splat.Scene();
    splat.PLYLoader.LoadFromArrayBuffer(bytes, scene);
    this.renderer ??= new splat.WebGLRenderer(this.canvas, []); // no passes: no fading in
    this.renderer.backgroundColor = new splat.Color32(...background);
    Object.assign(this, { splat, scene, camera: new splat.Camera() });
  }

  /** Draw until the library has packed and sorted the splat in its workers; it does not say when that is done. */
  settle(turn) {
    if (turn !== this.loading || this.element.dataset.state !== "loading") return;
    this.render();
    setTimeout(() => this.settle(turn), SETTLE_MS);
  }

  /** The order from back to front has arrived, for the newest camera: the picture is drawn again with it. */
  sorted({ data }) {
    if (!data.depthIndex || !this.pose) return;
    if (!data.depthIndex.length) {
      this.fallBack("This splat is too large for the viewer. These are pictures of it.");
      return;
    }
    this.element.dataset.state = "ready";
    this.describe();
    this.draw();
  }

  draw() {
    if (!this.pose || this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  render() {
    const { canvas, stage, camera, pose, renderer, splat } = this;
    const sharpness = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [stage.clientWidth, stage.clientHeight].map((side) => Math.round(side * sharpness));
    if (!pose || !width || !height) return;
    if (canvas.width !== width || canvas.height !== height) renderer.setSize(width, height);
    const { rotation, position } = looking(pose);
    camera.position = new splat.Vector3(...position);
    camera.rotation = splat.Quaternion.FromMatrix3(new splat.Matrix3(...rotation));
    // The whole picture of the start's camera fits into the stage.
    const focal = Math.min(width * pose.focal[0], height * pose.focal[1]);
    Object.assign(camera.data, { fx: focal, fy: focal, near: 0.02 * pose.distance });
    camera.data.far = pose.distance + 100 * pose.radius;
    const { renderProgram, gl } = renderer;
    // The library sends the focal length only once.
    gl.useProgram(renderProgram.program);
    gl.uniform2f(gl.getUniformLocation(renderProgram.program, "focal"), focal, focal);
    renderer.render(this.scene, camera);
    if (renderProgram.worker !== this.sorter) {
      this.sorter = renderProgram.worker;
      chain(this.sorter, "onmessage", (event) => this.sorted(event));
    }
  }

  turn(azimuth, elevation) {
    this.pose.azimuth = (((this.pose.azimuth + azimuth) % 360) + 360) % 360;
    this.pose.elevation = Math.min(90, Math.max(-90, this.pose.elevation + elevation));
    this.changed();
  }

  zoom(factor) {
    const { distance } = this.start;
    this.pose.distance = Math.min(distance * ZOOM_RANGE, Math.max(distance / ZOOM_RANGE, this.pose.distance * factor));
    this.changed();
  }

  reset() {
    if (!this.start) return;
    this.pose = { ...this.start };
    this.changed();
  }

  changed() {
    this.describe();
    this.draw();
  }

  describe() {
    const { pose } = this;
    const ready = pose && this.element.dataset.state === "ready";
    const degrees = (angle) => `${Math.round(angle) || 0}\u00b0`;
    this.label.textContent = ready
      ? `azimuth ${degrees(pose.azimuth)}, elevation ${degrees(pose.elevation)}, ${this.count} Gaussians`
      : "";
    this.button.hidden = !ready;
    const how = "drag or press the arrow keys to turn it, wheel or plus and minus to zoom";
    this.canvas.setAttribute("aria-label", `Gaussian splat, ${this.label.textContent || this.text.textContent}; ${how}`);
  }

  /** The node is gone: so are its workers and its place on the graphics card. */
  release() {
    const { renderer } = this;
    this.loading += 1;
    this.start = this.pose = this.renderer = null;
    cancelAnimationFrame(this.frame);
    this.sizes.disconnect();
    renderer?.dispose();
    renderer?.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

function attach(node) {
  const view = new SplatView();
  const widget = node.addDOMWidget("splat_view", "MV_SPLAT_VIEW", view.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => WIDGET_HEIGHT,
  });
  widget.serialize = false; // not among the saved widget values either
  node.hideOutputImages = true; // newer front ends: no second preview below
  node.setSize?.([Math.max(SMALLEST[0], node.size[0]), Math.max(SMALLEST[1], node.size[1])]);
  chain(node, "onExecuted", (output) => {
    const shown = output?.mv_splat_preview?.[0];
    if (!shown) return;
    const kept = { ...shown, images: output.images ?? [] };
    node.properties[PROPERTY] = kept;
    // Older front ends have no flag for that: they draw what is under "images".
    output.images = [];
    node.imgs = undefined;
    view.show(kept);
  });
  chain(node, "onConfigure", () => {
    const kept = node.properties?.[PROPERTY];
    if (kept?.file) view.show(kept);
  });
  chain(node, "onRemoved", () => view.release());
}

app.registerExtension({
  name: "multiviewconsistency.splatpreview",
  nodeCreated(node) {
    if (node.comfyClass === NODE || node.constructor?.comfyClass === NODE) attach(node);
  },
});
