"use strict";
// Light or dark: as the system has it, until a person chooses otherwise.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  function tell() {
    button.setAttribute("aria-pressed", String(isDark()));
    button.textContent = isDark() ? "Light" : "Dark";
  }

  try {
    const kept = localStorage.getItem("nlicot-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* some browsers keep nothing for files */ }

  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("nlicot-theme", root.dataset.theme); } catch { /* as above */ }
    tell();
  });
  system.addEventListener("change", tell);
  tell();
})();
