// Three objectives at once, turned by two sliders; drawn once somebody opens it.

import { nearest, press, rangeOf, replaceChart, rove, scale } from "./axes.js";
import { el, score, svg } from "./dom.js";
import { meets } from "./scatter.js";

const MIDDLE = [200, 180];
const SIZE = 105;
const EDGES = [0, 1, 2].flatMap((axis) =>
  [[-1, -1], [-1, 1], [1, -1], [1, 1]].map((ends) => [-1, 1].map((end) => ends.toSpliced(axis, 0, end))),
);

/** A view of three objectives; `update()` draws it again, `adorn()` what is chosen and open. */
export class Space {
  constructor(view) {
    this.view = view;
    this.angles = { turn: 35, tilt: 20 };
    this.holder = el("div");
    this.axes = el("p", { class: "fields" });
    const turning = ["turn", "tilt"].map((name) =>
      el("label", { class: "slider" }, el("span", {}, name === "turn" ? "Turn" : "Tilt"), el("input", {
        type: "range",
        min: name === "turn" ? -180 : -90,
        max: name === "turn" ? 180 : 90,
        value: this.angles[name],
        oninput: (event) => {
          this.angles[name] = Number(event.target.value);
          this.#place();
        },
      })),
    );
    const summary = el("summary", {}, "Three objectives in 3-D");
    this.node = el("details", { class: "space", hidden: true, ontoggle: () => this.update() }, summary, this.axes, ...turning, this.holder);
  }

  /** Draw, where it is open and there are three objectives. */
  update() {
    const { objectives, rows } = this.view;
    this.node.hidden = objectives.length < 3;
    if (this.node.hidden || !this.node.open || !rows.length) return;
    if (this.names?.join("\n") !== objectives.join("\n")) this.#choices(objectives);
    const columns = this.shown.map((place) => rows.map((row) => row.values[place]));
    const scales = columns.map((column) => scale(rangeOf(column), [-1, 1]));
    this.spots = new Map(rows.map((row) => [row.index, scales.map((to, axis) => to(row.values[this.shown[axis]]))]));
    this.#draw(rows);
  }

  #choices(objectives) {
    this.names = objectives;
    this.shown = [0, 1, 2];
    const pick = (axis) =>
      el(
        "select",
        {
          "aria-label": `Axis ${axis + 1}`,
          onchange: (event) => {
            this.shown[axis] = Number(event.target.value);
            this.update();
          },
        },
        objectives.map((name, place) => el("option", { value: place, selected: place === axis }, name)),
      );
    this.axes.replaceChildren(...(objectives.length > 3 ? this.shown.map((_, axis) => pick(axis)) : []));
  }

  #draw(rows) {
    const names = this.shown.map((place) => this.names[place]);
    this.marks = new Map(rows.map((row) => [row.index, mark(row, this.shown, this.names)]));
    this.edges = EDGES.map(() => svg("line", {}));
    this.labels = names.map((name) => svg("text", { class: "middle name" }, name));
    this.over = svg("g", { class: "over" });
    const title = names.join(", ");
    this.chart = svg(
      "svg",
      { viewBox: "0 0 400 360", class: "chart", role: "group", "aria-label": `${title} in three dimensions` },
      svg("desc", {}, "Arrow keys go from one merge to the next, Enter opens its recipe; sliders turn the view."),
      svg("g", { class: "axes", "aria-hidden": "true" }, this.edges),
      svg("g", {}, ...this.marks.values()),
      svg("g", { class: "axes", "aria-hidden": "true" }, this.labels),
      this.over,
    );
    const { selected, chosen } = this.view;
    const ordered = [...rows].sort((a, b) => b.mean - a.mean).map((row) => this.marks.get(row.index));
    rove(this.chart, ordered, this.marks.get(selected) ?? this.marks.get(chosen), {
      open: this.view.open,
      near: (spot) => nearest(new Map([...this.spots].map(([index, place]) => [index, this.#project(place)])), spot),
    });
    this.#place();
    replaceChart(this.holder, this.chart);
  }

  #project([x, y, z]) {
    const [turn, tilt] = [this.angles.turn, this.angles.tilt].map((angle) => (angle * Math.PI) / 180);
    const right = x * Math.cos(turn) + y * Math.sin(turn);
    const deep = y * Math.cos(turn) - x * Math.sin(turn);
    const up = z * Math.cos(tilt) + deep * Math.sin(tilt);
    return [MIDDLE[0] + SIZE * right, MIDDLE[1] - SIZE * up];
  }

  #place() {
    if (!this.chart) return;
    for (const [index, spot] of this.spots) {
      const [x, y] = this.#project(spot);
      this.marks.get(index).setAttribute("cx", x);
      this.marks.get(index).setAttribute("cy", y);
    }
    this.edges.forEach((edge, place) => {
      const [[x1, y1], [x2, y2]] = EDGES[place].map((end) => this.#project(end));
      for (const [name, value] of Object.entries({ x1, y1, x2, y2 })) edge.setAttribute(name, value);
    });
    this.labels.forEach((label, axis) => {
      const end = [-1, -1, -1].with(axis, 1.15);
      const [x, y] = this.#project(end);
      label.setAttribute("x", x);
      label.setAttribute("y", y);
    });
    this.adorn();
  }

  /** Show what is chosen, open and below floors. */
  adorn() {
    if (!this.chart || !this.node.open) return;
    const { rows, floors, selected, chosen } = this.view;
    for (const row of rows) this.marks.get(row.index)?.classList.toggle("below", !meets(row, floors));
    press(this.chart, this.marks.get(selected));
    const ring = (index, r, name) => {
      if (!this.spots.has(index)) return [];
      const [cx, cy] = this.#project(this.spots.get(index));
      return [svg("circle", { cx, cy, r, class: `ring ${name}` })];
    };
    this.over.replaceChildren(...ring(chosen, 12, "wished"), ...ring(selected, 8, "selected"));
  }
}

function mark(row, shown, names) {
  const said = shown.map((place) => `${names[place]} ${score(row.values[place])}`);
  return svg("circle", {
    class: ["spot mark", row.kind, row.state, row.isFront ? "front" : ""].join(" ").trim(),
    "data-index": row.index,
    role: "button",
    "aria-label": [row.label, ...said].join(", "),
    r: row.isFront ? 5 : 3.5,
  });
}
