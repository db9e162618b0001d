// Markdown to a tree of plain objects; render.js makes elements of it. HTML in the text stays text.
//
// Blocks: heading {level, inlines}, paragraph {inlines}, code {language, text}, list {ordered, start, items: [[block]]},
// quote {blocks}, table {align, head: [inlines], rows: [[inlines]]}, rule. A top block has `source`, its text: equal sources
// give equal trees. Inlines: text, code, strong, emphasis, strike, link {href, inlines}, break.

// Blocks in blocks, and inlines in inlines; deeper ones stay text.
const DEEPEST = 8;
const DEEPEST_INLINE = 16;
const LONGEST_HREF = 2048;

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|(\d{1,9})[.)])(?:([ \t]+)(.*)|[ \t]*)$/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/// The blocks of a text. It may be the beginning of a text that still grows.
export function parse(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\0/g, "\ufffd").split("\n");
  return blocks(lines, 0);
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = blockAt(lines, at, depth);
    if (depth === 0) block.source = lines.slice(at, next).join("\n");
    found.push(block);
    at = next;
  }
  return found;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, inlines: inlines(heading[2] ?? "") }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < DEEPEST) {
    if (QUOTE.test(line)) return quote(lines, at, depth);
    const item = ITEM.exec(line);
    if (item) return list(lines, at, item, depth);
  }
  if (beginsTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function code(lines, at, [, indent, fence, language]) {
  const end = new RegExp(`^ {0,3}${fence[0] === "`" ? "`" : "~"}{${fence.length},}[ \\t]*$`);
  const strip = new RegExp(`^ {0,${indent.length}}`);
  const text = [];
  let next = at + 1;
  while (next < lines.length && !end.test(lines[next])) {
    text.push(lines[next].replace(strip, ""));
    next += 1;
  }
  return [{ type: "code", language, text: text.join("\n") }, Math.min(next + 1, lines.length)];
}

function quote(lines, at, depth) {
  const inner = [];
  let next = at;
  while (next < lines.length && (QUOTE.test(lines[next]) || continues(lines[next], inner))) {
    inner.push(lines[next].replace(QUOTE, ""));
    next += 1;
  }
  return [{ type: "quote", blocks: blocks(inner, depth + 1) }, next];
}

/// Whether a line that is no quote goes on with the paragraph of one.
function continues(line, inner) {
  return !blank(line) && inner.length > 0 && !blank(inner.at(-1)) && !beginsBlock(line);
}

function list(lines, at, first, depth) {
  const ordered = first[3] !== undefined;
  const mark = first[2].at(-1);
  const items = [];
  let next = at;
  while (next < lines.length) {
    const item = ITEM.exec(lines[next]);
    if (!item || item[2].at(-1) !== mark || (item[3] !== undefined) !== ordered || RULE.test(lines[next])) break;
    const [inner, after] = itemLines(lines, next, item);
    items.push(blocks(inner, depth + 1));
    next = after;
    const follows = afterBlanks(lines, next);
    if (follows < lines.length && ITEM.test(lines[follows])) next = follows;
  }
  const start = ordered ? Number(first[3]) : 1;
  return [{ type: "list", ordered, start, items }, next];
}

/// The lines of an item without its marker and indentation, and the line after it.
function itemLines(lines, at, [, indent, marker, , gap = " ", text = ""]) {
  const width = indent.length + marker.length + (gap.length > 4 ? 1 : gap.length);
  const inner = [gap.length > 4 ? gap.slice(1) + text : text];
  const strip = new RegExp(`^(?: {0,${width}}|\\t)`);
  let next = at + 1;
  while (next < lines.length) {
    const line = lines[next];
    if (blank(line)) {
      const follows = afterBlanks(lines, next);
      if (follows >= lines.length || indentation(lines[follows]) < Math.min(width, 2)) break;
      inner.push("");
    } else if (indentation(line) >= Math.min(width, 2)) {
      inner.push(line.replace(strip, ""));
    } else if (beginsBlock(line) || ITEM.test(line) || blank(inner.at(-1))) {
      break;
    } else {
      inner.push(line.trimStart());
    }
    next += 1;
  }
  return [inner, next];
}

function beginsTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !TABLE_RULE.test(lines[at + 1])) return false;
  return cells(lines[at]).length === cells(lines[at + 1]).length;
}

function table(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : null;
  });
  const row = (line) => {
    const found = cells(line).slice(0, align.length).map(inlines);
    while (found.length < align.length) found.push([]);
    return found;
  };
  const rows = [];
  let next = at + 2;
  while (next < lines.length && lines[next].includes("|") && !blank(lines[next])) {
    rows.push(row(lines[next]));
    next += 1;
  }
  return [{ type: "table", align, head: row(lines[at]), rows }, next];
}

