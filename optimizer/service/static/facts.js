// How a search is as a whole: state, cost, verdict, workers, failures.

import { get, pathOf } from "./api.js";
import { chance, duration, el, problem, score, short, signed, table } from "./dom.js";

const MOST_FAILURES = 50;

/** State, progress, ETA and cost. */
export function overview(status) {
  const { recorded, in_flight: inFlight, budget } = status.evaluations;
  const cost = status.cost;
  const said = [
    ["State", status.state],
    ["Evaluations", `${recorded} of ${budget}${inFlight ? `, ${inFlight} under way` : ""}`],
    ["Elapsed", duration(status.elapsed_s)],
    ["Left", status.eta_s === null ? "–" : `about ${duration(status.eta_s)}`],
    ["Failures", String(status.failures)],
    ...Object.entries(status.stopped).map(([reason, count]) => [`Stopped (${reason})`, String(count)]),
    ["Items scored", cost ? short(Math.round(cost.items)) : "–"],
    ["Model time", cost ? duration(cost.model_s) : "–"],
    ["Worker time", cost ? duration(cost.worker_s) : "–"],
    ["GPU hours", cost ? short(cost.gpu_hours) : "–"],
  ];
  return [
    el("progress", { max: Math.max(1, budget), value: recorded, "aria-label": `${recorded} of ${budget} evaluations` }),
    el("dl", { class: "facts" }, said.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", { class: name === "State" ? `state ${status.state}` : null }, text)))),
    el("p", {}, `${status.advice[0].toUpperCase()}${status.advice.slice(1)}.`),
    status.error ? problem({ message: status.error }) : null,
  ];
}

/** What may be claimed of the chosen merge against the baselines. */
export function verdict(status, rows) {
  const found = status.verdict;
  const baselines = rows.filter((row) => row.kind === "baseline");
  const parts = [];
  if (found) {
    parts.push(el("p", { class: found.won ? "verdict won" : "verdict" }, found.sentence));
    const gaps = Object.entries(found.differences).map(([name, gap]) => [name, ...differenceCells(gap)]);
    if (gaps.length) parts.push(table("Chosen merge minus each baseline, report items", ["baseline", "difference", "95 % interval", "p, adjusted"], gaps));
  } else {
    parts.push(el("p", {}, "There is no verdict before the chosen merge was scored on the report items."));
  }
  if (baselines.length) {
    const heads = ["baseline", "mean", ...status.objectives];
    const cells = baselines.map((row) => [row.label, score(row.mean), ...row.values.map(score)]);
    parts.push(table("Baselines on the search items", heads, cells));
  }
  return parts;
}

function differenceCells(gap) {
  return [signed(gap.mean), gap.interval_95.map(signed).join(" to "), chance(gap.adjusted_p_value)];
}

/** What is still to be gained, where somebody can say. */
export function ahead(belief) {
  if (belief.expected_gain === null) return [];
  const gain = short(Number(belief.expected_gain.toPrecision(2)));
  return [el("p", {}, `The next candidate scored is expected to add ${gain} to the hypervolume of what is believed.`)];
}

/** What each worker did, and how much of the time it was idle. */
export function workers(status) {
  if (!status.workers.length) return [el("p", {}, "No worker has finished an evaluation yet.")];
  const rows = status.workers.map((one) => {
    const idle = status.elapsed_s > 0 ? Math.max(0, 1 - one.busy_s / status.elapsed_s) : null;
    return [
      one.name,
      String(one.evaluations),
      String(one.failures),
      duration(one.busy_s),
      idle === null ? "–" : `${Math.round(100 * idle)} %`,
      time(one.last_finished_at),
    ];
  });
  return [table("What each worker did", ["worker", "evaluations", "failures", "busy", "idle share", "last finished"], rows)];
}

/** When something was, in the time of who looks. */
function time(text) {
  if (!text) return "–";
  return el("time", { datetime: text }, new Date(text).toLocaleString());
}

/** The newest failures with their messages; who clicks a button opens its `data-open`. */
export async function failures(search, status) {
  if (!status.failures) return [el("p", {}, "Nothing has failed.")];
  const path = `/candidates?state=failed&sort=finished_at&descending=true&limit=${MOST_FAILURES}`;
  const page = await get(pathOf(search, path));
  const counts = Object.entries(status.failed).map(([what, count]) => `${what}: ${count}`);
  const rest = page.total > page.items.length ? ` The newest ${page.items.length} of ${page.total}:` : "";
  return [
    el("p", {}, `${counts.join(", ")}.${rest}`),
    el(
      "ul",
      { class: "failures" },
      page.items.map((row) =>
        el(
          "li",
          {},
          el("button", { type: "button", class: "link", "data-open": row.index }, row.label),
          ` ${row.failure?.stage ?? ""}: ${row.failure?.error_class ?? ""}`,
          el("pre", {}, row.failure?.message ?? ""),
        ),
      ),
    ),
  ];
}
