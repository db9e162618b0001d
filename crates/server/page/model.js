// What is served: name, weights, kernel and KV cache, from /v1/models.

import { element } from "./dom.js";
import { amount, bytes, count, percent } from "./units.js";

const EXAMPLES = [
  "Explain in two sentences why the sky is blue.",
  "Write a short poem about rain in winter.",
  "Write a Python function that merges two sorted lists.",
];
const BEGINNINGS = [
  "Once upon a time, there was a little fox who",
  "One day, Lily found a key in the garden.",
  "The old boat had not left the harbour for years, but",
];

/// Texts to begin with.
export const examples = (model) => (continues(model) ? BEGINNINGS : EXAMPLES);

/// Whether the model only continues texts.
export const continues = (model) => model.meta?.chat_template === false;

/// The last part of a name like `org/name` or a path.
export const shortName = (model) => model.id.replace(/\/+$/, "").split("/").at(-1);

/// A few words about the model, its weights and the cache.
export function summary(model) {
  const { meta = {} } = model;
  const parts = [shortName(model)];
  if (meta.parameters) parts.push(`${amount(meta.parameters)} parameters`);
  if (meta.weights) parts.push(meta.weights + (meta.sparsity > 0 ? `, ${percent(meta.sparsity)} zeros` : ""));
  if (meta.kv_cache?.format) parts.push(`KV cache ${meta.kv_cache.format}`);
  return parts;
}

/// All that is known, as a list of terms, with a picture of the sparsity.
export function showModel(container, model) {
  const { meta = {} } = model;
  const cache = meta.kv_cache ?? {};
  const rows = [
    ["Name", model.id],
    ["Parameters", meta.parameters && amount(meta.parameters)],
    ["Weights", meta.weights],
    ["Zeros among them", meta.sparsity !== undefined && percent(meta.sparsity)],
    ["Memory of weights", meta.bytes && bytes(meta.bytes)],
    ["Kernel", meta.kernel],
    ["Instructions", meta.isa],
    ["Threads", meta.threads],
    ["KV cache", cache.format],
    ["It holds", cache.tokens && `${count(cache.tokens)} tokens`],
    ["Memory of KV cache", cache.bytes && bytes(cache.bytes)],
    ["Context", model.max_model_len && `${count(model.max_model_len)} tokens`],
    ["Chat template", meta.chat_template === undefined ? null : continues(model) ? "none, it continues texts" : "yes"],
  ];
  const known = rows.filter(([, value]) => value);
  const terms = known.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, ...broken(value))]);
  container.replaceChildren(element("dl", {}, ...terms));
  if (meta.sparsity > 0) container.prepend(sparsityPicture(meta.sparsity));
}

/// A value; names of kernels may be broken after any of their words.
function broken(value) {
  const words = String(value).split(/(?<=_)/);
  return words.flatMap((word, i) => (i === 0 ? [word] : [element("wbr"), word]));
}

const SVG = "http://www.w3.org/2000/svg";
const [COLUMNS, ROWS] = [32, 8];

/// A number without a pattern for each number.
function scattered(number) {
  let bits = Math.imul(number + 1, 0x9e3779b1);
  bits = Math.imul(bits ^ (bits >>> 15), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return (bits ^ (bits >>> 16)) >>> 0;
}

/// A block of weights in which so many are zero.
function sparsityPicture(sparsity) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "sparsity");
  svg.setAttribute("viewBox", `0 0 ${COLUMNS * 4 - 1} ${ROWS * 4 - 1}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${percent(sparsity)} of the weights are zero`);
  // Zeros where a fixed shuffle has its smallest entries: the same picture each time.
  const order = Array.from({ length: COLUMNS * ROWS }, (_, i) => [scattered(i), i]).sort((a, b) => a[0] - b[0]);
  const zeros = new Set(order.slice(0, Math.round(sparsity * order.length)).map(([, i]) => i));
  for (let i = 0; i < COLUMNS * ROWS; i += 1) {
    const cell = document.createElementNS(SVG, "rect");
    const at = { x: (i % COLUMNS) * 4, y: Math.floor(i / COLUMNS) * 4, width: 3, height: 3, rx: 0.8 };
    for (const [name, value] of Object.entries(at)) cell.setAttribute(name, value);
    if (zeros.has(i)) cell.setAttribute("class", "zero");
    svg.append(cell);
  }
  return svg;
}
