// Scales and axes of charts, in units of the SVG's view box.

import { short, svg } from "./dom.js";

const REACH = 16;

/** Round steps that cover a range, about five of them; `least` is 1 for what is counted. */
export function ticks(low, high, least = 0) {
  const rough = Math.max((high - low) / 5, least) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) {
    found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  }
  return found;
}

/** A range around values with some room. */
export function rangeOf(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

/** A linear scale from a range to pixels. */
export function scale([low, high], [from, to]) {
  const factor = (to - from) / (high - low || 1);
  return (value) => from + (value - low) * factor;
}

/**
 * Draw both axes with grid lines, ticks and names; `box` has left, top, right, bottom, and
 * `steps` where the ticks are, if not at round numbers.
 */
export function axes(box, ranges, names, show = [short, short], steps = [null, null]) {
  const [x, y] = scales(box, ranges);
  const group = svg("g", { class: "axes", "aria-hidden": "true" });
  for (const at of steps[0] ?? ticks(...ranges[0])) {
    group.append(
      svg("line", { x1: x(at), x2: x(at), y1: box.top, y2: box.bottom }),
      svg("text", { x: x(at), y: box.bottom + 16, class: "middle" }, show[0](at)),
    );
  }
  for (const at of steps[1] ?? ticks(...ranges[1])) {
    group.append(
      svg("line", { x1: box.left, x2: box.right, y1: y(at), y2: y(at) }),
      svg("text", { x: box.left - 6, y: y(at) + 4, class: "end" }, show[1](at)),
    );
  }
  group.append(
    svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 34, class: "middle name" }, names[0]),
    svg("text", { x: box.left, y: box.top - 8, class: "name" }, names[1]),
  );
  return group;
}

/** The scales of a box. */
export function scales(box, ranges) {
  return [scale(ranges[0], [box.left, box.right]), scale(ranges[1], [box.bottom, box.top])];
}

/** Where something happened in a chart, in units of its view box. */
export function spotOf(chart, event) {
  const size = chart.getBoundingClientRect();
  const { width, height } = chart.viewBox.baseVal;
  return [((event.clientX - size.left) / size.width) * width, ((event.clientY - size.top) / size.height) * height];
}

/** The key whose place, of a map of places, is nearest to a spot and not too far; else null. */
export function nearest(places, [x, y]) {
  let [found, least] = [null, REACH];
  for (const [key, [px, py]] of places) {
    const away = Math.hypot(px - x, py - y);
    if (away < least) [found, least] = [key, away];
  }
  return found;
}

/**
 * Have the arrow keys go through marks as through one control: one of them is in the tab order.
 *
 * `marks` are elements of a chart in the order in which they are gone through; each has its
 * candidate as `data-index`. `open` is called with that of the mark which is clicked, or with what
 * `near` finds at a spot: fingers need more than a dot.
 */
export function rove(chart, marks, first, { open, near }) {
  for (const mark of marks) mark.setAttribute("tabindex", "-1");
  (first ?? marks[0])?.setAttribute("tabindex", "0");
  const places = new Map(marks.map((mark, place) => [mark, place]));
  chart.addEventListener("click", (event) => {
    const found = places.has(event.target) ? Number(event.target.dataset.index) : near(spotOf(chart, event));
    if (found !== null) open(found);
  });
  chart.addEventListener("pointerover", (event) => {
    // A tooltip, made when it is needed: there are thousands of marks.
    const mark = event.target;
    if (places.has(mark) && !mark.firstChild) mark.append(svg("title", {}, mark.getAttribute("aria-label")));
  });
  chart.addEventListener("keydown", (event) => {
    const place = places.get(event.target);
    if (place === undefined) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(Number(event.target.dataset.index));
      return;
    }
    const to = { ArrowRight: place + 1, ArrowUp: place + 1, ArrowLeft: place - 1, ArrowDown: place - 1, PageUp: place + 10, PageDown: place - 10, Home: 0, End: marks.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    focusMark(chart, marks[Math.max(0, Math.min(marks.length - 1, to))]);
  });
}

function focusMark(chart, mark) {
  for (const other of chart.querySelectorAll('[tabindex="0"]')) other.setAttribute("tabindex", "-1");
  mark.setAttribute("tabindex", "0");
  mark.focus({ preventScroll: true });
}

/** Say which mark of a chart is the open one. */
export function press(chart, mark) {
  for (const other of chart.querySelectorAll('[aria-pressed="true"]')) other.setAttribute("aria-pressed", "false");
  mark?.setAttribute("aria-pressed", "true");
}

/** Put a chart in the place of another, and the focus on what it was on. */
export function replaceChart(holder, chart) {
  const focused = holder.contains(document.activeElement)
    ? document.activeElement.getAttribute("data-index")
    : null;
  holder.replaceChildren(chart);
  if (focused === null) return;
  const again = chart.querySelector(`[data-index="${CSS.escape(focused)}"]`);
  if (!again) return;
  focusMark(chart, again);
}
