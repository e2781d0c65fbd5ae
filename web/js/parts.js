// What our widgets share. ComfyUI also loads this file by itself, like every .js here; that does nothing.
import { api } from "../../../scripts/api.js";

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Where the host serves a file that a node has written. */
export function addressOf({ filename, subfolder = "", type = "temp" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** Call `after` each time a node's (or another object's) method `name` has run. */
export function chain(owner, name, after) {
  const earlier = owner[name];
  owner[name] = function (...given) {
    const answer = earlier?.apply(this, given);
    after.apply(this, given);
    return answer;
  };
}

/** A drag in the element must not move the node; the middle and right buttons stay the graph's. */
export function keepTheDrag(element) {
  for (const kind of ["pointerdown", "pointermove", "pointerup", "mousedown", "mousemove", "mouseup", "dblclick"]) {
    element.addEventListener(kind, (event) => {
      if (event.button <= 0) event.stopPropagation();
    });
  }
}
