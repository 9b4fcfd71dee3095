// Elements and numbers. Text from data only ever becomes text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Make an HTML element; `onclick` and the like are listeners, strings are text. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * Have a holder show nodes. What is there already and equal stays, and with it the focus, what is
 * marked with the mouse, and how far it is scrolled. An old node may stay for a new one, so nodes
 * have no listeners of their own; the holder may.
 */
export function settle(holder, nodes) {
  const old = [...holder.childNodes];
  nodes.forEach((node, place) => {
    const there = old[place];
    if (!there) holder.append(node);
    else if (!there.isEqualNode(node)) renew(there, node);
  });
  for (const rest of old.slice(nodes.length)) rest.remove();
}

function renew(there, node) {
  if (there.nodeName !== node.nodeName) {
    there.replaceWith(node);
  } else if (there.nodeType === Node.TEXT_NODE) {
    there.data = node.data;
  } else {
    for (const { name } of [...there.attributes]) if (!node.hasAttribute(name)) there.removeAttribute(name);
    for (const { name, value } of node.attributes) there.setAttribute(name, value);
    settle(there, [...node.childNodes]);
  }
}

/** Make a table: `rows` are arrays of text or nodes, whose first cell is the head of the row. */
export function table(caption, heads, rows) {
  const head = el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    el("tr", {}, el("th", { scope: "row" }, first), rest.map((cell) => el("td", {}, cell))),
  );
  const found = el("table", {}, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, body));
  return el("div", { class: "wide", role: "region", "aria-label": caption, tabindex: 0 }, found);
}

/** Make a section with a heading, and an id to link to. */
export function section(id, title, ...children) {
  const heading = el("h2", { id: `${id}-title` }, title);
  return el("section", { id, "aria-labelledby": `${id}-title` }, heading, children);
}

/** Say a score. */
export function score(value) {
  return value === null || value === undefined ? "–" : value.toFixed(3);
}

/** Say a number with few digits; counts and numbers of candidates keep all of theirs. */
export function short(value) {
  if (!Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(1);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

/** Say a score and its standard error. */
export function withError(found) {
  return found ? `${score(found.value)} ± ${score(found.stderr)}` : "–";
}

/** Say a difference, its sign always. */
export function signed(value) {
  if (!Number.isFinite(value)) return "–";
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
}

/** Say how likely it is that there is no difference at all. */
export function chance(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 0.001 ? "< 0.001" : value.toFixed(3);
}

/** Say seconds as people do. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 86400) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

/** Say bytes as people do. */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (count >= 1000 && step < units.length - 1) {
    count /= 1000;
    step += 1;
  }
  return `${count.toFixed(step ? 1 : 0)} ${units[step]}`;
}

/** Say what went wrong, with all problems; returns a node. */
export function problem(error) {
  const listed = (error.problems ?? []).map((one) =>
    el("li", {}, el("code", {}, one.path), `: ${one.message}`),
  );
  const list = listed.length ? el("ul", {}, listed) : null;
  return el("div", { role: "alert", class: "problem" }, el("p", {}, error.message), list);
}
