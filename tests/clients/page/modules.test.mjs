// Those modules of the page that need no browser: node --test tests/clients/page/modules.test.mjs

import assert from "node:assert/strict";
import test from "node:test";

const page = new URL("../../../crates/server/page/", import.meta.url);
const load = (name) => import(new URL(name, page));
const { inlines, parse, safeHref } = await load("markdown.js");
const { EventParser } = await load("sse.js");
const { Conversation, figures, pieces } = await load("conversation.js");
const { amount, bytes, milliseconds, percent, rate } = await load("units.js");

/// A tree as short text: s(…) strong, e(…) emphasis, …
function shown(nodes) {
  return nodes
    .map((node) => {
      if (node.type === "text") return node.text;
      if (node.type === "code") return `c(${node.text})`;
      if (node.type === "break") return "⏎";
      if (node.type === "link") return `l(${node.href}|${shown(node.inlines)})`;
      return `${node.type[0]}(${shown(node.inlines)})`.replace(/^s\(/, node.type === "strike" ? "x(" : "s(");
    })
    .join("");
}

/// Blocks as short text.
function outline(blocks) {
  return blocks.map((block) => {
    switch (block.type) {
      case "heading":
        return `h${block.level}(${shown(block.inlines)})`;
      case "paragraph":
        return shown(block.inlines);
      case "code":
        return `code ${block.language}(${block.text})`;
      case "list":
        return [block.ordered ? block.start : "-", ...block.items.map(outline)];
      case "quote":
        return [">", ...outline(block.blocks)];
      case "table":
        return { align: block.align, head: block.head.map(shown), rows: block.rows.map((row) => row.map(shown)) };
      default:
        return block.type;
    }
  });
}

test("inlines", () => {
  for (const [text, expected] of [
    ["a **bold** and *soft* word", "a s(bold) and e(soft) word"],
    ["***both*** __bold__ _soft_", "s(e(both)) s(bold) e(soft)"],
    ["snake_case_name and 2 * 3 * 4", "snake_case_name and 2 * 3 * 4"],
    ["~~gone~~ ~stays~", "x(gone) ~stays~"],
    ["**open and *also", "**open and *also"],
    ["`a*b*` and ``x`y``", "c(a*b*) and c(x`y)"],
    ["`open", "`open"],
    ["\\*no\\* \\\\ \\a", "*no* \\ \\a"],
    ["[a **b**](https://x.y/z_(q))", "l(https://x.y/z_(q)|a s(b))"],
    ['[a](<https://x.y> "title")', "l(https://x.y/|a)"],
    ["[a](relative) [b](ftp://x) [c]", "a b [c]"],
    ["![alt](https://x.y/i.png)", "l(https://x.y/i.png|alt)"],
    ["[x https://a.b](https://c.d)", "l(https://c.d/|x https://a.b)"],
    ["see https://a.b/c. Or (https://a.b/d)", "see l(https://a.b/c|https://a.b/c). Or (l(https://a.b/d|https://a.b/d))"],
    ["<https://a.b/c> <b>text</b>", "l(https://a.b/c|https://a.b/c) <b>text</b>"],
    ["one  \ntwo\\\nthree\nfour", "one⏎two⏎three\nfour"],
    ["*ä* — **ö**", "e(ä) — s(ö)"],
    ["", ""],
  ]) {
    assert.equal(shown(inlines(text)), expected, text);
  }
});

test("only http and https are links", () => {
  for (const text of ["javascript:alert(1)", "JaVaScRiPt:x", "data:text/html,x", "//x.y", "/x", "vbscript:x", " https://x.y", "https://", "file:///x"]) {
    assert.equal(safeHref(text), null, text);
  }
  assert.equal(safeHref("https://x.y/z?q=1"), "https://x.y/z?q=1");
  assert.equal(safeHref("HTTP://X.y"), "http://x.y/");
  assert.equal(safeHref(`https://x.y/${"z".repeat(3000)}`), null);
  for (const text of ["[x](javascript:alert(1))", "[x](java\nscript:alert(1))", "<javascript:alert(1)>", "[x](data:text/html;base64,xx)"]) {
    assert.ok(!JSON.stringify(inlines(text)).includes('"href"'), text);
  }
});

test("blocks", () => {
  for (const [text, expected] of [
    ["# A\n\n## B ##\n####### C", ["h1(A)", "h2(B)", "####### C"]],
    ["one\ntwo\n\nthree", ["one\ntwo", "three"]],
    ["```rust\nfn a() {}\n\n  b\n```\nafter", ["code rust(fn a() {}\n\n  b)", "after"]],
    ["~~~\n```\n~~~", ["code (```)"]],
    ["```js\nstill open", ["code js(still open)"]],
    ["- a\n- b\n  - c\n\n    more\n- d", [["-", ["a"], ["b", ["-", ["c", "more"]]], ["d"]]]],
    ["3. x\n4. y\n   ```\n   z\n   ```", [[3, ["x"], ["y", "code (z)"]]]],
    ["1. x\n\n2. y\n\ntext", [[1, ["x"], ["y"]], "text"]],
    ["* a\n+ b", [["-", ["a"]], ["-", ["b"]]]],
    ["It was in\n1986. A year.", ["It was in\n1986. A year."]],
    ["> a\nlazy\n> - b\n\nc", [[">", "a\nlazy", ["-", ["b"]]], "c"]],
    ["a\n***\nb\n- - -", ["a", "rule", "b", "rule"]],
    [
      "|a|b|\n|:-|-:|\n|1|`x|y`|\n|2 \\| 3|\nend",
      [{ align: ["left", "right"], head: ["a", "b"], rows: [["1", "c(x|y)"], ["2 | 3", ""]] }, "end"],
    ],
    ["a | b\nc | d", ["a | b\nc | d"]],
    ["<div>\n<script>alert(1)</script>", ["<div>\n<script>alert(1)</script>"]],
    ["\r\nx\r\ny", ["x\ny"]],
  ]) {
    assert.deepEqual(outline(parse(text)), expected, text);
  }
});

test("a text that grows keeps its first blocks", () => {
  const text = "# A\n\nsome *text* here\n\n- a\n- b\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nend";
  const whole = parse(text);
  for (let length = 0; length <= text.length; length += 1) {
    const blocks = parse(text.slice(0, length));
    for (const [i, block] of blocks.slice(0, -1).entries()) assert.equal(block.source, whole[i].source, text.slice(0, length));
  }
});

test("hostile texts are read in reasonable time, and not too deep", () => {
  const deepest = (nodes) => nodes.reduce((most, node) => Math.max(most, 1 + deepest(node.inlines ?? node.blocks ?? node.items?.flat() ?? [])), 0);
  for (const part of ["*a_ ", "[", "[a](", "> ", "- ", "**", "*a ", "xxx`", "a**b", "`a``b", "http://", "  \n", "1. ", "~~", "\\", "|", "![", "_*", "#", "\n> - "]) {
    const text = part.repeat(20_000);
    const begun = performance.now();
    assert.ok(deepest(parse(text)) < 80, part);
    assert.ok(performance.now() - begun < 20_000, `${part} hangs`);
  }
  const nested = `${"*a ".repeat(3000)}${"b* ".repeat(3000)}`;
  assert.ok(deepest(parse(nested)) < 80);
});

test("random texts lose no word", () => {
  let seed = 1;
  const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
  const parts = ["w", "*", "**", "_", "`", "[", "](", ")", "\n", "\n\n", "- ", "1. ", "> ", "```", "|", "# ", " ", "  ", "\\", "~~", "<", "https://a.b", "!"];
  for (let i = 0; i < 3000; i += 1) {
    const text = Array.from({ length: 30 }, (_, at) => (random(4) === 0 ? `word${at}` : parts[random(parts.length)])).join("");
    const words = JSON.stringify(outline(parse(text)));
    // Addresses of links and titles are not shown, and the language of a code block is its label.
    if (text.includes("](") || text.includes("```") || text.includes("~~~")) continue;
    for (const word of text.match(/word\d+/g) ?? []) assert.ok(words.includes(word), `${word} in ${JSON.stringify(text)}`);
  }
});

test("events, however they are cut", () => {
  const text = 'data: {"a":1}\n\n: keep-alive\n\ndata:two\r\ndata: lines\r\n\r\nevent: x\nid: 3\ndata: €\n\ndata: [DONE]\n\n';
  const expected = ['{"a":1}', "two\nlines", "€", "[DONE]"];
  for (let size = 1; size <= text.length; size += 1) {
    const found = [];
    const parser = new EventParser((data) => found.push(data));
    for (let at = 0; at < text.length; at += size) parser.push(text.slice(at, at + size));
    assert.deepEqual(found, expected, `pieces of ${size}`);
  }
});

const SETTINGS = { system: "", thinking: "", fields: () => ({}) };

test("a request of a chat", () => {
  const conversation = new Conversation();
  conversation.messages = [
    { role: "user", content: "a" },
    { role: "user", content: "b" },
    { role: "assistant", content: "", reasoning: "r" },
    { role: "user", content: "c" },
    { role: "assistant", content: "d", stats: {} },
  ];
  const settings = { system: " Be brief. ", thinking: "off", fields: () => ({ temperature: 0, max_tokens: 9 }) };
  const { path, body } = conversation.request({ id: "m" }, settings, true);
  assert.equal(path, "/v1/chat/completions");
  assert.deepEqual(body.messages, [
    { role: "system", content: " Be brief. " },
    { role: "user", content: "a\n\nb\n\nc" },
    { role: "assistant", content: "d" },
  ]);
  assert.deepEqual([body.model, body.temperature, body.max_completion_tokens, body.max_tokens], ["m", 0, 9, undefined]);
  assert.deepEqual(body.chat_template_kwargs, { enable_thinking: false });
  assert.ok(body.continue_final_message && body.add_generation_prompt === false);
});

test("a request of a model without a template is a text", () => {
  const conversation = new Conversation();
  conversation.messages = [
    { role: "user", content: "Once" },
    { role: "assistant", content: " upon a time" },
    { role: "user", content: "Then" },
  ];
  const { path, body } = conversation.request({ id: "m", meta: { chat_template: false } }, SETTINGS, false);
  assert.equal(path, "/v1/completions");
  assert.equal(body.prompt, "Once upon a time\n\nThen");
  assert.equal(body.max_tokens, 256);
});

test("pieces of chats and completions", () => {
  assert.deepEqual(pieces({ choices: [{ delta: { content: "a" } }] }), { content: "a", reasoning: "", finish: null });
  assert.deepEqual(pieces({ choices: [{ delta: { reasoning: "r", reasoning_content: "r" } }] }).reasoning, "r");
  assert.deepEqual(pieces({ choices: [{ text: "t", finish_reason: "length" }] }), { content: "t", reasoning: "", finish: "length" });
  assert.deepEqual(pieces({ choices: [] }), { content: "", reasoning: "", finish: null });
});

test("figures", () => {
  const seen = { begun: 100, first: 300, last: 1300, pieces: 11 };
  assert.equal(figures({}, seen).tokensPerSecond, 10);
  assert.equal(figures({}, seen).firstTokenMs, 200);
  const told = { usage: { completion_tokens: 20, prompt_tokens: 5, total_tokens: 25 }, timings: { predicted_n: 20, predicted_ms: 500 } };
  assert.deepEqual([figures(told, seen).tokens, figures(told, seen).tokensPerSecond, figures(told, seen).contextTokens], [20, 40, 25]);
  assert.equal(figures({}, { begun: 0, first: null, last: null, pieces: 0 }).tokensPerSecond, null);
});

test("units", () => {
  assert.deepEqual([amount(134_515_008), amount(1_100_048_384), amount(5120)], ["135 million", "1.1 billion", "5,120"]);
  assert.deepEqual([bytes(512), bytes(171_966_464), bytes(16 * 1024 ** 3)], ["512 bytes", "164 MiB", "16 GiB"]);
  assert.deepEqual([milliseconds(0.2), milliseconds(148.4), milliseconds(2345)], ["1 ms", "148 ms", "2.35 s"]);
  assert.deepEqual([percent(0.5), percent(0.4996), rate(34.93), rate(1234.5)], ["50 %", "50 %", "34.9", "1,235"]);
});
