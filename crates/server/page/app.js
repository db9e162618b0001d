// The page: a chat with the model that this server serves.

import { ApiError, apiKey, fetchModel, generate } from "./api.js";
import { colourSwitch } from "./colours.js";
import { Conversation, figures, pieces } from "./conversation.js";
import { element } from "./dom.js";
import { answerView, sends, userView } from "./messages.js";
import { continues, examples, shortName, showModel, summary } from "./model.js";
import { Panel } from "./panel.js";
import { Settings, settingsForm } from "./settings.js";
import { count } from "./units.js";

const ASK_AGAIN_MS = 2000;
const NEAR_PX = 60;

const find = (selector) => document.querySelector(selector);
const [log, scroller, welcome, message] = [find("#log"), find("#scroller"), find("#welcome"), find("#message")];
const [sendButton, stopButton, notice, status] = [find("#send"), find("#stop"), find("#notice"), find("#status")];

const settings = Settings.load();
const conversation = Conversation.load();
const panel = new Panel();
const form = settingsForm(find("#settings"), settings, () => {});
let model = null;
let views = [];
/// Stops the answer that is being generated.
let running = null;
/// Whether the end of the log is kept in sight.
let following = true;

// ---- the model ----

async function ask() {
  try {
    model = await fetchModel();
    showNotice(null);
    showKnown();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showNotice(error);
    if (error.status === 401) askForKey();
    else setTimeout(ask, ASK_AGAIN_MS);
  }
  update();
}

function showKnown() {
  document.title = `${shortName(model)} · sparamx`;
  find("#model-name").textContent = shortName(model);
  find("#model-name").hidden = false;
  find("#welcome-title").textContent = continues(model) ? "Begin a text" : "What is on your mind?";
  find("#welcome-facts").replaceChildren(...summary(model).map((text) => element("span", {}, text)));
  const note = find("#welcome-note");
  note.hidden = !continues(model);
  note.textContent = "This model has no chat template: it does not answer, it continues the text that you give it.";
  message.placeholder = continues(model) ? "Begin a text" : "Write a message";
  find("#hint-system").hidden = !continues(model);
  find("#field-system").disabled = continues(model);
  find("#thinking-field").hidden = !model.meta?.reasoning;
  find("#examples").replaceChildren(
    ...examples(model).map((text) => element("button", { type: "button", class: "example", onclick: () => take(text) }, text)),
  );
  showModel(find("#model"), model);
  form.showDefaults(model.meta?.defaults);
  showContext();
}

function take(text) {
  message.value = text;
  grow();
  update();
  message.focus();
}

function askForKey() {
  find("#key-section").hidden = false;
  panel.open(find("#key"));
}

function useKey() {
  apiKey.set(find("#key").value.trim());
  showNotice(null);
  if (panel.isOver) panel.close();
  ask();
  message.focus();
}

// ---- the conversation ----

function addView(one) {
  const view = one.role === "user" ? userView(one, { onEdit }) : answerView(one, { onRetry, onContinue });
  views.push(view);
  log.append(view.article);
  return view;
}

function cut(index) {
  conversation.cut(Math.min(index, conversation.messages.length));
  for (const { article } of views.splice(index)) article.remove();
}

const indexOf = (article) => views.findIndex((view) => view.article === article);

function send() {
  const text = message.value;
  const goesOn = text.trim() === "" && model && continues(model) && conversation.messages.length > 0;
  if (running || !model || (text.trim() === "" && !goesOn)) return;
  message.value = "";
  grow();
  if (goesOn) {
    const last = views.length - 1;
    if (conversation.messages[last]?.role === "assistant") return onContinue(views[last].article);
  } else {
    say(text);
  }
  answer();
}

function say(text) {
  dropEmpty();
  const one = { role: "user", content: text };
  conversation.messages.push(one);
  conversation.save();
  addView(one);
  following = true;
}

/// An answer that failed before its first token leaves no message.
function dropEmpty() {
  const last = conversation.messages.at(-1);
  if (last?.role === "assistant" && !last.content) cut(conversation.messages.length - 1);
}

function onEdit(article, text) {
  if (running) return;
  cut(indexOf(article));
  say(text);
  answer();
  message.focus();
}

function onRetry(article) {
  if (running) return;
  cut(indexOf(article));
  answer();
  message.focus();
}

function onContinue(article) {
  if (running) return;
  const index = indexOf(article);
  cut(index + 1);
  answer(index);
  message.focus();
}

