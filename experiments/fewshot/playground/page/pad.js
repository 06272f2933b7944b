// A pad to draw on with mouse, pen or finger.

const SVG = "http://www.w3.org/2000/svg";

/** Points closer together than this, as a part of the pad, are one. */
const NEAR = 0.004;

const path = (stroke) =>
  "M" + stroke.map(([x, y]) => `${(100 * x).toFixed(2)} ${(100 * y).toFixed(2)}`).join("L") +
  (stroke.length === 1 ? "l0.01 0" : "");

/**
 * Makes an element that strokes are drawn in.
 *
 * @param {number[][][]} strokes  the drawing; a finished stroke is added to it
 * @param {string} label  what a screen reader calls it
 * @param {() => void} drawn  called after each stroke
 */
export function surface(strokes, label, drawn) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("role", "img");
  const count = strokes.length;
  svg.setAttribute("aria-label", `${label}, ${count ? `${count} stroke${count > 1 ? "s" : ""}` : "empty"}`);
  const show = (stroke) => {
    const line = svg.appendChild(document.createElementNS(SVG, "path"));
    line.setAttribute("d", path(stroke));
    return line;
  };
  strokes.forEach(show);

  let pointer = null, stroke, line;
  const place = (event) => {
    const {left, top, width, height} = svg.getBoundingClientRect();
    const within = (value) => Math.min(1, Math.max(0, value));
    return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
  };
  svg.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return; // one finger, one button
    event.preventDefault();
    pointer = event.pointerId;
    svg.setPointerCapture(pointer);
    stroke = [place(event)];
    line = show(stroke);
  });
  svg.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const [x, y] = place(each), [lastX, lastY] = stroke.at(-1);
      if (Math.hypot(x - lastX, y - lastY) > NEAR) stroke.push([x, y]);
    }
    line.setAttribute("d", path(stroke));
  });
  svg.addEventListener("pointerup", (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    strokes.push(stroke);
    drawn();
  });
  svg.addEventListener("pointercancel", (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    line.remove();
  });
  return svg;
}
