// "Export this": a merge as a checkpoint, with its progress, to be downloaded.

import { address, get, pathOf, post } from "./api.js";
import { bytes, el, problem } from "./dom.js";

const POLL_MS = 1000;

/** A button that exports a candidate, and what has become of it. */
export function exportView(search, candidate) {
  const state = el("div", { "aria-live": "polite" });
  const button = el("button", { type: "button", class: "primary" }, "Export this");
  const node = el("div", { class: "export" }, button, state);
  const run = async (found) => {
    button.disabled = true;
    try {
      const begun = await found();
      if (begun) await follow(search, begun, node, state);
    } catch (error) {
      state.replaceChildren(problem(error));
    }
    button.disabled = false;
  };
  button.addEventListener("click", () => run(() => post(pathOf(search, "/exports"), { recipe_id: candidate.recipe_id })));
  // One of the same merge that was started before is found again.
  run(async () => {
    const { exports } = await get(pathOf(search, "/exports"));
    return exports.find((one) => one.recipe_id === candidate.recipe_id);
  });
  return node;
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
    found = await later(search, found);
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

/** How an export is now; an export outlives the service, so while that is away nothing is new. */
async function later(search, found) {
  try {
    return await get(pathOf(search, `/exports/${found.id}`));
  } catch (error) {
    if (error.isLost) return found;
    throw error;
  }
}

function show(state) {
  const bar = el("progress", { max: 1, "aria-label": "Export" });
  // Bytes change every second; they are not read out.
  const text = el("span", { "aria-live": "off" });
  state.replaceChildren(bar, " ", text);
  return { bar, text };
}
