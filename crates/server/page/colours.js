// The switch between light and dark. A choice that is the system's is no choice: it follows the system again.

const STORE = "sparamx.theme";

export function colourSwitch(button) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const shown = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");

  function show() {
    const isDark = shown() === "dark";
    button.setAttribute("aria-label", isDark ? "Switch to light colours" : "Switch to dark colours");
    button.querySelector("use").setAttribute("href", isDark ? "#icon-sun" : "#icon-moon");
  }

  button.addEventListener("click", () => {
    const next = shown() === "dark" ? "light" : "dark";
    const chosen = next !== (dark.matches ? "dark" : "light");
    if (chosen) root.dataset.theme = next;
    else delete root.dataset.theme;
    try {
      if (chosen) localStorage.setItem(STORE, next);
      else localStorage.removeItem(STORE);
    } catch {
      // It lasts as long as the page.
    }
    show();
  });
  dark.addEventListener("change", show);
  show();
}
