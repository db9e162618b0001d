// Server-sent events from a stream of bytes, as the HTML standard reads them. Only `data` matters here.

/// Takes text in pieces and calls `onData` with the data of each event.
export class EventParser {
  #rest = "";
  #data = [];
  #onData;

  constructor(onData) {
    this.#onData = onData;
  }

  push(text) {
    // A \r at the end may be the first half of \r\n.
    const held = text.endsWith("\r") ? "\r" : "";
    const lines = (this.#rest + text.slice(0, text.length - held.length)).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + held;
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") {
      if (this.#data.length > 0) this.#onData(this.#data.join("\n"));
      this.#data = [];
    } else if (line.startsWith("data:")) {
      this.#data.push(line.startsWith("data: ") ? line.slice(6) : line.slice(5));
    }
  }
}

/// Reads a body to its end and calls `onData` with the data of each event.
export async function readEvents(body, onData) {
  const parser = new EventParser(onData);
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    parser.push(value);
  }
}