/// The cells of a row: split at pipes that are neither escaped nor in code.
function cells(line) {
  const found = [""];
  let inCode = false;
  const text = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  for (let i = 0; i < text.length; i += 1) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      found[found.length - 1] += "|";
      i += 1;
    } else if (text[i] === "|" && !inCode) {
      found.push("");
    } else {
      if (text[i] === "`") inCode = !inCode;
      found[found.length - 1] += text[i];
    }
  }
  return found.map((cell) => cell.trim());
}

function paragraph(lines, at, depth) {
  let next = at + 1;
  while (next < lines.length && !blank(lines[next]) && !(depth < DEEPEST && beginsBlock(lines[next]))) {
    if (beginsTable(lines, next)) break;
    next += 1;
  }
  const text = lines.slice(at, next).map((line) => line.trimStart()).join("\n").trimEnd();
  return [{ type: "paragraph", inlines: inlines(text) }, next];
}

function beginsBlock(line) {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  // A number at the beginning of a line of prose is no list unless it is 1.
  return item !== null && item[5] !== undefined && (item[3] === undefined || item[3] === "1");
}

const blank = (line) => line.trim() === "";
const indentation = (line) => (line.startsWith("\t") ? 4 : line.length - line.trimStart().length);

function afterBlanks(lines, at) {
  while (at < lines.length && blank(lines[at])) at += 1;
  return at;
}

// ---- inlines ----

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const ADDRESS = /https?:\/\/[^\s<>`"]{1,2048}/y;
const PLAIN = /[^\\`*_~![\]<\nh]+/y;
const MARKERS = { "*": [2, 1], _: [2, 1], "~": [2] };
const FARTHEST = 64;

/// The inlines of a paragraph, in one pass from left to right. `open` holds the markers that may still find their end.
export function inlines(text) {
  const nodes = [];
  const open = [];
  let at = 0;
  while (at < text.length) {
    at = inlineAt(text, at, nodes, open);
  }
  for (const marker of open) nodes[marker.node] = { type: "text", text: marker.text };
  return merged(nodes);
}

function inlineAt(text, at, nodes, open) {
  const character = text[at];
  switch (character) {
    case "\\":
      return escape(text, at, nodes);
    case "`":
      return codeSpan(text, at, nodes);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, nodes, open);
    case "!":
      return text[at + 1] === "[" ? bracket(text, at, 2, nodes, open) : plain(text, at, 1, nodes);
    case "[":
      return bracket(text, at, 1, nodes, open);
    case "]":
      return link(text, at, nodes, open);
    case "\n":
      return lineBreak(text, at, nodes);
    case "<":
    case "h":
      return address(text, at, nodes);
    default:
      PLAIN.lastIndex = at;
      return plain(text, at, PLAIN.exec(text)?.[0].length ?? 1, nodes);
  }
}

function plain(text, at, length, nodes) {
  nodes.push({ type: "text", text: text.slice(at, at + length) });
  return at + length;
}

function escape(text, at, nodes) {
  if (text[at + 1] === "\n") {
    nodes.push({ type: "break" });
    return at + 2;
  }
  if (at + 1 < text.length && PUNCTUATION.test(text[at + 1])) return plain(text, at + 1, 1, nodes);
  return plain(text, at, 1, nodes);
}

function codeSpan(text, at, nodes) {
  const ticks = run(text, at);
  let end = at + ticks;
  while ((end = text.indexOf("`", end)) >= 0) {
    const closing = run(text, end);
    if (closing === ticks) {
      let inner = text.slice(at + ticks, end).replaceAll("\n", " ");
      if (/^ .*[^ ].* $|^ [^ ] $/.test(inner)) inner = inner.slice(1, -1);
      nodes.push({ type: "code", text: inner });
      return end + ticks;
    }
    end += closing;
  }
  return plain(text, at, ticks, nodes);
}

