// The front: one scatter for every pair of objectives.

import { axes, rangeOf, replaceChart, rove, scales } from "./axes.js";
import { score, svg } from "./dom.js";

const BOX = { left: 52, top: 28, right: 388, bottom: 300 };

/** Columns of points as rows, with what is believed of each, or its scores. */
export function rowsOf(points) {
  return points.index.map((index, row) => ({
    index,
    label: points.label[row],
    kind: points.kind[row],
    state: points.state[row],
    isFront: points.on_front[row],
    mean: points.mean[row],
    values: points.posterior[row] ?? points.scores[row],
    errors: points.posterior_stderr[row] ?? points.stderr[row],
    weights: points.weights[row],
    dropRatios: points.drop_ratios[row],
  }));
}

/** Every pair of objectives; a single one is shown over the candidates' numbers. */
export function pairsOf(objectives) {
  if (objectives.length === 1) return [[null, 0]];
  return objectives.flatMap((_, first) =>
    objectives.slice(first + 1).map((_name, rest) => [first, first + 1 + rest]),
  );
}

/** Whether a row meets floors, which are null where there is none. */
export function meets(row, floors) {
  return floors.every((floor, place) => floor === null || row.values[place] >= floor);
}

/**
 * Draw one scatter into a holder.
 *
 * `view` has `objectives`, `rows`, `floors`, `chosen` and `selected` (indices), and `open(index)`.
 */
export function drawScatter(holder, pair, view) {
  const at = (row, side) => (pair[side] === null ? row.index : row.values[pair[side]]);
  const names = pair.map((place) => (place === null ? "candidate" : view.objectives[place]));
  const ranges = [0, 1].map((side) => rangeOf(view.rows.map((row) => at(row, side))));
  const [x, y] = scales(BOX, ranges);
  const title = `${names[1]} over ${names[0]}`;
  const numFront = view.rows.filter((row) => row.isFront).length;
  const chart = svg(
    "svg",
    { viewBox: "0 0 400 344", class: "chart scatter", role: "group", "aria-label": title },
    svg("title", {}, title),
    svg("desc", {}, `${view.rows.length} merges, ${numFront} of them on the front. Arrow keys go from one to the next, Enter opens its recipe.`),
    axes(BOX, ranges, names, [tick, tick]),
  );
  chart.append(...floorLines(pair, view.floors, ranges, [x, y]));
  // What matters most lies above the rest; keys go from left to right.
  const drawn = [...view.rows].sort((a, b) => rank(a, view) - rank(b, view));
  const marks = new Map();
  for (const row of drawn) {
    const place = [x(at(row, 0)), y(at(row, 1))];
    if (row.index === view.selected || row.index === view.chosen) {
      chart.append(...errorBars(row, pair, place, [x, y]), ring(row, place, view));
    }
    const mark = markOf(row, place, view, names, at);
    marks.set(row.index, mark);
    chart.append(mark);
  }
  const ordered = [...view.rows].sort((a, b) => at(a, 0) - at(b, 0)).map((row) => marks.get(row.index));
  rove(ordered, marks.get(view.selected) ?? marks.get(view.chosen) ?? ordered[0]);
  replaceChart(holder, chart);
}

const tick = (value) => String(Math.round(value * 1e4) / 1e4);

function rank(row, view) {
  if (row.index === view.selected || row.index === view.chosen) return 3;
  if (row.kind === "baseline") return 2;
  return row.isFront ? 1 : 0;
}

function markOf(row, [x, y], view, names, at) {
  const classes = ["mark", row.kind, row.state];
  if (row.isFront) classes.push("front");
  if (!meets(row, view.floors)) classes.push("below");
  const said = [0, 1].map((side) => `${names[side]} ${side || names[0] !== "candidate" ? score(at(row, side)) : at(row, side)}`);
  const facts = [row.kind === "baseline" ? "baseline" : null, row.isFront ? "on the front" : null, row.state === "stopped" ? "stopped early, estimated" : null, row.index === view.chosen ? "chosen by the wish" : null];
  const text = [row.label, ...said, ...facts.filter(Boolean)].join(", ");
  const attributes = {
    class: classes.join(" "),
    "data-index": row.index,
    role: "button",
    "aria-label": text,
    "aria-pressed": row.index === view.selected ? "true" : "false",
    onclick: () => view.open(row.index),
  };
  const shape =
    row.kind === "baseline"
      ? svg("path", { d: `M${x} ${y - 6}l6 6l-6 6l-6-6z` })
      : svg("circle", { cx: x, cy: y, r: row.isFront ? 5 : 3.5 });
  // Fingers need more than a dot.
  const around = svg("circle", { cx: x, cy: y, r: 9, class: "around" });
  return svg("g", attributes, svg("title", {}, text), around, shape);
}

function ring(row, [x, y], view) {
  return svg("circle", { cx: x, cy: y, r: row.index === view.selected ? 9 : 12, class: row.index === view.selected ? "ring selected" : "ring wished" });
}

function errorBars(row, pair, [x, y], [scaleX, scaleY]) {
  const bars = [];
  if (pair[0] !== null) {
    const [value, error] = [row.values[pair[0]], row.errors[pair[0]]];
    bars.push(svg("line", { class: "error", x1: scaleX(value - error), x2: scaleX(value + error), y1: y, y2: y }));
  }
  const [value, error] = [row.values[pair[1]], row.errors[pair[1]]];
  bars.push(svg("line", { class: "error", x1: x, x2: x, y1: scaleY(value - error), y2: scaleY(value + error) }));
  return bars;
}

function floorLines(pair, floors, ranges, [x, y]) {
  const lines = [];
  const within = (side) => {
    const floor = pair[side] === null ? null : floors[pair[side]];
    return floor !== null && floor > ranges[side][0] && floor < ranges[side][1] ? floor : null;
  };
  const [first, second] = [within(0), within(1)];
  if (first !== null) lines.push(svg("line", { class: "floor", x1: x(first), x2: x(first), y1: BOX.top, y2: BOX.bottom }));
  if (second !== null) lines.push(svg("line", { class: "floor", x1: BOX.left, x2: BOX.right, y1: y(second), y2: y(second) }));
  return lines;
}
