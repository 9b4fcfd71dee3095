// The page of one search: what is asked of the service, and which part shows it.

import { get, pathOf } from "./api.js";
import { Controls } from "./controls.js";
import { el, problem, section } from "./dom.js";
import { calmly, follow } from "./events.js";
import { failures, overview, verdict, workers } from "./facts.js";
import { drawLine } from "./lines.js";
import { drawParallel } from "./parallel.js";
import { showRecipe } from "./recipe.js";
import { drawScatter, pairsOf, rowsOf } from "./scatter.js";
import { Space } from "./space.js";
import { Wishes } from "./wishes.js";

const REFRESH_MS = 1000;
const main = document.getElementById("main");
const search = main.dataset.search;

const view = { objectives: [], genes: [], rows: [], floors: [], chosen: null, selected: null, open };
const parts = Object.fromEntries(
  ["overview", "verdict", "scatters", "volumes", "parallel", "convergence", "workers", "failures"].map(
    (name) => [name, el("div", { class: name })],
  ),
);
parts.parallel.classList.add("wide");
const live = el("p", { class: "live", role: "status" }, "Loading …");
const trouble = el("div");
const panel = el("aside", { id: "recipe", "aria-labelledby": "recipe-title" }, el("h2", { id: "recipe-title" }, "Recipe"), el("p", {}, "Choose a point to see its recipe, scores and comparisons."));
const space = new Space(view);
const controls = new Controls(search);
const wishes = new Wishes(search, {
  open,
  onChange: (floors) => {
    view.floors = [...floors];
    adornSoon();
  },
  onChoice: (index) => {
    if (view.chosen === index) return;
    view.chosen = index;
    adornSoon();
  },
});

main.append(
  live,
  trouble,
  section("overview", "Overview", parts.overview, controls.node),
  el(
    "div",
    { class: "split" },
    section("front", "Front", wishes.node, legend(), parts.scatters, space.node),
    panel,
  ),
  section("volume", "Hypervolume", parts.volumes),
  section("genes", "Weights and drop ratios", parts.parallel),
  section("verdict", "Baselines and verdict", parts.verdict),
  section("cma", "Convergence", parts.convergence),
  section("work", "Workers", parts.workers),
  section("failed", "Failures", parts.failures),
);

function legend() {
  const text = "Filled and large: on the front. Diamond: baseline. Hollow: stopped early. Wide ring: chosen by the sliders. Narrow ring: open on this page. Lines through these two: standard errors.";
  return el("p", { class: "legend" }, text);
}

let isDrawing = false;
function adornSoon() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    adorn();
  });
}

/** Show what is chosen, open and below floors; the points themselves stay. */
function adorn() {
  for (const holder of [...parts.scatters.children, parts.parallel]) holder.adorn?.();
  space.adorn();
}

function draw() {
  if (!view.rows.length) {
    parts.scatters.replaceChildren(el("p", {}, "No merge was scored yet."));
    return;
  }
  const pairs = pairsOf(view.objectives);
  if (parts.scatters.dataset.pairs !== JSON.stringify(pairs)) {
    parts.scatters.dataset.pairs = JSON.stringify(pairs);
    parts.scatters.replaceChildren(...pairs.map(() => el("div")));
  }
  pairs.forEach((pair, place) => drawScatter(parts.scatters.children[place], pair, view));
  // First what everybody looks at.
  setTimeout(() => {
    drawParallel(parts.parallel, view);
    space.update();
  });
}

async function open(index) {
  view.selected = index;
  history.replaceState(null, "", `#candidate-${index}`);
  adorn();
  // A baseline is compared with the others, and with what the sliders choose.
  const others = view.rows.filter((row) => row.kind === "baseline" || row.index === view.chosen);
  const heading = await showRecipe(panel, search, index, others, view.rival);
  // On a phone the panel lies elsewhere; who uses keys or a screen reader goes there, too.
  if (heading) heading.focus({ preventScroll: matchMedia("(min-width: 70rem)").matches });
}

let isLinked = true;
/** Open what the address names, once it is known what that can be compared with. */
function openLinked() {
  const wanted = /^#candidate-(\d+)$/.exec(location.hash);
  if (isLinked && view.rows.length && wanted) open(Number(wanted[1]));
  isLinked &&= !view.rows.length;
}

async function refresh() {
  try {
    // All at once: what the status takes is not waited for before the points are asked for.
    const asked = Promise.all(["/points", "/progress", "/convergence"].map((path) => get(pathOf(search, path))));
    asked.catch(() => {}); // where there is no archive yet, nobody waits for it
    const status = await get(pathOf(search));
    parts.overview.replaceChildren(...overview(status).filter(Boolean));
    controls.update(status);
    parts.workers.replaceChildren(...workers(status));
    view.rival = status.verdict?.strongest ?? "uniform soup";
    if (status.created_at !== null) refreshResults(status, await asked);
    openLinked();
    parts.failures.replaceChildren(...(await failures(search, status, open)));
    trouble.replaceChildren();
  } catch (error) {
    trouble.replaceChildren(problem(error));
  }
}

function refreshResults(status, [points, progress, convergence]) {
  const revision = `${points.revision} ${points.belief.state} ${points.belief.outcomes}`;
  if (revision !== view.revision) {
    view.revision = revision;
    view.objectives = points.objectives;
    view.genes = points.genes;
    view.rows = rowsOf(points);
    if (!view.floors.length) view.floors = points.objectives.map(() => null);
    draw();
    wishes.update(points.objectives, status.preference, view.rows);
    drawProgress(progress);
    drawConvergence(convergence);
  }
  parts.verdict.replaceChildren(...verdict(status, view.rows));
}

function holders(holder, count) {
  if (holder.childElementCount !== count) holder.replaceChildren(...Array.from({ length: count }, () => el("div")));
  return [...holder.children];
}

function drawProgress(progress) {
  const [overEvaluations, overItems] = holders(parts.volumes, 2);
  const line = (title, name, x) => ({ title, names: [name, "hypervolume"], x, y: progress.volume });
  drawLine(overEvaluations, line("Hypervolume over evaluations", "evaluations", progress.evaluations));
  drawLine(overItems, line("Hypervolume over items", "items scored", progress.items));
}

function drawConvergence(found) {
  if (!found.sigma.length) {
    parts.convergence.replaceChildren(el("p", {}, "There is no update of CMA-ES to show."));
    return;
  }
  if (parts.convergence.querySelector("p")) parts.convergence.replaceChildren();
  const [sigma, ratio] = holders(parts.convergence, 2);
  const line = (title, y) => ({ title, names: ["candidate", `${title}, logarithmic`], x: found.candidate, y, isLog: true });
  drawLine(sigma, line("Step size sigma", found.sigma));
  drawLine(ratio, line("Axis ratio", found.axis_ratio));
}

addEventListener("resize", calmly(draw, 300));
const refreshSoon = calmly(refresh, REFRESH_MS);
refreshSoon();
follow(
  search,
  {
    status: refreshSoon,
    candidate: (row) => {
      live.textContent = `Live. Last finished: ${row.label}${row.mean === null ? "" : `, mean ${row.mean.toFixed(3)}`}.`;
      refreshSoon();
    },
    belief: refreshSoon,
    deleted: () => {
      live.textContent = "This search was deleted.";
    },
  },
  (isConnected) => {
    live.textContent = isConnected ? "Live." : "The connection is lost; it is tried again.";
  },
);
