// The form that checks a job and starts a search.

import { post } from "./api.js";
import { el, problem } from "./dom.js";

/** A form with the text of a job: from a file, pasted, or typed. */
export function submitForm() {
  const text = el("textarea", { id: "job", required: true, spellcheck: "false", "aria-describedby": "job-help", placeholder: "name: …\nmodels: …" });
  const file = el("input", { type: "file", id: "job-file", accept: ".yaml,.yml" });
  const answer = el("div", { "aria-live": "polite" });
  // Nobody hears of a file that is chosen once more, after it was edited, unless it is new again.
  file.addEventListener("click", () => {
    file.value = "";
  });
  file.addEventListener("change", async () => {
    if (file.files.length) text.value = await file.files[0].text();
  });
  let isBusy = false;
  const run = async (saying, work) => {
    if (isBusy || !text.reportValidity()) return;
    isBusy = true;
    answer.replaceChildren(el("p", {}, saying));
    try {
      await work();
    } catch (error) {
      answer.replaceChildren(problem(error));
    }
    isBusy = false;
  };
  const validate = async () => {
    const found = await post("/validate", { job: text.value, depth: "headers" });
    answer.replaceChildren(found.valid ? el("p", { class: "won" }, found.message) : problem(found));
  };
  const submit = async () => {
    const found = await post("/searches", { job: text.value });
    answer.replaceChildren();
    location.assign(`/searches/${encodeURIComponent(found.id)}`);
  };
  const onsubmit = (event) => {
    event.preventDefault();
    run("It is being started …", submit);
  };
  return el(
    "form",
    { class: "submit", onsubmit },
    el("label", { for: "job" }, "Job (YAML)"),
    text,
    el("p", { id: "job-help", class: "legend" }, "Paths are relative to the first model root; the place of the archive is the service's."),
    el("label", { for: "job-file" }, "From a file"),
    file,
    el(
      "div",
      { class: "buttons" },
      el("button", { type: "button", onclick: () => run("It is being checked …", validate) }, "Check"),
      el("button", { type: "submit", class: "primary" }, "Start"),
    ),
    answer,
  );
}
