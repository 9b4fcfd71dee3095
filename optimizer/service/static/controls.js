// Steering a search: stop, resume, fork, delete.

import { pathOf, post, remove } from "./api.js";
import { el, problem } from "./dom.js";

const ALIVE = new Set(["starting", "running", "stopping"]);

/** Buttons for what can be done with a search now. */
export class Controls {
  constructor(search) {
    this.search = search;
    this.isBusy = false;
    this.answer = el("div", { "aria-live": "polite" });
    this.buttons = el("div", { class: "buttons" });
    this.node = el("div", {}, this.buttons, this.answer);
  }

  /** Show what the state of the search allows. */
  update(status) {
    const key = [status.state, status.runner, status.evaluations.budget].join(" ");
    if (this.key === key) return;
    const hadFocus = this.buttons.contains(document.activeElement);
    if (!this.answer.querySelector(".problem")) this.answer.replaceChildren();
    this.key = key;
    this.budget = status.evaluations.budget;
    const isAlive = ALIVE.has(status.state);
    const isHere = status.runner !== "elsewhere" && status.runner !== null;
    this.buttons.replaceChildren(
      ...[
        isAlive && isHere && status.state !== "stopping" ? this.#button("Stop", () => this.#stop(false)) : null,
        status.state === "stopping" && isHere ? this.#button("Kill now", () => this.#stop(true)) : null,
        isAlive ? null : this.#resume(),
        this.#fork(),
        isAlive ? null : this.#delete(),
      ].filter(Boolean),
    );
    // Whose button is gone goes on with what there is now, not at the top of the page.
    if (hadFocus) this.buttons.querySelector("button, summary").focus();
  }

  #button(text, work) {
    return el("button", { type: "button", onclick: () => this.#run(work) }, text);
  }

  #form(work, ...children) {
    const submit = (event) => {
      event.preventDefault();
      this.#run(work);
    };
    return el("form", { onsubmit: submit }, ...children);
  }

  /** One thing at a time; buttons stay enabled, since disabled ones lose the focus. */
  async #run(work) {
    if (this.isBusy) return;
    this.isBusy = true;
    this.node.setAttribute("aria-busy", "true");
    this.answer.replaceChildren();
    try {
      await work();
    } catch (error) {
      this.answer.replaceChildren(problem(error));
    }
    this.node.removeAttribute("aria-busy");
    this.isBusy = false;
  }

  async #stop(force) {
    await post(pathOf(this.search, "/stop"), { force });
    this.answer.replaceChildren(el("p", {}, force ? "It was killed." : "It finishes what is under way."));
  }

  #evaluations(id, label) {
    const input = el("input", { type: "number", id, min: 1, value: this.budget, required: true });
    // What is not changed is the job's own.
    const changes = () => (Number(input.value) === this.budget ? {} : { "budget.evaluations": Number(input.value) });
    return { nodes: [el("label", { for: id }, label), input], changes };
  }

  #resume() {
    const { nodes, changes } = this.#evaluations("budget", "Evaluations");
    const work = async () => {
      await post(pathOf(this.search, "/resume"), { changes: changes() });
      this.answer.replaceChildren(el("p", {}, "It goes on."));
    };
    return this.#form(work, ...nodes, el("button", { type: "submit" }, "Resume"));
  }

  #fork() {
    const { nodes, changes } = this.#evaluations("fork-budget", "Its evaluations");
    const work = async () => {
      const found = await post(pathOf(this.search, "/fork"), { changes: changes() });
      location.assign(`/searches/${encodeURIComponent(found.id)}`);
    };
    const text = el("p", {}, "A new search of the same job begins with what this one learnt.");
    const button = el("button", { type: "submit" }, "Start the fork");
    return el("details", {}, el("summary", {}, "Fork …"), text, this.#form(work, ...nodes, button));
  }

  #delete() {
    const typed = el("input", { id: "confirm", autocomplete: "off", autocapitalize: "off", spellcheck: "false", required: true });
    const work = async () => {
      await remove(pathOf(this.search, `?confirm=${encodeURIComponent(typed.value)}`));
      location.assign("/");
    };
    const label = el("label", { for: "confirm" }, "Archive and exports are deleted for good. Type the id ", el("code", {}, this.search));
    const button = el("button", { type: "submit", class: "danger" }, "Delete");
    return el("details", {}, el("summary", {}, "Delete …"), this.#form(work, label, typed, button));
  }
}
