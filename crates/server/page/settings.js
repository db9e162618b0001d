// What the user sets: the system prompt and the parameters of a request. An empty field is left to the model's default.

import { element } from "./dom.js";

const STORE = "sparamx.settings";

/// Fields of a request in the order of the form. `most` and `least` are what the server allows.
export const PARAMETERS = [
  { name: "temperature", label: "Temperature", least: 0, step: 0.1, hint: "0 always takes the most probable token" },
  { name: "top_p", label: "Top p", least: 0, most: 1, step: 0.05, hint: "Keeps the most probable tokens up to this sum" },
  { name: "top_k", label: "Top k", least: -1, step: 1, whole: true, hint: "Keeps so many of the most probable tokens" },
  { name: "min_p", label: "Min p", least: 0, most: 1, step: 0.01, hint: "Leaves out tokens below this share of the best" },
  { name: "repetition_penalty", label: "Repetition penalty", least: 0, step: 0.05, hint: "Above 1: fewer tokens come again" },
  { name: "presence_penalty", label: "Presence penalty", least: -2, most: 2, step: 0.1, hint: "Above 0: more new tokens" },
  { name: "frequency_penalty", label: "Frequency penalty", least: -2, most: 2, step: 0.1, hint: "Above 0: fewer frequent tokens" },
  { name: "max_tokens", label: "Most new tokens", least: 1, step: 1, whole: true, hint: "Where an answer ends at the latest" },
  { name: "seed", label: "Seed", step: 1, whole: true, hint: "The same seed gives the same answer" },
];

/// Settings as they are stored: `system` and `stop` are texts, `values` the numbers that are given, by name.
export class Settings {
  system = "";
  stop = "";
  thinking = "";
  values = {};

  static load() {
    const settings = new Settings();
    try {
      const { system, stop, thinking, values } = JSON.parse(localStorage.getItem(STORE) ?? "{}");
      for (const [name, value] of Object.entries({ system, stop, thinking })) {
        if (typeof value === "string") settings[name] = value;
      }
      for (const { name } of PARAMETERS) {
        if (Number.isFinite(values?.[name])) settings.values[name] = values[name];
      }
    } catch {
      // Not ours, or not allowed: the defaults are.
    }
    return settings;
  }

  save() {
    try {
      localStorage.setItem(STORE, JSON.stringify(this));
    } catch {
      // They last as long as the page then.
    }
  }

  /// The fields of a request.
  fields() {
    const fields = { ...this.values };
    const stop = this.stop.split("\n").filter((line) => line !== "");
    if (stop.length > 0) fields.stop = stop.map(unescaped);
    return fields;
  }
}

/// `\n` and `\t` in a line stand for what they say.
function unescaped(line) {
  return line.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}

/// Fills the form with the fields, and calls `onChange` after each change.
export function settingsForm(form, settings, onChange) {
  const inputs = PARAMETERS.map((parameter) => numberField(parameter, settings, changed));
  form.querySelector("#parameters").append(...inputs.map(({ row }) => row));
  const texts = ["system", "stop", "thinking"].map((name) => {
    const field = form.querySelector(`#field-${name}`);
    field.value = settings[name];
    field.addEventListener("input", () => {
      settings[name] = field.value;
      changed();
    });
    return field;
  });
  form.querySelector("#reset").addEventListener("click", () => {
    Object.assign(settings, new Settings());
    for (const { input } of inputs) input.value = "";
    for (const field of texts) field.value = "";
    for (const { check } of inputs) check();
    changed();
  });

  function changed() {
    settings.save();
    onChange();
  }

  return {
    /// Shows what the model takes where a field is empty.
    showDefaults(defaults = {}) {
      for (const { name, input } of inputs) {
        const value = defaults[name];
        input.placeholder = Number.isFinite(value) ? String(Math.round(value * 1000) / 1000) : "default";
      }
    },
    /// Moves to the field of a request that the server refused.
    focus(param) {
      inputs.find(({ name }) => param === name)?.input.focus();
    },
  };
}

function numberField(parameter, settings, changed) {
  const { name, label, least, most, step, whole, hint } = parameter;
  const input = element("input", {
    id: `field-${name}`,
    type: "number",
    inputmode: whole && !(least < 0) ? "numeric" : "decimal",
    min: least,
    max: most,
    step: whole ? 1 : "any",
    placeholder: "default",
    autocomplete: "off",
    "aria-describedby": `hint-${name}`,
  });
  const note = element("span", { id: `hint-${name}`, class: "hint" }, hint);
  if (settings.values[name] !== undefined) input.value = settings.values[name];
  // Arrow keys go by a step that makes sense, typing by any.
  input.addEventListener("keydown", (event) => {
    if (whole || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
    event.preventDefault();
    const from = Number(input.value || input.placeholder) || 0;
    const to = from + (event.key === "ArrowUp" ? step : -step);
    input.value = Math.round(Math.min(most ?? Infinity, Math.max(least ?? -Infinity, to)) * 1000) / 1000;
    input.dispatchEvent(new Event("input"));
  });
  const check = () => {
    const wrong = problem(input, parameter);
    input.setAttribute("aria-invalid", String(wrong !== null));
    note.textContent = wrong ?? hint;
    return wrong === null;
  };
  input.addEventListener("input", () => {
    delete settings.values[name];
    if (check() && input.value !== "") settings.values[name] = Number(input.value);
    changed();
  });
  const row = element("div", { class: "field" }, element("label", { for: input.id }, label), input, note);
  return { name, row, input, check };
}

/// What is wrong with a field; it is not sent then.
function problem(input, { least = -Infinity, most = Infinity, whole }) {
  if (input.validity.badInput) return "Not a number: it is left out";
  if (input.value === "") return null;
  const value = Number(input.value);
  if (whole && !Number.isInteger(value)) return "Not a whole number: it is left out";
  if (value < least) return `Less than ${least}: it is left out`;
  if (value > most) return `More than ${most}: it is left out`;
  return null;
}
