// "Export this": a merge as a checkpoint, with its progress, to be downloaded.

import { address, get, pathOf, post } from "./api.js";
import { bytes, el, problem } from "./dom.js";

const POLL_MS = 1000;

/** A button that exports a candidate, and what has become of it. */
export function exportView(search, candidate) {
  const state = el("div", { "aria-live": "polite" });
  const button = el("button", { type: "button", class: "primary" }, "Export this");
  const node = el("div", { class: "export" }, button, state);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await follow(search, await post(pathOf(search, "/exports"), { recipe_id: candidate.recipe_id }), node, state);
    } catch (error) {
      state.replaceChildren(problem(error));
    }
    button.disabled = false;
  });
  showKnown(search, candidate, node, state, button);
  return node;
}

/** Show an export of the same merge that was started before. */
async function showKnown(search, candidate, node, state, button) {
  try {
    const { exports } = await get(pathOf(search, "/exports"));
    const known = exports.find((one) => one.recipe_id === candidate.recipe_id);
    if (!known) return;
    button.disabled = known.state === "running";
    await follow(search, known, node, state);
    button.disabled = false;
  } catch (error) {
    state.replaceChildren(problem(error));
  }
}

async function follow(search, found, node, state) {
  let meter = null;
  while (found.state === "running") {
    meter ??= show(state);
    const total = found.expected_bytes;
    if (total) meter.bar.setAttribute("value", Math.min(1, found.written_bytes / total));
    meter.text.textContent = `${bytes(found.written_bytes)}${total ? ` of ${bytes(total)}` : ""} written`;
    await new Promise((done) => setTimeout(done, POLL_MS));
    // Nobody looks any more: another merge is shown.
    if (!node.isConnected) return;
    found = await get(pathOf(search, `/exports/${found.id}`));
  }
  if (found.state === "failed") {
    state.replaceChildren(problem({ message: found.error ?? "the export failed" }));
    return;
  }
  const link = address(pathOf(search, `/exports/${found.id}/download`));
  state.replaceChildren(
    el("p", {}, el("a", { href: link, download: true, class: "download" }, `Download (${bytes(found.written_bytes)})`)),
    el("p", { class: "id" }, `On the service's machine: `, el("code", {}, found.directory)),
  );
}

function show(state) {
  const bar = el("progress", { max: 1, "aria-label": "Export" });
  // Bytes change every second; they are not read out.
  const text = el("span", { "aria-live": "off" });
  state.replaceChildren(bar, " ", text);
  return { bar, text };
}
