// Line charts: hypervolume, step size. The arrow keys read a line value by value.

import { axes, rangeOf, scales, spotOf, ticks } from "./axes.js";
import { el, short, svg } from "./dom.js";

const BOX = { left: 60, top: 28, right: 388, bottom: 200 };

/**
 * Draw one line into a holder.
 *
 * `line` has `title`, `names` of both axes, columns `x` (counts) and `y`, and `isLog` for a
 * logarithmic y. There is at least one row.
 */
function drawLine(holder, line) {
  const y = line.isLog ? line.y.map(Math.log10) : line.y;
  const ranges = [rangeOf(line.x), rangeOf(y)];
  const show = line.isLog ? (value) => short(10 ** value) : short;
  const [toX, toY] = scales(BOX, ranges);
  const places = line.x.map((value, row) => [toX(value), toY(y[row])]);
  const last = line.y.length - 1;
  const said = `From ${short(line.y[0])} to ${short(line.y[last])} over ${last + 1} steps. Arrow keys read it.`;
  const dot = svg("circle", { class: "reading", r: 5, visibility: "hidden" });
  const text = svg("text", { class: "reading end", x: BOX.right, y: BOX.top - 8 });
  const chart = svg(
    "svg",
    { viewBox: "0 0 400 244", class: "chart line", role: "slider", "aria-label": line.title, tabindex: 0, "data-index": line.title },
    svg("title", {}, line.title),
    svg("desc", {}, said),
    axes(BOX, ranges, line.names, [short, show], [ticks(...ranges[0], 1), line.isLog ? logTicks(ranges[1]) : null]),
    svg("path", { class: "course", d: places.map(([px, py], row) => `${row ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("") }),
    dot,
    text,
  );
  chart.setAttribute("aria-valuemin", 0);
  chart.setAttribute("aria-valuemax", last);
  readable(chart, { dot, text, places, line, last, kept: holder.reading });
  const hadFocus = holder.contains(document.activeElement);
  chart.addEventListener("read", (event) => {
    holder.reading = event.detail;
  });
  holder.replaceChildren(chart);
  if (hadFocus) chart.focus({ preventScroll: true });
}

/** Draw the hypervolume over what was spent for it. */
export function drawProgress(holder, progress) {
  if (!progress.volume.some((volume) => volume > 0)) {
    holder.replaceChildren(el("p", {}, "No merge has a hypervolume yet."));
    return;
  }
  const [overEvaluations, overItems] = holdersIn(holder);
  const line = (title, name, x) => ({ title, names: [name, "hypervolume"], x, y: progress.volume });
  drawLine(overEvaluations, line("Hypervolume over evaluations", "evaluations", progress.evaluations));
  drawLine(overItems, line("Hypervolume over items", "items scored", progress.items));
}

/** Draw how CMA-ES narrows. */
export function drawConvergence(holder, found) {
  if (!found.sigma.length) {
    holder.replaceChildren(el("p", {}, "CMA-ES has not moved yet, or another strategy searches."));
    return;
  }
  const [sigma, ratio] = holdersIn(holder);
  const line = (title, y) => ({ title, names: ["candidate", `${title}, logarithmic`], x: found.candidate, y, isLog: true });
  drawLine(sigma, line("Step size sigma", found.sigma));
  drawLine(ratio, line("Axis ratio", found.axis_ratio));
}

function holdersIn(holder) {
  if (holder.childElementCount !== 2) holder.replaceChildren(el("div"), el("div"));
  return holder.children;
}

/** Round numbers within a range of logarithms, as logarithms. */
function logTicks([low, high]) {
  if (high - low < 1) return ticks(10 ** low, 10 ** high).map(Math.log10);
  const decades = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, at) => Math.floor(low) + at);
  const parts = high - low < 2 ? [1, 2, 5] : [1];
  const found = decades.flatMap((decade) => parts.map((part) => decade + Math.log10(part)));
  return found.filter((at) => at >= low && at <= high);
}

function readable(chart, { dot, text, places, line, last, kept }) {
  let row = Math.min(kept ?? last, last);
  const read = (isShown) => {
    const said = `${line.names[0]} ${short(line.x[row])}: ${short(line.y[row])}`;
    chart.setAttribute("aria-valuenow", row);
    chart.setAttribute("aria-valuetext", said);
    if (!isShown) return;
    text.textContent = said;
    dot.setAttribute("cx", places[row][0]);
    dot.setAttribute("cy", places[row][1]);
    dot.setAttribute("visibility", "visible");
    chart.dispatchEvent(new CustomEvent("read", { detail: row }));
  };
  chart.setAttribute("aria-valuenow", last);
  read(kept !== undefined);
  chart.addEventListener("focus", () => read(true));
  chart.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -last, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    row = Math.max(0, Math.min(last, row + steps[event.key]));
    read(true);
  });
  chart.addEventListener("pointermove", (event) => {
    const [at] = spotOf(chart, event);
    row = places.reduce((best, place, one) => (Math.abs(place[0] - at) < Math.abs(places[best][0] - at) ? one : best), 0);
    read(true);
  });
}
