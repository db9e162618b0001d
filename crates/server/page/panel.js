// The panel at the side: beside the chat where there is room, over it where there is not.

const STORE = "sparamx.panel";
const WIDE = "(min-width: 70rem)";

export class Panel {
  #panel = document.querySelector("#panel");
  #opener = document.querySelector("#open-panel");
  #shade = document.querySelector("#shade");
  #behind = [document.querySelector("#bar"), document.querySelector("#main")];
  #wide = matchMedia(WIDE);

  constructor() {
    this.#opener.addEventListener("click", () => this.toggle());
    document.querySelector("#close-panel").addEventListener("click", () => this.close());
    this.#shade.addEventListener("click", () => this.close());
    document.querySelector("#settings").addEventListener("submit", (event) => event.preventDefault());
    this.#wide.addEventListener("change", () => this.#place());
    // Open at first where it takes nothing away.
    if (this.#wide.matches && remembered() !== "closed") this.#panel.hidden = false;
    this.#place();
  }

  get isOpen() {
    return !this.#panel.hidden;
  }

  /// Whether it lies over the chat.
  get isOver() {
    return this.isOpen && !this.#wide.matches;
  }

  toggle() {
    if (this.isOpen) this.close();
    else this.open();
  }

  open(field = document.querySelector("#close-panel")) {
    this.#panel.hidden = false;
    this.#remember("open");
    this.#place();
    field.focus();
  }

  close() {
    this.#panel.hidden = true;
    this.#remember("closed");
    this.#place();
    this.#opener.focus();
  }

  #place() {
    this.#opener.setAttribute("aria-expanded", String(this.isOpen));
    this.#shade.hidden = !this.isOver;
    for (const one of this.#behind) one.inert = this.isOver;
  }

  #remember(state) {
    try {
      if (this.#wide.matches) localStorage.setItem(STORE, state);
    } catch {
      // It is as at first next time.
    }
  }
}

function remembered() {
  try {
    return localStorage.getItem(STORE);
  } catch {
    return null;
  }
}
