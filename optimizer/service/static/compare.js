// Two candidates item by item, with what they said.

import { get, pathOf } from "./api.js";
import { chance, el, problem, score, signed, table } from "./dom.js";

const PAGE = 20;
const WHICH = { differing: "those that differ", wins: "wins", losses: "losses", all: "all" };

/** A comparison of a candidate with one of its rivals; `strongest` is the label of the first one. */
export class Comparison {
  constructor(search, candidate, strongest) {
    this.search = search;
    this.candidate = candidate;
    this.strongest = strongest;
    this.rivals = [];
    this.against = el("select", { id: "against", onchange: () => this.#show() });
    const options = Object.entries(WHICH).map(([value, text]) => el("option", { value }, text));
    this.which = el("select", { id: "which", onchange: () => this.#show() }, options);
    this.result = el("div", { "aria-live": "polite" });
    this.fields = el(
      "p",
      { class: "fields" },
      el("label", { for: "against" }, "Against "),
      this.against,
      el("label", { for: "which" }, " Items "),
      this.which,
    );
    this.none = el("p", { class: "legend" }, "There is no other baseline to compare it with.");
    this.node = el("div", { class: "compare" }, el("h3", {}, "Compared with a baseline"), this.none, this.fields, this.result);
    this.fields.hidden = true;
  }

  /** Take over what it can be compared with; who is compared with now stays. */
  update(rows) {
    const now = Number(this.against.value);
    const kept = this.rivals.filter((row) => row.index === now && !rows.some((one) => one.index === now));
    const rivals = [...kept, ...rows].filter((row) => row.index !== this.candidate.index);
    const key = rivals.map((row) => `${row.index} ${row.label}`).join("\n");
    if (key === this.key) return;
    const isFirst = !this.rivals.length;
    const chosen = isFirst ? rivals.find((row) => row.label === this.strongest)?.index : now;
    this.key = key;
    this.rivals = rivals;
    this.against.replaceChildren(
      ...rivals.map((row) => el("option", { value: row.index, selected: row.index === chosen }, row.label)),
    );
    this.none.hidden = rivals.length > 0;
    this.fields.hidden = !rivals.length;
    if (isFirst && rivals.length) this.#show();
  }

  async #show() {
    const [a, b, which] = [this.candidate.index, this.against.value, this.which.value];
    const asked = Symbol("asked");
    this.asked = asked;
    const path = (offset) =>
      pathOf(this.search, `/compare?${new URLSearchParams({ a, b, which, offset, limit: PAGE })}`);
    try {
      const found = await get(path(0));
      if (this.asked !== asked) return;
      // Tasks that somebody looks into stay open.
      const isOpen = new Set([...this.result.querySelectorAll("details[open]")].map((one) => one.dataset.task));
      this.result.replaceChildren(
        differences(found),
        found.left_out.length ? el("p", { class: "legend" }, `They share no items of ${found.left_out.join(", ")}.`) : "",
        el("p", {}, `On the items of the ${found.split} split; every difference is ${found.a.label} minus ${found.b.label}.`),
        ...found.tasks.map((task) => items(task, found, which, path, isOpen.has(task.task))),
      );
    } catch (error) {
      if (this.asked === asked) this.result.replaceChildren(problem(error));
    }
  }
}

function differences(found) {
  const rows = [["preferred mean", found.preferred], ...Object.entries(found.objectives)].map(
    ([name, gap]) => [name, signed(gap.mean), gap.interval_95.map(signed).join(" to "), chance(gap.p_value)],
  );
  const caption = `${found.a.label} minus ${found.b.label}`;
  return table(caption, ["objective", "difference", "95 % interval", "p"], rows);
}

function items(task, found, which, path, isOpen) {
  const list = el("ul", { class: "items" }, task.items.map((item) => entry(item, found)));
  const numAll = { differing: task.wins + task.losses, wins: task.wins, losses: task.losses, all: task.num_items }[which];
  const trouble = el("div");
  const more = el("button", { type: "button" }, "More items");
  const settle = () => {
    more.hidden = list.childElementCount >= numAll;
  };
  more.addEventListener("click", async () => {
    const numBefore = list.childElementCount;
    more.disabled = true;
    try {
      const next = await get(path(numBefore));
      const same = next.tasks.find((one) => one.task === task.task);
      list.append(...same.items.map((item) => entry(item, found)));
      trouble.replaceChildren();
      // The button may be gone; who reads goes on with the first of the new ones.
      list.children[numBefore]?.focus();
    } catch (error) {
      trouble.replaceChildren(problem(error));
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
    trouble,
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
    { class: outcome, tabindex: -1 },
    el("p", {}, el("span", { class: "tag" }, outcome), " ", el("code", {}, item.id)),
    el("div", { class: "sides" }, side(found.a.label, item.a, item.text_a), side(found.b.label, item.b, item.text_b)),
  );
}
