// The front: one scatter for every pair of objectives.

import { axes, nearest, press, rangeOf, replaceChart, rove, scales, ticks } from "./axes.js";
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
  const over = svg("g", { class: "over" });
  const chart = svg(
    "svg",
    { viewBox: "0 0 400 344", class: "chart scatter", role: "group", "aria-label": title },
    svg("desc", {}, `${view.rows.length} merges, ${numFront} of them on the front. Arrow keys go from one to the next, Enter opens its recipe.`),
    axes(BOX, ranges, names, [tick, tick], [pair[0] === null ? ticks(...ranges[0], 1) : null, null]),
  );
  const places = new Map(view.rows.map((row) => [row.index, [x(at(row, 0)), y(at(row, 1))]]));
  // What matters most lies above the rest; keys go from left to right.
  const drawn = [...view.rows].sort((a, b) => rank(a) - rank(b));
  const marks = new Map(drawn.map((row) => [row.index, markOf(row, places.get(row.index), names, at)]));
  chart.append(...marks.values(), over);
  const ordered = [...view.rows].sort((a, b) => at(a, 0) - at(b, 0)).map((row) => marks.get(row.index));
  rove(chart, ordered, marks.get(view.selected) ?? marks.get(view.chosen), {
    open: view.open,
    near: (spot) => nearest(places, spot),
  });
  holder.adorn = () => {
    for (const row of view.rows) marks.get(row.index)?.classList.toggle("below", !meets(row, view.floors));
    press(chart, marks.get(view.selected));
    const shown = view.rows.filter((row) => row.index === view.selected || row.index === view.chosen);
    over.replaceChildren(
      ...floorLines(pair, view.floors, ranges, [x, y]),
      ...shown.flatMap((row) => [...errorBars(row, pair, places.get(row.index), [x, y]), ...rings(row, places.get(row.index), view)]),
    );
  };
  holder.adorn();
  replaceChart(holder, chart);
}

const tick = (value) => String(Math.round(value * 1e4) / 1e4);

function rank(row) {
  return row.kind === "baseline" ? 2 : row.isFront ? 1 : 0;
}

function markOf(row, [x, y], names, at) {
  const classes = ["mark", row.kind, row.state];
  if (row.isFront) classes.push("front");
  const said = [0, 1].map((side) => `${names[side]} ${names[side] === "candidate" ? at(row, side) : score(at(row, side))}`);
  const facts = [row.kind === "baseline" ? "baseline" : null, row.isFront ? "on the front" : null, row.state === "stopped" ? "stopped early, estimated" : null];
  const attributes = {
    class: classes.join(" "),
    "data-index": row.index,
    role: "button",
    "aria-label": [row.label, ...said, ...facts.filter(Boolean)].join(", "),
  };
  const size = row.isFront ? 5 : 3.5;
  if (row.kind !== "baseline") return svg("circle", { ...attributes, cx: x, cy: y, r: size });
  const reach = size + 1.5;
  return svg("path", { ...attributes, d: `M${x} ${y - reach}l${reach} ${reach}l-${reach} ${reach}l-${reach}-${reach}z` });
}

function rings(row, [x, y], view) {
  const ring = (r, name) => svg("circle", { cx: x, cy: y, r, class: `ring ${name}` });
  const found = [];
  if (row.index === view.chosen) found.push(ring(12, "wished"));
  if (row.index === view.selected) found.push(ring(8, "selected"));
  return found;
}

function errorBars(row, pair, [x, y], [scaleX, scaleY]) {
  const bars = [];
  // They end where the chart does.
  const ends = (to, side, low, high) => {
    const [value, error] = [row.values[pair[side]], row.errors[pair[side]]];
    return [value - error, value + error].map((end) => Math.max(low, Math.min(high, to(end))));
  };
  if (pair[0] !== null) {
    const [x1, x2] = ends(scaleX, 0, BOX.left, BOX.right);
    bars.push(svg("line", { class: "error", x1, x2, y1: y, y2: y }));
  }
  const [y1, y2] = ends(scaleY, 1, BOX.top, BOX.bottom);
  bars.push(svg("line", { class: "error", x1: x, x2: x, y1, y2 }));
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
