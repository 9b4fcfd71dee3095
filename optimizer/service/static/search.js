// The page of one search: what is asked of the service, and which part shows it.

import { get, pathOf } from "./api.js";
import { Controls } from "./controls.js";
import { el, problem, score, section, settle } from "./dom.js";
import { calmly, follow } from "./events.js";
import { ahead, failures, overview, verdict, workers } from "./facts.js";
import { drawConvergence, drawProgress } from "./lines.js";
import { drawParallel } from "./parallel.js";
import { Recipe } from "./recipe.js";
import { drawScatter, pairsOf, rowsOf } from "./scatter.js";
import { Space } from "./space.js";
import { Wishes } from "./wishes.js";

const REFRESH_MS = 1000;
const RETRY_MS = 5000;
const CLOCKS_MS = 30000;
// Streams end once an hour and begin again; that is not worth a word.
const LOST_MS = 4000;
const main = document.getElementById("main");
const search = main.dataset.search;

const view = { objectives: [], genes: [], rows: [], floors: [], chosen: null, selected: null, open };
const parts = Object.fromEntries(
  ["overview", "verdict", "scatters", "volumes", "ahead", "parallel", "convergence", "workers", "failures"].map(
    (name) => [name, el("div", { class: name })],
  ),
);
parts.parallel.classList.add("wide");
const live = el("span", { role: "status" }, "Loading …");
// Not read out: it may change every second.
const latest = el("span");
const trouble = el("div");
const legend = el(
  "p",
  { class: "legend", hidden: true },
  "Large: on the front. Diamond: baseline. Hollow: stopped early. Wide ring: chosen by the sliders. ",
  "Narrow ring: open on this page. Lines through these two: standard errors.",
);
const space = new Space(view);
const controls = new Controls(search);
// A baseline is compared with the others, and with what the sliders choose.
const recipe = new Recipe(search, () => view.rows.filter((row) => row.kind === "baseline" || row.index === view.chosen));
const wishes = new Wishes(search, {
  open,
  onChange: (floors) => {
    view.floors = [...floors];
    adornSoon();
  },
  onChoice: (index) => {
    if (view.chosen === index) return;
    view.chosen = index;
    recipe.compare();
    adornSoon();
  },
});

main.append(
  el("p", { class: "live" }, live, " ", latest),
  trouble,
  section("overview", "Overview", parts.overview, controls.node),
  el(
    "div",
    { class: "split" },
    section("front", "Front", wishes.node, legend, parts.scatters, space.node),
    recipe.node,
  ),
  section("volume", "Hypervolume", parts.volumes, parts.ahead),
  section("genes", "Weights and drop ratios", parts.parallel),
  section("verdict", "Baselines and verdict", parts.verdict),
  section("cma", "Convergence", parts.convergence),
  section("work", "Workers", parts.workers),
  section("failed", "Failures", parts.failures),
);
parts.failures.addEventListener("click", (event) => {
  if (event.target.dataset.open !== undefined) open(Number(event.target.dataset.open));
});

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
  legend.hidden = !view.rows.length;
  if (!view.rows.length) {
    for (const part of [parts.scatters, parts.parallel]) part.replaceChildren(el("p", {}, "No merge was scored yet."));
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
  if (!(await recipe.open(index, view.strongest))) return;
  // On a phone the panel lies elsewhere; who uses keys or a screen reader goes there, too.
  recipe.heading.focus({ preventScroll: matchMedia("(min-width: 70rem)").matches });
}

/** Open what the address names. */
function openLinked() {
  const wanted = /^#candidate-(\d+)$/.exec(location.hash);
  if (wanted) open(Number(wanted[1]));
}

let retry = null;
async function refresh() {
  clearTimeout(retry);
  try {
    // All at once: what the status takes is not waited for before the points are asked for.
    const asked = Promise.all(["/points", "/progress", "/convergence"].map((path) => get(pathOf(search, path))));
    asked.catch(() => {}); // where there is no archive yet, nobody waits for it
    const status = await get(pathOf(search));
    showStatus(status);
    if (status.created_at !== null) showResults(status, await asked);
    await showFailures(status);
    trouble.replaceChildren();
  } catch (error) {
    settle(trouble, [problem(error)]);
    // No event may come that would have it asked for again.
    if (error.status !== 404) retry = setTimeout(refreshSoon, RETRY_MS);
  }
}

function showStatus(status) {
  view.strongest = status.verdict?.strongest ?? "uniform soup";
  view.isRunning = status.state === "running";
  settle(parts.overview, overview(status).filter(Boolean));
  settle(parts.workers, workers(status));
  controls.update(status);
}

async function showFailures(status) {
  const key = JSON.stringify(status.failed);
  if (view.failures === key) return;
  settle(parts.failures, await failures(search, status));
  view.failures = key;
}

function showResults(status, [points, progress, convergence]) {
  const revision = `${points.revision} ${points.belief.state} ${points.belief.outcomes}`;
  const isFirst = view.revision === undefined;
  if (revision !== view.revision && !isHeld()) {
    view.revision = revision;
    view.objectives = points.objectives;
    view.genes = points.genes;
    view.rows = rowsOf(points);
    if (!view.floors.length) view.floors = points.objectives.map(() => null);
    draw();
    wishes.update(points.objectives, status.preference, view.rows);
    drawProgress(parts.volumes, progress);
    settle(parts.ahead, ahead(points.belief));
    drawConvergence(parts.convergence, convergence);
    recipe.refresh();
  }
  settle(parts.verdict, verdict(status, view.rows));
  // Only now it is known what it can be compared with.
  if (isFirst) openLinked();
}

// A press and a release make a click only where the mark is still the same one.
let isPressed = false;
let isOwed = false;
function isHeld() {
  isOwed ||= isPressed;
  return isPressed;
}
function release() {
  isPressed = false;
  if (isOwed) refreshSoon();
  isOwed = false;
}
main.addEventListener("pointerdown", (event) => {
  isPressed = event.button === 0 && event.target.closest(".chart") !== null;
});
for (const name of ["pointerup", "pointercancel", "blur"]) addEventListener(name, release);

// Phones change the height whenever they are scrolled; only the width decides how charts look.
let width = innerWidth;
addEventListener("resize", calmly(() => {
  if (width === innerWidth) return;
  width = innerWidth;
  draw();
}, 300));
addEventListener("hashchange", openLinked);

const refreshSoon = calmly(refresh, REFRESH_MS);
refreshSoon();
// Clocks run on without events.
setInterval(() => {
  if (view.isRunning && !document.hidden) refreshSoon();
}, CLOCKS_MS);

let losing = null;
function onState(isConnected) {
  if (isConnected) {
    clearTimeout(losing);
    losing = null;
    live.textContent = "Live.";
    return;
  }
  // Every attempt that fails is told, too.
  losing ??= setTimeout(() => {
    live.textContent = "The connection is lost; it is tried again.";
  }, LOST_MS);
}

follow(
  search,
  {
    status: refreshSoon,
    candidate: (row) => {
      latest.textContent = `Last finished: ${row.label}${row.mean === null ? "" : `, mean ${score(row.mean)}`}.`;
      refreshSoon();
    },
    belief: refreshSoon,
    deleted: () => {
      live.textContent = "This search was deleted.";
      latest.replaceChildren();
    },
  },
  { onState, onRefusal: refreshSoon },
);
