// What is recorded of one candidate: its recipe and its scores, what can be done with it.

import { get, pathOf } from "./api.js";
import { axes, scale } from "./axes.js";
import { Comparison } from "./compare.js";
import { el, duration, problem, score, settle, short, svg, table, withError } from "./dom.js";
import { exportView } from "./exports.js";

const SPLITS = ["search", "select", "report"];

/** The panel of the open candidate; `rivals()` are rows that one can be compared with. */
export class Recipe {
  constructor(search, rivals) {
    this.search = search;
    this.rivals = rivals;
    this.index = null;
    this.heading = el("h2", { id: "recipe-title", tabindex: -1 }, "Recipe");
    this.body = el("div", {}, el("p", {}, "Choose a point to see its recipe, scores and comparisons."));
    this.node = el("aside", { id: "recipe", "aria-labelledby": "recipe-title" }, this.heading, this.body);
  }

  /** Show a candidate; returns whether it is shown, and not yet another one. */
  async open(index, strongest) {
    this.index = index;
    this.strongest = strongest;
    this.state = null;
    this.node.setAttribute("aria-busy", "true");
    await this.#ask(index);
    if (this.index !== index) return false;
    this.node.removeAttribute("aria-busy");
    return true;
  }

  /** Ask for it again, since something was recorded. */
  async refresh() {
    this.compare();
    if (this.index !== null && !this.node.hasAttribute("aria-busy")) await this.#ask(this.index);
  }

  /** Take over what it can be compared with. */
  compare() {
    this.comparison?.update(this.rivals());
  }

  async #ask(index) {
    try {
      const found = await get(pathOf(this.search, `/candidates/${index}`));
      // Answers need not come in the order in which they were asked for.
      if (this.index !== index) return;
      // What somebody looks into stays as it is; scores come one split after the other.
      if (this.state === found.state) settle(this.scores, scoresOf(found));
      else this.#build(found);
    } catch (error) {
      if (this.index !== index) return;
      if (this.state === null) {
        this.heading.textContent = "Recipe";
        this.comparison = null;
        this.body.replaceChildren(problem(error));
      }
    }
  }

  #build(found) {
    const isScored = found.state === "completed" || found.state === "stopped";
    this.state = found.state;
    this.heading.textContent = `Merge ${found.label}`;
    this.scores = el("div", {}, ...scoresOf(found));
    this.comparison = isScored ? new Comparison(this.search, found, this.strongest) : null;
    this.body.replaceChildren(
      this.scores,
      genes(found),
      ...(isScored ? [exportView(this.search, found), this.comparison.node] : []),
    );
    this.compare();
  }
}

function scoresOf(found) {
  const parts = [facts(found)];
  if (found.failure) parts.push(failure(found.failure));
  else if (found.state === "pending") parts.push(el("p", {}, "It is being scored."));
  else parts.push(scores(found));
  return parts;
}

function facts(found) {
  const said = [
    ["Candidate", String(found.index)],
    ["Origin", found.origin],
    ["State", found.stopped ? `stopped early: ${found.stopped}` : found.state],
    ["Preferred mean", score(found.mean)],
    ["Effective checkpoints", short(found.effective_checkpoints)],
    ["Worker", found.worker ?? "–"],
    ["Took", duration(found.seconds)],
  ];
  const marks = [found.is_chosen ? "chosen by the search" : "", found.on_front ? "on the front" : ""];
  return el(
    "div",
    {},
    el("p", { class: "marks" }, marks.filter(Boolean).map((text) => el("span", { class: "tag" }, text))),
    el("dl", { class: "facts" }, said.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
    el("p", { class: "id" }, el("code", {}, found.recipe_id)),
  );
}

function failure(found) {
  return el(
    "div",
    { class: "problem" },
    el("p", {}, `It failed in ${found.stage}: ${found.error_class}`),
    el("pre", {}, found.message),
  );
}

function scores(found) {
  const splits = SPLITS.filter((split) => found.splits[split]);
  const names = Object.keys(found.scores ?? found.splits.report ?? {});
  const columns = [
    ["believed", found.posterior],
    ...splits.map((split) => [split, found.splits[split]]),
  ].filter(([, column]) => column);
  // A stopped one has no whole split.
  if (found.scores && !found.splits.search) columns.push(["estimated", found.scores]);
  const rows = names.map((name) => [name, ...columns.map(([, column]) => withError(column[name]))]);
  return el(
    "div",
    {},
    el("h3", {}, "Scores"),
    intervals(names, columns),
    table("Scores, ± standard error", ["objective", ...columns.map(([name]) => name)], rows),
  );
}

/** Draw scores of search and report side by side, each with two standard errors. */
function intervals(names, columns) {
  const shown = columns.filter(([name]) => name !== "select");
  const step = 16;
  const rowHeight = step * shown.length + 14;
  const box = { left: 110, right: 390, top: 22, bottom: 22 + rowHeight * names.length };
  const ends = shown.flatMap(([, column]) =>
    names.filter((name) => column[name]).flatMap((name) => [-2, 2].map((by) => column[name].value + by * column[name].stderr)),
  );
  const range = ends.length ? [Math.min(...ends) - 0.02, Math.max(...ends) + 0.02] : [0, 1];
  const x = scale(range, [box.left, box.right]);
  const chart = svg(
    "svg",
    { viewBox: `0 0 400 ${box.bottom + 40}`, class: "chart intervals", role: "img", "aria-label": "Scores with error bars; the table below says the same" },
    axes(box, [range, [0, 0]], ["score ± 2 standard errors", ""], [short, () => ""]),
  );
  names.forEach((name, row) => {
    const top = box.top + row * rowHeight;
    chart.append(svg("text", { x: box.left - 8, y: top + rowHeight / 2 + 4, class: "end label" }, name.slice(0, 16)));
    shown.forEach(([split, column], place) => {
      if (!column[name]) return;
      const { value, stderr } = column[name];
      const y = top + 14 + place * step;
      chart.append(
        svg("line", { x1: x(value - 2 * stderr), x2: x(value + 2 * stderr), y1: y, y2: y, class: `error ${split}` }),
        svg("circle", { cx: x(value), cy: y, r: 4, class: `split ${split}` }),
      );
    });
  });
  shown.forEach(([split], place) =>
    chart.append(
      svg("circle", { cx: box.left + place * 90, cy: 8, r: 4, class: `split ${split}` }),
      svg("text", { x: box.left + place * 90 + 9, y: 12 }, split),
    ),
  );
  return chart;
}

function genes(found) {
  const rows = Object.entries(found.genes).flatMap(([checkpoint, groups]) =>
    Object.entries(groups).map(([group, gene]) => [
      checkpoint,
      group,
      el("span", { class: "gene" }, bar(gene.weight), short(gene.weight)),
      el("span", { class: "gene" }, bar(gene.drop_ratio), short(gene.drop_ratio)),
    ]),
  );
  return el(
    "div",
    {},
    el("h3", {}, "Recipe"),
    table("Weight and drop ratio of every checkpoint", ["checkpoint", "group", "weight", "drop ratio"], rows),
    el("details", {}, el("summary", {}, "As JSON"), el("pre", {}, JSON.stringify(found.recipe, null, 2))),
  );
}

function bar(value) {
  const width = Math.max(0, Math.min(1.5, Math.abs(value))) * 40;
  return svg("svg", { class: "bar", viewBox: "0 0 60 10", "aria-hidden": "true" }, svg("rect", { width, height: 10 }));
}