/// The length of the run of equal characters at `at`.
function run(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function emphasis(text, at, nodes, open) {
  const mark = text[at];
  const length = run(text, at);
  const [before, after] = [text[at - 1] ?? " ", text[at + length] ?? " "];
  const leftFlanking = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
  const rightFlanking = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
  const closes = rightFlanking && (mark !== "_" || !leftFlanking || PUNCTUATION.test(after));
  const opens = leftFlanking && (mark !== "_" || !rightFlanking || PUNCTUATION.test(before));
  let left = length;
  if (closes) left = closeMarkers(mark, left, nodes, open);
  // Longer runs are ornament, not emphasis.
  if (!opens || left > 3) return plainRun(mark, left, nodes, at + length);
  for (const size of MARKERS[mark]) {
    while (left >= size) {
      open.push({ mark, size, node: nodes.length, text: mark.repeat(size) });
      nodes.push(null);
      left -= size;
    }
  }
  return plainRun(mark, left, nodes, at + length);
}

function plainRun(mark, left, nodes, next) {
  if (left > 0) nodes.push({ type: "text", text: mark.repeat(left) });
  return next;
}

/// Ends the markers that a run of `left` characters closes, and says how many of them are left.
function closeMarkers(mark, left, nodes, open) {
  for (let i = open.length - 1; i >= 0 && left > 0 && open.length - i <= FARTHEST; i -= 1) {
    const marker = open[i];
    if (marker.bracket) break;
    if (marker.mark !== mark || marker.size > left || marker.node === nodes.length - 1) continue;
    const depth = 1 + nodes.slice(marker.node).reduce((most, node) => Math.max(most, node?.depth ?? 0), 0);
    if (depth > DEEPEST_INLINE) {
      drop(nodes, open, i);
      break;
    }
    const type = mark === "~" ? "strike" : marker.size === 2 ? "strong" : "emphasis";
    wrap(nodes, open, i, (inner) => ({ type, inlines: inner, depth }));
    left -= marker.size;
  }
  return left;
}

/// Makes one node of all after the marker `open[i]`. Markers inside it stay text.
function wrap(nodes, open, i, make) {
  for (const unused of open.splice(i + 1)) nodes[unused.node] = { type: "text", text: unused.text };
  const { node } = open.pop();
  const inner = nodes.splice(node).slice(1);
  nodes.push(make(merged(inner)));
}

/// Makes the marker `open[i]` text again.
function drop(nodes, open, i) {
  const [{ node, text }] = open.splice(i, 1);
  nodes[node] = { type: "text", text };
}

function bracket(text, at, length, nodes, open) {
  open.push({ bracket: true, node: nodes.length, text: text.slice(at, at + length) });
  nodes.push(null);
  return at + length;
}

function link(text, at, nodes, open) {
  const i = open.findLastIndex((marker) => marker.bracket);
  if (i < 0) return plain(text, at, 1, nodes);
  const target = destination(text, at + 1);
  if (!target) {
    drop(nodes, open, i);
    return plain(text, at, 1, nodes);
  }
  const href = safeHref(target.href);
  wrap(nodes, open, i, (inner) => (href ? { type: "link", href, inlines: unlinked(inner) } : { type: "group", inlines: inner }));
  return target.end;
}

/// Inlines without the links among them: there is no link in a link.
function unlinked(nodes) {
  return nodes.flatMap((node) => {
    if (node.type === "link") return node.inlines;
    return node.inlines ? [{ ...node, inlines: unlinked(node.inlines) }] : [node];
  });
}

/// `(address "title")` at `at`: the address, and where it ends.
function destination(text, at) {
  if (text[at] !== "(") return null;
  let depth = 0;
  for (let end = at; end < text.length && end - at < LONGEST_HREF; end += 1) {
    if (text[end] === "\n") return null;
    if (text[end] === "(") depth += 1;
    if (text[end] === ")" && (depth -= 1) === 0) {
      const inner = text.slice(at + 1, end).trim();
      const parts = /^<?([^\s<>]*)>?(?:\s+(?:"[^"]*"|'[^']*'))?$/.exec(inner);
      return parts && { href: parts[1], end: end + 1 };
    }
  }
  return null;
}

function lineBreak(text, at, nodes) {
  const last = nodes.at(-1);
  if (last?.type === "text" && last.text.endsWith("  ")) {
    last.text = last.text.trimEnd();
    nodes.push({ type: "break" });
  } else {
    nodes.push({ type: "text", text: "\n" });
  }
  return at + 1;
}

/// A bare address, or one in angle brackets.
function address(text, at, nodes) {
  const begin = text[at] === "<" ? at + 1 : at;
  ADDRESS.lastIndex = begin;
  const found = /\w/.test(text[begin - 1] ?? " ") ? null : ADDRESS.exec(text)?.[0];
  if (!found) return plain(text, at, 1, nodes);
  const closed = begin > at && text[begin + found.length] === ">";
  const shown = closed ? found : trimmed(found);
  const href = safeHref(shown);
  if (!href) return plain(text, at, 1, nodes);
  if (begin > at && !closed) nodes.push({ type: "text", text: "<" });
  nodes.push({ type: "link", href, inlines: [{ type: "text", text: shown }] });
  return begin + shown.length + (closed ? 1 : 0);
}

/// An address without the punctuation of the sentence that it is in.
function trimmed(found) {
  let shown = found.replace(/[.,;:!?'"*_~\]]+$/, "");
  while (shown.endsWith(")") && shown.split(")").length > shown.split("(").length) shown = shown.slice(0, -1);
  return shown;
}

/// The address as the browser reads it if it is http or https, else null.
export function safeHref(text) {
  if (!/^https?:\/\//i.test(text) || text.length > LONGEST_HREF) return null;
  try {
    const { protocol, href } = new URL(text);
    return protocol === "http:" || protocol === "https:" ? href : null;
  } catch {
    return null;
  }
}

/// Neighbouring texts as one, groups without their bracket.
function merged(nodes) {
  const found = [];
  for (const node of nodes.flatMap((node) => (node.type === "group" ? node.inlines : [node]))) {
    if (node.type === "text" && found.at(-1)?.type === "text") {
      found.at(-1).text += node.text;
    } else {
      found.push(node);
    }
  }
  return found;
}
