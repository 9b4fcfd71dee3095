// Line charts: hypervolume, step size. The arrow keys read a line value by value.

import { axes, rangeOf, scales, ticks } from "./axes.js";
import { short, svg } from "./dom.js";

const BOX = { left: 60, top: 28, right: 388, bottom: 200 };

/**
 * Draw one line into a holder.
 *
 * `line` has `title`, `names` of both axes, columns `x` and `y`, and `isLog` for a logarithmic y.
 */
export function drawLine(holder, line) {
  const y = line.isLog ? line.y.map(Math.log10) : line.y;
  const ranges = [rangeOf(line.x), rangeOf(y)];
  const show = line.isLog ? (value) => short(10 ** value) : short;
  const [toX, toY] = scales(BOX, ranges);
  const places = line.x.map((value, row) => [toX(value), toY(y[row])]);
  const last = line.y.length - 1;
  const said = last < 0 ? "There is nothing to show yet." : `From ${short(line.y[0])} to ${short(line.y[last])} over ${last + 1} steps. Arrow keys read it.`;
  const dot = svg("circle", { class: "reading", r: 5, visibility: "hidden" });
  const text = svg("text", { class: "reading end", x: BOX.right, y: BOX.top - 8 });
  const chart = svg(
    "svg",
    { viewBox: "0 0 400 244", class: "chart line", role: "slider", "aria-label": line.title, tabindex: 0, "data-index": line.title },
    svg("title", {}, line.title),
    svg("desc", {}, said),
    axes(BOX, ranges, line.names, [short, show], [null, line.isLog ? logTicks(ranges[1]) : null]),
    svg("path", { class: "course", d: places.map(([px, py], row) => `${row ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("") }),
    dot,
    text,
  );
  chart.setAttribute("aria-valuemin", 0);
  chart.setAttribute("aria-valuemax", Math.max(0, last));
  readable(chart, { dot, text, places, line, last, kept: holder.reading });
  const hadFocus = holder.contains(document.activeElement);
  chart.addEventListener("read", (event) => {
    holder.reading = event.detail;
  });
  holder.replaceChildren(chart);
  if (hadFocus) chart.focus({ preventScroll: true });
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
    if (last < 0) return;
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
  chart.setAttribute("aria-valuenow", Math.max(0, last));
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
    if (last < 0) return;
    const size = chart.getBoundingClientRect();
    const at = ((event.clientX - size.left) / size.width) * 400;
    row = places.reduce((best, place, one) => (Math.abs(place[0] - at) < Math.abs(places[best][0] - at) ? one : best), 0);
    read(true);
  });
}
