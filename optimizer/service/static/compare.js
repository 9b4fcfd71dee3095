// Two candidates item by item, with what they said.

import { get, pathOf } from "./api.js";
import { el, problem, score, signed, table } from "./dom.js";

const PAGE = 20;
const WHICH = { differing: "those that differ", wins: "wins", losses: "losses", all: "all" };

/** A comparison of a candidate with one of the baselines; `rival` is chosen at first. */
export function compareView(search, candidate, baselines, rival) {
  const others = baselines.filter((row) => row.index !== candidate.index);
  if (!others.length) return el("p", { class: "legend" }, "There is no other baseline to compare it with.");
  const against = el(
    "select",
    { id: "against" },
    others.map((row) => el("option", { value: row.index, selected: row.label === rival }, row.label)),
  );
  const which = el(
    "select",
    { id: "which" },
    Object.entries(WHICH).map(([value, text]) => el("option", { value }, text)),
  );
  const result = el("div", { "aria-live": "polite" });
  const show = () => fill(result, search, candidate.index, against.value, which.value);
  against.addEventListener("change", show);
  which.addEventListener("change", show);
  show();
  return el(
    "div",
    { class: "compare" },
    el("h3", {}, "Compared with a baseline"),
    el(
      "p",
      { class: "fields" },
      el("label", { for: "against" }, "Against "),
      against,
      el("label", { for: "which" }, " Items "),
      which,
    ),
    result,
  );
}

async function fill(result, search, a, b, which) {
  const asked = Symbol("asked");
  result.asked = asked;
  const path = (offset) =>
    pathOf(search, `/compare?${new URLSearchParams({ a, b, which, offset, limit: PAGE })}`);
  try {
    const found = await get(path(0));
    if (result.asked !== asked) return;
    // Tasks that somebody looks into stay open.
    const isOpen = new Set([...result.querySelectorAll("details[open]")].map((one) => one.dataset.task));
    result.replaceChildren(
      differences(found),
      el("p", {}, `On the items of the ${found.split} split; every difference is ${found.a.label} minus ${found.b.label}.`),
      ...found.tasks.map((task) => items(task, found, which, path, isOpen.has(task.task))),
    );
  } catch (error) {
    if (result.asked === asked) result.replaceChildren(problem(error));
  }
}

function differences(found) {
  const rows = [["preferred mean", found.preferred], ...Object.entries(found.objectives)].map(
    ([name, gap]) => [
      name,
      signed(gap.mean),
      gap.interval_95.map(signed).join(" to "),
      gap.p_value === null ? "–" : gap.p_value < 0.001 ? "< 0.001" : gap.p_value.toFixed(3),
    ],
  );
  const caption = `${found.a.label} minus ${found.b.label}`;
  return table(caption, ["objective", "difference", "95 % interval", "p"], rows);
}

function items(task, found, which, path, isOpen) {
  const list = el("ul", { class: "items" }, task.items.map((item) => entry(item, found)));
  const numAll = { differing: task.wins + task.losses, wins: task.wins, losses: task.losses, all: task.num_items }[which];
  const more = el("button", { type: "button" }, "More items");
  const settle = () => {
    more.hidden = list.childElementCount >= numAll;
  };
  more.addEventListener("click", async () => {
    more.disabled = true;
    try {
      const next = await get(path(list.childElementCount));
      const same = next.tasks.find((one) => one.task === task.task);
      list.append(...same.items.map((item) => entry(item, found)));
    } catch (error) {
      more.before(problem(error));
    }
    more.disabled = false;
    settle();
  });
  settle();
  return el(
    "details",
    { open: isOpen, "data-task": task.task },
    el("summary", {}, `${task.task}: ${task.wins} wins, ${task.losses} losses, ${task.ties} ties`),
    list,
    more,
  );
}

function entry(item, found) {
  const side = (label, value, text) =>
    el(
      "div",
      {},
      el("p", {}, `${label}: ${score(value)}`),
      text === null ? null : el("pre", {}, text),
    );
  const outcome = item.a === item.b ? "tie" : item.a > item.b ? "win" : "loss";
  return el(
    "li",
    { class: outcome },
    el("p", {}, el("span", { class: "tag" }, outcome), " ", el("code", {}, item.id)),
    el("div", { class: "sides" }, side(found.a.label, item.a, item.text_a), side(found.b.label, item.b, item.text_b)),
  );
}
