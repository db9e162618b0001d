// The messages on the page. Each view is an article; the list of views is that of the conversation.

import { button, copyButton, element } from "./dom.js";
import { renderInto } from "./render.js";
import { count, milliseconds, rate } from "./units.js";

/// What the user said: text, edited in place.
export function userView(message, { onEdit }) {
  const bubble = element("div", { class: "bubble" }, message.content);
  const actions = element("div", { class: "actions" });
  const article = element("article", { class: "message user", "aria-label": "You" }, bubble, actions);
  const edit = button("edit", "Edit", () => editor(article, message, onEdit));
  actions.append(
    edit,
    copyButton(() => message.content),
  );
  return { article, edit: () => edit.click(), setBusy: (busy) => (edit.disabled = busy) };
}

function editor(article, message, onEdit) {
  if (article.querySelector("form")) return;
  const field = element("textarea", { "aria-label": "Your message", rows: Math.min(12, message.content.split("\n").length + 1) });
  field.value = message.content;
  const close = () => {
    form.remove();
    article.classList.remove("edited");
    article.querySelector(".actions button").focus();
  };
  const send = () => {
    if (field.value.trim() === "") return;
    close();
    onEdit(article, field.value);
  };
  const buttons = element("div", { class: "buttons" }, element("button", { type: "button", class: "plain", onclick: close }, "Cancel"));
  buttons.append(element("button", { type: "submit", class: "plain strong" }, "Send"));
  const form = element("form", { class: "editor" }, field, buttons);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (sends(event) && event.target === field) {
      event.preventDefault();
      send();
    }
  });
  article.classList.add("edited");
  article.prepend(form);
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

/// Whether a key sends: Enter, but not Shift+Enter, nor the Enter that ends the input of a composed character.
export const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/// What the model said.
export function answerView(message, { onRetry, onContinue }) {
  const reasoning = element("div", { class: "prose" });
  const summary = element("summary", {}, "Reasoning");
  const folded = element("details", { class: "reasoning", hidden: true }, summary, reasoning);
  const prose = element("div", { class: "prose" });
  const waiting = element("p", { class: "waiting", hidden: true }, element("span", { class: "dots", "aria-hidden": "true" }), "Reading");
  const trouble = element("div", { class: "trouble", hidden: true });
  const stats = element("span", { class: "stats" });
  const actions = element("div", { class: "actions" });
  const foot = element("div", { class: "foot" }, actions, stats);
  const article = element("article", { class: "message answer", "aria-label": "Answer" }, folded, prose, waiting, trouble, foot);
  const goOn = button("on", "Continue", () => onContinue(article));
  const copy = copyButton(() => message.content);
  actions.append(
    copy,
    button("retry", "Retry", () => onRetry(article)),
    goOn,
  );

  const view = {
    article,
    /// Shows the text so far.
    show() {
      folded.hidden = !message.reasoning;
      if (message.reasoning) renderInto(reasoning, message.reasoning);
      renderInto(prose, message.content);
      if (message.content || message.reasoning) waiting.hidden = true;
    },
    /// While it is generated: `live`, and `waiting` until its first token.
    setLive(live) {
      article.classList.toggle("live", live);
      waiting.hidden = !live || Boolean(message.content || message.reasoning);
      foot.hidden = live && !message.stats;
      for (const one of actions.children) one.hidden = live;
      goOn.hidden ||= !message.content || (message.finish !== "length" && message.finish !== "stopped");
      copy.hidden ||= !message.content;
      if (!live && message.reasoning) summary.textContent = "Reasoning";
      else if (live && message.reasoning && !message.content) summary.textContent = "Reasoning …";
    },
    setBusy(busy) {
      for (const one of actions.children) one.disabled = busy && one !== copy;
    },
    showStats() {
      foot.hidden = false;
      stats.replaceChildren(...statTexts(message).map((text) => element("span", {}, text)));
    },
    /// Shows an error with what to do about it.
    showTrouble(error) {
      trouble.hidden = false;
      trouble.replaceChildren(element("strong", {}, error.message), element("span", {}, error.advice ?? ""));
    },
    clearTrouble: () => (trouble.hidden = true),
  };
  view.show();
  view.showStats();
  view.setLive(false);
  return view;
}

const ENDS = { length: "most tokens reached", stopped: "stopped", tool_calls: "calls a tool", abort: "ended by the server" };

function statTexts({ stats, finish }) {
  const texts = [];
  if (ENDS[finish]) texts.push(ENDS[finish]);
  if (!stats) return texts;
  if (stats.tokens) texts.push(`${count(stats.tokens)} ${stats.tokens === 1 ? "token" : "tokens"}`);
  if (stats.tokensPerSecond) texts.push(`${rate(stats.tokensPerSecond)} tokens/s`);
  if (stats.firstTokenMs !== null) texts.push(`first token after ${milliseconds(stats.firstTokenMs)}`);
  if (stats.promptTokens) {
    const cached = stats.cachedTokens ? `, ${count(stats.cachedTokens)} from the cache` : "";
    texts.push(`prompt of ${count(stats.promptTokens)}${cached}`);
  }
  if (stats.drafted) texts.push(`${count(stats.accepted)} of ${count(stats.drafted)} draft tokens kept`);
  return texts;
}
