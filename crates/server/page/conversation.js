// The messages of a chat, without their looks: what a request is made of.

const STORE = "sparamx.conversation";

/// Messages are `{role, content, reasoning?, stats?, finish?}`. They are kept for this tab only.
export class Conversation {
  messages = [];

  static load() {
    const conversation = new Conversation();
    try {
      const messages = JSON.parse(sessionStorage.getItem(STORE) ?? "[]");
      conversation.messages = messages.filter(({ role, content }) => ["user", "assistant"].includes(role) && typeof content === "string");
    } catch {
      // An empty one then.
    }
    return conversation;
  }

  save() {
    try {
      sessionStorage.setItem(STORE, JSON.stringify(this.messages));
    } catch {
      // Too long to keep, or not allowed: it lasts as long as the page.
    }
  }

  /// Takes the messages from `index` on away.
  cut(index) {
    this.messages.length = index;
    this.save();
  }

  /// Path and body of the request for the next answer. `goOn`: the last message is an answer to go on with.
  request(model, settings, goOn) {
    const body = { model: model?.id, stream_options: { include_usage: true }, timings: true, ...settings.fields() };
    if (model?.meta?.chat_template === false) {
      return { path: "/v1/completions", body: { ...body, max_tokens: body.max_tokens ?? 256, prompt: this.text() } };
    }
    const messages = this.turns();
    if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
    const { max_tokens: most, ...fields } = body;
    const chat = { ...fields, messages };
    if (most !== undefined) chat.max_completion_tokens = most;
    if (settings.thinking) chat.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
    if (goOn) Object.assign(chat, { add_generation_prompt: false, continue_final_message: true });
    return { path: "/v1/chat/completions", body: chat };
  }

  /// Messages as templates want them: none is empty, and no two in a row are of one role.
  turns() {
    const turns = [];
    for (const { role, content } of this.messages) {
      if (content === "") continue;
      if (turns.at(-1)?.role === role) turns.at(-1).content += `\n\n${content}`;
      else turns.push({ role, content });
    }
    return turns;
  }

  /// All messages as one text, for a model that knows no roles.
  text() {
    let text = "";
    for (const { role, content } of this.messages) {
      if (role === "user" && text !== "" && content !== "") text += "\n\n";
      text += content;
    }
    return text;
  }
}

/// The text and the reasoning in a piece of a chat or of a completion.
export function pieces(chunk) {
  const choice = chunk.choices?.[0];
  const content = choice?.delta?.content ?? choice?.text ?? "";
  const reasoning = choice?.delta?.reasoning ?? choice?.delta?.reasoning_content ?? "";
  return { content, reasoning, finish: choice?.finish_reason ?? null };
}

/// Figures of an answer: the server's times where it gives them, else what the page saw.
export function figures({ usage, timings }, { begun, first, last, pieces: count }) {
  const tokens = usage?.completion_tokens ?? timings?.predicted_n ?? count;
  const seconds = timings?.predicted_ms > 0 ? timings.predicted_ms / 1000 : (last - first) / 1000;
  // The first token comes with the prompt: the time is that of the others.
  const timed = timings?.predicted_ms > 0 ? timings.predicted_n : tokens - 1;
  return {
    tokens,
    tokensPerSecond: timed > 0 && seconds > 0 ? timed / seconds : null,
    firstTokenMs: first === null ? null : first - begun,
    promptTokens: usage?.prompt_tokens ?? null,
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? null,
    contextTokens: usage?.total_tokens ?? null,
    drafted: timings?.draft_n ?? 0,
    accepted: timings?.draft_n_accepted ?? 0,
  };
}
