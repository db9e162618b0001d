// Elements without HTML text: nothing here, and nothing that uses it, reads markup from a string.

const SVG = "http://www.w3.org/2000/svg";

/// An element with attributes, handlers (`onclick`, …) and children: nodes, or texts.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/// One of the drawings at the end of index.html.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/// A button with a drawing, and a text beside it or for those who cannot see.
export function button(drawing, label, onclick, { text = true, className = "quiet" } = {}) {
  const made = element("button", { type: "button", class: className, onclick }, icon(drawing));
  if (text) made.append(element("span", {}, label));
  else made.setAttribute("aria-label", label);
  return made;
}

/// Copies a text and says on the button that it did.
export function copyButton(text, options) {
  const made = button("copy", "Copy", copy, options);
  const label = made.querySelector("span");
  const use = made.querySelector("use");
  async function copy() {
    const done = await written(text());
    const said = done ? "Copied" : "Not allowed";
    use.setAttribute("href", done ? "#icon-check" : "#icon-copy");
    if (label) label.textContent = said;
    else made.setAttribute("aria-label", said);
    setTimeout(() => {
      use.setAttribute("href", "#icon-copy");
      if (label) label.textContent = "Copy";
      else made.setAttribute("aria-label", "Copy");
    }, 1600);
  }
  return made;
}

/// Browsers give a page without https on another machine no clipboard; the old way works there.
async function written(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
