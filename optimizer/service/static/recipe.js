// What is recorded of one candidate: its recipe and its scores.

import { get, pathOf } from "./api.js";
import { compareView } from "./compare.js";
import { el, duration, problem, score, short, svg, table, withError } from "./dom.js";
import { axes, scale } from "./axes.js";
import { exportView } from "./exports.js";

const SPLITS = ["search", "select", "report"];

/** Fill the panel with a candidate; `baselines` are rows that it can be compared with. */
export async function showRecipe(panel, search, index, baselines, rival) {
  panel.setAttribute("aria-busy", "true");
  try {
    const found = await get(pathOf(search, `/candidates/${index}`));
    const heading = el("h2", { id: "recipe-title", tabindex: -1 }, `Merge ${found.label}`);
    panel.replaceChildren(
      heading,
      facts(found),
      found.failure ? failure(found.failure) : scores(found),
      genes(found),
      found.failure ? "" : exportView(search, found),
      found.failure ? "" : compareView(search, found, baselines, rival),
    );
    return heading;
  } catch (error) {
    panel.replaceChildren(problem(error));
    return null;
  } finally {
    panel.removeAttribute("aria-busy");
  }
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
