// Steering a search: stop, resume, fork, delete.

import { pathOf, post, remove } from "./api.js";
import { el, problem } from "./dom.js";

const ALIVE = new Set(["starting", "running", "stopping"]);

/** Buttons for what can be done with a search now. */
export class Controls {
  constructor(search) {
    this.search = search;
    this.answer = el("div", { "aria-live": "polite" });
    this.buttons = el("div", { class: "buttons" });
    this.node = el("div", {}, this.buttons, this.answer);
  }

  /** Show what the state of the search allows. */
  update(status) {
    if (this.state === status.state && this.budget === status.evaluations.budget) return;
    this.state = status.state;
    this.budget = status.evaluations.budget;
    const isAlive = ALIVE.has(status.state);
    const isHere = status.runner !== "elsewhere" && status.runner !== null;
    this.buttons.replaceChildren(
      ...[
        isAlive && isHere ? this.#button("Stop", () => this.#stop(false)) : null,
        status.state === "stopping" && isHere ? this.#button("Kill now", () => this.#stop(true)) : null,
        isAlive ? null : this.#resume(),
        this.#button("Fork", () => this.#fork()),
        isAlive ? null : this.#delete(),
      ].filter(Boolean),
    );
  }

  #button(text, work) {
    return el("button", { type: "button", onclick: (event) => this.#run(event.target, work) }, text);
  }

  async #run(button, work) {
    button.disabled = true;
    this.answer.replaceChildren();
    try {
      await work();
    } catch (error) {
      this.answer.replaceChildren(problem(error));
    }
    button.disabled = false;
  }

  async #stop(force) {
    await post(pathOf(this.search, "/stop"), { force });
    this.answer.replaceChildren(el("p", {}, force ? "It was killed." : "It finishes what is under way."));
  }

  #resume() {
    const budget = el("input", { type: "number", id: "budget", min: 1, value: this.budget, required: true });
    const submit = async () => {
      const changes = Number(budget.value) === this.budget ? {} : { "budget.evaluations": Number(budget.value) };
      await post(pathOf(this.search, "/resume"), { changes });
      this.answer.replaceChildren(el("p", {}, "It goes on."));
    };
    return el(
      "form",
      { onsubmit: (event) => (event.preventDefault(), this.#run(event.submitter, submit)) },
      el("label", { for: "budget" }, "Evaluations "),
      budget,
      el("button", { type: "submit" }, "Resume"),
    );
  }

  async #fork() {
    const found = await post(pathOf(this.search, "/fork"), {});
    location.assign(`/searches/${encodeURIComponent(found.id)}`);
  }

  #delete() {
    const typed = el("input", { id: "confirm", autocomplete: "off", required: true });
    const submit = async () => {
      const confirm = encodeURIComponent(typed.value);
      await remove(pathOf(this.search, `?confirm=${confirm}`));
      location.assign("/");
    };
    return el(
      "details",
      {},
      el("summary", {}, "Delete …"),
      el(
        "form",
        { onsubmit: (event) => (event.preventDefault(), this.#run(event.submitter, submit)) },
        el("label", { for: "confirm" }, "Archive and exports are deleted for good. Type the id ", el("code", {}, this.search)),
        typed,
        el("button", { type: "submit", class: "danger" }, "Delete"),
      ),
    );
  }
}
