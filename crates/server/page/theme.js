// Before anything is drawn: the colours that were chosen. Without a choice the system's are taken.

(() => {
  try {
    const theme = localStorage.getItem("sparamx.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is not allowed: the system's colours it is.
  }
})();
