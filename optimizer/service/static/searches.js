// The page of all searches: how each is, and the form that starts one.

import { get, pathOf } from "./api.js";
import { duration, el, problem, score, section, table } from "./dom.js";
import { submitForm } from "./submit.js";

const REFRESH_MS = 5000;
const main = document.getElementById("main");
const list = el("div", { "aria-live": "off" }, el("p", {}, "Loading …"));
const facts = el("p", { class: "legend" });
main.append(list, section("submit", "Start a search", submitForm()), facts);

// What only the status of a search says, by the revision it was asked at.
const known = new Map();

async function details(summary) {
  const before = known.get(summary.id);
  if (before?.revision === summary.revision) return before;
  const found = { revision: summary.revision, best: null, verdict: null };
  known.set(summary.id, found);
  if (summary.created_at === null) return found;
  const path = "/candidates?sort=mean&descending=true&limit=1&state=completed";
  const [best, status] = await Promise.all([
    get(pathOf(summary.id, path)).catch(() => null),
    get(pathOf(summary.id)).catch(() => null),
  ]);
  found.best = best?.items[0]?.mean ?? null;
  found.verdict = status?.verdict ?? null;
  return found;
}

function row(summary, more) {
  const { recorded, budget } = summary.evaluations;
  const far = `${recorded} of ${budget}`;
  return [
    el("a", { href: `/searches/${encodeURIComponent(summary.id)}` }, summary.name, summary.name === summary.id ? "" : ` (${summary.id})`),
    el("span", { class: `state ${summary.state}`, title: summary.error ?? summary.advice }, summary.state),
    el("span", { class: "gene" }, el("progress", { max: Math.max(1, budget), value: recorded, "aria-label": far }), far),
    summary.eta_s === null ? "–" : duration(summary.eta_s),
    String(summary.failures),
    more ? score(more.best) : "…",
    verdictText(more?.verdict),
  ];
}

function verdictText(verdict) {
  if (!verdict) return "–";
  const text = verdict.won ? "better than all baselines" : "no proof that it beats the baselines";
  return el("span", { class: verdict.won ? "won" : null, title: verdict.sentence }, text);
}

function show(searches) {
  if (!searches.length) {
    list.replaceChildren(el("p", {}, "There is no search yet."));
    return;
  }
  const focused = document.activeElement?.getAttribute?.("href");
  const heads = ["search", "state", "evaluations", "left", "failures", "best mean", "verdict"];
  const rows = searches.map((one) => row(one, known.get(one.id)));
  list.replaceChildren(table("All searches, the newest first", heads, rows));
  if (focused) list.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

async function refresh() {
  try {
    const { searches } = await get("/searches");
    show(searches);
    for (const one of searches) {
      if (known.get(one.id)?.revision === one.revision) continue;
      await details(one);
      show(searches);
    }
  } catch (error) {
    list.replaceChildren(problem(error));
  }
  setTimeout(refresh, REFRESH_MS);
}

async function describe() {
  const found = await get("/service");
  const models = [...found.model_roots, ...found.hub].join(", ") || "none";
  facts.textContent = `mergefront ${found.version}, archives in ${found.archive_dir}. Jobs may use models of: ${models}. At most ${found.max_searches} run at a time.`;
}

refresh();
describe().catch(() => {});
