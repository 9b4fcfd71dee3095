// The page of all searches: how each is, and the form that starts one.

import { get, pathOf } from "./api.js";
import { duration, el, problem, score, section, settle, table } from "./dom.js";
import { submitForm } from "./submit.js";

const REFRESH_MS = 5000;
const main = document.getElementById("main");
const trouble = el("div");
const list = el("div", {}, el("p", {}, "Loading …"));
const facts = el("p", { class: "legend" });
main.append(trouble, list, section("submit", "Start a search", submitForm()), facts);

// What only the status of a search says, and the revision that it was asked at.
const known = new Map();

async function details(summary) {
  let found = { revision: summary.revision, best: null, verdict: null };
  if (summary.created_at !== null) {
    const path = "/candidates?sort=mean&descending=true&limit=1&state=completed";
    const [best, status] = await Promise.all([get(pathOf(summary.id, path)), get(pathOf(summary.id))]);
    found = { ...found, best: best.items[0]?.mean ?? null, verdict: status.verdict };
  }
  known.set(summary.id, found);
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
    settle(list, [el("p", {}, "There is no search yet.")]);
    return;
  }
  const heads = ["search", "state", "evaluations", "left", "failures", "best mean", "verdict"];
  const rows = searches.map((one) => row(one, known.get(one.id)));
  const focused = document.activeElement?.getAttribute("href");
  settle(list, [table("All searches, the newest first", heads, rows)]);
  // A new search moves the others down.
  if (focused) list.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

async function refresh() {
  try {
    const { searches } = await get("/searches");
    show(searches);
    for (const one of searches) {
      if (known.get(one.id)?.revision === one.revision) continue;
      // One that cannot be read, or was deleted just now, must not keep the others from being shown.
      await details(one).catch((error) => {
        if (error.isLost) throw error;
      });
      show(searches);
    }
    trouble.replaceChildren();
  } catch (error) {
    settle(trouble, [problem(error)]);
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
