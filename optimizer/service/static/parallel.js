// Parallel coordinates: weights and drop ratios of every merge, and how good it is.

import { press, replaceChart, rove, scale } from "./axes.js";
import { score, short, svg } from "./dom.js";

const TOP = 86;
const BOTTOM = 300;
const GAP = 64;
// The last name leans out to the right.
const [LEFT, RIGHT] = [60, 100];
const CLASSES = 5;
const REACH = 8;

/** Draw into a holder; `view` is as that of a scatter, with `genes`, the names of the columns. */
export function drawParallel(holder, view) {
  const columns = columnsOf(view);
  const width = Math.max(holder.clientWidth, 360, LEFT + RIGHT + GAP * (columns.length - 1));
  const gap = (width - LEFT - RIGHT) / Math.max(1, columns.length - 1);
  const x = (place) => LEFT + gap * place;
  const scaled = columns.map((column) => {
    const range = endsOf(view.rows.map(column.of));
    return { ...column, range, y: scale(range, range[0] < range[1] ? [BOTTOM, TOP] : [BOTTOM, BOTTOM]) };
  });
  const title = "Weights, drop ratios and mean of every merge";
  const chart = svg(
    "svg",
    { viewBox: `0 0 ${width} 330`, width, height: 330, class: "chart parallel", role: "group", "aria-label": title },
    svg("desc", {}, "Each line is a merge; the better its mean, the stronger the line. Arrow keys go from the best to the worst, Enter opens its recipe."),
  );
  const best = [...view.rows].sort((a, b) => b.mean - a.mean);
  const places = new Map(best.map((row) => [row.index, scaled.map((column, at) => [x(at), column.y(column.of(row))])]));
  const marks = new Map(best.map((row, at) => [row.index, lineOf(row, at / best.length, scaled, places.get(row.index))]));
  const over = svg("g", { class: "over" });
  // The best lie on top.
  chart.append(...[...marks.values()].reverse(), ...scaled.map((column, at) => axis(column, x(at))), over);
  rove(chart, best.map((row) => marks.get(row.index)), marks.get(view.selected) ?? marks.get(view.chosen), {
    open: view.open,
    near: (spot) => nearestLine(places, spot),
  });
  holder.adorn = () => {
    press(chart, marks.get(view.selected));
    over.replaceChildren(
      ...[["wished", view.chosen], ["selected", view.selected]]
        .filter(([, index]) => places.has(index))
        .map(([name, index]) => svg("path", { class: name, d: pathOf(places.get(index)) })),
    );
  };
  holder.adorn();
  replaceChart(holder, chart);
}

/** Return the merge whose line is within reach of a place of the chart, or null. */
function nearestLine(places, [x, y]) {
  let [found, least] = [null, REACH];
  for (const [index, line] of places) {
    const right = line.findIndex(([px]) => px >= x);
    if (right < 1) continue;
    const [[x0, y0], [x1, y1]] = [line[right - 1], line[right]];
    const away = Math.abs(y0 + ((y1 - y0) * (x - x0)) / (x1 - x0) - y);
    if (away < least) [found, least] = [index, away];
  }
  return found;
}

function pathOf(line) {
  return line.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function endsOf(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function columnsOf(view) {
  const gene = (kind, key) => view.genes.map((name, place) => ({ kind, name, of: (row) => row[key][place] }));
  const mean = { kind: "mean", name: "preferred", of: (row) => row.mean };
  return [...gene("weight", "weights"), ...gene("drop", "dropRatios"), mean];
}

function lineOf(row, place, columns, line) {
  const genes = columns.map((column) => `${column.kind} ${column.name} ${short(column.of(row))}`);
  return svg("path", {
    class: `merge class-${Math.min(CLASSES - 1, Math.floor(place * CLASSES))}`,
    role: "button",
    "data-index": row.index,
    "aria-label": `${row.label}, mean ${score(row.mean)}: ${genes.join(", ")}`,
    d: pathOf(line),
  });
}

function axis(column, x) {
  return svg(
    "g",
    { class: "axes", "aria-hidden": "true" },
    svg("line", { x1: x, x2: x, y1: TOP, y2: BOTTOM, class: "upright" }),
    svg("text", { x, y: TOP - 8, class: "middle" }, short(Number(column.range[1].toPrecision(3)))),
    svg("text", { x, y: BOTTOM + 16, class: "middle" }, short(Number(column.range[0].toPrecision(3)))),
    svg("text", { x: x + 4, y: TOP - 24, class: "name", transform: `rotate(-30 ${x} ${TOP - 24})` }, `${column.name.slice(0, 14)} ${column.kind}`),
  );
}
