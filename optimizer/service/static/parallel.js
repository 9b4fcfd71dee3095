// Parallel coordinates: weights and drop ratios of every merge, and how good it is.

import { replaceChart, rove, scale } from "./axes.js";
import { score, short, svg } from "./dom.js";

const TOP = 86;
const BOTTOM = 300;
const GAP = 64;
const CLASSES = 5;

/** Draw into a holder; `view` is as that of a scatter, with `genes`, the names of the columns. */
export function drawParallel(holder, view) {
  const columns = columnsOf(view);
  const width = Math.max(holder.clientWidth, 360, 120 + GAP * (columns.length - 1));
  const gap = (width - 120) / Math.max(1, columns.length - 1);
  const x = (place) => 60 + gap * place;
  const scaled = columns.map((column) => {
    const range = endsOf(view.rows.map(column.of));
    return { ...column, range, y: scale(range, range[0] < range[1] ? [BOTTOM, TOP] : [BOTTOM, BOTTOM]) };
  });
  const title = "Weights, drop ratios and mean of every merge";
  const chart = svg(
    "svg",
    { viewBox: `0 0 ${width} 330`, width, height: 330, class: "chart parallel", role: "group", "aria-label": title },
    svg("title", {}, title),
    svg("desc", {}, "Each line is a merge; the better its mean, the stronger the line. Arrow keys go from the best to the worst, Enter opens its recipe."),
  );
  const best = [...view.rows].sort((a, b) => b.mean - a.mean);
  const marks = new Map(best.map((row, place) => [row.index, lineOf(row, place / best.length, scaled, x, view)]));
  // The best lie on top; the selected one above all.
  const drawn = [...best].reverse().sort((a, b) => rank(a, view) - rank(b, view));
  chart.append(...drawn.map((row) => marks.get(row.index)), ...scaled.map((column, place) => axis(column, x(place))));
  const ordered = best.map((row) => marks.get(row.index));
  rove(ordered, marks.get(view.selected) ?? marks.get(view.chosen) ?? ordered[0]);
  replaceChart(holder, chart);
}

function endsOf(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function columnsOf(view) {
  const gene = (kind, key) => view.genes.map((name, place) => ({ kind, name, of: (row) => row[key][place] }));
  const mean = { kind: "mean", name: "preferred", of: (row) => row.mean };
  return [...gene("weight", "weights"), ...gene("drop", "dropRatios"), mean];
}

function rank(row, view) {
  return row.index === view.selected ? 2 : row.index === view.chosen ? 1 : 0;
}

function lineOf(row, place, columns, x, view) {
  const d = columns.map((column, at) => `${at ? "L" : "M"}${x(at).toFixed(1)} ${column.y(column.of(row)).toFixed(1)}`).join("");
  const genes = columns.map((column) => `${column.kind} ${column.name} ${short(column.of(row))}`);
  const classes = ["merge", `class-${Math.min(CLASSES - 1, Math.floor(place * CLASSES))}`];
  if (row.index === view.selected) classes.push("selected");
  if (row.index === view.chosen) classes.push("wished");
  return svg(
    "g",
    {
      class: classes.join(" "),
      role: "button",
      "data-index": row.index,
      "aria-pressed": row.index === view.selected ? "true" : "false",
      "aria-label": `${row.label}, mean ${score(row.mean)}: ${genes.join(", ")}`,
      onclick: () => view.open(row.index),
    },
    svg("title", {}, `${row.label}, mean ${score(row.mean)}`),
    svg("path", { d, class: "around" }),
    svg("path", { d }),
  );
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
