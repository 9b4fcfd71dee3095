// The form that checks a job and starts a search.

import { post } from "./api.js";
import { el, problem } from "./dom.js";

/** A form with the text of a job: from a file, pasted, or typed. */
export function submitForm() {
  const text = el("textarea", { id: "job", required: true, spellcheck: "false", "aria-describedby": "job-help", placeholder: "name: …\nmodels: …" });
  const file = el("input", { type: "file", id: "job-file", accept: ".yaml,.yml" });
  const answer = el("div", { "aria-live": "polite" });
  file.addEventListener("change", async () => {
    if (file.files.length) text.value = await file.files[0].text();
  });
  const run = async (button, work) => {
    if (!text.reportValidity()) return;
    button.disabled = true;
    answer.replaceChildren(el("p", {}, "It is being checked …"));
    try {
      await work();
    } catch (error) {
      answer.replaceChildren(problem(error));
    }
    button.disabled = false;
  };
  const validate = async () => {
    const found = await post("/validate", { job: text.value, depth: "headers" });
    answer.replaceChildren(found.valid ? el("p", { class: "won" }, found.message) : problem(found));
  };
  const submit = async () => {
    const found = await post("/searches", { job: text.value });
    location.assign(`/searches/${encodeURIComponent(found.id)}`);
  };
  return el(
    "form",
    { class: "submit", onsubmit: (event) => (event.preventDefault(), run(event.submitter, submit)) },
    el("label", { for: "job" }, "Job (YAML)"),
    text,
    el("p", { id: "job-help", class: "legend" }, "Paths are relative to the first model root; the place of the archive is the service's."),
    el("label", { for: "job-file" }, "From a file"),
    file,
    el(
      "div",
      { class: "buttons" },
      el("button", { type: "button", onclick: (event) => run(event.target, validate) }, "Check"),
      el("button", { type: "submit", class: "primary" }, "Start"),
    ),
    answer,
  );
}
