"use strict";
// Light or dark: the system's setting, until the user chooses.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  function showTheme() {
    button.setAttribute("aria-pressed", String(isDark()));
    button.textContent = isDark() ? "Light" : "Dark";
  }

  try {
    const saved = localStorage.getItem("nlicot-theme");
    if (saved === "dark" || saved === "light") root.dataset.theme = saved;
  } catch { /* some browsers have no storage for files */ }

  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("nlicot-theme", root.dataset.theme); } catch { /* as above */ }
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();
})();
