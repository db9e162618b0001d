// Trees of markdown.js as elements. Texts become text nodes, and nothing else becomes anything.

import { copyButton, element } from "./dom.js";
import { parse } from "./markdown.js";

/// Shows a text in `container`. Blocks that were there before stay as they are, with what the reader selected in them.
export function renderInto(container, text) {
  const blocks = parse(text);
  blocks.forEach((block, i) => {
    const there = container.children[i];
    if (there?.dataset.type === block.type && there.markdownSource === block.source) return;
    const made = there && block.type === "code" && there.dataset.type === "code" ? grown(there, block) : blockElement(block);
    made.dataset.type = block.type;
    made.markdownSource = block.source;
    if (made === there) return;
    if (there) there.replaceWith(made);
    else container.append(made);
  });
  while (container.children.length > blocks.length) container.lastChild.remove();
}

/// A code block with more text: its button and its place when scrolled sideways stay.
function grown(there, block) {
  there.querySelector("code").textContent = block.text;
  there.querySelector(".language").textContent = block.language || "text";
  return there;
}

function blockElement(block) {
  switch (block.type) {
    case "heading":
      // The page has the first level.
      return element(`h${Math.min(block.level + 1, 6)}`, {}, ...inlineNodes(block.inlines));
    case "code":
      return codeElement(block);
    case "list":
      return listElement(block);
    case "quote":
      return element("blockquote", {}, ...block.blocks.map(blockElement));
    case "table":
      return tableElement(block);
    case "rule":
      return element("hr");
    default:
      return element("p", {}, ...inlineNodes(block.inlines));
  }
}

function codeElement({ language, text }) {
  const code = element("code", {}, text);
  const head = element("div", { class: "code-head" }, element("span", { class: "language" }, language || "text"));
  head.append(copyButton(() => code.textContent));
  // It can be scrolled sideways, so the keyboard must reach it.
  return element("div", { class: "code" }, head, element("pre", { tabindex: "0" }, code));
}

function listElement({ ordered, start, items }) {
  const made = element(ordered ? "ol" : "ul", ordered && start !== 1 ? { start } : {});
  for (const blocks of items) {
    const [first, ...others] = blocks;
    const item = element("li");
    if (first?.type === "paragraph") item.append(...inlineNodes(first.inlines), ...others.map(blockElement));
    else item.append(...blocks.map(blockElement));
    made.append(item);
  }
  return made;
}

function tableElement({ align, head, rows }) {
  const row = (name, cells) => {
    const made = cells.map((cell, i) => element(name, { class: align[i] && `to-${align[i]}` }, ...inlineNodes(cell)));
    return element("tr", {}, ...made);
  };
  const body = element("tbody", {}, ...rows.map((cells) => row("td", cells)));
  const table = element("table", {}, element("thead", {}, row("th", head)), body);
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

const ELEMENTS = { strong: "strong", emphasis: "em", strike: "s" };

function inlineNodes(inlines) {
  return inlines.map((node) => {
    switch (node.type) {
      case "text":
        return document.createTextNode(node.text);
      case "code":
        return element("code", {}, node.text);
      case "break":
        return element("br");
      case "link": {
        const attributes = { href: node.href, target: "_blank", rel: "noopener noreferrer" };
        return element("a", attributes, ...inlineNodes(node.inlines));
      }
      default:
        return element(ELEMENTS[node.type], {}, ...inlineNodes(node.inlines));
    }
  });
}
