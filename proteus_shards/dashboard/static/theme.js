// Before the first paint: the theme that was chosen here before. "auto", the default, leaves it to the system.
(() => {
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("proteus-theme") ?? "auto";
  } catch {
    // a browser that keeps nothing still shows a page
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