/// Generates the next answer, or goes on with the one at `index`.
async function answer(index = null) {
  const goOn = index !== null;
  const { path, body } = conversation.request(model, settings, goOn);
  const one = goOn ? conversation.messages[index] : { role: "assistant", content: "", reasoning: "" };
  if (!goOn) conversation.messages.push(one);
  const view = goOn ? views[index] : addView(one);
  Object.assign(one, { finish: null, stats: null });
  view.clearTrouble();
  running = new AbortController();
  view.setLive(true);
  following = true;
  update();
  announce("The model is answering");
  const seen = { begun: performance.now(), first: null, last: null, pieces: 0 };
  const told = {};
  try {
    await generate(path, body, running.signal, (chunk) => receive(chunk, one, view, seen, told));
    announce("The answer is complete");
  } catch (error) {
    failed(error, one, view);
  }
  running = null;
  one.stats = seen.first === null && !told.usage ? null : figures(told, seen);
  conversation.save();
  view.show();
  view.setLive(false);
  view.showStats();
  showContext();
  update();
  follow();
}

function receive(chunk, one, view, seen, told) {
  if (chunk.usage) told.usage = chunk.usage;
  if (chunk.timings) told.timings = chunk.timings;
  const { content, reasoning, finish } = pieces(chunk);
  if (finish) one.finish = finish;
  if (!content && !reasoning) return;
  seen.last = performance.now();
  seen.first ??= seen.last;
  seen.pieces += 1;
  one.content += content;
  one.reasoning = (one.reasoning ?? "") + reasoning;
  draw(view);
}

function failed(error, one, view) {
  if (error.name === "AbortError") {
    one.finish = "stopped";
    announce("Stopped");
    return;
  }
  if (!(error instanceof ApiError)) console.error(error);
  view.showTrouble(error instanceof ApiError ? error : new ApiError({ message: "The answer cannot be read.", advice: String(error) }));
  announce(error.message);
  if (error.status === 401) askForKey();
}

let drawing = null;

/// Shows an answer with the next frame.
function draw(view) {
  drawing ??= requestAnimationFrame(() => {
    drawing = null;
    view.show();
    follow();
  });
}

function stop() {
  running?.abort();
}

function newChat() {
  stop();
  cut(0);
  showNotice(null);
  showContext();
  update();
  message.focus();
}

// ---- what is shown around it ----

function update() {
  const busy = running !== null;
  welcome.hidden = conversation.messages.length > 0;
  log.setAttribute("aria-busy", String(busy));
  sendButton.hidden = busy;
  stopButton.hidden = !busy;
  const goesOn = model && continues(model) && conversation.messages.length > 0;
  sendButton.disabled = !model || (message.value.trim() === "" && !goesOn);
  for (const view of views) view.setBusy(busy);
}

/// Tells those who do not see what is going on.
function announce(text) {
  status.textContent = text;
}

function showNotice(error) {
  notice.hidden = error === null;
  if (error) notice.replaceChildren(element("strong", {}, error.message), element("span", {}, error.advice));
}

function showContext() {
  const used = conversation.messages.findLast(({ stats }) => stats?.contextTokens)?.stats.contextTokens ?? 0;
  const all = model?.max_model_len;
  find("#context").hidden = !all || used === 0;
  if (!all) return;
  find("#context-bar").value = used / all;
  find("#context-text").textContent = `${count(used)} of ${count(all)} tokens`;
}

/// Makes the field as high as its text.
function grow() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

function follow() {
  if (following) scroller.scrollTop = scroller.scrollHeight;
  atEnd();
}

function atEnd() {
  const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  find("#to-end").hidden = left < 2 * NEAR_PX;
  return left < NEAR_PX;
}

// ---- keys and clicks ----

find("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
message.addEventListener("keydown", (event) => {
  if (sends(event)) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && message.value === "" && !running) {
    event.preventDefault();
    views.findLast(({ edit }) => edit)?.edit();
  }
});
message.addEventListener("input", () => {
  grow();
  update();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  if (running) stop();
  else if (panel.isOver) panel.close();
});
stopButton.addEventListener("click", () => {
  stop();
  message.focus();
});
scroller.addEventListener("scroll", () => (following = atEnd()));
find("#to-end").addEventListener("click", () => {
  following = true;
  follow();
  message.focus();
});
find("#new-chat").addEventListener("click", newChat);
find("#model-name").addEventListener("click", () => {
  panel.open();
  find("#model-title").scrollIntoView();
});
find("#use-key").addEventListener("click", useKey);
find("#key").addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  useKey();
});

colourSwitch(find("#theme"));
for (const one of conversation.messages) addView(one);
if (apiKey.get()) find("#key-section").hidden = false;
update();
follow();
ask();
