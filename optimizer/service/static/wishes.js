// Sliders for preferences and floors; the service answers what they choose.

import { get, pathOf } from "./api.js";
import { el, problem, score, short } from "./dom.js";
import { calmly } from "./events.js";

/** The controls of a wish; `onChange` hears the floors at once, `onChoice` the choice after. */
export class Wishes {
  /** `open(index)` shows a recipe. */
  constructor(search, { onChange, onChoice, open }) {
    this.search = search;
    this.onChange = onChange;
    this.onChoice = onChoice;
    this.open = open;
    this.names = [];
    this.weights = [];
    this.floors = [];
    this.fields = el("div", { class: "sliders" });
    this.answer = el("div", { class: "choice", "aria-live": "polite" });
    this.reset = el("button", { type: "button", onclick: () => this.#reset() }, "As the job has it");
    this.node = el("div", { hidden: true }, this.fields, this.reset, this.answer);
    this.ask = calmly(() => this.#ask(), 120);
  }

  /** Take over which objectives there are, and what they range over. */
  update(objectives, preference, rows) {
    this.node.hidden = !rows.length;
    if (this.names.join("\n") !== objectives.join("\n")) this.#build(objectives, preference);
    this.names.forEach((_, place) => {
      const values = rows.map((row) => row.values[place]);
      const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
      const input = this.floorInputs[place];
      // The left end is no floor at all; a floor that is set stays what it is.
      const kept = this.floors[place];
      const step = (high - low) / 100 || 0.01;
      input.min = low - step;
      input.max = high;
      input.step = step / 2;
      input.value = kept ?? input.min;
    });
    this.ask();
  }

  #build(objectives, preference) {
    this.names = objectives;
    this.preference = preference;
    this.floors = objectives.map(() => null);
    this.preferInputs = [];
    this.floorInputs = [];
    this.fields.replaceChildren(
      ...objectives.map((name, place) => {
        const weight = slider(`Weight of ${name}`, { min: 0, max: 1, step: 0.01 }, () => {
          this.weights[place] = Number(weight.input.value);
          this.ask();
        });
        const floor = slider(`Floor of ${name}`, {}, () => {
          const input = this.floorInputs[place];
          const isOff = Number(input.value) <= Number(input.min);
          this.floors[place] = isOff ? null : Number(input.value);
          this.onChange(this.floors);
          this.ask();
        });
        this.preferInputs.push(weight.input);
        this.floorInputs.push(floor.input);
        return el("fieldset", {}, el("legend", {}, name), weight.node, floor.node);
      }),
    );
    this.#fill();
  }

  #fill() {
    const most = Math.max(...Object.values(this.preference), 1e-9);
    // Sliders have steps, the job's preference has none.
    this.weights = this.names.map((name) => (this.preference[name] ?? 0) / most);
    this.weights.forEach((weight, place) => {
      this.preferInputs[place].value = weight;
    });
  }

  #reset() {
    this.floors = this.names.map(() => null);
    for (const input of this.floorInputs) input.value = input.min;
    this.#fill();
    this.onChange(this.floors);
    this.ask();
  }

  #say() {
    const total = this.weights.reduce((sum, weight) => sum + weight, 0);
    this.names.forEach((_, place) => {
      const share = total ? this.weights[place] / total : 0;
      say(this.preferInputs[place], `${Math.round(100 * share)} %`);
      const floor = this.floors[place];
      say(this.floorInputs[place], floor === null ? "none" : `at least ${score(floor)}`, floor === null ? "none" : `≥ ${score(floor)}`);
    });
  }

  async #ask() {
    if (this.node.hidden) return;
    this.#say();
    const wish = new URLSearchParams();
    this.names.forEach((name, place) => {
      wish.append("prefer", `${name}=${this.weights[place]}`);
      if (this.floors[place] !== null) wish.append("floor", `${name}=${this.floors[place]}`);
    });
    try {
      const found = await get(pathOf(this.search, `/front?${wish}`));
      this.#show(found);
    } catch (error) {
      this.shown = null;
      this.answer.replaceChildren(problem(error));
      this.onChoice(null);
    }
  }

  #show(found) {
    const [first] = found.front;
    this.onChoice(first ? first.index : null);
    if (!first) {
      this.shown = null;
      this.answer.replaceChildren(el("p", {}, "No merge was scored yet."));
      return;
    }
    const text = [
      `Chosen: ${first.label}, mean ${score(first.mean)}`,
      first.chance === null ? "" : `, floors hold with ${Math.round(100 * first.chance)} %`,
      `. On the front: ${found.front.length}. Rule: ${found.rule ?? "preferred mean"}.`,
      beliefText(found.belief),
    ].join("");
    const key = `${first.index}\n${text}`;
    if (this.shown === key) return;
    this.shown = key;
    this.answer.replaceChildren(
      el("p", {}, text),
      el("button", { type: "button", onclick: () => this.open(first.index) }, `Open ${first.label}`),
    );
  }
}

function beliefText(belief) {
  return {
    current: "",
    stale: ` By the posterior of ${short(belief.outcomes)} outcomes; a newer one is computed.`,
    pending: " By raw scores, until the posterior is computed.",
    raw: " By raw scores.",
  }[belief.state];
}

function slider(name, limits, onInput) {
  // Not an output element: those are read out, and a slider is already.
  const output = el("span", { "aria-hidden": "true" });
  const input = el("input", { type: "range", "aria-label": name, ...limits, oninput: onInput });
  input.output = output;
  const shown = name.startsWith("Weight") ? "Weight" : "Floor";
  return { input, node: el("label", { class: "slider" }, el("span", {}, shown), input, output) };
}

function say(input, text, shown = text) {
  input.output.textContent = shown;
  input.setAttribute("aria-valuetext", text);
}
